//! Starting worker processes: the only place that spawns, and the only `unsafe` around it.
//!
//! A worker leads a session of its own, in a control group of its own where there is one, runs as its account, sees a small
//! environment and no descriptor of edge's but its output pipes, and is told to end when edge dies.

#![expect(unsafe_code, reason = "what happens between fork and exec, and the guard's fork")]

use std::cell::Cell;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;

use nix::libc;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::net::unix::pipe;

use crate::config::model::{Account, Resource as Limited, Ulimit, WorkerSpec};
use crate::name::WorkerId;
use crate::worker::adapter::{Place, Plan, Program, Wire};
use crate::worker::cgroup::{Groups, Leaf};
use crate::worker::child::Child;
use crate::worker::delegation::Refusal;
use crate::worker::environment;
use crate::worker::family::Mark;
use crate::worker::guard;
use crate::worker::journal::Journal;
use crate::worker::registry::Registry;
use crate::worker::runnable::{self, Obstacle};
use nix::sys::resource::{Resource, getrlimit};

/// Starts workers. Must be called on the thread that lives as long as the process: Linux ties a worker's parent-death signal
/// to the thread that spawned it.
pub trait Launcher {
    /// Makes ready where a worker of `id` can listen: an empty path in a directory only its account can enter, and, for
    /// TCP, a free loopback port. May be called again for the same worker.
    fn place(&self, id: &WorkerId, account: &Account, wire: Wire) -> Result<Place, LaunchError>;

    /// Starts the process. On an error nothing is left behind.
    fn launch(&self, order: &Order<'_>) -> Result<Child, LaunchError>;
}

/// What is to be started.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// Who it will be.
    pub id: &'a WorkerId,
    /// How the app's workers are run.
    pub spec: &'a WorkerSpec,
    /// Its arguments and environment.
    pub plan: &'a Plan,
    /// Where it is to listen.
    pub place: &'a Place,
}

/// Why a worker could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The directory of the app's sockets cannot be used.
    #[error("cannot prepare {}", path.display())]
    Directory {
        /// That directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Unix socket paths hold 107 bytes.
    #[error("the socket path {} is longer than 107 bytes: choose a shorter `runtime_dir`", path.display())]
    PathTooLong {
        /// That path.
        path: PathBuf,
    },
    /// No loopback port is free.
    #[error("cannot find a free loopback port")]
    Port(#[source] io::Error),
    /// It cannot start where it should.
    #[error("cannot enter the working directory {}", path.display())]
    WorkingDirectory {
        /// That directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it is started from does not answer.
    #[error(
        "{what} has not answered for {seconds} s: is it on a file server, or a disk, that is gone? Edge tries again until it does"
    )]
    Silent {
        /// In words.
        what: String,
        /// How long it was waited for.
        seconds: f64,
    },
    /// The program cannot be executed.
    #[error("cannot run `{program}`{}", closed(program, user.as_deref(), source))]
    Spawn {
        /// As the command names it.
        program: String,
        /// Whose rights it would have, where they are not edge's own.
        user: Option<String>,
        /// Why.
        source: io::Error,
    },
    /// The program cannot be executed, and it is known why.
    #[error("cannot run `{program}`: {obstacle}")]
    Obstacle {
        /// As the command names it.
        program: String,
        /// What stands in the way.
        obstacle: Obstacle,
    },
    /// It may not have its priority.
    #[error(
        "cannot give a worker `nice: {nice}`: edge may not raise a priority, which takes root or CAP_SYS_NICE (in systemd's unit, also in CapabilityBoundingSet=); allow it, or leave `nice` out"
    )]
    Priority {
        /// As configured.
        nice: i32,
    },
    /// It may not have its limits.
    #[error(
        "cannot give a worker its `ulimits`: one is above edge's own hard limit, which takes root or CAP_SYS_RESOURCE, or above what the kernel allows; raise it for edge (in systemd's unit, LimitNOFILE= and its like), or lower it in `ulimits`"
    )]
    Limits,
    /// Its control group cannot be entered.
    #[error("cannot enter a new control group")]
    Group(#[source] io::Error),
    /// A value holds a NUL byte.
    #[error("`{what}` holds a NUL byte")]
    Nul {
        /// Which.
        what: String,
    },
    /// The process cannot be watched.
    #[error("cannot watch a new process")]
    Watch(#[source] io::Error),
}

/// What else there is to say where the kernel refuses to run a program, which it also does where only the way to it is closed.
fn closed(program: &str, user: Option<&str>, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return String::new();
    }
    let user = user.map_or_else(|| "edge's own user".to_owned(), |user| format!("user `{user}`"));
    let missing = if program.contains('/') { "" } else { "it is not in PATH, or " };
    format!(" ({missing}{user} may not run it, its interpreter, or enter a directory on the way to them)")
}

