//! The client's side of the admin socket: what `edge status` and its kin ask the running edge. Blocking, bounded in time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::daemon::elsewhere;
use crate::daemon::operation::Operation;
use crate::daemon::progress::Said;

/// How long connecting and each answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an operation may say nothing: it gives a sign of life far more often.
const SIGNS: Duration = Duration::from_secs(30);

/// The longest answer that is read.
const ANSWER_LIMIT: u64 = 64 << 20;

/// Why the running edge gave no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AskError {
    #[error("no edge is running with this configuration ({}): start it with `edge --config {}`", .admin.display(), .config.display())]
    NotRunning { admin: PathBuf, config: PathBuf },
    #[error(
        "no edge answers at {}, but one that was started with this file does at {} (process {pid}): `runtime_dir` or `admin` \
         was changed in {} since; restart edge to put that in force, or put the old value back to reach it until then",
        .admin.display(), .elsewhere.display(), .config.display()
    )]
    Elsewhere { admin: PathBuf, config: PathBuf, elsewhere: PathBuf, pid: u32 },
    #[error(
        "the running edge uses {}, not {}: nothing was changed; name its file with `--config {}`, or give the other one a \
         `runtime_dir` of its own",
        .its.display(), .config.display(), .its.display()
    )]
    AnotherFile { its: PathBuf, config: PathBuf },
    #[error("the admin socket {} is open to root and to edge's own user only: try again as one of them", .admin.display())]
    Denied { admin: PathBuf },
    #[error("cannot reach the admin socket {}", .admin.display())]
    Unreachable { admin: PathBuf, source: io::Error },
    #[error("the running edge did not answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("the running edge broke off its answer")]
    Broken(#[source] io::Error),
    #[error("cannot print what the running edge says")]
    Unheard(#[source] io::Error),
    #[error("the running edge answered {0}")]
    Refused(u16),
    #[error("the running edge's answer is not what this version expects")]
    Foreign(#[source] serde_json::Error),
}

/// Where the running edge is found, and how it would be started.
#[derive(Debug, Clone, Copy)]
pub struct Running<'a> {
    /// Its admin socket.
    pub admin: &'a Path,
    /// Its configuration file.
    pub config: &'a Path,
}

impl Running<'_> {
    /// The answer to `GET path`, as it came.
    pub fn ask(&self, path: &str) -> Result<Vec<u8>, AskError> {
        self.ask_within(path, PATIENCE).map_err(|error| self.or_elsewhere(error))
    }

    /// The same within another time, and from there alone.
    pub(super) fn ask_within(&self, path: &str, patience: Duration) -> Result<Vec<u8>, AskError> {
        let deadline = Instant::now() + patience;
        let mut stream = self.connect()?;
        // HTTP/1.0: the answer ends with the connection, and nobody sends chunks.
        let head = format!("GET {path} HTTP/1.0\r\nHost: edge\r\n\r\n");
        stream.write_all(head.as_bytes()).map_err(interrupted)?;
        body(read_all(&mut stream, deadline)?)
    }

    /// The answer to `GET path`, read as JSON.
    pub fn ask_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        serde_json::from_slice(&self.ask(path)?).map_err(AskError::Foreign)
    }

    /// Whether the running edge uses this configuration file, which is asked before it is changed: two files may name the same
    /// admin socket.
    pub fn uses_this_file(&self) -> Result<(), AskError> {
        let status: serde_json::Value = self.ask_json("/status")?;
        // An edge that does not tell is older than this.
        let Some(its) = status["config_file"].as_str().filter(|its| !its.is_empty()).map(Path::new) else {
            return Ok(());
        };
        if elsewhere::real(its) == elsewhere::real(self.config) {
            return Ok(());
        }
        Err(AskError::AnotherFile { its: its.to_owned(), config: self.config.to_owned() })
    }

    /// Asks for an operation and hands on what is said, until it has ended; returned is its exit status. Waits as long as the
    /// running edge shows that it lives.
    pub fn operate(
        &self,
        operation: &Operation,
        mut hear: impl FnMut(&Said) -> io::Result<()>,
    ) -> Result<u8, AskError> {
        let mut stream = self.connect().map_err(|error| self.or_elsewhere(error))?;
        let (target, body) = operation.written();
        let length = body.len();
        let head = format!("POST {target} HTTP/1.0\r\nHost: edge\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(head.as_bytes()).map_err(interrupted)?;
        stream.set_read_timeout(Some(SIGNS)).map_err(AskError::Broken)?;
        let mut lines = BufReader::new(stream).lines();
        let status = lines.next().transpose().map_err(interrupted)?.unwrap_or_default();
        match status.split(' ').nth(1).and_then(|code| code.parse().ok()) {
            Some(200) => {}
            Some(code) => return Err(AskError::Refused(code)),
            None => return Err(AskError::Broken(io::ErrorKind::UnexpectedEof.into())),
        }
        let mut in_head = true;
        for line in lines {
            let line = line.map_err(interrupted)?;
            if in_head {
                in_head = !line.is_empty();
                continue;
            }
            match Said::parse(&line) {
                Some(Said::End(status)) => return Ok(status),
                Some(said) => match hear(&said) {
                    Ok(()) => {}
                    // As `head` does: it wants no more.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
                    Err(error) => return Err(AskError::Unheard(error)),
                },
                None => {}
            }
        }
        Err(AskError::Broken(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Whether the edge that does not answer here does so elsewhere.
    fn or_elsewhere(&self, error: AskError) -> AskError {
        match error {
            AskError::NotRunning { admin, config } => {
                let who = |admin: &Path| {
                    let answer =
                        Running { admin, config: self.config }.ask_within("/status", elsewhere::PATIENCE);
                    serde_json::from_slice(&answer.ok()?).ok()
                };
                match elsewhere::find(&config, who) {
                    Some((elsewhere, pid)) => AskError::Elsewhere { admin, config, elsewhere, pid },
                    None => AskError::NotRunning { admin, config },
                }
            }
            other => other,
        }
    }

    fn connect(&self) -> Result<UnixStream, AskError> {
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // Bounds the connect as well: a stopped edge's backlog fills up.
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.connect(&SockAddr::unix(self.admin)?)?;
            Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
        };
        connect().map_err(|source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                AskError::NotRunning { admin: self.admin.to_owned(), config: self.config.to_owned() }
            }
            io::ErrorKind::PermissionDenied => AskError::Denied { admin: self.admin.to_owned() },
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent,
            _ => AskError::Unreachable { admin: self.admin.to_owned(), source },
        })
    }
}

