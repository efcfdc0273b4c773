//! What an edge that was killed left behind: found by what it wrote down, and removed before new workers start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::name::AppName;
use crate::worker::cgroup;
use crate::worker::environment;
use crate::worker::family::{self, Mark, Process};

/// One app's workers as written down by a running edge. The file lies beside the app's directory, not in it: a worker must
/// not be able to say what the next edge, perhaps root, shall kill.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The process id and start time of the writer.
    edge: (u32, u64),
    /// What its workers inherited.
    mark: Mark,
    /// Process id and start time of each worker's first process.
    workers: Vec<(u32, u64)>,
}

/// Another edge uses the directory.
#[derive(Debug, thiserror::Error)]
#[error("another edge (process {pid}) runs with the runtime directory {}", directory.display())]
pub struct InUse {
    /// Its process id.
    pub pid: u32,
    /// That directory.
    pub directory: PathBuf,
}

/// Ends processes and removes sockets of an edge that is gone. Must come before the first worker is started. How many
/// processes were ended.
pub async fn sweep(runtime_dir: &Path) -> Result<usize, InUse> {
    let mut ended = cgroup::sweep().await;
    let Ok(entries) = fs::read_dir(runtime_dir) else { return Ok(ended) };
    for path in entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == EXTENSION))
    {
        let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        if let Some(record) = record {
            if let Some(pid) = owner(record.edge) {
                return Err(InUse { pid, directory: runtime_dir.to_owned() });
            }
            ended += end(&record).await;
        }
        environment::clear_directory(&path.with_extension(""));
        environment::remove(&path);
    }
    Ok(ended)
}

/// Writes down the living workers of an app of the edge with this mark; with none, removes the file.
pub(super) fn write(runtime_dir: &Path, app: &AppName, mark: Mark, workers: &[(u32, u64)]) -> io::Result<()> {
    let path = runtime_dir.join(format!("{app}.{EXTENSION}"));
    if workers.is_empty() {
        return match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        };
    }
    let record = Record { edge: family::this_process(), mark, workers: workers.to_vec() };
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec(&record)?)?;
    // Whole or not at all; it need not survive a power cut, which no process does either.
    fs::rename(&temporary, &path)
}

const EXTENSION: &str = "workers";

/// The process id of an edge, if it lives and is not this one.
fn owner((pid, start): (u32, u64)) -> Option<u32> {
    (pid != std::process::id() && family::lives(pid, start)).then_some(pid)
}

async fn end(record: &Record) -> usize {
    let find = || survivors(record, &family::processes());
    let count = find().len();
    for stuck in family::end(Vec::new(), find).await {
        tracing::warn!(pid = stuck.pid, "a process of an earlier edge cannot be ended");
    }
    count
}

/// A recorded worker counts only if it is the same process still; where it is gone, its session's members do, because no
/// new process gets an id that names a session. Whatever inherited the mark is theirs for sure.
fn survivors(record: &Record, table: &[Process]) -> Vec<Process> {
    let of_that_edge = |mark: Mark| mark.is_of(record.mark);
    let marked = |one: &Process| !one.zombie && Mark::of_process(one.pid).is_some_and(of_that_edge);
    let mut found: Vec<Process> = Vec::new();
    for (leader, start) in &record.workers {
        let now = table.iter().find(|one| one.pid == *leader);
        if now.is_none_or(|now| now.start == *start) {
            let later = |one: &Process| one.start >= *start;
            found.extend(family::members(table, *leader, |_| false).into_iter().filter(later));
        }
    }
    found.extend(family::members(table, 0x7fff_ffff, marked));
    // Zombies wait for a parent that is not us.
    found.retain(|one| !one.zombie);
    found.sort_unstable_by_key(|one| one.pid);
    found.dedup_by_key(|one| one.pid);
    found
}
