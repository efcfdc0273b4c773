//! Reading one mapping of the tree: known keys, defaults, spelling help. Every fault is noted and reading goes on with a
//! stand-in, so that one reading finds all faults; whoever reads throws the result away if there was any.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;

use crate::config::key::{Place, Preset};
use crate::config::keys;
use crate::config::problem::{Position, Problem};
use crate::config::raw::{self, Entry, Node};
use crate::config::scalar;

/// What all sections of one file share.
pub struct Reader<'v> {
    variables: &'v BTreeMap<String, String>,
    problems: RefCell<Vec<Problem>>,
}

impl<'v> Reader<'v> {
    /// A reader that replaces `${NAME}` from `variables`.
    pub fn new(variables: &'v BTreeMap<String, String>) -> Self {
        Self { variables, problems: RefCell::default() }
    }

    /// Notes a fault.
    pub fn refuse(&self, at: Position, key: &str, what: impl Display, help: Option<String>) {
        let problem = Problem { at: Some(at), key: key.to_owned(), what: what.to_string(), help };
        self.problems.borrow_mut().push(problem);
    }

    /// Whether a fault was noted of the value at `path`, or of what lies below it: nothing may be concluded from it then.
    pub fn is_faulty(&self, path: &str) -> bool {
        let below = |key: &str| {
            key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.problems.borrow().iter().any(|problem| below(&problem.key))
    }

    /// Everything that was noted.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// A value with its path.
#[derive(Clone)]
pub struct Value<'r> {
    reader: &'r Reader<'r>,
    /// Where it stands; where nothing stands, its key.
    pub at: Position,
    /// Its path, such as `apps.api.domains[1]`.
    pub path: String,
    node: Node,
}

/// A scalar: as written, for messages, and with its variables replaced, for use.
#[derive(Clone)]
pub struct Text {
    /// As written; safe to print.
    pub written: String,
    /// With `${NAME}` replaced; may be a secret.
    pub value: String,
}

impl<'r> Value<'r> {
    /// The value of an entry below `parent`.
    pub fn of_entry(reader: &'r Reader<'r>, parent: &str, entry: &Entry) -> Self {
        let path = if parent.is_empty() { entry.key.to_string() } else { format!("{parent}.{}", entry.key) };
        let at = if matches!(entry.value.value, raw::Value::Null) { entry.at } else { entry.value.at };
        Self { reader, at, path, node: entry.value.clone() }
    }

    /// Whoever notes its faults.
    pub fn reader(&self) -> &'r Reader<'r> {
        self.reader
    }

    /// Notes a fault of this value.
    pub fn refuse(&self, what: impl Display) {
        self.reader.refuse(self.at, &self.path, what, None);
    }

    /// Notes a fault of this value and what would be right.
    pub fn refuse_with(&self, what: impl Display, help: impl Into<String>) {
        self.reader.refuse(self.at, &self.path, what, Some(help.into()));
    }

    /// Whether it is a mapping.
    pub fn is_map(&self) -> bool {
        matches!(self.node.value, raw::Value::Map(_))
    }

    /// Whether it is a list.
    pub fn is_list(&self) -> bool {
        matches!(self.node.value, raw::Value::List(_))
    }

    /// The scalar as written, for messages.
    pub fn written(&self) -> &str {
        match &self.node.value {
            raw::Value::Scalar(text) => text,
            raw::Value::Null | raw::Value::List(_) | raw::Value::Map(_) => "",
        }
    }

    /// The scalar.
    pub fn text(&self) -> Option<Text> {
        let raw::Value::Scalar(written) = &self.node.value else {
            self.refuse(format_args!("{}, one value is expected", self.kind()));
            return None;
        };
        match scalar::expand(written, |name| self.reader.variables.get(name).cloned()) {
            Ok(value) => Some(Text { written: written.to_string(), value }),
            Err(error) => {
                self.refuse(format_args!("the value {error}"));
                None
            }
        }
    }

    /// The scalar, understood by `parse`, whose error completes a sentence that begins with the text as written.
    pub fn parse<T, E: Display>(&self, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let text = self.text()?;
        match parse(&text.value) {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(format_args!("`{}` {error}", text.written));
                None
            }
        }
    }

