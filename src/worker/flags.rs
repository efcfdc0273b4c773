//! A server's command line: its options looked up, taken out and added.
//!
//! Must not do: know any server.

/// A command whose own options begin behind its wrappers.
#[derive(Debug, Clone)]
pub(super) struct Command {
    words: Vec<String>,
    arguments: usize,
}

impl Command {
    /// `arguments` is the index of the first argument of the server itself.
    pub(super) fn new(words: Vec<String>, arguments: usize) -> Self {
        Self { arguments: arguments.min(words.len()), words }
    }

    /// The value of the last option with one of these names.
    pub(super) fn value(&self, names: &[&str]) -> Option<String> {
        self.found(names).pop().map(|found| found.value)
    }

    /// The same as a whole number.
    pub(super) fn number(&self, names: &[&str]) -> Option<u64> {
        self.value(names).and_then(|text| text.parse::<f64>().ok()).map(|number| number as u64)
    }

    /// Whether an option without value is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.arguments().iter().any(|word| word == name)
    }

    /// The server's own arguments.
    pub(super) fn arguments(&self) -> &[String] {
        &self.words[self.arguments..]
    }

    /// Removes every option with one of these names; what was removed.
    pub(super) fn take(&mut self, names: &[&str]) -> Vec<(String, String)> {
        let found = self.found(names);
        for one in found.iter().rev() {
            self.words.drain(one.at..one.at + one.words);
        }
        found.into_iter().map(|one| (one.name, one.value)).collect()
    }

    /// Adds arguments at the end.
    pub(super) fn append<'a>(&mut self, words: impl IntoIterator<Item = &'a str>) {
        self.words.extend(words.into_iter().map(str::to_owned));
    }

    /// Adds arguments before the server's others.
    pub(super) fn insert(&mut self, words: Vec<String>) {
        self.words.splice(self.arguments..self.arguments, words);
    }

    /// The whole command.
    pub(super) fn into_words(self) -> Vec<String> {
        self.words
    }

    fn found(&self, names: &[&str]) -> Vec<Found> {
        let mut all = Vec::new();
        let mut at = self.arguments;
        while let Some(word) = self.words.get(at) {
            if word == "--" {
                break;
            }
            let next = self.words.get(at + 1);
            let one = names.iter().find_map(|name| option(word, next, name, at));
            at += one.as_ref().map_or(1, |one| one.words);
            all.extend(one);
        }
        all
    }
}

#[derive(Debug)]
struct Found {
    at: usize,
    words: usize,
    name: String,
    value: String,
}

/// `--name VALUE`, `--name=VALUE`, `-n VALUE`, `-nVALUE`.
fn option(word: &str, next: Option<&String>, name: &str, at: usize) -> Option<Found> {
    let rest = word.strip_prefix(name)?;
    let name = name.to_owned();
    if rest.is_empty() {
        let value = next?.clone();
        return Some(Found { at, words: 2, name, value });
    }
    let value = if name.starts_with("--") { rest.strip_prefix('=')? } else { rest };
    Some(Found { at, words: 1, value: value.to_owned(), name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Command {
        Command::new(text.split(' ').map(str::to_owned).collect(), 1)
    }

    #[test]
    fn options_are_found_in_each_spelling() {
        for text in ["g -b x a", "g --bind x a", "g --bind=x a", "g -bx a", "g a -b y -b x"] {
            assert_eq!(command(text).value(&["-b", "--bind"]).as_deref(), Some("x"), "{text}");
        }
        for text in ["g a", "g --binder x", "g -- -b x", "-b x", "g -b"] {
            assert_eq!(command(text).value(&["-b", "--bind"]), None, "{text}");
        }
    }

    #[test]
    fn taking_leaves_the_rest_in_order() {
        let mut command = command("g -b x a --bind=y -w 2");
        let taken = command.take(&["-b", "--bind"]);
        assert_eq!(taken, [("-b".into(), "x".into()), ("--bind".into(), "y".into())]);
        assert_eq!(command.into_words(), ["g", "a", "-w", "2"]);
    }
}
