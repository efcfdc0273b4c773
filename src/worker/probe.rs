//! Whether a worker is ready: it is when it gives a first real HTTP answer. A socket that takes connections proves nothing.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::config::model::{Address, App, Protocol, Tls};
use crate::name::HostPattern;
use crate::worker::probe_http2::{self, Said};

/// What is asked, and what counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    request: String,
    path: String,
    host: String,
    scheme: &'static str,
    protocol: Protocol,
    /// Only 2xx and 3xx count: the operator named the path. Otherwise any answer does.
    picky: bool,
}

/// Why a worker does not count as ready yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// It does not listen.
    #[error("nothing listens at {address} ({cause})")]
    Unreachable {
        /// Where it should.
        address: String,
        /// What the kernel says.
        cause: String,
    },
    /// It took the connection and said nothing.
    #[error("no answer to GET {path} within {} s", patience.as_secs_f64())]
    Silent {
        /// What was asked for.
        path: String,
        /// How long it had.
        patience: Duration,
    },
    /// It answered something else than HTTP, or hung up.
    #[error("no HTTP answer to GET {path}")]
    NotHttp {
        /// What was asked for.
        path: String,
    },
    /// The same, where HTTP/2 was expected.
    #[error("no HTTP/2 answer to GET {path}; does the command speak `protocol: h2c`?")]
    NotHttp2 {
        /// What was asked for.
        path: String,
    },
    /// It answered that it is not.
    #[error("GET {path} answered {status}")]
    Status {
        /// What was asked for.
        path: String,
        /// The answer.
        status: u16,
    },
}

/// How long one answer may take; servers that load late accept early and are asked again.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Between two looks whether anybody listens: they cost the worker nothing, and requests may be waiting for it.
const LISTEN_PAUSE: Duration = Duration::from_millis(10);
/// Between two questions that were asked in vain, growing.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_millis(250);

