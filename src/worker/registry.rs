//! The workers that live: who they are, told to the guard and written down for the next edge.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::name::AppName;
use crate::offspring;
use crate::scope::Scope;
use crate::worker::environment;
use crate::worker::family::Mark;
use crate::worker::guard;
use crate::worker::leftovers;

/// First processes of workers from spawn to burial. Lives on the main thread.
#[derive(Debug)]
pub(super) struct Registry {
    runtime_dir: PathBuf,
    mark: Mark,
    launched: Cell<u64>,
    guard: RefCell<Option<OwnedFd>>,
    guard_pid: u32,
    living: RefCell<BTreeMap<u32, Entry>>,
    reaped: Notify,
}

#[derive(Debug)]
struct Entry {
    app: AppName,
    start: u64,
    port: Option<u16>,
    /// Its status was taken: the id may be another process's by now.
    reaped: bool,
}

impl Registry {
    pub(super) fn new(runtime_dir: PathBuf, mark: Mark, guard: (OwnedFd, u32)) -> Self {
        let (pipe, guard_pid) = guard;
        Self {
            runtime_dir,
            mark,
            launched: Cell::new(0),
            guard: RefCell::new(Some(pipe)),
            guard_pid,
            living: RefCell::default(),
            reaped: Notify::new(),
        }
    }

    pub(super) fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }

    /// What everything that the next worker starts inherits.
    pub(super) fn next_mark(&self) -> Mark {
        self.launched.set(self.launched.get() + 1);
        self.mark.worker(self.launched.get())
    }

    /// Removes the app's directory if no worker of it lives.
    pub(super) fn tidy(&self, app: &AppName) {
        if self.living.borrow().values().all(|entry| entry.app != *app) {
            environment::clear_directory(&self.runtime_dir.join(app.as_str()));
        }
    }

    /// A loopback port nobody listens on and no worker was promised. Somebody may still take it before the worker does,
    /// which then dies and is started on another.
    pub(super) fn free_port(&self) -> io::Result<u16> {
        loop {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if self.living.borrow().values().all(|entry| entry.port != Some(port)) {
                return Ok(port);
            }
        }
    }

    pub(super) fn born(&self, pid: u32, app: &AppName, start: u64, port: Option<u16>) {
        self.living.borrow_mut().insert(pid, Entry { app: app.clone(), start, port, reaped: false });
        self.tell_guard(pid, true);
        self.write(app);
    }

    pub(super) fn reaped(&self, pid: u32) {
        if let Some(entry) = self.living.borrow_mut().get_mut(&pid) {
            entry.reaped = true;
        }
        self.reaped.notify_one();
    }

    pub(super) fn buried(&self, pid: u32) {
        let entry = self.living.borrow_mut().remove(&pid);
        if let Some(entry) = entry {
            self.tell_guard(pid, false);
            self.write(&entry.app);
        }
    }

    /// See [`super::launch::ProcessLauncher::reap_orphans`].
    pub(super) async fn reap_orphans(&self, scope: &Scope) {
        let mut ended = match signal(SignalKind::child()) {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "cannot hear of ended processes: orphans stay as zombies");
                return;
            }
        };
        loop {
            self.reap_strangers();
            tokio::select! {
                _ = ended.recv() => {}
                // A worker's own end hides those behind it from the kernel's answer until its status was taken.
                () = self.reaped.notified() => {}
                () = offspring::let_go() => {}
                () = scope.aborted() => return,
            }
        }
    }

    fn reap_strangers(&self) {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(status) = waitid(Id::All, look) {
            let (WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) = status else { return };
            let number = pid.as_raw().cast_unsigned();
            let worker = self.living.borrow().get(&number).is_some_and(|entry| !entry.reaped);
            let known = worker || offspring::is_owned(number);
            if known || waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).is_err() {
                return;
            }
            if number == self.guard_pid {
                tracing::warn!(
                    "the guard process has ended; workers may survive a kill of edge until the next start"
                );
            }
        }
    }

    fn tell_guard(&self, pid: u32, lives: bool) {
        let mut guard = self.guard.borrow_mut();
        let Some(pipe) = guard.as_ref() else { return };
        if let Err(error) = rustix::io::write(pipe, &guard::message(pid, lives)) {
            tracing::warn!(%error, "cannot reach the guard process");
            *guard = None;
        }
    }

    fn write(&self, app: &AppName) {
        let living = self.living.borrow();
        let workers = living.iter().filter(|(_, entry)| entry.app == *app);
        let workers: Vec<_> = workers.map(|(pid, entry)| (*pid, entry.start)).collect();
        self.tidy(app);
        if let Err(error) = leftovers::write(&self.runtime_dir, app, self.mark, &workers) {
            tracing::warn!(%app, %error, "cannot write down which workers live");
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The end of its pipe ends the guard, at once if nobody lives; so that edge leaves nothing, it waits for that.
        if self.guard.take().is_some() && self.living.borrow().is_empty() {
            let guard = nix::unistd::Pid::from_raw(self.guard_pid.cast_signed());
            let _reaped_already = waitid(Id::Pid(guard), WaitPidFlag::WEXITED);
        }
    }
}
