//! What the meaning of a file depends on besides its text and the disk. Tests make it up.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use nix::sys::resource::{Resource, getrlimit};

/// The process that reads the file.
#[derive(Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Environment variables; those that are not UTF-8 count as not set.
    pub variables: BTreeMap<String, String>,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// CPUs the process may use.
    pub cpus: NonZeroUsize,
    /// Descriptors the process may have open, once it has raised its limit.
    pub open_files: u64,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_this_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            variables: std::env::vars_os().filter_map(text).collect(),
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            cpus: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            open_files: getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard),
        }
    }

    /// A variable that is set and not empty.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether workers can be given another account than edge's.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

/// Hides the variables: they hold secrets.
impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings")
            .field("uid", &self.uid)
            .field("gid", &self.gid)
            .field("cpus", &self.cpus)
            .field("open_files", &self.open_files)
            .finish_non_exhaustive()
    }
}
