//! Runs the operator's program that publishes and removes records: without a shell, without edge's environment, not for longer
//! than it may take.
#![expect(unsafe_code, reason = "what is done between fork and exec is promised to be safe there")]

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::cert::dns_message::Change;
use crate::cert::dns_record::DnsRecord;
use crate::offspring::Owned;
use crate::pidfd::Handle;

/// How much of what it says is kept for the error.
const LONGEST_TAIL: usize = 1000;

/// What it gets of edge's own environment: where programs and trusted roots are found, and how people write.
const INHERITED: [&str; 11] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
];

/// A running program. If it is dropped alive, its process group is killed.
struct Running {
    child: Child,
    handle: Handle,
    owned: Owned,
    ended: bool,
}

/// Has `program` carry out `change` of `record`. The error says what went wrong, with the last it said.
pub(in crate::cert) async fn run(
    program: &Path,
    arguments: &[String],
    change: Change,
    record: &DnsRecord,
    limit: Duration,
) -> Result<(), String> {
    let action = match change {
        Change::Add => "present",
        Change::Remove => "cleanup",
    };
    let named = format!("`{} {action}`", program.display());
    let mut running = Running::start(program, arguments, action, record)
        .map_err(|error| format!("cannot run {named}: {error}"))?;
    let mut said = Vec::new();
    let ended = tokio::time::timeout(limit, running.end(&mut said)).await;
    let how = match ended {
        Ok(Ok(status)) if status.success() => return Ok(()),
        Ok(Ok(status)) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("{named} failed with exit status {code}"),
            (None, Some(signal)) => format!("{named} was ended by signal {signal}"),
            (None, None) => format!("{named} failed"),
        },
        Ok(Err(error)) => format!("{named} cannot be watched: {error}"),
        Err(_) => {
            running.kill();
            format!(
                "{named} did not end within {} s (`acme.dns.timeout`) and was killed",
                limit.as_secs_f64()
            )
        }
    };
    let said = tail(&said);
    Err(if said.is_empty() { how } else { format!("{how}: {said}") })
}

