//! Which server program a command starts, behind whatever wrappers.
//!
//! Must not do: decide what follows from it; `adapter` does.

use crate::config::model::ServerKind;
use crate::config::script;

/// What a command starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recognised {
    /// The kind of server; `Generic` for an unknown one.
    pub server: ServerKind,
    /// It is edge's own demo worker.
    pub hello: bool,
    /// Index of the first argument of the program itself.
    pub arguments: usize,
}

/// Finds the program of `command` behind `env`, `python -m`, `uv run`, `poetry run`, `bundle exec`, `npx` and the like.
pub fn recognise(command: &[String]) -> Recognised {
    let mut at = 0;
    while let Some(word) = command.get(at) {
        let next = match skip(base(word), &command[at + 1..]) {
            Some(words) => at + 1 + words,
            None => break,
        };
        // A wrapper around nothing is the program itself.
        if next >= command.len() {
            break;
        }
        at = next;
    }
    let name = command.get(at).map_or("", |word| base(word));
    let first = command.get(at + 1).map(String::as_str);
    let hello = at == 0 && command.first().is_some_and(|word| word == "edge") && first == Some("hello");
    Recognised { server: kind(name, first), hello, arguments: (at + 1).min(command.len()) }
}

/// What keeps a server's options from being seen: a shell that starts one whose workers may be synchronous.
pub(super) fn in_a_script(command: &[String]) -> Option<&'static str> {
    let names = |word: &str| base(word) == "gunicorn";
    script::of(command)?.text.split_ascii_whitespace().any(names).then_some("the script")
}

/// A server that a script names and that does not read `PORT`, where the script does not say itself where it listens.
pub(super) fn deaf_in_a_script(command: &[String]) -> Option<&'static str> {
    const DEAF: [&str; 5] = ["uvicorn", "hypercorn", "daphne", "granian", "waitress-serve"];
    let text = script::of(command)?.text;
    let is_told = ["PORT", "EDGE_SOCKET", "{port}", "{socket}"].iter().any(|place| text.contains(place));
    let ends_a_word = |letter: char| letter.is_ascii_whitespace() || ";&|()".contains(letter);
    let names = |server: &&str| text.split(ends_a_word).any(|word| base(word) == *server);
    DEAF.into_iter().find(names).filter(|_| !is_told)
}

/// Whether a program of this name runs the script that is its first argument.
pub(super) fn is_interpreter(name: &str) -> bool {
    script::is_shell(name) || is_python(name) || ["ruby", "node", "nodejs", "php"].contains(&name)
}

/// The name of the program that a command starts, behind whatever wrappers.
pub(super) fn name(command: &[String]) -> &str {
    let at = recognise(command).arguments;
    at.checked_sub(1).and_then(|at| command.get(at)).map_or("", |word| base(word))
}

