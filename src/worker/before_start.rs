//! The commands that are run once before the first worker of a generation: migrations and the like.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::model::WorkerSpec;
use crate::name::{AppName, WorkerId};
use crate::report::Report;
use crate::scope::Scope;
use crate::worker::adapter::{Plan, Program, Wire};
use crate::worker::change::RollError;
use crate::worker::child::{Child, Exit};
use crate::worker::journal::Journal;
use crate::worker::launch::{LaunchError, Launcher, Order, Tools};
use crate::worker::output::{self, Source, Tail};
use crate::worker::program;
use crate::worker::setup::{self, Setup};

/// How long the pipes of an ended command may stay open.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// A slot no worker has: what the commands start must not be taken for a worker's.
const SLOT: u32 = 1000;

/// Runs them one after the other as the app's account; the first that fails ends it. The running one is asked to stop when
/// their time is over or `scope` drains, and killed after the app's grace period or when `scope` aborts.
pub(super) async fn run(
    setup: &Setup,
    generation: u64,
    tools: &Tools,
    scope: &Scope,
) -> Result<(), RollError> {
    let patience = setup.spec.before_start_timeout;
    let deadline = tokio::time::Instant::now() + patience;
    let all = setup.spec.before_start.len();
    for (at, command) in (1u64..).zip(&setup.spec.before_start) {
        let shown = shown(command);
        let name = if all > 1 { format!("command {at} of {all} (`{shown}`)") } else { format!("`{shown}`") };
        let app = &setup.app.name;
        tracing::info!(%app, command = shown, "running what comes before the first worker");
        let incarnation = generation * 1000 + at;
        let id = WorkerId { app: app.clone(), slot: SLOT, incarnation };
        let failed =
            |error: LaunchError| RollError::because(format!("{name} of `before_start`: {}", Report(&error)));
        let plan = plan(&id, &setup.spec, command);
        let left = deadline.saturating_duration_since(Instant::now());
        let silent = |what: &str| tracing::warn!(%app, command = shown, "it cannot be run yet: {what} does not answer");
        tokio::select! {
            answered = setup.look.answered(&setup.spec, &plan, left, silent) => answered.map_err(failed)?,
            () = scope.drained() => return Err(RollError::because(format!("{name} of `before_start` was not begun"))),
        }
        let child = launch(&id, &setup.spec, &plan, tools.launcher.as_ref()).map_err(failed)?;
        let tail = Tail::default();
        let journal = (&tail, &tools.journal);
        let ended = one(app, &child, journal, deadline, setup.spec.stop_grace_period, scope).await;
        let reason = match ended {
            Some(Exit::Code(0)) => continue,
            Some(exit) => format!("{name} of `before_start` failed: {exit}"),
            None => format!(
                "{name} of `before_start` was ended: `before_start_timeout` of {} s is over",
                patience.as_secs_f64()
            ),
        };
        return Err(RollError { reason, last_lines: tail.last(output::REPORTED) });
    }
    Ok(())
}

fn launch(
    id: &WorkerId,
    spec: &WorkerSpec,
    plan: &Plan,
    launcher: &dyn Launcher,
) -> Result<Child, LaunchError> {
    let place = launcher.place(id, &spec.account, Wire::Unix)?;
    launcher.launch(&Order { id, spec, plan, place: &place })
}

fn plan(id: &WorkerId, spec: &WorkerSpec, command: &[String]) -> Plan {
    let mut environment = spec.environment.clone();
    environment.insert("EDGE_APP".into(), id.app.to_string());
    environment.insert("PYTHONUNBUFFERED".into(), "1".into());
    Plan {
        server: spec.server,
        program: Program::Named,
        argv: command.to_vec(),
        environment,
        wire: Wire::Unix,
        idle_timeout: Duration::ZERO,
        concurrency: None,
        synchronous: false,
        delegated: None,
        notes: Vec::new(),
        warnings: Vec::new(),
    }
}