impl Running {
    fn start(program: &Path, arguments: &[String], action: &str, record: &DnsRecord) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).args([action, &record.name, &record.value]).env_clear();
        let inherited = |name: &'static str| Some((name, std::env::var_os(name)?));
        let mut environment: Vec<(&str, OsString)> = INHERITED.into_iter().filter_map(inherited).collect();
        if environment.iter().all(|(name, _)| *name != "PATH") {
            environment.push(("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()));
        }
        command.envs(environment);
        command.env("EDGE_DNS_ACTION", action).env("EDGE_DNS_NAME", &record.name);
        command.env("EDGE_DNS_VALUE", &record.value).env("EDGE_DOMAIN", &record.domain);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A group of its own, so that all it starts can be ended with it.
        command.current_dir("/").process_group(0);
        end_with_edge(&mut command);
        let child = command.spawn()?;
        let owned = Owned::new(child.id());
        let handle = match Handle::open(child.id()) {
            Ok(handle) => handle,
            Err(error) => {
                kill_group(child.id());
                return Err(error);
            }
        };
        Ok(Self { child, handle, owned, ended: false })
    }

    /// Waits for its end and collects what it says until then. What it leaves running may keep its output open.
    async fn end(&mut self, said: &mut Vec<u8>) -> io::Result<ExitStatus> {
        let mut stderr = match self.child.stderr.take() {
            Some(stderr) => Some(pipe::Receiver::from_owned_fd(OwnedFd::from(stderr))?),
            None => None,
        };
        let mut part = [0; 4096];
        loop {
            let read = async {
                match &mut stderr {
                    Some(stderr) => stderr.read(&mut part).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = read => match read {
                    Ok(0) | Err(_) => stderr = None,
                    Ok(length) => keep(said, &part[..length]),
                },
                ended = self.handle.ended() => {
                    ended?;
                    break;
                }
            }
        }
        if let Some(stderr) = &stderr {
            while let Ok(length @ 1..) = stderr.try_read(&mut part) {
                keep(said, &part[..length]);
            }
        }
        let status = self.child.try_wait()?.ok_or(io::ErrorKind::WouldBlock)?;
        self.ended = true;
        Ok(status)
    }

    fn kill(&mut self) {
        if !std::mem::replace(&mut self.ended, true) {
            kill_group(self.owned.pid());
            // It may need a moment to end; then it is an orphan's reaper who takes its status.
            let _status = self.child.try_wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program that outlived a killed edge would publish after the next one has removed what it knows of.
fn end_with_edge(command: &mut Command) {
    let edge = rustix::process::getpid();
    let between = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // Edge may have died before the line above.
        if rustix::process::getppid() == Some(edge) { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
    };
    // SAFETY: between fork and exec `between` makes two system calls, and neither allocates nor locks.
    unsafe { command.pre_exec(between) };
}

fn kill_group(pid: u32) {
    // It may have ended by itself.
    let _gone = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
}

fn keep(said: &mut Vec<u8>, more: &[u8]) {
    said.extend_from_slice(more);
    let over = said.len().saturating_sub(LONGEST_TAIL);
    said.drain(..over);
}

/// The last it said, on one line.
fn tail(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    fn record() -> DnsRecord {
        DnsRecord {
            name: "_acme-challenge.a.example".to_owned(),
            value: "value-of-the-record".to_owned(),
            domain: "a.example".to_owned(),
        }
    }

    fn program(dir: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = dir.path().join("hook");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("set");
        path
    }

    async fn ran(text: &str, limit: Duration) -> (Result<(), String>, String) {
        let dir = tempfile::tempdir().expect("a directory");
        let out = dir.path().join("out");
        let hook = program(&dir, &text.replace("OUT", &out.display().to_string()));
        let result = run(&hook, &["first".to_owned()], Change::Add, &record(), limit).await;
        (result, std::fs::read_to_string(out).unwrap_or_default())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn it_is_told_what_to_do_by_arguments_and_environment_and_nothing_else() {
        let (result, told) = ran("echo \"$*\" >OUT; env >>OUT", LONG).await;
        assert_eq!(result, Ok(()));
        let mut lines = told.lines();
        assert_eq!(lines.next(), Some("first present _acme-challenge.a.example value-of-the-record"));
        let told: Vec<&str> = lines.collect();
        for line in [
            "EDGE_DNS_ACTION=present",
            "EDGE_DNS_NAME=_acme-challenge.a.example",
            "EDGE_DNS_VALUE=value-of-the-record",
            "EDGE_DOMAIN=a.example",
        ] {
            assert!(told.contains(&line), "{told:?}");
        }
        let known = |line: &&str| {
            let name = line.split('=').next().unwrap_or_default();
            // The shell's own.
            INHERITED.contains(&name)
                || name.starts_with("EDGE_D")
                || ["PWD", "OLDPWD", "SHLVL", "_"].contains(&name)
        };
        let strange: Vec<_> = told.iter().filter(|line| !known(line)).collect();
        assert!(strange.is_empty(), "{strange:?}");
    }

    #[tokio::test]
    async fn a_failure_says_how_and_what_the_program_said_last() {
        let (result, _) = ran("echo first >&2; echo 'no such \x1b[31m zone' >&2; exit 3", LONG).await;
        let error = result.expect_err("failed");
        assert!(error.contains("exit status 3") && error.ends_with("first; no such  [31m zone"), "{error}");
        let missing = run(Path::new("/no/such/hook"), &[], Change::Remove, &record(), LONG).await;
        assert!(missing.expect_err("missing").contains("cannot run `/no/such/hook cleanup`"));
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_it_started() {
        let (result, pids) =
            ran("sleep 1000 & echo $! >OUT; echo waiting >&2; wait", Duration::from_secs(2)).await;
        let error = result.expect_err("killed");
        assert!(error.contains("did not end within 2 s") && error.contains("waiting"), "{error}");
        let pid: u32 = pids.trim().parse().expect("it had begun");
        // Its parent is dead, so somebody else reaps it.
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ") || !stat.contains("(sleep)")
        };
        for _ in 0..500 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("process {pid} lives");
    }

    #[tokio::test]
    async fn what_it_leaves_running_is_not_waited_for() {
        let begun = tokio::time::Instant::now();
        let (result, _) = ran("sleep 20 & echo done >&2; exit 0", LONG).await;
        assert_eq!(result, Ok(()));
        assert!(begun.elapsed() < Duration::from_secs(15), "it waited for a process in the background");
    }
}
