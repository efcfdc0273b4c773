//! What an operator hears where a change is not made, or not without a gap.

use crate::config::model::Config;
use crate::daemon::progress::{Failed, Progress};
use crate::name::AppName;
use crate::worker::supervisor::{RollError, Supervisor};

/// Only an app with workers can do what was asked.
pub fn no_workers(name: &AppName) -> Failed {
    Failed::because(format!("app \"{name}\" has no workers: it forwards to servers edge does not run"))
}

/// Why new workers did not take over, with the last lines of the one that failed.
pub fn not_rolled(name: &AppName, supervisor: &Supervisor, error: &RollError) -> Failed {
    let lines = error.last_lines.iter().map(|line| format!("\n  {line}")).collect::<String>();
    let others = if supervisor.serves() { "its old workers serve on" } else { "no worker of it serves" };
    Failed::because(format!("app \"{name}\": {}; {others}{lines}", error.reason))
}

/// How a failed reload ends, whose reason is told already: what is in force, and with it what of that is other than before.
pub fn stays(in_force: &Config, changed: &str, status: u8) -> Failed {
    Failed { text: format!("{}: the configuration in force stays{changed}", in_force.file.display()), status }
}

/// Says so where requests will wait because memory is short.
pub fn tell_of_memory(name: &AppName, supervisor: &Supervisor, told: &Progress) {
    if !supervisor.has_room() {
        told.say(format!(
            "{name}: memory has no room for a successor beside its workers: each goes first, and requests wait where there is no other"
        ));
    }
}
