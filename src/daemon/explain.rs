//! What a worker will be started with, in the words of a shell: the output of `edge explain` and `edge check`.
//!
//! Values the operator wrote may be secrets and are never printed; only their names are. What is printed runs by hand, beside
//! a running edge: where it listens is a variable, because edge's own sockets are in use, and their directory is there only while it runs.

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
    /// Where it will listen; in `argv` and `environment` [`SOCKET`] or [`PORT`] stands for that.
    pub address: Address<'a>,
    /// Login name it runs as, where that is not edge's own.
    pub user: Option<&'a str>,
    /// What the operator may want to know.
    pub notes: &'a [String],
    /// What will go wrong as things are.
    pub warnings: &'a [String],
}

/// Where a worker listens.
#[derive(Debug, Clone, Copy)]
pub enum Address<'a> {
    /// A unix socket; this is the first that edge gives it.
    Socket(&'a Path),
    /// A loopback port that is chosen at each start.
    Port,
}

/// Stands for a worker's socket until that is known.
pub const SOCKET: &str = "{socket}";
/// Stands for a worker's port until that is known.
pub const PORT: &str = "{port}";

/// One app of a configuration without problems.
#[derive(Debug, Clone)]
pub struct Checked<'a> {
    /// Its name.
    pub app: &'a str,
    /// The command line of its first worker ([`command_line`]), or where its requests go.
    pub line: String,
    /// What the operator may want to know.
    pub notes: Vec<String>,
    /// What will go wrong as things are.
    pub warnings: Vec<String>,
}

/// The answer of `edge explain APP`: can be read by a person and run by a shell, once the hidden values are set there.
pub fn explain(worker: &Worker<'_>) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let Worker { app, slot, .. } = worker;
    let on = match worker.address {
        Address::Socket(_) => "a unix socket",
        Address::Port => "a loopback port that is chosen at each start",
    };
    let _ = writeln!(out, "# worker {slot} of app {app}, on {on}");
    if let Some(user) = worker.user {
        let _ = writeln!(out, "# as user {user}: `sudo -u {user} sh` is a shell to run it by hand");
    }
    for note in worker.notes {
        let _ = writeln!(out, "# note: {note}");
    }
    for warning in worker.warnings {
        let _ = writeln!(out, "# warning: {}", one_line(warning));
    }
    // A name that both wrote holds edge's value only if that differs from the operator's.
    let is_hidden = |name: &String, value: &String| worker.written.get(name) == Some(value);
    let hidden = worker.environment.iter().filter(|(name, value)| is_hidden(name, value));
    let hidden: Vec<String> = hidden.map(|(name, _)| variable(name)).collect();
    if !hidden.is_empty() {
        let _ = writeln!(
            out,
            "# to run it by hand, set first what the configuration says: {}",
            hidden.join(", ")
        );
    }
    // In a shell of its own, so that what was pasted changes nothing in the one it was pasted into.
    out.push_str("(\n");
    if let Address::Socket(own) = worker.address {
        let own = one_line(&own.to_string_lossy());
        let _ = writeln!(
            out,
            "socket=\"${{TMPDIR:-/tmp}}/edge-{app}-{slot}.sock\"  # edge's own are such as {own}"
        );
    }
    if worker.argv.iter().chain(worker.environment.values()).any(|word| word.contains(PORT)) {
        out.push_str("port=8000  # any that is free: edge chooses another at each start\n");
    }
    let _ = writeln!(out, "cd {} &&", quote(&worker.working_dir.to_string_lossy()));
    // Nothing else of the shell's environment reaches it, as nothing else of edge's does.
    out.push_str("exec env -i \\\n");
    for (name, value) in worker.environment {
        let value = if is_hidden(name, value) {
            format!("\"${{{}?the configuration has its value, which is not shown}}\"", variable(name))
        } else {
            filled(value)
        };
        let _ = writeln!(out, "  {}={value} \\", quote(name));
    }
    let words: Vec<String> = worker.argv.iter().map(|word| filled(word)).collect();
    let _ = writeln!(out, "  {}", words.join(" "));
    out.push_str(")\n");
    out
}

