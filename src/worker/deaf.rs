//! Programs that are known not to read `PORT`, with the words that tell them, and programs that answer no HTTP at all.
//!
//! Must not do: judge what a shell runs.

use crate::config::script;
use crate::worker::program;

/// A program, the word that makes it listen, and what tells it where.
struct Deaf {
    program: &'static str,
    /// Stands among its arguments; empty where it listens in any case.
    word: &'static str,
    /// What is written in place of the word, or added.
    instead: &'static str,
}

const DEAF: &[Deaf] = &[
    deaf("manage.py", "runserver", "`runserver {port}`"),
    deaf("django-admin", "runserver", "`runserver {port}`"),
    deaf("http.server", "", "`http.server --bind 127.0.0.1 {port}`"),
    deaf("rackup", "", "`rackup -o 127.0.0.1 -p {port}`"),
    deaf("marimo", "run", "`marimo run --headless --port {port}`"),
    deaf("deno", "serve", "`deno serve --host 127.0.0.1 --port {port}`"),
    deaf("vite", "preview", "`vite preview --host 127.0.0.1 --port {port} --strictPort`"),
];

const fn deaf(program: &'static str, word: &'static str, instead: &'static str) -> Deaf {
    Deaf { program, word, instead }
}

/// Programs that take work from a queue or a clock, and the word that says so where they can be servers, too.
const SILENT: &[(&str, &str)] = &[
    ("celery", "worker"),
    ("celery", "beat"),
    ("rq", "worker"),
    ("rq", "worker-pool"),
    ("rqworker", ""),
    ("dramatiq", ""),
    ("arq", ""),
    ("sidekiq", ""),
    ("manage.py", "qcluster"),
    ("manage.py", "rqworker"),
    ("manage.py", "db_worker"),
];

/// Why edge would wait for such a worker in vain, as a sentence. `told`: the command says itself where to listen.
pub(super) fn warning(command: &[String], told: bool) -> Option<String> {
    let (name, rest) = called(command)?;
    let there = |word: &str| word.is_empty() || rest.iter().any(|given| given == word);
    // Celery's only server; its options are those of the worker.
    if let Some((_, word)) = SILENT.iter().find(|one| one.0 == name && there(one.1) && !there("flower")) {
        return Some(format!(
            "`{}` answers no HTTP, and edge waits for that before it takes a worker for ready: leave it to systemd, Supervisor \
             or Compose",
            format!("{name} {word}").trim_end()
        ));
    }
    let found = DEAF.iter().find(|one| one.program == name && there(one.word)).filter(|_| !told)?;
    Some(format!(
        "`{}` does not read `PORT`: write {}",
        format!("{name} {}", found.word).trim_end(),
        found.instead
    ))
}

/// The program and its arguments: of an interpreter, the script that it runs.
fn called(command: &[String]) -> Option<(&str, &[String])> {
    if script::of(command).is_some() {
        return None;
    }
    let at = program::recognise(command).arguments;
    let name = program::name(command);
    let rest = command.get(at..).unwrap_or_default();
    match rest.split_first() {
        Some((script, rest)) if program::is_interpreter(name) => Some((program::base(script), rest)),
        _ => Some((name, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(command: &str, told: bool) -> Option<String> {
        warning(&shlex::split(command).expect("words"), told)
    }

    #[test]
    fn who_does_not_read_the_port_is_named_with_what_tells_it() {
        assert_eq!(
            of("python manage.py runserver", false).as_deref(),
            Some("`manage.py runserver` does not read `PORT`: write `runserver {port}`")
        );
        for command in [
            "/srv/venv/bin/python3 ./manage.py runserver --noreload",
            "uv run manage.py runserver",
            "python -m http.server",
            "bundle exec rackup config.ru",
            "marimo run nb.py",
            "npx vite preview",
            "deno serve main.ts",
        ] {
            assert!(of(command, false).is_some_and(|said| said.contains("{port}")), "{command}");
            assert_eq!(of(command, true), None, "{command}");
        }
    }

    #[test]
    fn who_answers_no_http_is_named_whatever_it_is_told() {
        assert_eq!(
            of("venv/bin/celery -A shop worker -l info", false).as_deref(),
            Some(
                "`celery worker` answers no HTTP, and edge waits for that before it takes a worker for ready: leave it to \
                 systemd, Supervisor or Compose"
            )
        );
        for command in
            ["python -m celery -A x beat", "rq worker", "bundle exec sidekiq", "python manage.py qcluster"]
        {
            assert!(of(command, true).is_some(), "{command}");
        }
    }

    #[test]
    fn others_are_left_alone() {
        for command in [
            "celery -A worker flower",
            "python manage.py worker",
            "deno run main.ts",
            "vite build",
            "python app.py runserver",
            "node server.js",
            "sh -c 'celery -A x worker & exec gunicorn a:b'",
            "rq dashboard",
            "python",
            "edge hello",
        ] {
            assert_eq!(of(command, false), None, "{command}");
        }
    }
}
