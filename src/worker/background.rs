//! Which commands leave for the background, where edge would take them for dead.
//!
//! Must not do: judge what a shell runs, but for a script whose last word sends it there, or a server's configuration file.

use crate::config::script;
use crate::worker::program;

/// A server, what sends it to the background, and what to do instead.
struct Habit {
    program: &'static str,
    /// Options or words of which one does it.
    words: &'static [&'static str],
    /// Options or words of which each prevents it.
    unless: &'static [&'static str],
    instead: Instead,
}

/// What keeps a program in the foreground.
enum Instead {
    /// The words left out.
    Without,
    /// These words.
    With(&'static str),
}

const HABITS: &[Habit] = &[
    habit("gunicorn", &["--daemon", "-D"], &[], Instead::Without),
    habit("uwsgi", &["--daemonize", "--daemonize2", "-d"], &[], Instead::Without),
    habit("celery", &["--detach", "-D"], &[], Instead::Without),
    habit("celery", &["multi"], &[], Instead::With("`celery worker`")),
    habit("unicorn", &["--daemonize", "-D"], &[], Instead::Without),
    habit("rackup", &["--daemonize", "-D"], &[], Instead::Without),
    habit("rails", &["--daemon", "-d"], &[], Instead::Without),
    habit("thin", &["--daemonize", "-d"], &[], Instead::Without),
    habit("pm2", &["start", "restart", "reload"], &["--no-daemon"], Instead::With("`node FILE`")),
    habit("forever", &["start"], &[], Instead::With("`node FILE`")),
    habit("supervisord", &[""], &["-n", "--nodaemon"], Instead::With("`command`, an app for each program")),
    habit("start-stop-daemon", &["--background", "-b"], &[], Instead::With("the program itself")),
    habit("docker", &["--detach", "-d"], &[], Instead::Without),
    habit("podman", &["--detach", "-d"], &[], Instead::Without),
    habit("docker-compose", &["--detach", "-d"], &[], Instead::Without),
    habit("daemonize", &[""], &[], Instead::With("the program itself")),
    habit("systemctl", &["start", "restart"], &[], Instead::With("the program itself")),
    habit("service", &["start", "restart"], &[], Instead::With("the program itself")),
];

const fn habit(
    program: &'static str,
    words: &'static [&'static str],
    unless: &'static [&'static str],
    instead: Instead,
) -> Habit {
    Habit { program, words, unless, instead }
}

/// What sends `command` to the background, and what to do instead, as a sentence; `None` where it is not known to go there.
pub(super) fn told(command: &[String]) -> Option<String> {
    by_its_end(command).or_else(|| by_habit(command))
}

/// A shell whose script ends with `&` ends at once.
fn by_its_end(command: &[String]) -> Option<String> {
    let text = script::of(command)?.text.trim_end();
    let leaves = text.ends_with('&') && !text.ends_with("&&");
    leaves.then(|| {
        "the script sends its last command to the background by `&` and ends, and edge takes it for dead: put `exec` before \
         that command, and leave the `&` out"
            .to_owned()
    })
}

fn by_habit(command: &[String]) -> Option<String> {
    let at = program::recognise(command).arguments;
    let name = program::name(command);
    let rest = command.get(at..).unwrap_or_default();
    let is = |word: &String, wanted: &str| {
        word == wanted
            || wanted.starts_with("--") && word.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('='))
    };
    let there = |wanted: &&&str| wanted.is_empty() || rest.iter().any(|word| is(word, wanted));
    let habits = HABITS.iter().filter(|habit| habit.program == name);
    let mut found = habits
        .filter(|habit| !habit.unless.iter().any(|word| there(&word)))
        .filter_map(|habit| Some((habit, *habit.words.iter().find(there)?)));
    let (habit, word) = found.next()?;
    let call = format!("{name} {word}");
    let call = call.trim_end();
    Some(match habit.instead {
        Instead::Without => format!(
            "`{call}` goes to the background, and edge takes it for dead: leave `{word}` out, edge runs it in the foreground"
        ),
        Instead::With(instead) => {
            format!("`{call}` leaves its work to the background, and edge takes it for dead: use {instead}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(command: &str) -> Option<String> {
        told(&shlex::split(command).expect("words"))
    }

    #[test]
    fn what_leaves_for_the_background_is_told_with_what_to_do() {
        assert_eq!(
            of("/srv/venv/bin/gunicorn --daemon app.wsgi").as_deref(),
            Some(
                "`gunicorn --daemon` goes to the background, and edge takes it for dead: leave `--daemon` out, \
                 edge runs it in the foreground"
            )
        );
        for command in [
            "python -m gunicorn -D app.wsgi",
            "uwsgi --http :8000 --daemonize=/var/log/uwsgi.log",
            "poetry run celery -A app worker --detach",
            "celery multi start w1",
            "npx pm2 start server.js",
            "supervisord -c x.conf",
            "docker run -d app",
            "systemctl start app",
            "daemonize /srv/app/run",
            "sh -c 'python app.py & '",
            "env A=b bash -ec 'cd /srv && python app.py >log 2>&1 &'",
        ] {
            assert!(of(command).is_some(), "{command}");
        }
    }

    #[test]
    fn what_stays_is_left_alone() {
        for command in [
            "gunicorn app.wsgi --bind 127.0.0.1:1",
            "uwsgi --http {socket} --die-on-term",
            "pm2 start --no-daemon server.js",
            "pm2-runtime server.js",
            "supervisord -n",
            "celery -A app worker",
            "sh -c 'gunicorn --daemon app.wsgi'",
            "sh -c 'helper & exec python app.py'",
            "sh -c 'true &&'",
            "sh run.sh",
            "python app.py --daemon",
            "edge hello",
        ] {
            assert_eq!(of(command), None, "{command}");
        }
    }
}