/// A name as shells have variables: what may stand in an environment is more.
fn variable(name: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = name.chars().map(word).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

/// A word in which the shell puts where the worker is to listen.
fn filled(word: &str) -> String {
    // A script may be of several lines, and is to stay that.
    let lines = |text: &str| quoted(text).split('\n').map(one_line).collect::<Vec<_>>().join("\n");
    let piece = |text: &str| if text.is_empty() { String::new() } else { lines(text) };
    let ports = |text: &str| text.split(PORT).map(piece).collect::<Vec<_>>().join("\"$port\"");
    let filled = word.split(SOCKET).map(ports).collect::<Vec<_>>().join("\"$socket\"");
    if filled.is_empty() { quote(word) } else { filled }
}

/// The output of `edge check` for a configuration without problems: each app with its final command line, or where its
/// requests go; last the verdict, which is what a terminal shows of a long list.
pub fn check(apps: &[Checked<'_>]) -> String {
    let width = apps.iter().map(|checked| checked.app.len()).max().unwrap_or(0);
    let mut out = String::new();
    for Checked { app, line, notes, warnings } in apps {
        let _ = writeln!(out, "{app:<width$}  {line}");
        for note in notes {
            let _ = writeln!(out, "{:width$}  note: {note}", "");
        }
        for warning in warnings {
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
    one_line(&quoted(word))
}

fn quoted(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| format!("{word:?}"), std::borrow::Cow::into_owned)
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
        let argv = ["/srv/my app/bin/uvicorn", "main:app", "", "--bind=unix:{socket}"].map(str::to_owned);
        let written = map(&[("DATABASE_URL", "postgres://u:secret@db"), ("2.x", "y"), ("PORT", "1")]);
        let environment = map(&[
            ("2.x", "y"),
            ("DATABASE_URL", "postgres://u:secret@db"),
            ("EDGE_APP", "api"),
            ("PORT", "2"),
            ("SCRIPT", "echo a\n\x1b b"),
        ]);
        let worker = Worker {
            app: "api",
            slot: 0,
            argv: &argv,
            environment: &environment,
            written: &written,
            working_dir: Path::new("/srv/my app"),
            address: Address::Socket(Path::new("/run/edge/api/0-1.sock")),
            user: Some("www"),
            notes: &["--reload is left out".to_owned()],
            warnings: &["`uvicorn` is not there".to_owned()],
        };
        assert_eq!(
            explain(&worker),
            r#"# worker 0 of app api, on a unix socket
# as user www: `sudo -u www sh` is a shell to run it by hand
# note: --reload is left out
# warning: `uvicorn` is not there
# to run it by hand, set first what the configuration says: _2_x, DATABASE_URL
(
socket="${TMPDIR:-/tmp}/edge-api-0.sock"  # edge's own are such as /run/edge/api/0-1.sock
cd '/srv/my app' &&
exec env -i \
  2.x="${_2_x?the configuration has its value, which is not shown}" \
  DATABASE_URL="${DATABASE_URL?the configuration has its value, which is not shown}" \
  EDGE_APP=api \
  PORT=2 \
  SCRIPT='echo a
\u001b b' \
  '/srv/my app/bin/uvicorn' main:app '' '--bind=unix:'"$socket"
)
"#
        );
    }

    #[test]
    fn a_port_is_the_readers_to_choose() {
        let argv = ["sh", "-c", "exec serve --port {port}"].map(str::to_owned);
        let environment = map(&[("PORT", "{port}")]);
        let worker = Worker {
            app: "api",
            slot: 0,
            argv: &argv,
            environment: &environment,
            written: &map(&[]),
            working_dir: Path::new("/srv"),
            address: Address::Port,
            user: None,
            notes: &[],
            warnings: &[],
        };
        assert_eq!(
            explain(&worker),
            r#"# worker 0 of app api, on a loopback port that is chosen at each start
(
port=8000  # any that is free: edge chooses another at each start
cd /srv &&
exec env -i \
  PORT="$port" \
  sh -c 'exec serve --port '"$port"
)
"#
        );
    }

    #[test]
    fn a_checked_file_is_ok_and_lists_its_apps() {
        let checked = |app, line: &str, said: &[&str]| {
            let notes: Vec<String> = said.iter().map(ToString::to_string).collect();
            Checked { app, line: line.to_owned(), warnings: notes.clone(), notes }
        };
        let apps = [
            checked("api", "uvicorn main:app", &["PORT is replaced"]),
            checked("legacy", "upstream 10.0.0.7:80", &[]),
        ];
        assert_eq!(
            check(&apps),
            "api     uvicorn main:app\n        note: PORT is replaced\n        warning: PORT is replaced\nlegacy  upstream 10.0.0.7:80\nok, 1 warning\n"
        );
        assert_eq!(check(&apps[1..]), "legacy  upstream 10.0.0.7:80\nok\n");
    }
}