/// The name of a program without its directory.
pub(super) fn base(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

fn kind(name: &str, first: Option<&str>) -> ServerKind {
    match name {
        "uvicorn" => ServerKind::Uvicorn,
        "fastapi" if matches!(first, Some("run" | "dev")) => ServerKind::Fastapi,
        "gunicorn" => ServerKind::Gunicorn,
        "hypercorn" => ServerKind::Hypercorn,
        "daphne" => ServerKind::Daphne,
        "granian" => ServerKind::Granian,
        "waitress-serve" | "waitress" => ServerKind::Waitress,
        "node" | "nodejs" | "npm" | "yarn" | "pnpm" | "bun" | "deno" => ServerKind::Node,
        "puma" => ServerKind::Puma,
        "rails" if matches!(first, Some("server" | "s")) => ServerKind::Rails,
        _ => ServerKind::Generic,
    }
}

/// How many words of `rest` belong to the wrapper `name`; `None` where it is none.
fn skip(name: &str, rest: &[String]) -> Option<usize> {
    match name {
        "env" => Some(skip_options(rest, &["-u", "--unset", "-C", "--chdir"], true)),
        "nohup" | "setsid" | "ddtrace-run" => Some(0),
        "tini" | "dumb-init" | "uvx" | "opentelemetry-instrument" => {
            Some(skip_options(rest, RUNNER_VALUES, false))
        }
        "nice" | "ionice" => Some(skip_options(rest, &["-n", "-c", "--adjustment"], false)),
        "uv" | "poetry" | "pipenv" | "pdm" | "hatch" | "rye" | "pipx" | "dotenv" => runner(rest, "run"),
        "bundle" => runner(rest, "exec"),
        "ruby" => {
            rest.first().is_some_and(|word| ["rails", "puma", "bundle"].contains(&base(word))).then_some(0)
        }
        "newrelic-admin" => runner(rest, "run-program"),
        "npx" => Some(skip_options(rest, &["-p", "--package"], false)),
        _ if is_python(name) => module(rest),
        _ => None,
    }
}

fn runner(rest: &[String], verb: &str) -> Option<usize> {
    let before = skip_options(rest, RUNNER_VALUES, false);
    (rest.get(before).map(String::as_str) == Some(verb))
        .then(|| before + 1 + skip_options(&rest[before + 1..], RUNNER_VALUES, false))
}

/// Options of `uv run` and its kin that are followed by a value.
const RUNNER_VALUES: &[&str] = &[
    "-p",
    "--python",
    "--with",
    "--with-editable",
    "--with-requirements",
    "--env-file",
    "--extra",
    "--group",
    "--only-group",
    "--no-group",
    "--package",
    "--project",
    "--directory",
    "-C",
    "--config-file",
    "--index",
    "--default-index",
    "--index-url",
    "-i",
    "--cache-dir",
    "-e",
    "--env",
    "-f",
    "--file",
];

fn is_python(name: &str) -> bool {
    let version = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy"));
    version.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

/// `-m MODULE`, behind the interpreter's own options.
fn module(rest: &[String]) -> Option<usize> {
    let mut at = 0;
    while let Some(word) = rest.get(at) {
        match word.as_str() {
            "-m" => return Some(at + 1),
            "-X" | "-W" => at += 2,
            option if option.starts_with('-') && option.len() > 1 => at += 1,
            _ => return None,
        }
    }
    None
}

fn skip_options(rest: &[String], with_value: &[&str], assignments: bool) -> usize {
    let mut at = 0;
    while let Some(word) = rest.get(at) {
        if word == "--" {
            return at + 1;
        } else if with_value.contains(&word.as_str()) {
            at += 2;
        } else if word.starts_with('-') || (assignments && word.contains('=')) {
            at += 1;
        } else {
            break;
        }
    }
    at.min(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_server_behind_wrappers() {
        for (text, server, arguments) in [
            ("uvicorn main:app", ServerKind::Uvicorn, 1),
            ("/srv/venv/bin/uvicorn main:app", ServerKind::Uvicorn, 1),
            ("env -u X A=1 uvicorn main:app", ServerKind::Uvicorn, 5),
            ("python3.12 -X dev -u -m uvicorn main:app", ServerKind::Uvicorn, 6),
            ("uv run --python 3.12 uvicorn main:app", ServerKind::Uvicorn, 5),
            ("uv --project /x run -- gunicorn a:b", ServerKind::Gunicorn, 6),
            ("poetry run python -m hypercorn a:b", ServerKind::Hypercorn, 5),
            ("poetry run gunicorn a:b", ServerKind::Gunicorn, 3),
            ("uvx --with x gunicorn a:b", ServerKind::Gunicorn, 4),
            ("tini -g -- gunicorn a:b", ServerKind::Gunicorn, 4),
            ("dotenv -f .env run -- gunicorn a:b", ServerKind::Gunicorn, 6),
            ("bin/rails server -e production", ServerKind::Rails, 1),
            ("bundle exec rails s", ServerKind::Rails, 3),
            ("ruby bin/rails server", ServerKind::Rails, 2),
            ("bin/rails runner x.rb", ServerKind::Generic, 1),
            ("bundle exec puma", ServerKind::Puma, 3),
            ("npx -y next start", ServerKind::Generic, 3),
            ("node server.js", ServerKind::Node, 1),
            ("npm start", ServerKind::Node, 1),
            ("fastapi run main.py", ServerKind::Fastapi, 1),
            ("python -m fastapi dev", ServerKind::Fastapi, 3),
            ("fastapi deploy", ServerKind::Generic, 1),
            ("python app.py -m uvicorn", ServerKind::Generic, 1),
            ("uv sync", ServerKind::Generic, 1),
            ("env", ServerKind::Generic, 1),
            ("edge hello", ServerKind::Generic, 1),
        ] {
            let command: Vec<String> = text.split(' ').map(str::to_owned).collect();
            let found = recognise(&command);
            assert_eq!((found.server, found.arguments), (server, arguments), "{text}");
            assert_eq!(found.hello, text == "edge hello", "{text}");
        }
        assert_eq!(recognise(&[]).server, ServerKind::Generic);
    }
}
