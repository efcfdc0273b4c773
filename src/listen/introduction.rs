//! A load balancer tells for whom it connects, before anything else is read of the connection.

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::listen::proxy_header::{HeaderError, Parsed, Said, parse};

/// Looked at in one go: more than nearly every header has.
const PIECE: usize = 256;

/// Why a connection was not introduced.
#[derive(Debug, thiserror::Error)]
pub enum IntroductionError {
    /// It sent something else, and is closed.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// It ended, or was not over in time.
    #[error("it was not introduced")]
    Failed(#[source] io::Error),
}

impl IntroductionError {
    /// Whether the balancer sent what edge does not understand: a connection that merely ended may have been a health check.
    pub fn is_misunderstanding(&self) -> bool {
        matches!(self, Self::Header(_))
    }
}

/// Takes a PROXY header off `stream`, and not a byte of what follows it. Not bounded in time: the caller is.
pub async fn introduced(stream: &mut TcpStream) -> Result<Said, IntroductionError> {
    let mut header = Vec::new();
    loop {
        let mut piece = [0; PIECE];
        let seen = stream.peek(&mut piece).await.map_err(IntroductionError::Failed)?;
        if seen == 0 {
            return Err(IntroductionError::Failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let before = header.len();
        header.extend_from_slice(&piece[..seen]);
        let (taken, said) = match parse(&header)? {
            Parsed::Whole(said, length) => (length - before, Some(said)),
            // All of it belongs to the header, which has a longest length.
            Parsed::Partial => (seen, None),
        };
        // It is here already.
        stream.read_exact(&mut piece[..taken]).await.map_err(IntroductionError::Failed)?;
        if let Some(said) = said {
            return Ok(said);
        }
    }
}
