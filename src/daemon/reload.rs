//! A reload: the file is read again, and what is to change by that is put in force.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::cert::store_error::StoreError;
use crate::config::diff::{self, Change};
use crate::config::load;
use crate::config::model::{Backend, Config};
use crate::config::problem::Problems;
use crate::config::surroundings::Surroundings;
use crate::daemon::adoption::Adoption;
use crate::daemon::check_certificates;
use crate::daemon::cli;
use crate::daemon::live::Live;
use crate::daemon::progress::{Failed, Progress};
use crate::daemon::rolling::{no_workers, stays};
use crate::name::AppName;
use crate::report::Report;

/// How long reading a configuration and looking at what it names may take.
const READ: Duration = Duration::from_secs(30);

/// A reload that a signal asked for. Signals that come while one waits for its turn are about the same file.
pub async fn signalled(live: Rc<Live>) {
    if live.reload_waits.replace(true) {
        return;
    }
    let told = Progress::default();
    let outcome = reload(&live, None, &told).await;
    told.end(outcome).await;
}

/// Reads the file again and puts it in force; with `app`, its workers are replaced even if nothing changed. Completes when
/// new workers serve and old ones are gone.
pub async fn reload(live: &Live, app: Option<&AppName>, told: &Progress) -> Result<(), Failed> {
    let what = match app {
        Some(name) => format!("`edge reload {name}`"),
        None => "a reload".to_owned(),
    };
    let Some(turn) = told.take(&live.turn, &what).await else {
        return Err(Failed::because(format!("{what} was given up before its turn came")));
    };
    live.reload_waits.set(false);
    let old = live.config();
    let (new, changes) = asked(&old, app).await.map_err(|Failed { text, status }| {
        told.complain(text);
        stays(&old, "; nothing was changed", status)
    })?;
    let half_renewed = |error: &StoreError| {
        told.say(format!("{}; {}", Report(error), check_certificates::LOOKING_AGAIN));
    };
    check_certificates::renewed(&new, half_renewed).await;
    if changes.is_empty() {
        return look(live, &old, told).await;
    }
    Adoption::new(live, new, told, &turn).run(&changes).await
}

/// What the file says now, and what of that is other than what is in force.
async fn asked(old: &Config, app: Option<&AppName>) -> Result<(Arc<Config>, Vec<Change>), Failed> {
    let new = Arc::new(read(old.file.clone()).await?);
    let mut changes = diff::diff(old, &new).map_err(|keys| {
        let line = |key: &diff::NeedsRestart| format!("{}: {key}", old.file.display());
        Failed::because(keys.iter().map(line).collect::<Vec<_>>().join("\n"))
    })?;
    if let Some(name) = app {
        force(&mut changes, &new, name)?;
    }
    Ok((new, changes))
}

/// The files of certificates may have changed, which the configuration does not show.
async fn look(live: &Live, old: &Config, told: &Progress) -> Result<(), Failed> {
    let looked = live.manager.look_at_files().await;
    let early = !looked.early.is_empty();
    for early in looked.early {
        told.say(early);
    }
    if !looked.unusable.is_empty() {
        told.complain(looked.unusable.join("\n"));
        let others =
            if looked.changed { "; other changed files are in force" } else { "; nothing was changed" };
        return Err(stays(old, others, cli::CONFIG));
    }
    told.say(match (looked.changed, early) {
        (true, _) => "the new certificate files are served",
        (false, true) => "nothing else has changed",
        (false, false) => "nothing has changed",
    });
    Ok(())
}

/// Off the event loop: files and the system's databases of users and hosts may be slow.
async fn read(file: PathBuf) -> Result<Config, Failed> {
    let read = move || load::load(&file, &Surroundings::of_this_process());
    match tokio::time::timeout(READ, tokio::task::spawn_blocking(read)).await {
        Ok(Ok(Ok(config))) => Ok(config),
        Ok(Ok(Err(problems))) => Err(refused(&problems)),
        // The turn is another's then, who may have taken the app out that lies there.
        Err(_) => Err(Failed::because(format!(
            "the configuration, or a file or directory that it names, has not answered for {} s: is one on a file server that is gone?",
            READ.as_secs()
        ))),
        Ok(Err(_)) => Err(Failed::because("reading the configuration failed because of a bug in edge")),
    }
}

fn refused(problems: &Problems) -> Failed {
    Failed { text: problems.to_string(), status: cli::CONFIG }
}

/// Makes sure that the app's workers are replaced.
fn force(changes: &mut Vec<Change>, new: &Config, name: &AppName) -> Result<(), Failed> {
    let Some(app) = new.apps.iter().find(|app| app.name == *name) else {
        let known: Vec<&str> = new.apps.iter().map(|app| app.name.as_str()).collect();
        let (file, known) = (new.file.display(), known.join(", "));
        return Err(Failed::because(format!("{file} has no app named \"{name}\"; it has {known}")));
    };
    match app.backend {
        Backend::Workers(_) => {}
        Backend::Upstream(_) => return Err(no_workers(name)),
    }
    // New workers come with the new settings, and in the new number.
    let is_settled = |change: &Change| match change {
        Change::Settings(one) | Change::Scaled(one, _) => one.name == *name,
        _ => false,
    };
    changes.retain(|change| !is_settled(change));
    let starts = |change: &Change| match change {
        Change::Added(one) | Change::Workers(one) | Change::Backend(one) => one.name == *name,
        _ => false,
    };
    if !changes.iter().any(starts) {
        changes.push(Change::Workers(Arc::clone(app)));
    }
    Ok(())
}