/// What a supervisor works with.
#[derive(Clone)]
pub struct Tools {
    /// Starts processes.
    pub launcher: Rc<dyn Launcher>,
    /// Spreads delays.
    pub rng: fastrand::Rng,
    /// Keeps what the workers print.
    pub journal: Rc<Journal>,
    /// Bytes of memory that new workers may use, where that is known: [`crate::worker::usage::available`].
    pub available: fn() -> Option<u64>,
}

/// Starts real processes.
#[derive(Debug)]
pub struct ProcessLauncher {
    registry: Rc<Registry>,
    groups: Result<Groups, Refusal>,
    /// That a limit of memory is not kept has been said.
    warned: Cell<bool>,
    /// Limits of open files, soft and hard, that edge itself was started with: it raises its own, and programs that use
    /// `select` do not survive a high one.
    open_files: (u64, u64),
}

impl ProcessLauncher {
    /// A launcher of workers whose sockets lie below `runtime_dir`, which is made if it is missing, and who get control groups
    /// of their own below `groups`. Makes this process the one to which orphans fall, and starts the guard.
    pub fn new(runtime_dir: PathBuf, groups: Result<Groups, Refusal>) -> Result<Self, LaunchError> {
        let mark = Mark::of_an_edge(&mut fastrand::Rng::new());
        environment::make_directory(&runtime_dir)
            .map_err(|source| LaunchError::Directory { path: runtime_dir.clone(), source })?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(watch)?;
        let guard = fork_guard(mark).map_err(LaunchError::Watch)?;
        let open_files =
            getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| LaunchError::Watch(errno.into()))?;
        let registry = Rc::new(Registry::new(runtime_dir, mark, guard));
        Ok(Self { registry, groups, warned: Cell::new(false), open_files })
    }

    /// Reaps children that are nobody's: orphans of workers, and in a container everything that falls to process 1. Runs
    /// until `scope` aborts. Only for a process all of whose other children are
    /// [`crate::offspring::Owned`].
    pub async fn reap_orphans(&self, scope: &crate::scope::Scope) {
        self.registry.reap_orphans(scope).await;
    }
}

impl Launcher for ProcessLauncher {
    fn place(&self, id: &WorkerId, account: &Account, wire: Wire) -> Result<Place, LaunchError> {
        let port = match wire {
            Wire::Tcp => self.registry.free_port().map_err(LaunchError::Port)?.to_string(),
            Wire::Unix => String::new(),
        };
        let place = Place::new(&id.app, id.slot, id.incarnation, self.registry.runtime_dir(), port);
        if place.socket.as_os_str().len() > 107 {
            return Err(LaunchError::PathTooLong { path: place.socket });
        }
        environment::prepare_directory(self.registry.runtime_dir(), &id.app, account)
            .map_err(|(path, source)| LaunchError::Directory { path, source })?;
        // Some servers refuse a path that exists, others take it away from who listens there.
        environment::remove(&place.socket);
        environment::remove(&place.pid_file());
        Ok(place)
    }

    fn launch(&self, order: &Order<'_>) -> Result<Child, LaunchError> {
        self.spawn(order).inspect_err(|_| self.registry.tidy(&order.id.app))
    }
}

