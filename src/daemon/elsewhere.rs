//! The running edge of a configuration file that says another admin socket than it did when edge was started.
//!
//! Must not do: operate it. Any user may listen on a socket of that name, so what is found is only told.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::telemetry::status::Status;

/// How long all that listens is asked.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Where the edge that was started with `file` answers, and its process id; `ask` asks who answers at a socket.
pub(super) fn find(file: &Path, ask: impl Fn(&Path) -> Option<Status>) -> Option<(PathBuf, u32)> {
    let file = fs::canonicalize(file).ok()?;
    let until = Instant::now() + PATIENCE;
    let sockets = listening(&fs::read_to_string("/proc/net/unix").ok()?);
    sockets.into_iter().take_while(|_| Instant::now() < until).find_map(|admin| {
        let status = ask(&admin)?;
        let its = fs::canonicalize(&status.config_file).ok()?;
        (its == file).then_some((admin, status.pid))
    })
}

/// A path without links, or as it is written where it leads nowhere.
pub(super) fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The paths of listening sockets that are named like edge's, from the kernel's table.
fn listening(table: &str) -> Vec<PathBuf> {
    // Number, references, protocol, flags, type, state, inode, path; of the flags this one is for listening.
    const LISTENS: u32 = 1 << 16;
    let path = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let path = PathBuf::from(fields.nth(3)?);
        (flags & LISTENS != 0 && path.is_absolute() && path.ends_with("admin.sock")).then_some(path)
    };
    table.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_that_name_are_asked() {
        let table = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 10001 /run/edge/admin.sock
0000000000000000: 00000003 00000000 00000000 0001 03 10002 /run/edge/admin.sock
0000000000000000: 00000002 00000000 00010000 0001 01 10003 /run/docker.sock
0000000000000000: 00000002 00000000 00010000 0001 01 10004 @admin.sock
0000000000000000: 00000003 00000000 00000000 0001 03 10005
";
        assert_eq!(listening(table), [PathBuf::from("/run/edge/admin.sock")]);
    }
}
