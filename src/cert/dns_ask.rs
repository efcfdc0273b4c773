//! Asks one name server one thing: over UDP, repeated where nothing comes, and over TCP where the answer does not fit.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::rr::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::cert::dns_message::{self, About, Answer, Outgoing};

/// How long each try waits. Together no longer than a CA would wait.
const TRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How long an exchange over TCP may take.
const TCP_LIMIT: Duration = Duration::from_secs(5);

/// Why a server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::cert) enum Unanswered {
    #[error("it does not answer")]
    Silent,
    #[error("it cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("its answer cannot be read: {0}")]
    Unreadable(#[from] dns_message::BadMessage),
}

/// The answer of `server` about `of`.
pub(in crate::cert) async fn ask(
    server: SocketAddr,
    about: About,
    of: &Name,
    look_further: bool,
) -> Result<Answer, Unanswered> {
    let asked = dns_message::question(fastrand::u16(..), about, of, look_further)?;
    exchange(server, &asked).await.map(|(answer, _)| answer)
}

/// Sends a message and returns the answer to it, also as it came.
pub(in crate::cert) async fn exchange(
    server: SocketAddr,
    asked: &Outgoing,
) -> Result<(Answer, Vec<u8>), Unanswered> {
    let own: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // Connected: the kernel drops what others send.
    let socket = UdpSocket::bind(own).await.map_err(Unanswered::Unreachable)?;
    socket.connect(server).await.map_err(Unanswered::Unreachable)?;
    let mut refused = None;
    for limit in TRIES {
        match tokio::time::timeout(limit, over_udp(&socket, asked)).await {
            Ok(Ok((answer, _))) if answer.truncated => return over_tcp(server, asked).await,
            Ok(Ok(answered)) => return Ok(answered),
            // Nobody listens there now; a server that starts does in a moment.
            Ok(Err(error)) => {
                refused = Some(error);
                tokio::time::sleep(limit / 4).await;
            }
            Err(_) => {}
        }
    }
    Err(refused.map_or(Unanswered::Silent, Unanswered::Unreachable))
}

async fn over_udp(socket: &UdpSocket, asked: &Outgoing) -> io::Result<(Answer, Vec<u8>)> {
    socket.send(&asked.bytes).await?;
    let mut bytes = vec![0; usize::from(dns_message::MOST_OVER_UDP)];
    loop {
        let length = socket.recv(&mut bytes).await?;
        // What is not the answer may have been made by somebody else: the true one may still come.
        if let Ok(answer) = dns_message::answer(asked, &bytes[..length]) {
            bytes.truncate(length);
            return Ok((answer, bytes));
        }
    }
}

async fn over_tcp(server: SocketAddr, asked: &Outgoing) -> Result<(Answer, Vec<u8>), Unanswered> {
    let exchanged = async {
        let mut stream = TcpStream::connect(server).await?;
        let length = u16::try_from(asked.bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&length.to_be_bytes()).await?;
        stream.write_all(&asked.bytes).await?;
        let length = stream.read_u16().await?;
        let mut bytes = vec![0; usize::from(length)];
        stream.read_exact(&mut bytes).await?;
        Ok(bytes)
    };
    let bytes = tokio::time::timeout(TCP_LIMIT, exchanged)
        .await
        .map_err(|_| Unanswered::Silent)?
        .map_err(Unanswered::Unreachable)?;
    Ok((dns_message::answer(asked, &bytes)?, bytes))
}