impl ProcessLauncher {
    fn spawn(&self, order: &Order<'_>) -> Result<Child, LaunchError> {
        let spec = order.spec;
        std::fs::metadata(&spec.working_dir)
            .and_then(|found| if found.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) })
            .map_err(|source| LaunchError::WorkingDirectory { path: spec.working_dir.clone(), source })?;
        let (stdout, stdout_end) = output_pipe()?;
        let (stderr, stderr_end) = output_pipe()?;
        let mark = self.registry.next_mark();
        let leaf = self.leaf(order);
        let entrance = leaf.as_ref().map(Leaf::entrance).transpose().map_err(LaunchError::Group)?;
        let mut command = command(order);
        command.stdin(Stdio::null()).stdout(stdout_end).stderr(stderr_end);
        prepare(&mut command, spec, Inherited { mark, entrance, open_files: self.open_files })?;
        let spawned = command.spawn().map_err(|source| refused(order, source))?;
        // Dropping std's handle neither waits nor kills: the pidfd takes over.
        let pid = spawned.id();
        let child =
            Child::adopt(pid, (mark, leaf), order.place.clone(), stdout, stderr, Rc::clone(&self.registry));
        child.map_err(LaunchError::Watch)
    }

    /// The control group of a new worker. Where there is none, a limit that was asked for is missed, once and aloud.
    fn leaf(&self, order: &Order<'_>) -> Option<Leaf> {
        let limit = order.spec.memory_limit;
        let made = self.groups.as_ref().map(|groups| (groups.leaf(order.id, limit), groups.without_memory()));
        let (leaf, refusal) = match made {
            Ok((Ok(leaf), refusal)) => (Some(leaf), refusal.map(ToString::to_string)),
            Ok((Err(error), _)) => (None, Some(format!("cannot make a control group for a worker: {error}"))),
            Err(refusal) => (None, Some(refusal.to_string())),
        };
        if let (Some(_), Some(cause), false) = (limit, refusal, self.warned.get()) {
            self.warned.set(true);
            tracing::warn!(app = %order.id.app, cause, "`memory_limit` is not kept: workers run without it");
        }
        leaf
    }
}

fn command(order: &Order<'_>) -> Command {
    let argv = &order.plan.argv;
    let named = argv.first().map_or("", String::as_str);
    let mut command = match order.plan.program {
        Program::Named => Command::new(named),
        // A link the kernel resolves without walking a path: it works where the worker's account cannot enter the directory,
        // and after the file was replaced.
        Program::Edge => Command::new("/proc/self/exe"),
    };
    command.arg0(named).args(argv.iter().skip(1)).env_clear();
    command.envs(environment::inherited(&order.spec.account));
    command.envs(&order.plan.environment);
    command
}

/// Why the program of `order` was not run, as far as the files tell.
fn refused(order: &Order<'_>, source: io::Error) -> LaunchError {
    match (source.raw_os_error(), order.spec.nice) {
        (Some(NO_PRIORITY), Some(nice)) => return LaunchError::Priority { nice },
        (Some(NO_LIMITS), _) => return LaunchError::Limits,
        (Some(_) | None, _) => {}
    }
    let program = order.plan.argv.first().cloned().unwrap_or_default();
    let of_files = matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
    if let Some(obstacle) = runnable::obstacle(order.spec, order.plan).filter(|_| of_files) {
        return LaunchError::Obstacle { program, obstacle };
    }
    let user = match &order.spec.account {
        Account::Own => None,
        Account::Other { name, .. } => Some(name.clone()),
    };
    LaunchError::Spawn { program, user, source }
}

fn output_pipe() -> Result<(pipe::Receiver, OwnedFd), LaunchError> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(watch)?;
    let read = pipe::Receiver::from_owned_fd(read).map_err(LaunchError::Watch)?;
    Ok((read, write))
}

fn watch(errno: rustix::io::Errno) -> LaunchError {
    LaunchError::Watch(errno.into())
}

/// What a child gets of its launcher, besides its spec.
struct Inherited {
    mark: Mark,
    /// Of its control group.
    entrance: Option<File>,
    open_files: (u64, u64),
}

