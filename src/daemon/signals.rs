//! Signals as commands.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// SIGTERM, SIGINT: finish what is open, then end the workers; again, do not wait for the one that is under way.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: open log files again.
    Reopen,
}

/// The signals edge listens to. From its creation on they no longer kill the process.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
    /// A file that has reached the limit of its size: what counts is that the write fails, and does not end edge.
    _file_size: Signal,
}

impl Signals {
    /// Takes over the signals; inside a runtime.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            _file_size: signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?,
        })
    }

    /// The next command. Cancel-safe.
    pub async fn next(&mut self) -> Command {
        tokio::select! {
            _ = self.terminate.recv() => Command::Stop,
            _ = self.interrupt.recv() => Command::Stop,
            _ = self.hangup.recv() => Command::Reload,
            _ = self.user1.recv() => Command::Reopen,
        }
    }
}
