//! Whether a worker that serves reads what it is sent.
//!
//! A worker whose event loop is blocked neither accepts connections nor reads. While it has requests in flight, or one was taken
//! away that it had left unread, the watchdog
//! opens a connection of its own every second and sends an empty line, which servers skip before a request (RFC 9112 section
//! 2.2), so that no application hears of it. What counts is whether the line is read: a slow handler is nobody's fault here.
//!
//! Two kinds of server need something else. Granian reads in a thread that its application cannot block: it is asked for its
//! health check's path, or `/`. Gunicorn's synchronous workers read nothing while they work: that is being busy, and
//! gunicorn itself watches them (`--timeout`).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::config::model::{Address, Protocol, ServerKind};
use crate::worker::adapter::Plan;
use crate::worker::lifecycle::Input;
use crate::worker::probe::Question;
use crate::worker::slot::{Slot, is_nobody_there};
use crate::worker::unread;

/// A worker that leaves bytes unread this long gets no new requests.
pub(super) const UNREAD: Duration = Duration::from_secs(2);
/// Between two probes of a worker with requests in flight.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two looks at one probe.
const LOOK: Duration = Duration::from_millis(100);
/// How long an answer to a question may take, where reading proves nothing: the path may be a slow one.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a probe that was read stays open: who answers it shall not write into a closed connection.
const LINGER: Duration = Duration::from_millis(200);

/// How a worker is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    /// By what it leaves unread.
    Reading,
    /// By what it answers.
    Answering,
    /// Not at all.
    Nobody,
}

impl Watch {
    /// How a server of this plan is watched.
    pub(super) fn of(plan: &Plan) -> Self {
        match (plan.server, plan.synchronous) {
            (ServerKind::Granian, _) => Self::Answering,
            (ServerKind::Gunicorn, true) => Self::Nobody,
            (
                ServerKind::Auto
                | ServerKind::Uvicorn
                | ServerKind::Fastapi
                | ServerKind::Gunicorn
                | ServerKind::Hypercorn
                | ServerKind::Daphne
                | ServerKind::Waitress
                | ServerKind::Node
                | ServerKind::Puma
                | ServerKind::Rails
                | ServerKind::Generic,
                _,
            ) => Self::Reading,
        }
    }

    /// Watches until it is dropped. `happened` hears [`Input::Stuck`] and [`Input::Reads`] in turn.
    pub(super) async fn over(self, slot: &Slot, question: &Question, happened: impl Fn(Input)) {
        loop {
            tokio::time::sleep(PAUSE).await;
            if slot.in_flight() == 0 && !slot.is_doubted(tokio::time::Instant::now().into_std()) {
                continue;
            }
            match self {
                Self::Nobody => return std::future::pending().await,
                Self::Reading => {
                    let mut read = Box::pin(read(&slot.address, probe(slot.protocol)));
                    let early = tokio::time::timeout(UNREAD, &mut read).await;
                    let stuck = early.is_err();
                    let outcome = match early {
                        Ok(outcome) => outcome,
                        Err(_) => {
                            happened(Input::Stuck);
                            read.await
                        }
                    };
                    // To have closed its socket is not to hang: what it has in flight goes on, and whoever looks whether it
                    // listens hears of it.
                    outcome.unwrap_or_else(|nobody| slot.note_failure(&nobody));
                    if !stuck {
                        continue;
                    }
                }
                Self::Answering => {
                    let before = slot.finished();
                    let mut answer = Box::pin(answered(question, &slot.address));
                    let well = match tokio::time::timeout(UNREAD, &mut answer).await {
                        // Nobody was answered, whatever was asked.
                        Err(_) if slot.finished() == before => {
                            happened(Input::Stuck);
                            answer.await
                        }
                        // Where others are, it is the question that takes long.
                        Err(_) => {
                            if answer.await {
                                continue;
                            }
                            happened(Input::Stuck);
                            false
                        }
                        Ok(true) => continue,
                        Ok(false) => {
                            happened(Input::Stuck);
                            false
                        }
                    };
                    if !well {
                        until_answered(question, &slot.address).await;
                    }
                }
            }
            happened(Input::Reads);
        }
    }
}

async fn answered(question: &Question, address: &Address) -> bool {
    tokio::time::timeout(ANSWER, question.answers(address)).await.unwrap_or(false)
}

/// Completes once the worker answers a question. Cancel-safe.
async fn until_answered(question: &Question, address: &Address) {
    while !answered(question, address).await {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Completes once the worker has read a probe, or with what says that nobody listens. Cancel-safe.
async fn read(address: &Address, probe: &[u8]) -> io::Result<()> {
    loop {
        let read = match address {
            Address::Unix(path) => match UnixStream::connect(path).await {
                Ok(stream) => Ok(read_by_unix(stream, probe).await),
                Err(error) => Err(error),
            },
            Address::Tcp(to) => match TcpStream::connect(to).await {
                Ok(stream) => Ok(read_by_loopback(stream, to.port(), probe).await),
                Err(error) => Err(error),
            },
            // Workers have addresses, not names.
            Address::Name(..) => Ok(true),
        };
        match read {
            Ok(true) => return Ok(()),
            Err(error) if is_nobody_there(&error) => return Err(error),
            Ok(false) | Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// `false` if the connection ended before that.
async fn read_by_unix(mut stream: UnixStream, probe: &[u8]) -> bool {
    if stream.write_all(probe).await.is_err() {
        return false;
    }
    loop {
        // Most workers read at once; the first look is soon.
        match unread::of_socket(&stream) {
            Ok(0) => break,
            Ok(_) => tokio::time::sleep(LOOK).await,
            Err(_) => return false,
        }
    }
    let _said_nothing = tokio::time::timeout(LINGER, stream.read(&mut [0; 1024])).await;
    true
}

async fn read_by_loopback(mut stream: TcpStream, port: u16, probe: &[u8]) -> bool {
    let Ok(client) = stream.local_addr() else { return false };
    if stream.write_all(probe).await.is_err() {
        return false;
    }
    loop {
        let look = move || unread::of_loopback(port, client.port());
        match tokio::task::spawn_blocking(look).await {
            Ok(Some(0)) => break,
            Ok(Some(_)) => tokio::time::sleep(LOOK).await,
            Ok(None) | Err(_) => return false,
        }
    }
    let _said_nothing = tokio::time::timeout(LINGER, stream.read(&mut [0; 1024])).await;
    true
}

/// What is sent: as little as its protocol has. Over HTTP/2 that is a connection on which nothing is asked (RFC 9113 §3.4).
fn probe(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::Http1 => b"\r\n",
        Protocol::H2c => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[tokio::test]
    async fn where_nobody_listens_nobody_is_waited_for() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("x.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        let address = Address::Unix(path.clone());
        drop(listener);
        let refused = read(&address, probe(Protocol::Http1)).await.expect_err("closed");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        std::fs::remove_file(path).expect("removed");
        let missing = read(&address, probe(Protocol::Http1)).await.expect_err("removed");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_probe_is_read_by_who_reads_and_not_by_who_only_accepts() {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = root.path().join("x.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        let address = Address::Unix(path);
        let blocked =
            tokio::time::timeout(Duration::from_millis(300), read(&address, probe(Protocol::Http1))).await;
        assert!(blocked.is_err(), "it has not even accepted");
        let serve = async {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                let _gone = stream.read(&mut [0; 16]).await;
            }
        };
        tokio::select! {
            read = read(&address, probe(Protocol::Http1)) => read.expect("somebody listens"),
            () = serve => {}
            () = tokio::time::sleep(Duration::from_secs(5)) => panic!("it was read"),
        }
    }
}