/// Arranges what the child does between fork and exec.
fn prepare(command: &mut Command, spec: &WorkerSpec, inherited: Inherited) -> Result<(), LaunchError> {
    let Inherited { mark, entrance, open_files } = inherited;
    let directory = CString::new(spec.working_dir.as_os_str().as_bytes())
        .map_err(|_| LaunchError::Nul { what: "working_dir".to_owned() })?;
    let account = match &spec.account {
        Account::Own => None,
        Account::Other { uid, gid, groups, .. } => Some((*uid, *gid, groups.clone())),
    };
    let edge = std::process::id() as libc::pid_t;
    let open_files = libc::rlimit { rlim_cur: open_files.0, rlim_max: open_files.1 };
    let limits: Vec<_> = spec.ulimits.iter().map(kernel_limit).collect();
    let mark = libc::rlimit { rlim_cur: mark.limit(), rlim_max: mark.limit() };
    let nice = spec.nice;
    let between = move || {
        reset_signals()?;
        // SAFETY: each call is async-signal-safe and gets values made before the fork; nothing allocates or locks.
        unsafe {
            if let Some(entrance) = &entrance {
                // Before anything of its own is in memory.
                check(libc::write(entrance.as_raw_fd(), c"0".as_ptr().cast(), 1) as libc::c_int)?;
            }
            check(libc::setsid())?;
            // Refused only to a worker of another edge's worker, which has that one's mark.
            libc::setrlimit(libc::RLIMIT_LOCKS, &mark);
            // Before the account changes: it need not be allowed to walk there.
            check(libc::chdir(directory.as_ptr()))?;
            check(libc::setrlimit(libc::RLIMIT_NOFILE, &open_files))?;
            for (resource, limit) in &limits {
                check(libc::setrlimit(*resource, limit))
                    .map_err(|_| io::Error::from_raw_os_error(NO_LIMITS))?;
            }
            if let Some(nice) = nice {
                check(libc::setpriority(libc::PRIO_PROCESS, 0, nice))
                    .map_err(|_| io::Error::from_raw_os_error(NO_PRIORITY))?;
            }
            if let Some((uid, gid, groups)) = &account {
                check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                check(libc::setresgid(*gid, *gid, *gid))?;
                check(libc::setresuid(*uid, *uid, *uid))?;
            }
            // What edge was given as an ordinary user, such as the ports below 1024, would go on to every program it runs. A
            // kernel that does not know the call has given nothing.
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
            // After the account changed, which clears it. The stop signal proper is the app's own matter: this one every
            // server knows; the guard follows it up.
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong))?;
            // Edge may have died before the line above.
            if libc::getppid() != edge {
                return Err(io::Error::from_raw_os_error(libc::ECANCELED));
            }
            // Everything is opened close-on-exec anyway; a library that forgets is caught here. Old kernels lack the call.
            libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, CLOSE_RANGE_CLOEXEC);
        }
        Ok(())
    };
    // SAFETY: `between` keeps to what may be done after fork in a process with threads, see inside.
    unsafe { command.pre_exec(between) };
    Ok(())
}

fn kernel_limit(limit: &Ulimit) -> (libc::__rlimit_resource_t, libc::rlimit) {
    let resource = match limit.resource {
        Limited::As => libc::RLIMIT_AS,
        Limited::Core => libc::RLIMIT_CORE,
        Limited::Cpu => libc::RLIMIT_CPU,
        Limited::Data => libc::RLIMIT_DATA,
        Limited::Fsize => libc::RLIMIT_FSIZE,
        Limited::Memlock => libc::RLIMIT_MEMLOCK,
        Limited::Nofile => libc::RLIMIT_NOFILE,
        Limited::Nproc => libc::RLIMIT_NPROC,
        Limited::Stack => libc::RLIMIT_STACK,
    };
    // `u64::MAX` is RLIM_INFINITY.
    (resource, libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard })
}

/// How the child says that it was its priority or its limits: a number is all that comes back, and the kernel's own for these are
/// execve's as well. No call of the child's gives one of these two.
const NO_PRIORITY: libc::c_int = libc::EDOM;
const NO_LIMITS: libc::c_int = libc::ERANGE;

const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// Edge ignores or handles signals that a worker expects to find as the system sets them. std resets the mask.
fn reset_signals() -> io::Result<()> {
    for signal in nix::sys::signal::Signal::iterator() {
        if matches!(signal, nix::sys::signal::Signal::SIGKILL | nix::sys::signal::Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: setting the default action runs no code of ours.
        unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) }?;
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Forks the guard; the pipe it listens to, and its process id.
fn fork_guard(mark: Mark) -> io::Result<(OwnedFd, u32)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: the child calls only async-signal-safe functions until it exits: its descriptors and signals are set by
    // plain system calls, and `guard::watch` promises not to allocate or lock.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Ok((write, child.as_raw().cast_unsigned())),
        nix::unistd::ForkResult::Child => unsafe {
            libc::setsid();
            for stream in 0..3 {
                libc::dup2(null.as_raw_fd(), stream);
            }
            // Descriptor 3 is the pipe, and nothing of edge's stays open: not its listeners, not this pipe's other end.
            if read.as_raw_fd() != GUARD_PIPE {
                libc::dup2(read.as_raw_fd(), GUARD_PIPE);
            }
            libc::syscall(libc::SYS_close_range, GUARD_PIPE as u32 + 1, u32::MAX, 0u32);
            libc::prctl(libc::PR_SET_NAME, c"edge-guard".as_ptr());
            // What ends edge must not end the guard before it; edge's end is its signal.
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
                libc::signal(signal, libc::SIG_IGN);
            }
            guard::watch(BorrowedFd::borrow_raw(GUARD_PIPE), mark);
            libc::_exit(0)
        },
    }
}

const GUARD_PIPE: libc::c_int = 3;
