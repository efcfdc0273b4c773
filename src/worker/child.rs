//! One running worker process: its end, its signals, its family.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::net::unix::pipe;

use crate::config::model::Address;
use crate::worker::adapter::{Place, Wire};
use crate::worker::environment;
use crate::worker::family::{self, Process};
use crate::worker::pidfd::Handle;
use crate::worker::registry::Registry;

/// A process edge spawned. If it is dropped alive, its group is killed.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    mark: String,
    place: Place,
    handle: Handle,
    output: RefCell<Option<(pipe::Receiver, pipe::Receiver)>>,
    exit: Cell<Option<Exit>>,
    /// Who was killed with it.
    seen: RefCell<Vec<Process>>,
    registry: Rc<Registry>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Somebody else took its status.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => f.write_str(signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

impl Child {
    /// Takes charge of a child that was just spawned and leads a session of its own.
    pub(super) fn adopt(
        pid: u32,
        mark: String,
        place: Place,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
        registry: Rc<Registry>,
    ) -> io::Result<Self> {
        let handle = match Handle::open(pid) {
            Ok(handle) => handle,
            Err(error) => {
                discard(pid);
                return Err(error);
            }
        };
        let start = family::process(pid).map_or(0, |one| one.start);
        registry.born(pid, &place.app, start, place.port.parse().ok());
        let output = RefCell::new(Some((stdout, stderr)));
        Ok(Self {
            pid,
            mark,
            place,
            handle,
            output,
            exit: Cell::new(None),
            seen: RefCell::default(),
            registry,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What marks the environment of everything it starts.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// Where it was told to listen.
    pub fn address(&self, wire: Wire) -> Address {
        match (wire, self.place.port.parse::<u16>()) {
            (Wire::Tcp, Ok(port)) => Address::Tcp(SocketAddr::from(([127, 0, 0, 1], port))),
            (Wire::Unix | Wire::Tcp, _) => Address::Unix(self.place.socket.clone()),
        }
    }

    /// Its stdout and stderr, to the first who asks.
    pub fn take_output(&self) -> Option<(pipe::Receiver, pipe::Receiver)> {
        self.output.borrow_mut().take()
    }

    /// Waits for its end, takes its status, and kills what is left of its group. Cancel-safe.
    pub async fn exited(&self) -> Exit {
        loop {
            if let Some(exit) = self.exit.get() {
                return exit;
            }
            if self.handle.ended().await.is_err() {
                // The runtime goes down with us.
                return Exit::Unknown;
            }
            self.conclude();
        }
    }

    /// Sends a signal to the process itself.
    pub fn signal(&self, number: i32) {
        let signal = Signal::from_named_raw(number).unwrap_or(Signal::TERM);
        if self.exit.get().is_none()
            && let Err(error) = rustix::process::pidfd_send_signal(&self.handle, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(app = %self.place.app, worker = self.place.slot, pid = self.pid, %error, "cannot signal a worker");
        }
    }

    /// Sends SIGKILL to it and everything it started.
    pub fn kill(&self) {
        let family = self.family();
        self.seen.borrow_mut().extend(&family);
        self.signal(Signal::KILL.as_raw());
        self.kill_group();
        for one in family.iter().filter(|one| one.pid != self.pid) {
            if let Some(pid) = Pid::from_raw(one.pid.cast_signed()) {
                let _gone_already = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Its processes, itself among them.
    pub fn family(&self) -> Vec<Process> {
        family::of_worker(self.pid, &self.mark)
    }

    /// After its end: ends and reaps everything it started, removes its socket, strikes it off the record.
    pub async fn bury(&self) {
        let mut seen = self.seen.take();
        seen.retain(|one| one.pid != self.pid);
        for stuck in family::end(seen, || self.family()).await {
            let (app, worker) = (&self.place.app, self.place.slot);
            tracing::warn!(%app, worker, pid = stuck.pid, "a worker's process cannot be ended");
        }
        environment::remove(&self.place.socket);
        self.registry.buried(self.pid);
    }

    /// Takes the status of the ended process. Its id names its group until then, so the group is killed first.
    fn conclude(&self) {
        if self.exit.get().is_some() {
            return;
        }
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let ended = rustix::process::waitid(WaitId::PidFd(self.handle.as_fd()), look | WaitIdOptions::NOWAIT);
        if matches!(ended, Ok(None)) {
            return;
        }
        self.kill_group();
        let exit = match rustix::process::waitid(WaitId::PidFd(self.handle.as_fd()), look) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Ok(None) | Err(_) => Exit::Unknown,
        };
        self.exit.set(Some(exit));
        self.registry.reaped(self.pid);
    }

    fn kill_group(&self) {
        if self.exit.get().is_none()
            && let Some(group) = Pid::from_raw(self.pid.cast_signed())
        {
            let _empty_already = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.get().is_none() {
            self.kill();
        }
    }
}

/// Ends a child that cannot be watched.
fn discard(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}