/// Waits for its end; `None` if it had to be ended.
async fn one(
    app: &AppName,
    child: &Child,
    (tail, journal): (&Tail, &Rc<Journal>),
    deadline: Instant,
    grace: Duration,
    scope: &Scope,
) -> Option<Exit> {
    let mut followers = Vec::new();
    if let Some((stdout, stderr)) = child.take_output() {
        for (pipe, stream) in [(stdout, "stdout"), (stderr, "stderr")] {
            let (app, journal) = (app.clone(), Rc::clone(journal));
            let source = Source { app, worker: None, pid: child.pid(), stream, journal };
            followers.push(scope.spawn(output::follow(pipe, source, tail.clone())));
        }
    }
    let exit = tokio::select! {
        exit = child.exited() => Some(exit),
        () = tokio::time::sleep_until(deadline) => None,
        () = scope.drained() => None,
    };
    if exit.is_none() {
        // A migration may want to undo what it began, also one that a script or `npm run` has started.
        child.ask_to_end(nix::libc::SIGTERM);
        tokio::select! {
            _ = child.exited() => {}
            () = tokio::time::sleep(grace) => {}
            () = scope.aborted() => {}
        }
        child.kill();
        // One that is stuck in the kernel is told of by its burial.
        let _stuck = tokio::time::timeout(setup::KILL, child.exited()).await;
    }
    child.bury().await;
    for mut follower in followers {
        if tokio::time::timeout(LAST_WORDS, &mut follower).await.is_err() {
            follower.abort();
        }
    }
    exit
}

/// The program; where that only runs another, with the script and the one word behind it that says what is to be done. More
/// is not shown: arguments may hold secrets.
fn shown(command: &[String]) -> String {
    let program = command.first().map_or("", |word| program::base(word));
    let before = match command.get(1).map(String::as_str) {
        Some("exec") if program == "bundle" => 2,
        Some(_) if program::is_interpreter(program) => 1,
        Some(_) | None => 0,
    };
    let mut words = vec![program];
    if let Some(script) = command.get(before).filter(|word| before > 0 && is_file_name(word)) {
        words.extend(command[1..before].iter().map(String::as_str));
        words.push(script);
        words.extend(command.get(before + 1).map(String::as_str).filter(|word| is_task(word)));
    }
    if words.len() < command.len() {
        words.push("…");
    }
    words.join(" ")
}

fn is_file_name(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    !word.starts_with('-') && !word.is_empty() && word.bytes().all(plain)
}

/// `migrate` and `db:migrate` are tasks; a password or a token has digits, capitals or more letters.
fn is_task(word: &str) -> bool {
    const LONGEST: usize = 20;
    let plain = |byte: u8| byte.is_ascii_lowercase() || matches!(byte, b'_' | b':' | b'-');
    word.starts_with(|first: char| first.is_ascii_lowercase())
        && word.len() <= LONGEST
        && word.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_without_what_may_be_secret() {
        for (command, said) in [
            ("venv/bin/python manage.py migrate --noinput", "python manage.py migrate …"),
            ("sh migrate.sh", "sh migrate.sh"),
            ("sh -c 'psql postgres://u:secret@db'", "sh …"),
            ("psql postgres://u:secret@db", "psql …"),
            ("/bin/true", "true"),
            ("vault login hvs.ABC", "vault …"),
            ("tool auth token", "tool …"),
            ("python manage.py login hvs.ABC", "python manage.py login …"),
            ("python3.12 set_password.py Secret", "python3.12 set_password.py …"),
            ("python set_password.py hunter2", "python set_password.py …"),
            ("node seed.js abcdefghijklmnopqrstu", "node seed.js …"),
            ("python -m alembic upgrade head", "python …"),
            ("bundle exec rake db:migrate", "bundle exec rake db:migrate"),
            ("bundle config token", "bundle …"),
            ("bundle exec", "bundle …"),
            ("python", "python"),
        ] {
            let words = shlex::split(command).expect("splits");
            assert_eq!(shown(&words), said);
        }
    }
}