    /// One of these words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text.value) {
            return Some(*value);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| format!("`{word}`")).collect();
        let what = format!("`{}` is not one of {}", text.written, words.join(", "));
        // What was meant by a replaced variable is not for the log: it could be anything.
        let meant = (text.written == text.value)
            .then(|| keys::meant(&text.value, choices.iter().map(|(word, _)| *word)))
            .flatten();
        self.reader.refuse(self.at, &self.path, what, meant.map(did_you_mean));
        None
    }

    /// The elements of a list; a single value counts as a list of one.
    pub fn items(&self) -> Vec<Value<'r>> {
        let raw::Value::List(items) = &self.node.value else { return vec![self.clone()] };
        let item = |(index, node): (usize, &Node)| Self {
            reader: self.reader,
            at: node.at,
            path: format!("{}[{index}]", self.path),
            node: node.clone(),
        };
        items.iter().enumerate().map(item).collect()
    }

    /// The entries of a mapping, or nothing where nothing is written.
    pub fn entries(&self) -> Rc<[Entry]> {
        match &self.node.value {
            raw::Value::Map(entries) => entries.clone(),
            raw::Value::Null => Rc::default(),
            raw::Value::Scalar(_) | raw::Value::List(_) => {
                self.refuse(format_args!("{}, `key: value` pairs are expected", self.kind()));
                Rc::default()
            }
        }
    }

    fn kind(&self) -> &'static str {
        match self.node.value {
            raw::Value::Null => "the value is missing",
            raw::Value::Scalar(_) => "this is a single value",
            raw::Value::List(_) => "this is a list",
            raw::Value::Map(_) => "this is a mapping",
        }
    }
}

/// A mapping whose keys are in the table of keys. Below an app's own entries may lie those of `defaults`.
pub struct Section<'r> {
    reader: &'r Reader<'r>,
    /// Its path in the table, such as `apps.NAME.restart`.
    pattern: String,
    layers: Vec<Layer>,
}

#[derive(Clone)]
struct Layer {
    path: String,
    at: Position,
    entries: Rc<[Entry]>,
}

impl<'r> Section<'r> {
    /// Reads a mapping as the section `pattern`, noting keys that do not belong there. `below` is asked for what it lacks.
    pub fn new(value: &Value<'r>, pattern: &str, below: Option<&Section<'r>>) -> Self {
        let layer = Layer { path: value.path.clone(), at: value.at, entries: value.entries() };
        let section = Self {
            reader: value.reader,
            pattern: pattern.to_owned(),
            layers: std::iter::once(layer)
                .chain(below.iter().flat_map(|below| below.layers.clone()))
                .collect(),
        };
        section.refuse_unknown();
        section
    }

    /// The whole file.
    pub fn root(reader: &'r Reader<'r>, node: &Node) -> Self {
        Self::new(&Value { reader, at: node.at, path: String::new(), node: node.clone() }, "", None)
    }

    /// Notes a fault of the section as a whole.
    pub fn refuse(&self, what: impl Display) {
        let layer = &self.layers[0];
        self.reader.refuse(layer.at, &layer.path, what, None);
    }

    /// Notes that none of `keys` is there, unless one is, misspelt: that has been said.
    pub fn miss(&self, keys: &[&str], what: impl Display) {
        let known = keys::children(&self.pattern);
        let meant = |entry: &Entry| {
            let is_known = known.contains(&&*entry.key);
            keys::meant(&entry.key, known.iter().copied()).filter(|_| !is_known)
        };
        let entries = self.layers[0].entries.iter();
        if !entries.filter_map(meant).any(|meant| keys.contains(&meant)) {
            self.refuse(what);
        }
    }

    /// Whether a fault was noted of what is written for `key`.
    pub fn is_faulty(&self, key: &str) -> bool {
        self.layers.iter().any(|layer| self.reader.is_faulty(&join(&layer.path, key)))
    }

