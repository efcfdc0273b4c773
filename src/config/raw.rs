//! The YAML as written: a tree in which every key and value knows its place.
//!
//! It is built from the parser's events rather than by deserialising: serde stops at the first fault, and a repeated key or
//! a wrong type must not hide the next one. What the keys mean is not known here.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use serde_yaml::granit_parser::{self as yaml, Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use crate::config::problem::{Position, Problem};

/// A value and where it begins. Cheap to clone. Prints nothing: it may hold secrets.
#[derive(Clone)]
pub struct Node {
    /// Where it begins; of an alias, where the value it stands for begins.
    pub at: Position,
    /// The value itself.
    pub value: Value,
}

/// What YAML knows.
#[derive(Clone)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Text, number, boolean: as written, quotes and escapes resolved.
    Scalar(Rc<str>),
    /// `[a, b]`.
    List(Rc<[Node]>),
    /// `{a: 1}`, in the order of the file, no key twice.
    Map(Rc<[Entry]>),
}

/// One `key: value`.
#[derive(Clone)]
pub struct Entry {
    /// The key.
    pub key: Rc<str>,
    /// Where the key stands.
    pub at: Position,
    /// Its value.
    pub value: Node,
}

impl Node {
    fn new(at: Position, value: Value) -> Self {
        Self { at, value }
    }
}

/// What could be read, and what was wrong with it.
pub struct Parsed {
    /// The tree; `None` after a fault that makes the rest unreadable.
    pub root: Option<Node>,
    /// Faults of YAML itself. With a tree, such as repeated keys, of which the first counts.
    pub problems: Vec<Problem>,
}

/// Builds the tree of one document.
pub fn parse(text: &str) -> Parsed {
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options()),
        anchors: HashMap::new(),
        budget: MOST_NODES,
        path: String::new(),
        problems: Vec::new(),
    };
    let root = builder.document().map_err(|fatal| builder.problems.push(fatal)).ok();
    Parsed { root, problems: builder.problems }
}

/// Nodes in a file, each alias counted with all it stands for: an honest file has a few thousand.
const MOST_NODES: usize = 100_000;
/// Levels of nesting; `edge.yaml` has four. The builder recurses once for each.
const DEEPEST: usize = 32;

fn options() -> yaml::Options {
    let mut options = yaml::Options::default();
    options.set_emit_comments(false);
    options.emit_unresolved_aliases = true;
    options.flow_nesting_limit = DEEPEST;
    options.block_nesting_limit = DEEPEST;
    options
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    /// Finished anchored nodes with the number of nodes in them.
    anchors: HashMap<usize, (Node, usize)>,
    budget: usize,
    /// Path of the mapping being read.
    path: String,
    problems: Vec<Problem>,
}

impl<'t> Builder<'t> {
    fn document(&mut self) -> Result<Node, Problem> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(problem(
                        position(&span),
                        "a second document begins here: one file is one document",
                    ));
                }
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        Ok(root.unwrap_or(Node::new(Position::START, Value::Null)))
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(fault)) => Err(scan_problem(&fault)),
            None => Err(problem(Position::START, "the file ends in the middle of a value")),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, Problem> {
        let at = position(&span);
        self.spend(1, at)?;
        if depth > DEEPEST {
            return Err(problem(at, "nested too deeply"));
        }
        if event.tag().is_some() {
            self.problems.push(problem(at, "YAML tags have no meaning here: remove the `!…`"));
        }
        let before = self.budget;
        let anchor = event.anchor_id();
        let value = match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) if matches!(&*text, "" | "~" | "null") => Value::Null,
            Event::Scalar(text, ..) => Value::Scalar(text.into()),
            Event::SequenceStart(..) => Value::List(self.list(depth)?.into()),
            Event::MappingStart(..) => Value::Map(self.map(depth)?.into()),
            Event::Alias(id) => return self.alias(id, at),
            Event::UnresolvedAlias(name) => {
                return Err(problem(at, format!("there is no anchor `&{name}` before this alias")));
            }
            _ => return Err(problem(at, "a value was expected here")),
        };
        let node = Node::new(at, value);
        if let Some(id) = anchor {
            self.anchors.insert(id, (node.clone(), before - self.budget + 1));
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, at: Position) -> Result<Node, Problem> {
        match self.anchors.get(&id).cloned() {
            Some((node, nodes)) => self.spend(nodes, at).map(|()| node),
            // The anchor is on a value that has not ended yet.
            None => Err(problem(at, "an alias inside the value it stands for")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut keys: HashMap<Rc<str>, Position> = HashMap::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = match self.next()? {
                (Event::MappingEnd, _) => break,
                next => next,
            };
            let key = self.node(event, span, depth + 1)?;
            let name = key_name(&key);
            let outside = self.path.len();
            if !self.path.is_empty() {
                self.path.push('.');
            }
            self.path.push_str(name.as_deref().unwrap_or("?"));
            let path = self.path.clone();
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            self.path.truncate(outside);
            let Some(name) = name else {
                self.problems.push(problem(key.at, "a key is a word, not a list or mapping"));
                continue;
            };
            if &*name == "<<" {
                merged.push(value);
            } else if let Some(first) = keys.get(&name) {
                let what = format!("repeated key: it is already set on line {}", first.line);
                self.problems.push(Problem { key: path, ..problem(key.at, what) });
            } else {
                keys.insert(name.clone(), key.at);
                entries.push(Entry { key: name, at: key.at, value });
            }
        }
        for source in merged {
            self.merge(&mut entries, source)?;
        }
        Ok(entries)
    }

    /// `<<: *anchor` or `<<: [*a, *b]`: keys of the mappings named that are not here yet.
    fn merge(&mut self, entries: &mut Vec<Entry>, source: Node) -> Result<(), Problem> {
        let mappings = match source.value {
            Value::List(items) => items.to_vec(),
            Value::Null | Value::Scalar(_) | Value::Map(_) => vec![source],
        };
        let mut here: HashSet<Rc<str>> = entries.iter().map(|entry| entry.key.clone()).collect();
        for mapping in mappings {
            let Value::Map(new) = mapping.value else {
                self.problems.push(problem(mapping.at, "`<<` takes a mapping or a list of mappings"));
                continue;
            };
            self.spend(new.len(), mapping.at)?;
            entries.extend(new.iter().filter(|entry| here.insert(entry.key.clone())).cloned());
        }
        Ok(())
    }

    fn spend(&mut self, nodes: usize, at: Position) -> Result<(), Problem> {
        match self.budget.checked_sub(nodes) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(problem(
                at,
                format!("more than {MOST_NODES} values, aliases counted with what they stand for"),
            )),
        }
    }
}

