//! What a worker will be started with, in the words of a shell: the output of `edge explain` and `edge check`.
//!
//! Values the operator wrote may be secrets and are never printed; only their names are.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use crate::telemetry::line::put_whole_text;

/// One worker as it will be started.
#[derive(Debug, Clone, Copy)]
pub struct Worker<'a> {
    /// The app's name.
    pub app: &'a str,
    /// Its place.
    pub slot: u32,
    /// Program and arguments.
    pub argv: &'a [String],
    /// Its whole environment.
    pub environment: &'a BTreeMap<String, String>,
    /// What of it the operator wrote.
    pub written: &'a BTreeMap<String, String>,
    /// Where it starts.
    pub working_dir: &'a Path,
    /// Where it will listen, in words.
    pub address: &'a str,
    /// Login name it runs as, where that is not edge's own.
    pub user: Option<&'a str>,
    /// What the operator may want to know.
    pub notes: &'a [String],
    /// What will go wrong as things are.
    pub warnings: &'a [String],
}

/// One app of a configuration without problems.
#[derive(Debug, Clone)]
pub struct Checked<'a> {
    /// Its name.
    pub app: &'a str,
    /// The command line of its first worker ([`command_line`]), or where its requests go.
    pub line: String,
    /// What the operator may want to know.
    pub notes: &'a [String],
    /// What will go wrong as things are.
    pub warnings: &'a [String],
}

/// The answer of `edge explain APP`: can be read by a person and, but for hidden values, by a shell.
pub fn explain(worker: &Worker<'_>) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# worker {} of app {}, on {}", worker.slot, worker.app, worker.address);
    if let Some(user) = worker.user {
        let _ = writeln!(out, "# as user {user}");
    }
    for note in worker.notes {
        let _ = writeln!(out, "# note: {note}");
    }
    for warning in worker.warnings {
        let _ = writeln!(out, "# warning: {}", one_line(warning));
    }
    let _ = writeln!(out, "cd {}", quote(&worker.working_dir.to_string_lossy()));
    for (name, value) in worker.environment {
        // A name that both wrote holds edge's value only if that differs from the operator's.
        if worker.written.get(name).is_some_and(|written| written == value) {
            let _ = writeln!(out, "{name}=…  # from the configuration, not shown");
        } else {
            let _ = writeln!(out, "{name}={}", quote(value));
        }
    }
    let _ = writeln!(out, "exec {}", command_line(worker.argv));
    out
}

/// The output of `edge check` for a configuration without problems: each app with its final command line, or where its
/// requests go; last the verdict, which is what a terminal shows of a long list.
pub fn check(apps: &[Checked<'_>]) -> String {
    let width = apps.iter().map(|checked| checked.app.len()).max().unwrap_or(0);
    let mut out = String::new();
    for Checked { app, line, notes, warnings } in apps {
        let _ = writeln!(out, "{app:<width$}  {line}");
        for note in *notes {
            let _ = writeln!(out, "{:width$}  note: {note}", "");
        }
        for warning in *warnings {
            let _ = writeln!(out, "{:width$}  warning: {}", "", one_line(warning));
        }
    }
    out.push_str(&match apps.iter().map(|checked| checked.warnings.len()).sum::<usize>() {
        0 => "ok\n".to_owned(),
        1 => "ok, 1 warning\n".to_owned(),
        more => format!("ok, {more} warnings\n"),
    });
    out
}

/// A command line that a POSIX shell splits into `argv` again.
pub fn command_line(argv: &[String]) -> String {
    let words: Vec<_> = argv.iter().map(|word| quote(word)).collect();
    words.join(" ")
}

/// Quoted for a shell where it has to be, control characters made visible.
fn quote(word: &str) -> String {
    let quoted = shlex::try_quote(word).map_or_else(|_| format!("{word:?}"), std::borrow::Cow::into_owned);
    one_line(&quoted)
}

/// Control characters made visible: names of files may hold any.
fn one_line(text: &str) -> String {
    let mut safe = Vec::new();
    put_whole_text(&mut safe, text.as_bytes());
    String::from_utf8_lossy(&safe).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_explanation_shows_everything_but_what_may_be_secret() {
        let argv =
            ["/srv/my app/bin/uvicorn", "main:app", "--uds", "/run/edge/api.0.sock"].map(str::to_owned);
        let written = map(&[("DATABASE_URL", "postgres://u:secret@db"), ("PORT", "1")]);
        let environment =
            map(&[("DATABASE_URL", "postgres://u:secret@db"), ("EDGE_APP", "api"), ("PORT", "2")]);
        let worker = Worker {
            app: "api",
            slot: 0,
            argv: &argv,
            environment: &environment,
            written: &written,
            working_dir: Path::new("/srv/my app"),
            address: "unix:/run/edge/api.0.sock",
            user: Some("www"),
            notes: &["--reload is left out".to_owned()],
            warnings: &["`uvicorn` is not there".to_owned()],
        };
        assert_eq!(
            explain(&worker),
            "# worker 0 of app api, on unix:/run/edge/api.0.sock\n\
             # as user www\n\
             # note: --reload is left out\n\
             # warning: `uvicorn` is not there\n\
             cd '/srv/my app'\n\
             DATABASE_URL=…  # from the configuration, not shown\n\
             EDGE_APP=api\n\
             PORT=2\n\
             exec '/srv/my app/bin/uvicorn' main:app --uds /run/edge/api.0.sock\n"
        );
    }

    #[test]
    fn a_checked_file_is_ok_and_lists_its_apps() {
        let notes = ["PORT is replaced".to_owned()];
        let apps = [
            Checked { app: "api", line: "uvicorn main:app".to_owned(), notes: &notes, warnings: &notes },
            Checked { app: "legacy", line: "upstream 10.0.0.7:80".to_owned(), notes: &[], warnings: &[] },
        ];
        assert_eq!(
            check(&apps),
            "api     uvicorn main:app\n        note: PORT is replaced\n        warning: PORT is replaced\nlegacy  upstream 10.0.0.7:80\nok, 1 warning\n"
        );
        assert_eq!(check(&apps[1..]), "legacy  upstream 10.0.0.7:80\nok\n");
    }
}
