//! Control groups (version 2) for workers: one leaf for each, which limits its memory, counts it, says whether it ran out, and
//! holds everything the worker starts until it is killed as a whole.
//!
//! No use is made of `memory.high`: above it the kernel slows a worker down until it seems to hang, and says nothing. A leak is
//! `max_memory`'s to answer, whose worker is replaced in time; the limit is for what comes too fast for that.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::name::WorkerId;
use crate::worker::delegation::{self, Refusal, Seen};
use crate::worker::family::{self, Process};

/// The part of the tree that was given to edge.
#[derive(Debug)]
pub struct Groups {
    dir: PathBuf,
    memory: Result<(), Refusal>,
}

/// Name of the leaf edge itself lives in.
const OWN: &str = "edge";

impl Groups {
    /// Takes possession of the group edge was started in, if that was given to it: moves edge into a leaf, and has the kernel
    /// account for memory in every other. Nothing is changed where it was not. Must come before edge has children or threads.
    pub fn claim() -> Result<Self, Refusal> {
        let dir = given()?;
        delegation::judge(&dir, look(&dir))?;
        let failed = |error: io::Error| Refusal::Failed { dir: dir.clone(), reason: error.to_string() };
        make(&dir.join(OWN)).map_err(failed)?;
        fs::write(dir.join(OWN).join(PROCESSES), "0").map_err(failed)?;
        let has_memory = fs::read_to_string(dir.join("cgroup.controllers"))
            .is_ok_and(|all| all.split_ascii_whitespace().any(|one| one == "memory"));
        let memory = if has_memory {
            fs::write(dir.join(CONTROL), "+memory").map_err(failed)
        } else {
            Err(Refusal::NoMemory(dir.clone()))
        };
        Ok(Self { dir, memory })
    }

    /// Why memory cannot be limited, if it cannot.
    pub(super) fn without_memory(&self) -> Option<&Refusal> {
        self.memory.as_ref().err()
    }