fn key_name(key: &Node) -> Option<Rc<str>> {
    match &key.value {
        Value::Scalar(text) => Some(text.clone()),
        Value::Null => Some("null".into()),
        Value::List(_) | Value::Map(_) => None,
    }
}

fn position(span: &Span) -> Position {
    Position { line: span.start.line(), column: span.start.col() + 1 }
}

fn scan_problem(fault: &ScanError) -> Problem {
    let at = Position { line: fault.marker().line().max(1), column: fault.marker().col() + 1 };
    let mut text = fault.info();
    if text.is_empty() {
        text = "this is not YAML".to_owned();
    }
    problem(at, text)
}

fn problem(at: Position, what: impl Into<String>) -> Problem {
    Problem { at: Some(at), key: String::new(), what: what.into(), help: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(node: &Node) -> String {
        let Position { line, column } = node.at;
        match &node.value {
            Value::Null => format!("null@{line}:{column}"),
            Value::Scalar(text) => format!("{text}@{line}:{column}"),
            Value::List(items) => format!("[{}]", items.iter().map(shape).collect::<Vec<_>>().join(" ")),
            Value::Map(entries) => {
                let entry =
                    |e: &Entry| format!("{}@{}:{}={}", e.key, e.at.line, e.at.column, shape(&e.value));
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(" "))
            }
        }
    }

    fn tree(text: &str) -> String {
        let parsed = parse(text);
        let place = |p: &Problem| p.at.map(|at| format!("{}:{}", at.line, at.column)).expect("a place");
        let mut told: Vec<_> = parsed.problems.iter().map(|p| format!("{} {p}", place(p))).collect();
        told.extend(parsed.root.iter().map(shape));
        told.join("; ")
    }

    #[test]
    fn every_key_and_value_knows_its_place() {
        assert_eq!(tree("a: 1\nb:\n  - 'x y'\n  - null\n"), "{a@1:1=1@1:4 b@2:1=[x y@3:5 null@4:5]}");
        assert_eq!(tree("ä: {ö: ü}"), "{ä@1:1={ö@1:5=ü@1:8}}");
        assert_eq!(tree("\u{feff}a: 1\r\nb: 2\r\n"), "{a@1:1=1@1:4 b@2:1=2@2:4}");
        assert_eq!(tree("# nothing\n"), "null@1:1");
    }

    #[test]
    fn aliases_and_merges_keep_the_place_of_the_original() {
        assert_eq!(
            tree("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\n"),
            "{a@1:1={k@1:8=1@1:11 l@1:14=2@1:17} b@2:1={l@2:13=3@2:16 k@1:8=1@1:11}}"
        );
        assert_eq!(tree("a: &x 1\nb: *x\n"), "{a@1:1=1@1:7 b@2:1=1@1:7}");
    }

    #[test]
    fn every_repeated_key_is_told() {
        assert_eq!(
            tree("a: 1\nb: {c: 1, c: 2}\na: 2\n"),
            "2:11 b.c: repeated key: it is already set on line 2; 3:1 a: repeated key: it is already set on line 1; \
             {a@1:1=1@1:4 b@2:1={c@2:5=1@2:8}}"
        );
    }

    #[test]
    fn faults_of_yaml_have_a_place_and_a_reason() {
        for text in [
            "a: [1, 2",
            "a: b: c",
            "a: 'x",
            "a: *nobody",
            "a: &x [*x]",
            "---\na: 1\n---\nb: 2\n",
            "a: !!int 1",
        ] {
            let problems = parse(text).problems;
            assert!(!problems.is_empty(), "{text}");
            for problem in problems {
                assert!(problem.at.is_some() && problem.what.len() > 8, "{text}: {problem:?}");
            }
        }
    }

    #[test]
    fn a_small_file_cannot_ask_for_much_memory_or_stack() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(", "));
        }
        assert!(tree(&bomb).contains("more than"));
        assert!(parse(&"[".repeat(100_000)).root.is_none());
        assert!(parse(&"- ".repeat(100_000)).root.is_none());
        let nested: String = (0..1000).map(|level| format!("{}a:\n", " ".repeat(level))).collect();
        assert!(parse(&nested).root.is_none());
    }
}
