//! Faults in a configuration, and how all of them are told at once.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in the file; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Character of the line.
    pub column: usize,
}

impl Position {
    /// Where a file begins.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// One fault. Its text quotes what stands in the file, never what a variable or an env file holds: that may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where; `None` if the file as a whole is at fault.
    pub at: Option<Position>,
    /// Path of the key, such as `apps.api.domains[1]`; may be empty.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub help: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", OneLine(&self.key))?;
        }
        write!(f, "{}", OneLine(&self.what))?;
        match &self.help {
            Some(help) => write!(f, " ({})", OneLine(help)),
            None => Ok(()),
        }
    }
}

/// Every fault of one file, in the order of the file. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.lines())]
pub struct Problems {
    file: PathBuf,
    list: Vec<Problem>,
}

impl Problems {
    /// Sorts them by position and drops repetitions (a fault under `defaults` is met once for each app).
    pub fn new(file: &Path, mut list: Vec<Problem>) -> Self {
        list.sort();
        list.dedup();
        Self { file: file.to_owned(), list }
    }

    /// The file as a whole is at fault.
    pub fn whole(file: &Path, what: impl Into<String>) -> Self {
        Self::new(file, vec![Problem { at: None, key: String::new(), what: what.into(), help: None }])
    }

    /// A line for each, as `FILE:LINE:COLUMN: KEY: TEXT`.
    fn lines(&self) -> String {
        let file = self.file.display().to_string();
        let line = |problem: &Problem| match problem.at {
            Some(at) => format!("{}:{}:{}: {problem}", OneLine(&file), at.line, at.column),
            None => format!("{}: {problem}", OneLine(&file)),
        };
        self.list.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Escapes control characters: a message quotes what stands in the file, and that must not break the line or the terminal.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_each_fault_once_in_the_order_of_the_file() {
        let fault = |line, what: &str| Problem {
            at: Some(Position { line, column: 2 }),
            key: "apps.a".into(),
            what: what.into(),
            help: (line == 9).then(|| "did you mean `b`?".into()),
        };
        let problems =
            Problems::new(Path::new("e.yaml"), vec![fault(9, "x\ny"), fault(3, "z"), fault(9, "x\ny")]);
        assert_eq!(
            problems.to_string(),
            "e.yaml:3:2: apps.a: z\ne.yaml:9:2: apps.a: x\\ny (did you mean `b`?)"
        );
        assert_eq!(Problems::whole(Path::new("e.yaml"), "gone").to_string(), "e.yaml: gone");
    }
}
