//! Operations performed. Each runs to its end whether or not the operator who asked for it still listens.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::cert::look_tls;
use crate::cert::reach;
use crate::cert::self_check::Mark;
use crate::clock::{Clock, SystemClock};
use crate::daemon::import;
use crate::daemon::live::{Live, LiveApp};
use crate::daemon::operation::{Number, Operation};
use crate::daemon::progress::{Failed, Progress, Said};
use crate::daemon::reload;
use crate::daemon::rolling::{no_workers, not_rolled, tell_of_memory};
use crate::daemon::words::workers;
use crate::name::AppName;
use crate::report::Report;
use crate::scope::Scope;
use crate::telemetry::line::Stamp;
use crate::telemetry::status::{AppState, ScaleStatus, WorkerState};
use crate::worker::journal::Journal;
use crate::worker::supervisor::{RollError, Supervisor};

/// What visitors are told where the operator says nothing.
const MAINTENANCE: &str = "The application is being maintained. Please try again later.";

/// Between two looks for apps that have come, of someone who follows the logs.
const LOOK_FOR_APPS: Duration = Duration::from_secs(1);

/// Lines on their way to an operator who reads slower than workers write.
const UNREAD: usize = 64;

/// Starts `operation` in `scope`; what it says comes out of the receiver. What only follows the workers does so in `readings`,
/// which outlives them: their last lines are heard.
pub fn perform(
    live: &Rc<Live>,
    operation: Operation,
    scope: &Scope,
    readings: &Scope,
) -> mpsc::Receiver<Said> {
    let (live, ends) = (Rc::clone(live), scope.clone());
    if let Operation::Logs { app, follow } = operation {
        let (operator, hears) = mpsc::channel(UNREAD);
        let ends = readings.clone();
        drop(readings.spawn(async move {
            tokio::select! {
                () = logs(&live, app, follow, &operator, &ends) => {}
                // An operator who does not read holds nothing up.
                () = ends.aborted() => {}
            }
        }));
        return hears;
    }
    if let Operation::Answer { token, answer } = operation {
        let (operator, hears) = mpsc::channel(1);
        drop(scope.spawn(async move {
            tokio::select! {
                () = lend(&live, &token, &answer, &operator) => {}
                () = ends.drained() => {}
            }
        }));
        return hears;
    }
    let (told, hears) = Progress::told();
    drop(scope.spawn(async move {
        tokio::select! {
            outcome = change(&live, operation, &told) => told.end(outcome).await,
            () = ends.drained() => told.clone().end(Err(Failed::because("edge is stopping"))).await,
        }
    }));
    hears
}

async fn change(live: &Live, operation: Operation, told: &Progress) -> Result<(), Failed> {
    match operation {
        Operation::Reload(app) => reload::reload(live, app.as_ref(), told).await,
        // These two change no configuration: they wait for nobody but the app's own supervisor.
        Operation::Restart(app) => {
            let supervisor = supervisor(live, &app)?;
            tell_of_waiting(&app, &supervisor, told);
            told.say(format!("{app}: replacing its workers"));
            tell_of_memory(&app, &supervisor, told);
            let restarted = told.telling(&app, supervisor.remarks(), supervisor.restart()).await;
            restarted.map_err(|error| not_rolled(&app, &supervisor, &error))?;
            told.say(format!("{app}: new workers serve, old ones are gone"));
            Ok(())
        }
        Operation::Scale(app, number) => scale(&supervisor(live, &app)?, &app, number, told).await,
        Operation::Maintain(app, text) => {
            let text: Arc<str> = text.as_deref().unwrap_or(MAINTENANCE).into();
            maintain(live, &app, Some(text))?;
            told.say(format!("{app}: under maintenance; visitors get 503, its workers are left alone"));
            Ok(())
        }
        Operation::Resume(app) => {
            let was = live.app(&app).is_some_and(|live| live.maintenance.is_some());
            maintain(live, &app, None)?;
            told.say(if was {
                format!("{app}: in service again")
            } else {
                format!("{app}: was not under maintenance")
            });
            Ok(())
        }
        Operation::Renew(name) => {
            // What is refused at once is not said to begin.
            if live.manager.status().iter().any(|certificate| certificate.name == name) {
                told.say(format!("{name}: ordering a certificate"));
            }
            live.manager.renew(&name).await.map_err(Failed::because)?;
            told.say(format!("{name}: a new certificate is served"));
            Ok(())
        }
        Operation::Import(what) => import::receive(&live.manager, what, told).await,
        Operation::Logs { .. } | Operation::Answer { .. } => Ok(()),
    }
}

fn tell_of_waiting(app: &AppName, supervisor: &Supervisor, told: &Progress) {
    if supervisor.status().state == AppState::Deploying {
        told.say(format!("{app}: waiting for the change of its workers that is under way"));
    }
}

async fn scale(
    supervisor: &Supervisor,
    app: &AppName,
    number: Number,
    told: &Progress,
) -> Result<(), Failed> {
    let held = match number {
        Number::Held(workers) => Some(workers),
        Number::Auto => None,
    };
    let before = supervisor.status().scale;
    tell_of_waiting(app, supervisor, told);
    told.say(match number {
        Number::Held(count) => format!("{app}: scaling to {}", workers(count)),
        Number::Auto => format!("{app}: scaling to what the file says"),
    });
    let scaled = told.telling(app, supervisor.remarks(), supervisor.scale(held)).await;
    scaled.map_err(|error| not_scaled(app, supervisor, before, &error))?;
    let Some(ScaleStatus { min, max, target, held }) = supervisor.status().scale else { return Ok(()) };
    let serve = if target == 1 { "1 worker serves".to_owned() } else { format!("{target} workers serve") };
    told.say(match (held, min < max) {
        (true, true) => format!(
            "{app}: {serve} whatever the load (the file says {min} to {max}), until `edge scale {app} auto` or a change of how the file runs them"
        ),
        (true, false) => {
            format!("{app}: {serve}, until `edge scale {app} auto` or a change of how the file runs them")
        }
        (false, true) => format!("{app}: {serve}, from now on {min} to {max} by the load"),
        (false, false) => format!("{app}: {serve}"),
    });
    Ok(())
}

