//! One running worker process: its end, its signals, its family.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::net::unix::pipe;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::model::Address;
use crate::config::scalar;
use crate::pidfd::Handle;
use crate::worker::adapter::{Place, Wire};
use crate::worker::cgroup::Leaf;
use crate::worker::environment;
use crate::worker::family::{self, Mark, Process};
use crate::worker::registry::Registry;
use crate::worker::usage;

/// A process edge spawned. If it is dropped alive, its group is killed.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    /// See [`Process::start`].
    start: u64,
    mark: Mark,
    leaf: Option<Leaf>,
    place: Place,
    handle: Handle,
    output: RefCell<Option<(pipe::Receiver, pipe::Receiver)>>,
    exit: Cell<Option<Exit>>,
    /// It was asked to end, by this signal.
    asked: Cell<Option<Signal>>,
    /// Edge itself has killed it.
    killed: CancellationToken,
    /// Who was killed with it.
    seen: RefCell<Vec<Process>>,
    /// As last measured.
    memory: Cell<u64>,
    measuring: Arc<Semaphore>,
    /// The last attempt took too long.
    unmeasured: Cell<bool>,
    /// Nobody waits for it any more; it may be there still.
    buried: Cell<bool>,
    registry: Rc<Registry>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// By the kernel: it, or all of its control group, needed more memory than this limit or, with none, than there was.
    OutOfMemory(Option<u64>),
    /// It is there still, although it was killed.
    Stuck,
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
            Self::OutOfMemory(None) => {
                f.write_str("killed by the kernel: out of memory (it has no limit of its own)")
            }
            Self::OutOfMemory(Some(limit)) => {
                write!(f, "killed by the kernel: out of memory (limit {})", scalar::size_in_words(*limit))
            }
            Self::Stuck => f.write_str("stuck in the kernel (SIGKILL does not end it)"),
            Self::Unknown => f.write_str("unknown exit status"),
        }
    }
}