    /// Makes the leaf of a worker that may use `limit` bytes of memory, swapped out or not. On an error nothing is left.
    pub(super) fn leaf(&self, id: &WorkerId, limit: Option<u64>) -> io::Result<Leaf> {
        let dir = self.dir.join(delegation::leaf_name(family::this_process(), id));
        fs::create_dir(&dir)?;
        let limit = limit.filter(|_| self.memory.is_ok());
        let leaf = Leaf { dir, limit };
        if let Some(bytes) = limit {
            leaf.write("memory.max", &bytes.to_string())?;
            // Half a worker is none: its wrapper or its siblings would keep edge from seeing that it died.
            leaf.write("memory.oom.group", "1")?;
            match leaf.write("memory.swap.max", "0") {
                // There is no such file without swap.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(leaf)
    }
}

/// One worker's group. Dropped empty, it is removed.
#[derive(Debug)]
pub(super) struct Leaf {
    dir: PathBuf,
    limit: Option<u64>,
}

impl Leaf {
    /// The limit of memory the kernel keeps for it.
    pub(super) fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Where a process writes `0` to move in.
    pub(super) fn entrance(&self) -> io::Result<File> {
        OpenOptions::new().write(true).open(self.dir.join(PROCESSES))
    }

    /// Finds everybody in it who lives, wherever it is called.
    pub(super) fn finder(&self) -> impl FnOnce() -> HashSet<u32> + Send + use<> {
        let dir = self.dir.clone();
        move || processes(&dir)
    }

    /// Kills everybody in it at once, those included who are just being forked.
    pub(super) fn kill(&self) {
        kill(&self.dir);
    }

    /// Where its memory is counted, if it is.
    pub(super) fn counter(&self) -> Option<Counter> {
        let dir = self.dir.clone();
        dir.join("memory.current").exists().then_some(Counter { dir })
    }

    /// Whether the kernel has killed somebody in it for lack of memory.
    pub(super) fn ran_out(&self) -> Option<bool> {
        let events = fs::read_to_string(self.dir.join("memory.events")).ok()?;
        Some(delegation::number(&events, "oom_kill")? > 0)
    }

    /// Removes it; nobody may live in it.
    pub(super) async fn remove(&self) {
        remove(&self.dir).await;
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        fs::write(self.dir.join(name), text)
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // Removed already, as a rule; if somebody lives in it still, the next start sees to it.
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Reads a leaf's memory.
#[derive(Debug)]
pub(super) struct Counter {
    dir: PathBuf,
}

impl Counter {
    /// Bytes in use. Cached files that nobody needs at the moment do not count: the kernel lets go of them.
    pub(super) fn bytes(&self) -> Option<u64> {
        let used: u64 = fs::read_to_string(self.dir.join("memory.current")).ok()?.trim().parse().ok()?;
        let statistics = fs::read_to_string(self.dir.join("memory.stat")).ok()?;
        Some(used.saturating_sub(delegation::number(&statistics, "inactive_file").unwrap_or(0)))
    }
}

/// The directory of edge's own group.
pub(super) fn own_group() -> Result<PathBuf, Refusal> {
    let groups = fs::read_to_string("/proc/self/cgroup").map_err(|_| Refusal::NotMounted)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|_| Refusal::NotMounted)?;
    delegation::own_group(&groups, &mounts)
}

/// The group that edge may divide, if it may: its own, or the one above where it was started in the leaf it would make.
fn given() -> Result<PathBuf, Refusal> {
    let own = own_group()?;
    let above = own.parent().filter(|above| own.ends_with(OWN) && above.join("cgroup.type").exists());
    Ok(above.filter(|above| processes(above).is_empty()).map_or(own.clone(), Path::to_owned))
}

/// Ends what lives in the leaves of edges that are gone, and removes these. How many processes were ended. Must come before
/// [`Groups::claim`], which leaves the group they are in.
pub(super) async fn sweep() -> usize {
    let Ok(dir) = given() else { return 0 };
    let mut ended = 0;
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        let owner = entry.file_name().to_str().and_then(delegation::owner_of_leaf);
        if owner.is_none_or(|(pid, start)| family::lives(pid, start)) {
            continue;
        }
        let leaf = entry.path();
        let find = || -> Vec<Process> { processes(&leaf).into_iter().filter_map(family::process).collect() };
        ended += find().len();
        kill(&leaf);
        for stuck in family::end(Vec::new(), find).await {
            tracing::warn!(pid = stuck.pid, "a process of an earlier edge cannot be ended");
        }
        remove(&leaf).await;
    }
    ended
}

fn look(dir: &Path) -> Seen {
    let may_write = |path: &Path| accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
    let noted = |name: &str| {
        let mut text = [0; 64];
        let length = rustix::fs::getxattr(dir, name, &mut text).ok()?;
        text.get(..length).map(<[u8]>::to_vec)
    };
    Seen {
        // Since 251, systemd notes both at every group it makes; an older one, or another, is believed.
        withheld: noted("user.invocation_id").is_some() && noted("user.delegate").as_deref() != Some(b"1"),
        // Every other group has it.
        root: !dir.join("cgroup.type").exists(),
        writable: may_write(dir) && may_write(&dir.join(PROCESSES)) && may_write(&dir.join(CONTROL)),
        alone: processes(dir).iter().all(|pid| *pid == std::process::id()),
    }
}

fn processes(dir: &Path) -> HashSet<u32> {
    let list = fs::read_to_string(dir.join(PROCESSES)).unwrap_or_default();
    list.lines().filter_map(|line| line.parse().ok()).collect()
}

fn kill(dir: &Path) {
    // Before Linux 5.14 there is no such file; its processes are found and killed one by one in any case.
    let _ = OpenOptions::new()
        .write(true)
        .open(dir.join("cgroup.kill"))
        .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
}

fn make(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a group and those that a worker made below it.
async fn remove(dir: &Path) {
    const ROUNDS: usize = 50;
    const PAUSE: Duration = Duration::from_millis(10);
    for _ in 0..ROUNDS {
        match remove_now(dir) {
            // A process leaves its group a moment after its end is visible.
            Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy) => {
                tokio::time::sleep(PAUSE).await
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(group = %dir.display(), %error, "cannot remove a control group");
                return;
            }
            Ok(()) | Err(_) => return,
        }
    }
    tracing::warn!(group = %dir.display(), "a control group is still in use: the next start of edge removes it");
}

fn remove_now(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_now(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

const PROCESSES: &str = "cgroup.procs";
const CONTROL: &str = "cgroup.subtree_control";