impl Question {
    /// `GET` of the health check's path or `/`, as the app's own clients would ask: frameworks that check the host or insist
    /// on https would refuse anything else.
    pub fn new(app: &App, healthcheck_path: Option<&str>) -> Self {
        let path = healthcheck_path.unwrap_or("/");
        let host = match app.domains.first() {
            Some(HostPattern::Exact(name)) if name.as_str().contains(':') => format!("[{name}]"),
            Some(HostPattern::Exact(name)) => name.to_string(),
            Some(HostPattern::Wildcard(suffix)) => format!("edge-probe.{suffix}"),
            None => "localhost".to_owned(),
        };
        let scheme = match app.tls {
            Tls::Off => "http",
            Tls::Acme | Tls::Internal | Tls::Files { .. } => "https",
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: edge-probe\r\nAccept: */*\r\n\
             X-Forwarded-Proto: {scheme}\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: {host}\r\n\
             Connection: close\r\n\r\n"
        );
        let (path, protocol, picky) = (path.to_owned(), app.protocol, healthcheck_path.is_some());
        Self { request, path, host, scheme, protocol, picky }
    }

    /// The same in HTTP/2.
    fn request_http2(&self) -> http::Result<http::Request<()>> {
        http::Request::get(format!("http://{}{}", self.host, self.path))
            .header("user-agent", "edge-probe")
            .header("accept", "*/*")
            .header("x-forwarded-proto", self.scheme)
            .header("x-forwarded-for", "127.0.0.1")
            .header("x-forwarded-host", &self.host)
            .body(())
    }

    /// Asks until the answer counts; `missed` hears why it does not, once for each reason in a row. Cancel-safe.
    pub async fn until_ready(&self, address: &Address, mut missed: impl FnMut(NotReady)) {
        let (mut pause, mut told) = (FIRST_PAUSE, None);
        while let Err(reason) = self.ask(address).await {
            let rest = match reason {
                NotReady::Unreachable { .. } => LISTEN_PAUSE,
                NotReady::Silent { .. }
                | NotReady::NotHttp { .. }
                | NotReady::NotHttp2 { .. }
                | NotReady::Status { .. } => {
                    let longer = (pause * 3 / 2).min(LAST_PAUSE);
                    std::mem::replace(&mut pause, longer)
                }
            };
            if told.as_ref() != Some(&reason) {
                missed(reason.clone());
                told = Some(reason);
            }
            tokio::time::sleep(rest).await;
        }
    }

    /// Whether it answers at all, whatever it says. Cancel-safe.
    pub async fn answers(&self, address: &Address) -> bool {
        match self.ask(address).await {
            Ok(()) | Err(NotReady::Status { .. }) => true,
            Err(
                NotReady::Unreachable { .. }
                | NotReady::Silent { .. }
                | NotReady::NotHttp { .. }
                | NotReady::NotHttp2 { .. },
            ) => false,
        }
    }

    /// One attempt. Cancel-safe.
    pub async fn ask(&self, address: &Address) -> Result<(), NotReady> {
        self.ask_within(ATTEMPT, address).await
    }

    /// One attempt, whose answer may take that long. Cancel-safe.
    pub async fn ask_within(&self, patience: Duration, address: &Address) -> Result<(), NotReady> {
        let attempt = async {
            let unreachable = |error: std::io::Error| NotReady::Unreachable {
                address: address.to_string(),
                cause: match error.kind() {
                    std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
                    other => other.to_string(),
                },
            };
            match address {
                Address::Unix(path) => {
                    self.exchange(UnixStream::connect(path).await.map_err(unreachable)?).await
                }
                Address::Tcp(to) => self.exchange(TcpStream::connect(to).await.map_err(unreachable)?).await,
                Address::Name(host, port) => {
                    let to = (host.as_str(), *port);
                    self.exchange(TcpStream::connect(to).await.map_err(unreachable)?).await
                }
            }
        };
        let silent = || NotReady::Silent { path: self.path.clone(), patience };
        tokio::time::timeout(patience, attempt).await.unwrap_or_else(|_| Err(silent()))
    }

    async fn exchange(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), NotReady> {
        if self.protocol == Protocol::H2c {
            return self.exchange_http2(stream).await;
        }
        let not_http = || NotReady::NotHttp { path: self.path.clone() };
        stream.write_all(self.request.as_bytes()).await.map_err(|_| not_http())?;
        let mut head = Vec::with_capacity(1024);
        let status = loop {
            if let Some(status) = status(&head) {
                break status;
            }
            if head.len() > 64 || stream.read_buf(&mut head).await.map_err(|_| not_http())? == 0 {
                return Err(not_http());
            }
        };
        if self.picky && !(200..400).contains(&status) {
            return Err(NotReady::Status { path: self.path.clone(), status });
        }
        // Unread bytes would make the close a reset, after which some servers keep memory.
        let rest = async {
            let mut sink = [0; 4096];
            let mut left = 64;
            while left > 0 && stream.read(&mut sink).await.is_ok_and(|count| count > 0) {
                left -= 1;
            }
        };
        let _ = tokio::time::timeout(LAST_PAUSE, rest).await;
        Ok(())
    }
}

impl Question {
    async fn exchange_http2(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), NotReady> {
        let not_http = NotReady::NotHttp2 { path: self.path.clone() };
        let Ok(request) = self.request_http2() else { return Err(not_http) };
        let status = match probe_http2::ask(stream, request).await {
            None => return Err(not_http),
            Some(Said::Status(status)) => status,
            Some(Said::Reset) => 500,
        };
        if self.picky && !(200..400).contains(&status) {
            return Err(NotReady::Status { path: self.path.clone(), status });
        }
        Ok(())
    }
}

/// The status code, once the first line is far enough in.
fn status(head: &[u8]) -> Option<u16> {
    let code = head.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(1..5))?.strip_prefix(b" ")?;
    std::str::from_utf8(code).ok()?.parse().ok().filter(|code| (100..1000).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    fn question(picky: bool) -> Question {
        let (request, path, host) = ("GET / HTTP/1.1\r\n\r\n".into(), "/".into(), "a.test".into());
        Question { request, path, host, scheme: "https", protocol: Protocol::Http1, picky }
    }

    async fn answered(picky: bool, answer: &'static [u8]) -> Result<(), NotReady> {
        let (near, mut far) = duplex(1024);
        let server = async move {
            let mut byte = [0; 64];
            let _ = far.read(&mut byte).await;
            for part in answer.chunks(5) {
                let _ = far.write_all(part).await;
            }
        };
        let question = question(picky);
        tokio::join!(question.exchange(near), server).0
    }

    #[tokio::test]
    async fn any_http_answer_is_ready_unless_a_path_was_named() {
        let error = b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(answered(false, error).await, Ok(()));
        assert_eq!(answered(true, error).await, Err(NotReady::Status { path: "/".into(), status: 500 }));
        assert_eq!(answered(true, b"HTTP/1.0 302 Found\r\n\r\n").await, Ok(()));
    }

    #[tokio::test]
    async fn what_is_not_http_is_not_ready() {
        for answer in [
            &b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3 and more of it so that it is long enough\r\n"[..],
            b"",
            b"HTTP/1.1",
        ] {
            assert_eq!(answered(false, answer).await, Err(NotReady::NotHttp { path: "/".into() }));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn while_nobody_listens_it_is_looked_often_and_told_once() {
        let nowhere = Address::Unix("/nowhere/x.sock".into());
        let mut told = 0;
        let question = question(false);
        let asking = question.until_ready(&nowhere, |_| told += 1);
        assert!(tokio::time::timeout(Duration::from_secs(60), asking).await.is_err());
        assert_eq!(told, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_the_time_it_is_given_however_long() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("x.sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("bound");
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let _request = stream.read(&mut [0; 64]).await;
                tokio::time::sleep(Duration::from_secs(12)).await;
                let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            }
        };
        let (question, address) = (question(true), Address::Unix(path));
        let asked = async {
            let seconds = Duration::from_secs;
            let early = question.ask_within(seconds(11), &address).await.expect_err("too early");
            assert_eq!(early.to_string(), "no answer to GET / within 11 s");
            assert_eq!(question.ask_within(seconds(20), &address).await, Ok(()));
        };
        tokio::select! {
            () = asked => {}
            () = serve => {}
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_named() {
        let reason =
            question(false).ask(&Address::Unix("/nowhere/x.sock".into())).await.expect_err("no socket");
        assert_eq!(reason.to_string(), "nothing listens at unix:/nowhere/x.sock (there is no such file)");
    }
}