impl Child {
    /// Takes charge of a child that was just spawned and leads a session of its own.
    pub(super) fn adopt(
        pid: u32,
        (mark, leaf): (Mark, Option<Leaf>),
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
            start,
            mark,
            leaf,
            place,
            handle,
            output,
            exit: Cell::new(None),
            asked: Cell::new(None),
            killed: CancellationToken::new(),
            seen: RefCell::default(),
            memory: Cell::new(0),
            measuring: Arc::new(Semaphore::new(1)),
            unmeasured: Cell::new(false),
            buried: Cell::new(false),
            registry,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its place in its app.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether its status was taken: its process id may be another's then.
    pub(super) fn has_ended(&self) -> bool {
        self.exit.get().is_some()
    }

    /// The limit of memory that the kernel keeps for it and all it starts.
    pub fn memory_limit(&self) -> Option<u64> {
        self.leaf.as_ref()?.limit()
    }

    /// Bytes of memory of it and all it starts, read where the event loop does not wait for it. Where that takes long, what was
    /// read last: a process that is stuck in the kernel may keep whoever asks for its memory, too.
    pub async fn memory(&self) -> u64 {
        const PATIENCE: Duration = Duration::from_secs(1);
        let measured = async {
            // Goes with who reads, also where nobody waits for him any more: no second one is kept besides.
            let turn = Arc::clone(&self.measuring).acquire_owned().await.ok()?;
            let counter = self.leaf.as_ref().and_then(Leaf::counter);
            Some(usage::memory((self.pid, self.start), self.mark, counter, turn).await)
        };
        if self.unmeasured.get() && self.measuring.available_permits() == 0 {
            return self.memory.get();
        }
        let measured = tokio::time::timeout(PATIENCE, measured).await;
        self.unmeasured.set(measured.is_err());
        if let Ok(Some(bytes)) = measured {
            self.memory.set(bytes);
        }
        self.memory.get()
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

    /// Waits for its end, or, where it was asked to end, for that of all it started; takes its status, and kills what is left of
    /// its group. Cancel-safe, but who waits anew asks what it left once more.
    pub async fn exited(&self) -> Exit {
        /// A debugger has the status first, and no event says when it lets go: mostly at once.
        const LOOK: Duration = Duration::from_millis(20);
        const LOOKS: u32 = 25;
        let mut looks = 0;
        loop {
            if let Some(exit) = self.exit.get() {
                return exit;
            }
            if self.handle.ended().await.is_err() {
                // The runtime goes down with us.
                return Exit::Unknown;
            }
            if looks == 0
                && let Some(signal) = self.asked.get()
            {
                tokio::select! {
                    () = self.heirs_ended(signal) => {}
                    () = self.killed.cancelled() => {}
                }
            }
            self.conclude(looks == LOOKS);
            if self.exit.get().is_none() {
                looks += 1;
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Asks it, and once it has ended whom it leaves, to end.
    pub(super) fn ask_to_end(&self, number: i32) {
        self.asked.set(Some(named(number)));
        self.signal(number);
    }

    /// A script without `exec`, and npm's shell, end by a signal that their server never hears of: it is asked when they are
    /// gone, and whom it leaves after that, each once. Whoever has a parent among them hears from that, as at other times.
    async fn heirs_ended(&self, signal: Signal) {
        let mut asked = HashSet::new();
        loop {
            let Ok(mut left) = tokio::task::spawn_blocking(self.finder()).await else { return };
            left.retain(|one| one.pid != self.pid && !one.zombie);
            let parents: HashSet<u32> = left.iter().map(|one| one.pid).collect();
            left.retain(|one| !parents.contains(&one.parent) && asked.insert((one.pid, one.start)));
            if left.is_empty() {
                return;
            }
            // Those of a session of their own show no more whose they were once they are dead.
            self.seen.borrow_mut().extend(&left);
            let heirs: Vec<_> = left.iter().filter_map(|one| family::signal(one, signal).ok()?).collect();
            for heir in heirs {
                let _runtime_goes_down = heir.ended().await;
            }
        }
    }

    /// Sends a signal to the process itself.
    pub fn signal(&self, number: i32) {
        let signal = named(number);
        if self.exit.get().is_none()
            && let Err(error) = rustix::process::pidfd_send_signal(&self.handle, signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(app = %self.place.app, worker = self.place.slot, pid = self.pid, %error, "cannot signal a worker");
        }
    }

    /// Has it say where it hangs: aborts those it started, because it may be one of them that serves, and then, because its own
    /// end is followed by theirs, itself. Whoever was stopped hears of nothing but SIGCONT.
    pub async fn interrupt(&self) {
        /// What it may take to write a stack.
        const WRITTEN: Duration = Duration::from_millis(500);
        let mut started = Vec::new();
        for one in self.family().iter().filter(|one| one.pid != self.pid && !one.zombie) {
            started.extend(family::signal(one, Signal::ABORT).ok().flatten());
            let _ended_already = family::signal(one, Signal::CONT);
        }
        let ended = async {
            for one in &started {
                let _runtime_goes_down = one.ended().await;
            }
        };
        let _deaf = tokio::time::timeout(WRITTEN, ended).await;
        self.signal(Signal::ABORT.as_raw());
        self.signal(Signal::CONT.as_raw());
    }

    /// Sends SIGKILL to it and everything it started.
    pub fn kill(&self) {
        self.killed.cancel();
        let family = self.family();
        if let Some(leaf) = &self.leaf {
            leaf.kill();
        }
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
        self.finder()()
    }

    /// Finds [`Self::family`] wherever it is called: to look through all processes takes a while where there are many.
    pub fn finder(&self) -> impl FnOnce() -> Vec<Process> + Send + use<> {
        let (pid, start, mark) = (self.pid, self.start, self.mark);
        let within = self.leaf.as_ref().map(Leaf::finder);
        move || family::of_worker((pid, start), mark, &within.map(|find| find()).unwrap_or_default())
    }

    /// After its end, or where that does not come: ends and reaps everything it started, removes its socket, strikes it off the
    /// record as soon as it has ended.
    pub async fn bury(&self) {
        let mut seen = self.seen.take();
        seen.retain(|one| one.pid != self.pid);
        for stuck in family::end(seen, || self.family()).await {
            let (app, worker) = (&self.place.app, self.place.slot);
            tracing::warn!(%app, worker, pid = stuck.pid, "a worker's process cannot be ended");
        }
        if let Some(leaf) = &self.leaf {
            leaf.remove().await;
        }
        environment::remove(&self.place.socket);
        environment::remove(&self.place.pid_file());
        self.buried.set(true);
        if self.has_ended() {
            self.registry.buried(self.pid);
        }
    }

    /// Takes the status of the ended process, if it is to be had or `at_last`; in that case whoever reaps orphans takes it once
    /// nobody traces it any more. Its id names its group until then, so the group is killed first.
    fn conclude(&self, at_last: bool) {
        if self.exit.get().is_some() {
            return;
        }
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let ended = rustix::process::waitid(WaitId::PidFd(self.handle.as_fd()), look | WaitIdOptions::NOWAIT);
        if matches!(ended, Ok(None)) {
            if !at_last {
                return;
            }
            let (app, worker) = (&self.place.app, self.place.slot);
            tracing::warn!(%app, worker, pid = self.pid, "a worker has ended and a debugger holds on to it: how it ended is not known");
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
        self.exit.set(Some(self.explained(exit)));
        self.registry.reaped(self.pid);
        if self.buried.get() {
            self.registry.buried(self.pid);
        }
    }

    /// The kernel's SIGKILL looks like anybody's; its control group knows better.
    fn explained(&self, exit: Exit) -> Exit {
        /// How a shell says that its last command died of SIGKILL.
        const SHELLS_KILL: i32 = 128 + nix::libc::SIGKILL;
        let killed = matches!(exit, Exit::Signal(nix::libc::SIGKILL) | Exit::Code(SHELLS_KILL));
        let ran_out = || self.leaf.as_ref().and_then(Leaf::ran_out);
        if killed && !self.killed.is_cancelled() && ran_out() == Some(true) {
            return Exit::OutOfMemory(self.memory_limit());
        }
        exit
    }

    /// Whether nobody knows if the kernel killed it for lack of memory.
    pub(super) fn is_uncounted(&self) -> bool {
        self.leaf.as_ref().and_then(Leaf::ran_out).is_none()
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
            // Nobody is left to take its status but whoever reaps orphans.
            self.registry.buried(self.pid);
        }
    }
}

fn named(number: i32) -> Signal {
    Signal::from_named_raw(number).unwrap_or(Signal::TERM)
}

/// Ends a child that cannot be watched.
fn discard(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }
}
