//! A changed configuration put in force: everything that can fail is done first and can be undone, so that a failure leaves
//! the old configuration whole; what nothing says about is not touched.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use crate::cert::change::Prepared;
use crate::config::diff::{Change, Listener};
use crate::config::model::{App, Backend, Config, WorkerCount, WorkerSpec};
use crate::daemon::cli;
use crate::daemon::live::{Live, LiveApp};
use crate::daemon::progress::{Failed, Progress, Taken};
use crate::daemon::rolling::{no_workers, not_rolled, stays, tell_of_memory};
use crate::daemon::words;
use crate::listen::socket::BindError;
use crate::name::AppName;
use crate::report::Report;
use crate::telemetry::status::AppState;
use crate::worker::adapter;
use crate::worker::runnable::{self, Obstacle};
use crate::worker::supervisor::{RollError, Supervisor};

/// Past `start_timeout`, how long the supervisor may take to say so.
const SAYING: Duration = Duration::from_secs(2);
/// How often a new app is looked at for failing again and again.
const LOOK: Duration = Duration::from_millis(250);
/// How long looking for an app's program may take.
const SEEN: Duration = Duration::from_secs(5);
/// Last lines of a worker that are shown.
const LAST_LINES: usize = 20;

/// A reload under way, with what is to be undone if it fails.
pub struct Adoption<'a> {
    live: &'a Live,
    old: Arc<Config>,
    new: Arc<Config>,
    told: &'a Progress,
    turn: &'a Taken<'a>,
    /// Apps that were started and are not routed to yet.
    made: Vec<LiveApp>,
    /// Apps whose `before_start` is run for the new configuration, in this order.
    to_prepare: Vec<AppName>,
    /// How many of them it has been run for.
    prepared: usize,
    /// Apps whose workers are of the new configuration already, as they were before.
    rolled: Vec<Rolled>,
}

/// An app whose workers have changed, and what it takes to change them back.
struct Rolled {
    supervisor: Supervisor,
    before: Arc<App>,
    /// What an operator held the number of its workers at.
    held: Option<u32>,
    done: Done,
}

/// What was done to an app's workers.
#[derive(Debug, Clone, Copy)]
enum Done {
    Rolled,
    Scaled,
}

impl<'a> Adoption<'a> {
    /// What puts `new` in the place of what is in force; nothing is done yet.
    pub fn new(live: &'a Live, new: Arc<Config>, told: &'a Progress, turn: &'a Taken<'a>) -> Self {
        Self {
            live,
            old: live.config(),
            new,
            told,
            turn,
            made: Vec::new(),
            to_prepare: Vec::new(),
            prepared: 0,
            rolled: Vec::new(),
        }
    }

    /// Puts the new configuration in force, which differs from the old one by `changes`. Completes when new workers serve and old ones are
    /// gone.
    pub async fn run(mut self, changes: &[Change]) -> Result<(), Failed> {
        let of = |wanted: fn(&Change) -> Option<&Listener>| -> Vec<Listener> {
            changes.iter().filter_map(wanted).copied().collect()
        };
        let opened = of(|change| if let Change::Opened(one) = change { Some(one) } else { None });
        let closed = of(|change| if let Change::Closed(one) = change { Some(one) } else { None });
        let metrics =
            changes.iter().find_map(|change| if let Change::Metrics(at) = change { Some(*at) } else { None });
        let made = async {
            let refused = |error: BindError| Failed::because(Report(&error).to_string());
            let reserved = self.live.listeners.borrow().reserve(&opened, &closed).map_err(refused)?;
            let endpoint = metrics.flatten().map(|wanted| self.live.metrics.reserve(wanted)).transpose();
            let endpoint = endpoint.map_err(refused)?;
            let prepared = self.certificates().await?;
            self.start_and_roll(changes).await?;
            Ok((reserved, endpoint, prepared))
        };
        let (reserved, endpoint, prepared) = match made.await {
            Ok(made) => made,
            Err(failed) => return Err(self.undo(failed).await),
        };

        // Nothing below can fail. Certificates come before the names that need them, names before the doors.
        self.live.manager.adopt(prepared).await;
        let gone = self.commit();
        let (told, closing) = {
            let mut listeners = self.live.listeners.borrow_mut();
            let told = changes.contains(&Change::Rules).then(|| listeners.tell_rules(&self.new.rules()));
            listeners.open(reserved);
            let closing = listeners.close(&closed);
            listeners.arrange(&self.new);
            (told, closing)
        };
        if metrics.is_some() {
            self.live.metrics.move_to(endpoint);
        }
        // Once more, because redirects name the port of https.
        self.live.route();
        if let Some(told) = told {
            told.await;
        }
        closing.await;
        for app in gone {
            if let Some(supervisor) = &app.supervisor {
                self.say(format!("{}: stopping its workers", app.app.name));
                supervisor.stop().await;
            }
            let name = &app.app.name;
            let replaced = self.new.apps.iter().any(|app| app.name == *name);
            self.told.say(if replaced {
                format!("{name}: answered by others now")
            } else {
                format!("{name}: removed")
            });
        }
        self.told.say("the new configuration is in force");
        Ok(())
    }

