//! The script that a command hands to a shell by `-c`, and whether what stands behind it reaches what the script starts.
//!
//! Must not do: judge what a script does.

use std::path::Path;

/// A script in a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script<'c> {
    /// What the shell reads.
    pub text: &'c str,
    /// How many words stand before the first one that the script knows as `$1`.
    pub arguments: usize,
    /// A word stands behind it, which the shell takes for `$0`: only later ones are arguments.
    named: bool,
}

impl Script<'_> {
    /// Whether words at the end of the command reach what the script starts.
    pub fn passes_on(&self) -> bool {
        const ARGUMENTS: [&str; 6] = ["$@", "${@", "$*", "${*", "$1", "${1"];
        self.named && ARGUMENTS.iter().any(|name| self.text.contains(name))
    }
}

/// The script of `command`, behind whatever wrappers.
pub fn of(command: &[String]) -> Option<Script<'_>> {
    let shells = command
        .iter()
        .enumerate()
        .filter(|(_, word)| Path::new(word).file_name().and_then(|name| name.to_str()).is_some_and(is_shell));
    let at = shells.map(|(at, _)| at + 1).find_map(|at| Some(at + script(command.get(at..)?)?))?;
    Some(Script {
        text: command.get(at)?,
        arguments: (at + 2).min(command.len()),
        named: at + 1 < command.len(),
    })
}

/// Whether a program of this name is a shell.
pub fn is_shell(name: &str) -> bool {
    ["sh", "bash", "dash", "ash", "zsh", "ksh"].contains(&name)
}

/// Where the script stands among the words behind a shell's name.
fn script(words: &[String]) -> Option<usize> {
    let (mut at, mut asked) = (0, false);
    while let Some(word) = words.get(at).filter(|word| word.len() > 1 && word.starts_with(['-', '+'])) {
        at += 1;
        if word == "--" {
            break;
        }
        if word.starts_with("--") {
            at += usize::from(word == "--rcfile" || word == "--init-file");
        } else {
            asked |= word.starts_with('-') && word.contains('c');
            // The name of an option follows.
            at += usize::from(word.contains(['o', 'O']));
        }
    }
    (asked && at < words.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_found_behind_the_options_of_its_shell() {
        for (command, text) in [
            ("sh -c S", Some("S")),
            ("/bin/bash -lc S", Some("S")),
            ("env A=1 bash --norc -euo pipefail -c S x", Some("S")),
            ("timeout 9 zsh -ec -- S", Some("S")),
            ("bash --rcfile -c -c S", Some("S")),
            ("sh run.sh -c S", None),
            ("sh -e S", None),
            ("sh -c", None),
            ("gunicorn -c S", None),
        ] {
            let command: Vec<String> = command.split(' ').map(str::to_owned).collect();
            assert_eq!(of(&command).map(|script| script.text), text, "{command:?}");
        }
    }

    #[test]
    fn words_reach_a_script_that_asks_for_them_and_has_a_name() {
        for (text, behind, reach) in [
            ("exec x \"$@\"", &["sh"][..], true),
            ("exec x $*", &["sh", "y"], true),
            ("exec x \"$@\"", &[], false),
            ("exec x", &["sh"], false),
        ] {
            let command: Vec<String> =
                ["sh", "-c", text].iter().chain(behind).map(|&word| word.to_owned()).collect();
            let script = of(&command).expect("a script");
            assert_eq!(script.passes_on(), reach, "{command:?}");
            assert_eq!(script.arguments, (3 + behind.len()).min(4), "{command:?}");
        }
    }
}
