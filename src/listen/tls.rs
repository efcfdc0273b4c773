//! The handshake: ClientHello to the certificate's configuration, or a refusal that says nothing.

use std::io;
use std::net::IpAddr;

use http::HeaderValue;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use crate::cert::challenge::Challenges;
use crate::cert::resolver::Certificates;
use crate::cert::subject::subject;
use crate::cert::tls_alpn;
use crate::name::HostName;
use crate::proxy::conn::TlsInfo;
use crate::tls_words;

/// A fatal alert `unrecognized_name` (RFC 8446 §6, RFC 6066 §3), as one plaintext record.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The same of `no_application_protocol` (RFC 7301 §3.2).
const NO_PROTOCOL: [u8; 7] = [21, 3, 3, 0, 2, 2, 120];

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// No certificate for the name asked for.
    #[error("no certificate for the name {0:?}")]
    UnknownName(Option<String>),
    /// Something else was offered beside the protocol that validates names, which stands alone.
    #[error("no protocol that is offered can be spoken")]
    NoProtocol,
    /// The client has a certificate whose subject cannot be passed on.
    #[error("the subject of the client's certificate is no line of text")]
    Subject,
    /// It was a CA that validated a name: there is nothing more to say.
    #[error("a CA has validated a name")]
    Validation,
    /// The two do not come to terms, in words.
    #[error("the TLS handshake failed: {0}")]
    Refused(String),
    /// The network failed.
    #[error("the TLS handshake failed")]
    Failed(#[source] io::Error),
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match tls_words::cause(&error) {
            Some(cause) => Self::Refused(tls_words::told(cause)),
            None => Self::Failed(error),
        }
    }
}

/// A connection past its handshake.
pub struct Accepted<S> {
    /// The stream.
    pub stream: TlsStream<S>,
    /// What was agreed on.
    pub info: TlsInfo,
    /// Whether HTTP/2 was chosen by ALPN.
    pub h2: bool,
}

/// Runs the server's side of a handshake on `stream`. Not bounded in time: the caller is.
pub async fn accept<S>(
    stream: S,
    local: IpAddr,
    certificates: &Certificates,
    challenges: &Challenges,
) -> Result<Accepted<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let start = acceptor.await?;
    let written = start.client_hello().server_name().map(str::to_owned);
    // Exactly that protocol (RFC 8737 §3), and only while a challenge for the name is pending.
    let offers_validation =
        || start.client_hello().alpn().is_some_and(|mut all| all.any(|one| one == tls_alpn::PROTOCOL));
    let validates = start.client_hello().alpn().is_some_and(|offered| offered.eq([tls_alpn::PROTOCOL]));
    if let Some(name) = written.as_deref().filter(|_| validates)
        && let Some(config) = challenges.tls_alpn01(name)
    {
        let mut stream = start.into_stream(config).await?;
        stream.shutdown().await?;
        return Err(HandshakeError::Validation);
    }
    if offers_validation() {
        return Err(refuse(start.io, &NO_PROTOCOL, HandshakeError::NoProtocol).await);
    }
    let sni = written.as_deref().and_then(|name| HostName::parse(name).ok());
    // A name that is no host name is nobody's: it must not fall back to the address's certificate.
    let served = match (&written, &sni) {
        (Some(_), None) => None,
        (Some(_), Some(_)) | (None, _) => certificates.find(sni.as_ref(), local),
    };
    let Some(served) = served else {
        return Err(refuse(start.io, &UNRECOGNIZED_NAME, HandshakeError::UnknownName(written)).await);
    };
    let stream = start.into_stream(std::sync::Arc::clone(&served.config)).await?;
    let (_, session) = stream.get_ref();
    let h2 = session.alpn_protocol() == Some(b"h2");
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        Some(_) | None => "TLSv1.3",
    };
    let client_subject = match session.peer_certificates() {
        Some([certificate, ..]) => Some(subject_field(certificate).ok_or(HandshakeError::Subject)?),
        Some([]) | None => None,
    };
    Ok(Accepted { stream, info: TlsInfo { sni, served, version, client_subject }, h2 })
}

fn subject_field(certificate: &[u8]) -> Option<HeaderValue> {
    HeaderValue::from_str(&subject(certificate)?).ok()
}

/// Sends an alert and ends the connection; returns why, or why not even that could be done.
async fn refuse<S>(mut stream: S, alert: &[u8], why: HandshakeError) -> HandshakeError
where
    S: AsyncWrite + Unpin,
{
    let told = stream.write_all(alert).await;
    let shut = stream.shutdown().await;
    match told.and(shut) {
        Ok(()) => why,
        Err(error) => HandshakeError::Failed(error),
    }
}