    /// What is written for `key`, in the section or below it.
    pub fn get(&self, key: &str) -> Option<Value<'r>> {
        self.layers.iter().find_map(|layer| self.value(layer, key))
    }

    /// What is written for `key` in the section itself.
    pub fn own(&self, key: &str) -> Option<Value<'r>> {
        self.layers.first().and_then(|layer| self.value(layer, key))
    }

    /// What is written for `key` in each layer, the lowest first.
    pub fn all(&self, key: &str) -> Vec<Value<'r>> {
        self.layers.iter().rev().filter_map(|layer| self.value(layer, key)).collect()
    }

    /// What is written for `key`, or its default from the table.
    pub fn get_or_default(&self, key: &str) -> Option<Value<'r>> {
        self.get(key).or_else(|| self.default(key))
    }

    /// The section below `key`; empty where nothing is written.
    pub fn section(&self, key: &str) -> Section<'r> {
        let mut section = Self { reader: self.reader, pattern: join(&self.pattern, key), layers: Vec::new() };
        for layer in &self.layers {
            let value = self.value(layer, key);
            section.layers.push(Layer {
                path: join(&layer.path, key),
                at: value.as_ref().map_or(layer.at, |value| value.at),
                entries: value.map(|value| value.entries()).unwrap_or_default(),
            });
        }
        section.refuse_unknown();
        section
    }

    /// The value of `key` understood by `parse`, or its default; `stand_in` after a fault.
    pub fn read<T, E: Display>(&self, key: &str, stand_in: T, parse: impl FnOnce(&str) -> Result<T, E>) -> T {
        self.get_or_default(key).and_then(|value| value.parse(parse)).unwrap_or(stand_in)
    }

    /// A duration.
    pub fn duration(&self, key: &str) -> Duration {
        self.read(key, Duration::ZERO, scalar::duration)
    }

    /// A duration that is not 0.
    pub fn positive_duration(&self, key: &str) -> Duration {
        self.read(key, Duration::ZERO, scalar::positive_duration)
    }

    /// One of these words; the first stands in after a fault.
    pub fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], stand_in: T) -> T {
        self.get_or_default(key).and_then(|value| value.choice(choices)).unwrap_or(stand_in)
    }

    /// `auto`, which is `automatic`, or a number from 1 to `most`.
    pub fn count(&self, key: &str, automatic: u64, most: u64) -> u64 {
        self.read(key, 1, |text| match text {
            "auto" => Ok(automatic.clamp(1, most)),
            text => scalar::number(text, 1, most)
                .map_err(|_| format!("is neither `auto` nor a whole number from 1 to {most}")),
        })
    }

    fn value(&self, layer: &Layer, key: &str) -> Option<Value<'r>> {
        let entry = layer.entries.iter().find(|entry| &*entry.key == key)?;
        Some(Value::of_entry(self.reader, &layer.path, entry))
    }

    fn default(&self, key: &str) -> Option<Value<'r>> {
        match keys::find(&join(&self.pattern, key))?.preset {
            Preset::Is(text) => {
                let layer = self.layers.first()?;
                let node = raw::parse(text).root?;
                Some(Value { reader: self.reader, at: layer.at, path: join(&layer.path, key), node })
            }
            Preset::Found(_) | Preset::Nothing => None,
        }
    }

    fn refuse_unknown(&self) {
        let known = keys::children(&self.pattern);
        for layer in &self.layers {
            for entry in layer.entries.iter() {
                if known.contains(&&*entry.key) {
                    self.refuse_own_in_defaults(layer, entry);
                    continue;
                }
                let help = match keys::meant(&entry.key, known.iter().copied()) {
                    Some(meant) => Some(did_you_mean(meant)),
                    None => keys::elsewhere(keys::synonym(&entry.key).unwrap_or(&entry.key))
                        .map(|place| format!("there is `{place}`")),
                };
                self.reader.refuse(entry.at, &join(&layer.path, &entry.key), "unknown key", help);
            }
        }
    }

    fn refuse_own_in_defaults(&self, layer: &Layer, entry: &Entry) {
        let own = keys::find(&join(&self.pattern, &entry.key)).is_some_and(|key| key.place == Place::Own);
        if own && layer.path == "defaults" {
            self.reader.refuse(
                entry.at,
                &join("defaults", &entry.key),
                "each app has its own: it cannot be a default",
                None,
            );
        }
    }
}

fn did_you_mean(word: &str) -> String {
    format!("did you mean `{word}`?")
}

fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}