/// A number is what is wanted from then on, also where it is not reached at once: some new workers may serve, and those that failed
/// are tried again. Whoever does not want that hears how to go back.
fn not_scaled(
    app: &AppName,
    supervisor: &Supervisor,
    before: Option<ScaleStatus>,
    error: &RollError,
) -> Failed {
    let mut failed = not_rolled(app, supervisor, error);
    let now = supervisor.status();
    let Some(ScaleStatus { target, held: true, .. }) = now.scale else { return failed };
    let back = match before {
        Some(ScaleStatus { target, held: true, .. }) => target.to_string(),
        Some(ScaleStatus { held: false, .. }) | None => "auto".to_owned(),
    };
    let ready = now.workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
    failed.text.push_str(&format!(
        "\n{app}: {ready} of {} ready; edge goes on trying until `edge scale {app} {back}` takes that back",
        workers(target)
    ));
    failed
}

fn supervisor(live: &Live, name: &AppName) -> Result<Supervisor, Failed> {
    let app = live.app(name).ok_or_else(|| unknown(live, name))?;
    app.supervisor.ok_or_else(|| no_workers(name))
}

fn maintain(live: &Live, name: &AppName, text: Option<Arc<str>>) -> Result<(), Failed> {
    if live.maintain(name, text) { Ok(()) } else { Err(unknown(live, name)) }
}

fn unknown(live: &Live, name: &AppName) -> Failed {
    let known: Vec<_> = live.apps().iter().map(|live| live.app.name.to_string()).collect();
    Failed::because(format!("no app named \"{name}\" runs; there is {}", known.join(", ")))
}

/// Answers for `token`, and in handshakes for every name, as long as the operator listens.
async fn lend(live: &Live, token: &str, answer: &str, operator: &mpsc::Sender<Said>) {
    let mark = Mark { token: token.to_owned(), answer: answer.to_owned() };
    let over_http = live.challenges.publish_http01(None, token, answer).map_err(|error| error.to_string());
    let hosts = reach::hosts(&live.config());
    let in_handshakes = look_tls::lend(&live.challenges, &mark, &hosts, SystemClock.now())
        .map_err(|error| Report(&error).to_string());
    let said = match (over_http, in_handshakes) {
        (Ok(_published), Ok(_lent)) => {
            let _gone = operator.send(Said::Word("answering".to_owned())).await;
            operator.closed().await;
            Said::End(0)
        }
        (Err(error), _) | (_, Err(error)) => {
            let _gone = operator.send(Said::Complaint(error)).await;
            Said::End(1)
        }
    };
    let _gone = operator.send(said).await;
}

/// What workers printed, in the order it came, each line with its time as the log has it; followed until `ends` drains.
async fn logs(live: &Live, app: Option<AppName>, follow: bool, operator: &mpsc::Sender<Said>, ends: &Scope) {
    let wanted = |live: &LiveApp| app.as_ref().is_none_or(|name| live.app.name == *name);
    let refused = app.as_ref().and_then(|name| match live.app(name) {
        Some(app) if app.supervisor.is_some() => None,
        Some(_) => Some(no_workers(name)),
        None => Some(unknown(live, name)),
    });
    if let Some(Failed { text, status }) = refused {
        let _gone = operator.send(Said::Complaint(text)).await;
        let _gone = operator.send(Said::End(status)).await;
        return;
    }
    // Journals by where they are, which is their own as long as they are held: an app that is removed and added again begins
    // a new one.
    let mut stamp = Stamp::default();
    let mut read: BTreeMap<usize, (Rc<Journal>, u64)> = BTreeMap::new();
    let mut over = false;
    loop {
        let apps: Vec<LiveApp> = live.apps().into_iter().filter(wanted).collect();
        let mut lines = Vec::new();
        for live in &apps {
            let known = read.entry(Rc::as_ptr(&live.journal).addr());
            let (journal, next) = known.or_insert_with(|| (Rc::clone(&live.journal), 0));
            let (fresh, after) = journal.since(*next);
            *next = after;
            lines.extend(fresh.into_iter().map(|line| (line, live.app.name.clone())));
        }
        lines.sort_by_key(|(line, _)| line.at);
        for (line, name) in lines {
            let who = line.slot.map_or_else(|| "before_start".to_owned(), |slot| slot.to_string());
            let time = String::from_utf8_lossy(stamp.full(line.time));
            let said = Said::Word(format!("{time} {name} {who} | {}", line.text));
            if operator.send(said).await.is_err() {
                return;
            }
        }
        if over {
            let _gone = operator.send(Said::Complaint("edge has stopped".to_owned())).await;
        }
        if over || !follow {
            let _gone = operator.send(Said::End(0)).await;
            return;
        }
        let more: Vec<_> = read.values().map(|(journal, next)| Box::pin(journal.reaches(*next))).collect();
        tokio::select! {
            () = any(more) => {}
            // Apps may have come meanwhile.
            () = tokio::time::sleep(LOOK_FOR_APPS) => {}
            () = ends.drained() => over = true,
            () = operator.closed() => return,
        }
    }
}

async fn any(futures: Vec<impl Future<Output = ()> + Unpin>) {
    if futures.is_empty() {
        std::future::pending::<()>().await;
    }
    futures_util::future::select_all(futures).await;
}
