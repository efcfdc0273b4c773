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
    /// Where all these numbers mean something: see [`this_boot`]. Empty of an edge that did not write it.
    #[serde(default)]
    boot: String,
}

/// Another edge uses the directory.
#[derive(Debug, thiserror::Error)]
#[error(
    "another edge (process {pid}) runs with the runtime directory {}: `edge reload` has it apply a changed file; to run two, give each \
     a `runtime_dir` of its own",
    directory.display()
)]
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
        // Nobody of another boot lives, and whoever has such a number now is a stranger.
        let of_this_boot = |record: &Record| record.boot.is_empty() || record.boot == this_boot();
        if let Some(record) = record.filter(of_this_boot) {
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
    let (edge, workers, boot) = (family::this_process(), workers.to_vec(), this_boot());
    let record = Record { edge, mark, workers, boot };
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

/// This run of the machine, and of the container where edge has processes of its own: not every runtime directory is emptied with
/// either.
fn this_boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let processes = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), processes.display())
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
    found.extend(family::members(table, family::NOBODY, marked));
    // Zombies wait for a parent that is not us.
    found.retain(|one| !one.zombie);
    found.sort_unstable_by_key(|one| one.pid);
    found.dedup_by_key(|one| one.pid);
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn numbers_that_were_written_down_before_the_machine_was_started_again_are_strangers_now() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("api.workers");
        let mut stranger = Command::new("sleep").arg("1000").process_group(0).spawn().expect("started");
        let pid = stranger.id();
        let start = family::process(pid).expect("it runs").start;
        let mut record = Record {
            edge: (0x3fff_ffff, 1),
            mark: Mark::of_an_edge(&mut fastrand::Rng::with_seed(7)),
            workers: vec![(pid, start)],
            boot: "another".to_owned(),
        };
        let left = async |record: &Record| {
            fs::write(&path, serde_json::to_vec(record).expect("plain")).expect("written");
            let ended = sweep(root.path()).await.expect("no other edge");
            assert!(!path.exists());
            (ended, family::lives(pid, start))
        };
        assert_eq!(left(&record).await, (0, true));
        record.boot = this_boot();
        assert_eq!(left(&record).await, (1, false), "what is of this boot is ended");
        let _reaped_already = stranger.wait();
    }
}
