//! Files of `NAME=VALUE` lines, as `env_file` names them. Nothing in them is replaced or run.

use crate::config::scalar::is_variable_name;

/// A line that is not `NAME=VALUE`. Says which line, never what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvFileError {
    /// No `=`, or no name before it.
    #[error("line {0} is not NAME=VALUE")]
    NotAssignment(usize),
    /// A quote that is not closed on its line, or is followed by more text.
    #[error("line {0} has an unbalanced quote")]
    Quote(usize),
    /// A zero byte cannot be in an environment.
    #[error("line {0} has a zero byte")]
    Zero(usize),
}

/// Reads the lines: empty ones and those that begin with `#` are skipped, `export ` in front of a name too. A value may stand
/// in single quotes (taken as it is) or double quotes (`\n`, `\t`, `\"`, `\\`, `\$` are escapes); without quotes ` #` begins
/// a comment.
pub fn parse(text: &str) -> Result<Vec<(String, String)>, EnvFileError> {
    let mut variables = Vec::new();
    for (index, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
        let (number, line) = (index + 1, line.trim());
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=').ok_or(EnvFileError::NotAssignment(number))?;
        let name = name.trim();
        if !is_variable_name(name) {
            return Err(EnvFileError::NotAssignment(number));
        }
        if value.contains('\0') {
            return Err(EnvFileError::Zero(number));
        }
        variables.push((name.to_owned(), unquote(value.trim()).ok_or(EnvFileError::Quote(number))?));
    }
    Ok(variables)
}

fn unquote(value: &str) -> Option<String> {
    let (result, rest) = if let Some(inner) = value.strip_prefix('\'') {
        let (inner, rest) = inner.split_once('\'')?;
        (inner.to_owned(), rest)
    } else if let Some(inner) = value.strip_prefix('"') {
        double_quoted(inner)?
    } else {
        let end = value.find(" #").unwrap_or(value.len());
        return Some(value[..end].trim_end().to_owned());
    };
    let rest = rest.trim_start();
    (rest.is_empty() || rest.starts_with('#')).then_some(result)
}

fn double_quoted(inner: &str) -> Option<(String, &str)> {
    let mut result = String::new();
    let mut characters = inner.chars();
    loop {
        match characters.next()? {
            '"' => return Some((result, characters.as_str())),
            '\\' => match characters.next()? {
                'n' => result.push('\n'),
                't' => result.push('\t'),
                plain @ ('"' | '\\' | '$') => result.push(plain),
                other => result.extend(['\\', other]),
            },
            plain => result.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_read_as_people_write_them() {
        let text = "# first\n\nA=1\nexport B = two words # note\nC='a # $b'\nD=\"x\\ny\\\"\" # z\r\nE=\nF=a#b\nG=k=v";
        let read = parse(text).unwrap();
        let pairs: Vec<_> = read.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "a # $b"),
            ("D", "x\ny\""),
            ("E", ""),
            ("F", "a#b"),
            ("G", "k=v"),
        ];
        assert_eq!(pairs, expected);
    }

    #[test]
    fn a_fault_names_the_line_and_nothing_in_it() {
        for (text, error) in [
            ("A=1\nsecret", EnvFileError::NotAssignment(2)),
            ("=x", EnvFileError::NotAssignment(1)),
            ("A B=x", EnvFileError::NotAssignment(1)),
            ("A='x", EnvFileError::Quote(1)),
            ("A=\"x\\\"", EnvFileError::Quote(1)),
            ("A='x'y", EnvFileError::Quote(1)),
            ("A=\0", EnvFileError::Zero(1)),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[\\PC\\n]{0,60}|[A\"'\\\\=# \\n]{0,30}") {
            let _ = parse(&text);
        }
    }
}
