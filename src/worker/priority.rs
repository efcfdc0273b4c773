//! The priority of a worker's session. Where the kernel shares the CPU out among sessions (sched(7), autogroups), it heeds that
//! of a process only within its own.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use rustix::io::Errno;

use crate::worker::child::Child;

/// How often the kernel lets who is not privileged change one, whoever's it is.
const PAUSE: Duration = Duration::from_millis(100);

/// How often it is tried: enough for hundreds of workers that start at once.
const TRIES: u32 = 600;

/// Gives the session that `worker` leads the priority the worker has. What cannot be had is done without: a kernel may know of no
/// such groups, and heeds that of the process where there are none.
pub(super) async fn share(worker: &Child, nice: i32) {
    let mut tries = 0;
    while !worker.has_ended() {
        let Err(error) = set(worker.pid(), nice) else { return };
        tries += 1;
        if error.kind() == io::ErrorKind::WouldBlock && tries < TRIES {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        if !is_without_group(&error) {
            let (app, slot, pid) = (&worker.place().app, worker.place().slot, worker.pid());
            tracing::debug!(%app, worker = slot, pid, nice, %error, "cannot give a worker's session its priority");
        }
        return;
    }
}

fn set(leader: u32, nice: i32) -> io::Result<()> {
    let mut file = File::options().write(true).open(format!("/proc/{leader}/autogroup"))?;
    file.write_all(nice.to_string().as_bytes())
}

/// Whether the kernel knows of no such groups, or the worker has ended.
fn is_without_group(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}