fn read_all(stream: &mut UnixStream, deadline: Instant) -> Result<Vec<u8>, AskError> {
    let mut answer = Vec::new();
    let mut part = vec![0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AskError::Silent);
        }
        stream.set_read_timeout(Some(left)).map_err(AskError::Broken)?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(interrupted(error)),
        }
        if answer.len() as u64 > ANSWER_LIMIT {
            return Err(AskError::Broken(io::ErrorKind::FileTooLarge.into()));
        }
    }
}

fn interrupted(error: io::Error) -> AskError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent,
        _ => AskError::Broken(error),
    }
}

/// What follows the head of an answer with status 200 and the length it announced.
fn body(mut answer: Vec<u8>) -> Result<Vec<u8>, AskError> {
    let broken = || AskError::Broken(io::ErrorKind::UnexpectedEof.into());
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(&answer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) | Err(_) => return Err(broken()),
    };
    match head.code {
        Some(200) => {}
        Some(code) => return Err(AskError::Refused(code)),
        None => return Err(broken()),
    }
    let announced = head
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
    let body = answer.split_off(length);
    if announced.is_some_and(|announced| announced != body.len()) {
        return Err(broken());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn answered_with(answer: &'static [u8]) -> Result<Vec<u8>, AskError> {
        let dir = tempfile::tempdir().expect("a directory");
        let admin = dir.path().join("admin.sock");
        let listener = UnixListener::bind(&admin).expect("binds");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            let mut head = [0; 256];
            let length = stream.read(&mut head).expect("reads");
            stream.write_all(answer).expect("writes");
            String::from_utf8_lossy(&head[..length]).into_owned()
        });
        let answer = Running { admin: &admin, config: Path::new("edge.yaml") }.ask("/status");
        assert_eq!(server.join().expect("serves"), "GET /status HTTP/1.0\r\nHost: edge\r\n\r\n");
        answer
    }

    #[test]
    fn a_whole_answer_is_returned_and_anything_less_is_an_error() {
        let whole = answered_with(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}");
        assert_eq!(whole.expect("an answer"), b"{}");
        let cut = answered_with(b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\n{}");
        assert!(matches!(cut, Err(AskError::Broken(_))));
        assert!(matches!(answered_with(b"HTTP/1.0 404 No\r\n\r\n"), Err(AskError::Refused(404))));
        assert!(matches!(answered_with(b"SSH-2.0-x\r\n"), Err(AskError::Broken(_))));
        assert!(matches!(answered_with(b""), Err(AskError::Broken(_))));
    }

    #[test]
    fn where_nobody_listens_the_message_says_how_to_start() {
        let dir = tempfile::tempdir().expect("a directory");
        let admin = dir.path().join("admin.sock");
        let running = Running { admin: &admin, config: Path::new("edge.yaml") };
        let expected = format!(
            "no edge is running with this configuration ({}): start it with `edge --config edge.yaml`",
            admin.display()
        );
        assert_eq!(running.ask("/status").expect_err("nobody").to_string(), expected);
        drop(UnixListener::bind(&admin).expect("binds"));
        assert_eq!(running.ask("/status").expect_err("nobody").to_string(), expected);
    }
}