    /// What the new configuration's names need.
    async fn certificates(&self) -> Result<Prepared, Failed> {
        match self.live.manager.prepare(Arc::clone(&self.new)).await {
            Some(Ok(prepared)) => Ok(prepared),
            Some(Err(error)) => {
                let status = if error.is_of_a_configured_file() { cli::CONFIG } else { 1 };
                Err(Failed { text: Report(&error).to_string(), status })
            }
            None => Err(Failed::because("edge is stopping")),
        }
    }

    /// What may fail: new apps become ready, then workers of known apps are replaced, once all that can be known of them
    /// beforehand is known.
    async fn start_and_roll(&mut self, changes: &[Change]) -> Result<(), Failed> {
        for change in changes {
            if let Change::Added(app) | Change::Backend(app) = change {
                self.made.push(self.live.open(app));
            }
        }
        for made in &self.made {
            self.say(format!("{}: starting", made.app.name));
            match &made.supervisor {
                Some(supervisor) => {
                    self.told.telling(&made.app.name, supervisor.remarks(), ready(made)).await?;
                }
                None => ready(made).await?,
            }
        }
        let workers = changes
            .iter()
            .filter_map(|change| if let Change::Workers(app) = change { Some(app) } else { None });
        self.to_prepare = workers.clone().filter(|app| prepares(app)).map(|app| app.name.clone()).collect();
        for app in workers.clone() {
            self.prepare(app).await?;
        }
        for app in workers {
            self.look(app).await?;
        }
        for change in changes {
            match change {
                Change::Workers(app) => self.roll(app).await?,
                Change::Scaled(app, workers) => self.scale(app, *workers).await?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Runs what comes before an app's first new worker, its old ones being left alone.
    async fn prepare(&mut self, app: &Arc<App>) -> Result<(), Failed> {
        let (Some(live), Backend::Workers(spec)) = (self.live.app(&app.name), &app.backend) else {
            return Err(no_workers(&app.name));
        };
        let Some(supervisor) = live.supervisor.filter(|_| !spec.before_start.is_empty()) else {
            return Ok(());
        };
        self.say(format!("{}: running its `before_start`", app.name));
        let prepared = supervisor.prepare(Arc::clone(app), (**spec).clone()).await;
        prepared.map_err(|error| not_rolled(&app.name, &supervisor, &error))?;
        self.prepared += 1;
        Ok(())
    }

    /// Whether an app's program is there now; what only its mode tells against it is tried all the same.
    async fn look(&self, app: &Arc<App>) -> Result<(), Failed> {
        let Some(supervisor) = self.live.app(&app.name).and_then(|live| live.supervisor) else {
            return Ok(());
        };
        let (app, runtime_dir) = (Arc::clone(app), self.new.runtime_dir.clone());
        let name = app.name.clone();
        let look = move || match &app.backend {
            Backend::Workers(spec) => {
                let plan = adapter::plan(&app.name, spec, 0, &runtime_dir);
                runnable::obstacle(spec, &plan).filter(Obstacle::is_certain)
            }
            Backend::Upstream(_) => None,
        };
        match tokio::time::timeout(SEEN, tokio::task::spawn_blocking(look)).await {
            Ok(Ok(Some(obstacle))) => {
                let error = RollError { reason: obstacle.to_string(), last_lines: Vec::new() };
                Err(not_rolled(&name, &supervisor, &error))
            }
            // What does not answer is the first new worker's to say.
            Ok(Ok(None) | Err(_)) | Err(_) => Ok(()),
        }
    }

    async fn roll(&mut self, app: &Arc<App>) -> Result<(), Failed> {
        let (Some(known), Backend::Workers(spec)) = (self.known(app, Done::Rolled), &app.backend) else {
            return Err(no_workers(&app.name));
        };
        self.say(format!("{}: replacing its workers", app.name));
        tell_of_memory(&app.name, &known.supervisor, self.told);
        let taking_over = known.supervisor.take_over(Arc::clone(app), (**spec).clone());
        let rolled = self.told.telling(&app.name, known.supervisor.remarks(), taking_over).await;
        rolled.map_err(|error| not_rolled(&app.name, &known.supervisor, &error))?;
        self.told.say(format!("{}: new workers serve, old ones are gone", app.name));
        self.rolled.push(known);
        Ok(())
    }

    async fn scale(&mut self, app: &Arc<App>, workers: WorkerCount) -> Result<(), Failed> {
        let Some(known) = self.known(app, Done::Scaled) else { return Err(no_workers(&app.name)) };
        let many =
            if workers.is_fixed() { words::workers(workers.min) } else { format!("{workers} workers") };
        self.say(format!("{}: scaling to {many}", app.name));
        let remarks = known.supervisor.remarks();
        let scaled = self.told.telling(&app.name, remarks, known.supervisor.resize(workers)).await;
        let scaled = scaled.map_err(|error| not_rolled(&app.name, &known.supervisor, &error));
        // Also where it failed: the number has changed.
        self.rolled.push(known);
        scaled
    }

    fn known(&self, app: &App, done: Done) -> Option<Rolled> {
        let live = self.live.app(&app.name)?;
        let supervisor = live.supervisor?;
        let held = supervisor.status().scale.filter(|scale| scale.held).map(|scale| scale.target);
        Some(Rolled { supervisor, before: live.app, held, done })
    }

    /// The new configuration with its apps takes the place of the old one; returned are the apps that are gone.
    fn commit(&mut self) -> Vec<LiveApp> {
        let mut known = self.live.apps();
        let mut made = std::mem::take(&mut self.made);
        let take = |from: &mut Vec<LiveApp>, name: &AppName| {
            let at = from.iter().position(|live| live.app.name == *name)?;
            Some(from.remove(at))
        };
        let mut apps = Vec::new();
        let mut gone = Vec::new();
        for app in &self.new.apps {
            let before = take(&mut known, &app.name);
            let live = match (take(&mut made, &app.name), before) {
                (Some(live), Some(before)) => {
                    let (maintenance, tally) = (before.maintenance.clone(), Arc::clone(&before.tally));
                    gone.push(before);
                    LiveApp { maintenance, tally, ..live }
                }
                (Some(live), None) => live,
                (None, Some(before)) => LiveApp { app: Arc::clone(app), ..before },
                // Cannot be: what was not known was made.
                (None, None) => continue,
            };
            apps.push(live);
        }
        gone.extend(known);
        self.live.replace(Arc::clone(&self.new), apps);
        gone
    }

    fn say(&self, text: String) {
        self.turn.is_at(&text);
        self.told.say(text);
    }

    /// Goes back after `failed` was told; returned is how it ends.
    async fn undo(self, failed: Failed) -> Failed {
        self.told.complain(failed.text);
        let mut as_before = true;
        for made in &self.made {
            match &made.supervisor {
                // What comes before its first worker may want to undo what it has begun.
                Some(supervisor) if !supervisor.is_prepared() => supervisor.stop().await,
                Some(supervisor) => supervisor.kill_now().await,
                None => {}
            }
        }
        for Rolled { supervisor, before, held, done } in self.rolled.iter().rev() {
            if let Backend::Workers(spec) = &before.backend {
                self.say(format!("{}: going back to the workers it had", before.name));
                let mut back = match done {
                    // Its `before_start` was run when this was new.
                    Done::Rolled => supervisor.take_over(Arc::clone(before), (**spec).clone()).await,
                    Done::Scaled => supervisor.resize(spec.workers).await,
                };
                if back.is_ok() && held.is_some() {
                    back = supervisor.scale(*held).await;
                }
                as_before &= back.is_ok();
                self.told.say(match back {
                    Ok(()) => format!("{}: workers of the configuration in force serve again", before.name),
                    Err(error) => not_rolled(&before.name, supervisor, &error).text,
                });
            }
        }
        let hooks = self.hooks();
        let changed = match (as_before, hooks.is_empty()) {
            (true, true) => "; nothing was changed",
            (true, false) => "; nothing else was changed",
            (false, _) => "",
        };
        for text in hooks {
            self.told.say(text);
        }
        stays(&self.old, changed, failed.status)
    }

    /// What became of each `before_start`, whose doings cannot be undone.
    fn hooks(&self) -> Vec<String> {
        let made = self
            .made
            .iter()
            .filter(|made| prepares(&made.app))
            .map(|made| format!("{}: what its `before_start` has done is not undone", made.app.name));
        let known = self.to_prepare.iter().enumerate().map(|(at, name)| match at.cmp(&self.prepared) {
            Ordering::Less => {
                format!("{name}: its new `before_start` was run, and what that did is not undone")
            }
            Ordering::Equal => {
                format!("{name}: its new `before_start` failed, and what it did until then is not undone")
            }
            Ordering::Greater => format!("{name}: its new `before_start` was not run"),
        });
        made.chain(known).collect()
    }
}

/// Whether something is run before the app's first worker.
fn prepares(app: &App) -> bool {
    match &app.backend {
        Backend::Workers(spec) => !spec.before_start.is_empty(),
        Backend::Upstream(_) => false,
    }
}

/// Waits until every worker of a new app is ready.
async fn ready(made: &LiveApp) -> Result<(), Failed> {
    let (Some(supervisor), Backend::Workers(spec)) = (&made.supervisor, &made.app.backend) else {
        return Ok(());
    };
    let WorkerSpec { workers, start_timeout, .. } = **spec;
    let not_started = || supervisor.status().workers.iter().any(|worker| worker.past.last_exit.is_some());
    let serving = made.roster.wait_for_change(|slots| (slots.len() >= workers.min as usize).then_some(()));
    let failing = async {
        while supervisor.status().state != AppState::Failed {
            tokio::time::sleep(LOOK).await;
        }
    };
    // What comes before the first worker has a time of its own; where it has failed, nobody waits for another attempt.
    let starting = async {
        while !supervisor.is_prepared() {
            if not_started() {
                return "no worker of it can start".to_owned();
            }
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(start_timeout + SAYING).await;
        format!("it was not ready within {} s", start_timeout.as_secs_f64())
    };
    let reason = tokio::select! {
        () = serving => return Ok(()),
        () = failing => "its workers die before they are ready".to_owned(),
        reason = starting => reason,
    };
    let exit = supervisor.status().workers.into_iter().find_map(|worker| worker.past.last_exit);
    let exit = exit.map(|exit| format!(" ({exit})")).unwrap_or_default();
    let lines: String =
        made.journal.last(LAST_LINES).iter().map(|line| format!("\n  {}", line.text)).collect();
    Err(Failed::because(format!("app \"{}\": {reason}{exit}{lines}", made.app.name)))
}
