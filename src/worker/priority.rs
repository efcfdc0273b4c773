//! The priority of a worker's session. Where the kernel shares the CPU out among sessions (sched(7), autogroups), it heeds that
//! of a process only within its own.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use crate::worker::child::Child;

/// How often the kernel lets who is not privileged change one, whoever's it is.
const PAUSE: Duration = Duration::from_millis(100);

/// Gives the session that `worker` leads the priority the worker has. What cannot be had is done without: a kernel may know of no
/// such groups, and heeds that of the process where there are none.
pub(super) async fn share(worker: &Child, nice: i32) {
    while !worker.has_ended() && is_to_be_asked_later(set(worker.pid(), nice)) {
        tokio::time::sleep(PAUSE).await;
    }
}

fn set(leader: u32, nice: i32) -> io::Result<()> {
    let mut file = File::options().write(true).open(format!("/proc/{leader}/autogroup"))?;
    file.write_all(nice.to_string().as_bytes())
}

fn is_to_be_asked_later(outcome: io::Result<()>) -> bool {
    outcome.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
