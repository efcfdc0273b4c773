//! The admin socket: tells the running state to root and to edge's own user, and does what they ask, on this machine only.
//!
//! A unix socket, so that no web page and no other user reaches it: mode 0600 before anybody can connect, and the peer's
//! user is asked of the kernel as well.

use std::cell::Cell;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::daemon::operation::{Operation, longest};
use crate::daemon::progress::Said;
use crate::report::Report;
use crate::scope::Scope;
use crate::telemetry::status::Status;

/// Head read, answered, and the answer taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at once; more wait in the backlog. Those of operations do not count: many who follow the logs, and do not read on,
/// must not keep others from a reload.
const CONNECTIONS: usize = 32;

/// Between two looks whether the socket's file is there while nobody asks: without it nobody could.
const LOOK: Duration = Duration::from_secs(5);

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AdminError {
    #[error("another edge is running with this configuration: it answers on {}", .0.display())]
    Taken(PathBuf),
    #[error("the admin socket's place {} is taken by something that is no socket", .0.display())]
    Foreign(PathBuf),
    #[error("cannot open the admin socket {}", .path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// The bound socket; its file goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// Removes the socket's file, unless somebody else has put another one there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

/// A status on its way: measuring takes a moment.
pub type PendingStatus = Pin<Box<dyn Future<Output = Status>>>;

/// Who answers behind the socket.
pub struct Desk {
    /// Tells the status.
    pub status: Box<dyn Fn() -> PendingStatus>,
    /// Starts an operation, and lets what it says be heard.
    pub perform: Box<dyn Fn(Operation) -> mpsc::Receiver<Said>>,
}

/// What is said now and then while nothing is: an operator's client can tell waiting from a dead edge.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl AdminSocket {
    /// Binds `path`, whose directory exists; called inside the runtime. A socket file that nobody answers on is left over and replaced.
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        remove_leftover(path)?;
        let open = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            // Nobody can connect before listen: the mode is in place by then.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            socket.listen(64)?;
            let metadata = fs::symlink_metadata(path)?;
            let file = SocketFile { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
            let listener = UnixListener::from_std(OwnedFd::from(socket).into())?;
            Ok(Self { listener, file })
        };
        open().map_err(|source| AdminError::Open { path: path.to_owned(), source })
    }

    /// Answers by `desk` until `scope` drains; then the socket's file is gone.
    pub async fn serve(mut self, scope: Scope, desk: Rc<Desk>) {
        let permits = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
        loop {
            let next = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                next = next => next,
                () = tokio::time::sleep(LOOK) => {
                    self.come_back();
                    continue;
                }
                () = scope.drained() => return,
            };
            match accepted {
                Ok((stream, _)) if may_ask(&stream) => {
                    // Closed semaphores give none, and nobody closes this one.
                    let place = Place(Cell::new(permit.ok()));
                    drop(scope.spawn(connection(stream, scope.clone(), Rc::clone(&desk), place)));
                }
                Ok(_) => tracing::warn!("another user's connection to the admin socket was refused"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the admin socket");
                    // Out of descriptors, most likely: asking again at once would spin.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    /// Opens the socket again where somebody has removed its file, as cleaners of temporary directories do. What is there now
    /// instead is left alone.
    fn come_back(&mut self) {
        let path = self.file.path.as_path();
        let is_gone = fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if !is_gone {
            return;
        }
        match Self::bind(path) {
            Ok(Self { listener, file }) => {
                tracing::warn!(path = %path.display(), "somebody had removed the admin socket: it is there again");
                self.listener = listener;
                let mut old = std::mem::replace(&mut self.file, file);
                // The file system may have given its number to the new one, which must stay.
                old.identity = (0, 0);
            }
            Err(error) => tracing::debug!(error = %Report(&error), "the admin socket is gone"),
        }
    }
}

fn remove_leftover(path: &Path) -> Result<(), AdminError> {
    let open = |source| AdminError::Open { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(AdminError::Foreign(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(open(error)),
    }
    match answers(path) {
        Ok(()) => Err(AdminError::Taken(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(open),
        // A full backlog: somebody is there and busy.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(AdminError::Taken(path.to_owned())),
        Err(error) => Err(open(error)),
    }
}

fn answers(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    drop(BlockingStream::from(OwnedFd::from(socket)));
    Ok(())
}

fn may_ask(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw())
}

/// A connection's place among the others.
struct Place(Cell<Option<OwnedSemaphorePermit>>);

impl Place {
    /// Gives it up: an operation takes its time, and its stream shows that edge lives; anything else is bounded.
    fn operate(&self) {
        self.0.set(None);
    }

    fn is_operating(&self) -> bool {
        let permit = self.0.take();
        let operating = permit.is_none();
        self.0.set(permit);
        operating
    }
}

async fn connection(stream: UnixStream, scope: Scope, desk: Rc<Desk>, place: Place) {
    let place = Rc::new(place);
    let service = service_fn({
        let place = Rc::clone(&place);
        move |request| {
            let (desk, place) = (Rc::clone(&desk), Rc::clone(&place));
            async move { Ok::<_, Infallible>(answer(request, &desk, &place).await) }
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let patience = async {
        tokio::time::sleep(PATIENCE).await;
        if place.is_operating() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(error = %Report(&error), "a connection to the admin socket broke off");
            }
        }
        () = patience => {}
        () = scope.aborted() => {}
    }
}

async fn answer(request: Request<Incoming>, desk: &Desk, place: &Place) -> Response<Body> {
    let (parts, body) = request.into_parts();
    if parts.uri.path() == "/status" {
        return match parts.method {
            Method::GET => status(desk).await,
            _ => not_allowed("GET"),
        };
    }
    let Ok(body) = Limited::new(body, longest(parts.uri.path())).collect().await else {
        return plain(StatusCode::BAD_REQUEST, "the request's body is too long, or broke off\n");
    };
    let Some(operation) = Operation::parse(parts.uri.path(), parts.uri.query(), &body.to_bytes()) else {
        return plain(StatusCode::NOT_FOUND, "there is no such thing to ask\n");
    };
    if parts.method != Method::POST {
        return not_allowed("POST");
    }
    place.operate();
    Response::new(stream((desk.perform)(operation)))
}

async fn status(desk: &Desk) -> Response<Body> {
    match serde_json::to_vec(&(desk.status)().await) {
        Ok(mut json) => {
            json.push(b'\n');
            let mut response = Response::new(Full::new(json.into()).boxed_unsync());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => {
            tracing::error!(%error, "cannot print the status");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the status cannot be printed\n")
        }
    }
}

/// What is said, as lines; an empty one is a sign of life.
fn stream(hears: mpsc::Receiver<Said>) -> Body {
    let lines = futures_util::stream::unfold(hears, async |mut hears| {
        let text = match tokio::time::timeout(SIGN_OF_LIFE, hears.recv()).await {
            Ok(Some(said)) => said.written(),
            Ok(None) => return None,
            Err(_) => "\n".to_owned(),
        };
        Some((Ok(Frame::data(Bytes::from(text))), hears))
    });
    StreamBody::new(lines).boxed_unsync()
}

fn not_allowed(method: &'static str) -> Response<Body> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync());
    *response.status_mut() = status;
    response
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the admin socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::LocalSet;

    use super::*;
    use crate::daemon::ask::Running;

    fn status() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            pid: 1,
            config_file: String::new(),
            uptime_s: 2,
            listeners: vec![],
            apps: BTreeMap::new(),
            certificates: vec![],
        }
    }

    /// Runs `test` while the admin socket at the given path answers, then ends the scope.
    async fn served<F: Future<Output = ()>>(path: &Path, test: impl FnOnce(PathBuf) -> F) {
        let local = LocalSet::new();
        local
            .run_until(async {
                let scope = Scope::new();
                let socket = AdminSocket::bind(path).expect("binds");
                let desk = Desk {
                    status: Box::new(|| Box::pin(async { status() })),
                    perform: Box::new(|_| {
                        let (says, hears) = mpsc::channel(3);
                        says.try_send(Said::Word("one\ntwo".to_owned())).expect("room");
                        says.try_send(Said::Complaint("three".to_owned())).expect("room");
                        says.try_send(Said::End(78)).expect("room");
                        hears
                    }),
                };
                drop(scope.spawn(socket.serve(scope.clone(), Rc::new(desk))));
                test(path.to_owned()).await;
                assert!(scope.close(Duration::from_secs(20)).await);
            })
            .await;
    }

    async fn exchange(path: &Path, request: &str) -> String {
        let mut stream = UnixStream::connect(path).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        answer
    }

    #[tokio::test]
    async fn tells_its_status_to_whoever_asks_with_the_same_configuration() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.sock");
        served(&path, |path| async move {
            assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
            let asked = tokio::task::spawn_blocking(move || {
                Running { admin: &path, config: Path::new("edge.yaml") }.ask_json::<Status>("/status")
            });
            assert_eq!(asked.await.expect("ends").expect("an answer"), status());
        })
        .await;
        assert!(!path.exists(), "the socket's file is left over");
    }

    #[tokio::test]
    async fn answers_to_what_it_knows_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        served(&dir.path().join("admin.sock"), |path| async move {
            let answer = exchange(&path, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
            let answer = exchange(&path, "POST /status HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET\r\n"), "{answer}");
            let answer = exchange(&path, "GET /reload HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: POST\r\n"), "{answer}");
            let answer = exchange(&path, "POST /reload HTTP/1.0\r\n\r\n").await;
            assert!(answer.ends_with("\r\n\r\n> one\n> two\n! three\n= 78\n"), "{answer}");
        })
        .await;
    }

    #[tokio::test]
    async fn a_second_edge_is_refused_and_the_first_keeps_its_socket() {
        let dir = tempfile::tempdir().expect("a directory");
        served(&dir.path().join("admin.sock"), |path| async move {
            assert!(matches!(AdminSocket::bind(&path), Err(AdminError::Taken(_))));
            let answer = exchange(&path, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_whose_file_somebody_removed_comes_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.sock");
        served(&path, |path| async move {
            fs::remove_file(&path).expect("removed");
            let comes = async {
                while !path.exists() {
                    tokio::time::sleep(LOOK).await;
                }
            };
            tokio::time::timeout(LOOK * 3, comes).await.expect("it comes back");
            assert_eq!(fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
            let answer = exchange(&path, "GET /status HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        })
        .await;
        assert!(!path.exists(), "the socket's file is left over");
    }

    #[tokio::test]
    async fn a_leftover_socket_is_replaced_and_anything_else_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        drop(AdminSocket::bind(&path).expect("replaces the leftover"));
        fs::write(&path, "mine").expect("writes");
        assert!(matches!(AdminSocket::bind(&path), Err(AdminError::Foreign(_))));
        assert_eq!(fs::read(&path).expect("reads"), b"mine");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        served(&dir.path().join("admin.sock"), |path| async move {
            let mut stream = UnixStream::connect(&path).await.expect("connects");
            let mut answer = Vec::new();
            // Whether hyper sends 408 first is its business.
            let _ = stream.read_to_end(&mut answer).await;
        })
        .await;
    }
}
