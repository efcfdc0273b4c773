//! edge as a service manager runs it: as a user without rights, where it can in a control group that is its own.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::edge::{BINARY, Setup};
use super::{processes, python};

/// The user and group `nobody`, by number: their names differ.
const NOBODY: u32 = 65534;

/// A control group of version 2 made for a test, removed after it.
pub(crate) struct Group(PathBuf);

impl Group {
    /// `None` where none can be made.
    pub(crate) fn new() -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[2] == "cgroup2").then(|| fields[1].to_owned())
        })?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(&mount).join(format!("edge-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).ok().map(|()| Self(path))
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The groups of workers.
    pub(crate) fn leaves(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir() && !path.ends_with("edge")).collect()
    }

    /// Words that execute what follows them in it.
    pub(crate) fn entered(&self) -> Vec<String> {
        // What starts edge again has to put it into the leaf: the group itself may have no process then.
        let enter = format!(
            "for group in {0}/edge {0}; do echo 0 2>&- >$group/cgroup.procs && break; done; exec \"$0\" \"$@\"",
            self.0.display()
        );
        ["sh".into(), "-c".into(), enter].into()
    }

    fn give_away(&self) {
        for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            chown(self.0.join(name), Some(NOBODY), Some(NOBODY)).expect("root gives away");
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.0.join("edge"));
        let _ = fs::remove_dir(&self.0);
    }
}

/// Has edge run without rights, in `group` if there is one.
pub(crate) fn without_rights(setup: Setup, group: Option<&Group>) -> Setup {
    let mut words = group.map(Group::entered).unwrap_or_default();
    if processes::root() {
        if is_open_to_nobody() {
            let nobody = format!("--reuid={NOBODY} --regid={NOBODY} --clear-groups");
            words.push("setpriv".into());
            words.extend(nobody.split(' ').map(str::to_owned));
            chown(setup.dir(), Some(NOBODY), Some(NOBODY)).expect("root gives away");
            if let Some(group) = group {
                group.give_away();
            }
        } else {
            // A checkout that only root may enter: the same owner, in a user namespace where it is nobody and has no rights.
            words.extend(["unshare", "--user", "--map-user=1000", "--map-group=1000"].map(str::to_owned));
        }
    }
    setup.inside(&words)
}

/// Whether everybody may execute this build and the servers.
fn is_open_to_nobody() -> bool {
    let user = format!("--reuid={NOBODY} --regid={NOBODY} --clear-groups");
    let python = python::root().join("target/test-venv/bin/python3");
    [Path::new(BINARY), &python].into_iter().all(|program| {
        // By a shell: setpriv itself still has the rights to execute anything.
        let tried = Command::new("setpriv")
            .args(user.split(' '))
            .args(["sh", "-c", "exec \"$0\" --version"])
            .arg(program)
            .output();
        tried.is_ok_and(|output| output.status.success())
    })
}
