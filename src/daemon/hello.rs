//! `edge hello`: the built-in demo worker. A small application with the things applications do (pages, uploads, streams,
//! WebSockets), listening where edge tells it; for a first look, and for tests where the worker's language does not matter.

mod faults;
mod routes;

use std::cell::Cell;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::daemon::hello::faults::Wire;
use crate::daemon::hello::routes::answer;
use crate::scope::Scope;

/// How long open requests may take after SIGTERM; edge kills sooner.
const GRACE: Duration = Duration::from_secs(30);

/// What the worker knows of itself, and what it counts.
#[derive(Debug)]
pub struct Hello {
    /// The app it serves.
    pub app: String,
    /// Its slot.
    pub worker: String,
    /// Whether routes that break things are open.
    pub faults: bool,
    /// When it started.
    pub started: Instant,
    /// Requests taken.
    pub requests: Cell<u64>,
    /// Ends with everything it owns.
    pub scope: Scope,
    exit: Cell<Option<u8>>,
    exit_asked: Notify,
}

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A unix socket.
    Unix(PathBuf),
    /// A port of 127.0.0.1.
    Port(u16),
}

/// A bound [`Place`].
#[derive(Debug)]
pub enum Listener {
    /// A unix socket and its file.
    Unix(UnixListener, PathBuf),
    /// A loopback port.
    Tcp(TcpListener),
}

/// Why it cannot serve.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum HelloError {
    #[error("PORT is not a port: {0:?}")]
    Port(String),
    #[error("cannot listen on {place}")]
    Bind { place: String, source: io::Error },
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
}

/// Serves until SIGTERM or SIGINT, then finishes open requests.
pub fn run() -> Result<ExitCode, HelloError> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let place = Place::choose(variable("EDGE_SOCKET"), variable("PORT"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(HelloError::Runtime)?;
    LocalSet::new().block_on(&runtime, async {
        let hello = Hello::new(
            variable("EDGE_APP").unwrap_or_else(|| "hello".to_owned()),
            variable("EDGE_WORKER").unwrap_or_else(|| "0".to_owned()),
            variable("EDGE_HELLO_FAULTS").is_some_and(|value| value == "1"),
        );
        let mut terminate = signal(SignalKind::terminate()).map_err(HelloError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(HelloError::Runtime)?;
        let listener = Listener::bind(&place)?;
        say(&format!("hello: listening on {place}\n"));
        let code = tokio::select! {
            code = hello.serve(listener) => code,
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        if let Some(code) = code {
            return Ok(ExitCode::from(code));
        }
        hello.scope.close(GRACE).await;
        say("hello: finished\n");
        Ok(ExitCode::SUCCESS)
    })
}

/// Whoever started it may have closed its output; that is no reason to stop.
fn say(line: &str) {
    let _ = io::stdout().lock().write_all(line.as_bytes());
}

impl Hello {
    /// A worker that has served nothing yet.
    pub fn new(app: String, worker: String, faults: bool) -> Rc<Self> {
        Rc::new(Self {
            app,
            worker,
            faults,
            started: Instant::now(),
            requests: Cell::new(0),
            scope: Scope::new(),
            exit: Cell::new(None),
            exit_asked: Notify::new(),
        })
    }

    /// Accepts until the scope drains, or until a request asked for an exit code. Cancel-safe: the socket goes, the
    /// connections are the scope's.
    pub async fn serve(self: &Rc<Self>, mut listener: Listener) -> Option<u8> {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.exit_asked.notified() => return self.exit.get(),
                () = self.scope.drained() => return None,
            };
            match accepted {
                Ok(stream) => drop(self.scope.spawn(Rc::clone(self).connection(stream))),
                Err(error) => {
                    say(&format!("hello: cannot accept: {error}\n"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Ends [`Self::serve`] with an exit code, and with it the process.
    pub fn ask_exit(&self, code: u8) {
        self.exit.set(Some(code));
        self.exit_asked.notify_one();
    }

    async fn connection(self: Rc<Self>, stream: Stream) {
        let garbage = Arc::new(AtomicBool::new(false));
        let wire = TokioIo::new(Wire::new(stream, Arc::clone(&garbage)));
        let service = service_fn(|request| {
            self.requests.set(self.requests.get() + 1);
            answer(Rc::clone(&self), request, Arc::clone(&garbage))
        });
        let mut connection = pin!(http1::Builder::new().serve_connection(wire, service).with_upgrades());
        // A connection that breaks is its client's affair.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = self.scope.drained() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            _ = connection => {}
            () = self.scope.aborted() => {}
        }
    }
}

/// A connection, whatever its kind.
type Stream = Box<dyn Duplex>;

/// Both directions of a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl Place {
    /// From EDGE_SOCKET and PORT.
    fn choose(socket: Option<String>, port: Option<String>) -> Result<Self, HelloError> {
        match (socket, port) {
            (Some(path), _) => Ok(Self::Unix(path.into())),
            (None, None) => Ok(Self::Port(8000)),
            (None, Some(port)) => port.parse().map(Self::Port).map_err(|_| HelloError::Port(port)),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Port(port) => write!(f, "http://127.0.0.1:{port}"),
        }
    }
}

impl Listener {
    /// Binds; a socket file left over by an earlier worker is replaced.
    pub fn bind(place: &Place) -> Result<Self, HelloError> {
        let bound = match place {
            Place::Unix(path) => remove_socket(path)
                .and_then(|()| UnixListener::bind(path))
                .map(|listener| Self::Unix(listener, path.clone())),
            Place::Port(port) => std::net::TcpListener::bind(("127.0.0.1", *port))
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
                .and_then(TcpListener::from_std)
                .map(Self::Tcp),
        };
        bound.map_err(|source| HelloError::Bind { place: place.to_string(), source })
    }

    async fn accept(&mut self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Edge sweeps what is left.
            let _ = remove_socket(path);
        }
    }
}

fn remove_socket(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
