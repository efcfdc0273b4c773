//! Whether port 443 leads here, on demand: a handshake as a CA makes it that validates by TLS-ALPN-01 (RFC 8737 §3).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use tokio_rustls::TlsConnector;

use crate::cert::challenge::{Challenges, Published};
use crate::cert::self_check::{Found, LIMIT, MOST_ADDRESSES, Mark, Seen, SelfCheck, Verdict, connect, judge};
use crate::cert::tls_alpn::{self, AnswerError};
use crate::name::HostName;
use crate::tls_words;

/// How a certificate writes a SHA-256 in its `acmeIdentifier`: one octet string in another.
const WRITTEN: [u8; 4] = [4, 34, 4, 32];

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn identifier(mark: &Mark) -> Vec<u8> {
    digest(&SHA256, mark.answer.as_bytes()).as_ref().to_vec()
}

/// Has handshakes for `hosts` answered with `mark`, as long as what is returned is kept.
pub fn lend(
    challenges: &Arc<Challenges>,
    mark: &Mark,
    hosts: &[HostName],
    now: SystemTime,
) -> Result<Option<Published>, AnswerError> {
    let Some(any) = hosts.first() else { return Ok(None) };
    // One for all of them: only its identifier is looked at.
    let config: Arc<ServerConfig> = tls_alpn::answer(&provider(), any, &identifier(mark), now)?;
    let names = hosts.iter().map(|host| tls_alpn::server_name(host).into()).collect();
    Ok(Some(challenges.lend_tls_alpn01(names, config)))
}

/// What is `found` of `host`, with what its addresses do in handshakes. Where a CA can look in no other way, it is `needed`.
pub async fn look(
    self_check: &SelfCheck,
    host: &HostName,
    mark: &Mark,
    needed: bool,
    mut found: Found,
) -> Found {
    let looks = found.addresses.iter().take(MOST_ADDRESSES).map(|(address, _)| async {
        let shaken = shake_hands(SocketAddr::new(*address, self_check.tls), host, mark);
        (*address, tokio::time::timeout(LIMIT, shaken).await.unwrap_or(Seen::Silent))
    });
    found.handshakes = futures_util::future::join_all(looks).await;
    if found.handshakes.is_empty() {
        return found;
    }
    found.verdict = match (found.verdict, judge(host, 443, &found.handshakes)) {
        (Verdict::Unready(message), _) => Verdict::Unready(message),
        (_, Verdict::Unready(message)) if needed => Verdict::Unready(message),
        (Verdict::Ready, Verdict::Unready(message) | Verdict::Unsure(message)) => Verdict::Unsure(message),
        (so_far, Verdict::Ready | Verdict::Unready(_) | Verdict::Unsure(_)) => so_far,
    };
    found
}

async fn shake_hands(address: SocketAddr, host: &HostName, mark: &Mark) -> Seen {
    let stream = match connect(address).await {
        Ok(stream) => stream,
        Err(seen) => return seen,
    };
    let (Ok(name), Ok(config)) = (ServerName::try_from(tls_alpn::server_name(host)), config()) else {
        return Seen::Elsewhere("a name that no handshake can ask for".to_owned());
    };
    let stream = match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => stream,
        Err(error) => {
            let why = tls_words::cause(&error).map_or_else(|| error.to_string(), tls_words::told);
            return Seen::Elsewhere(format!("no handshake for a CA: {why}"));
        }
    };
    let (_, session) = stream.get_ref();
    let wanted = [WRITTEN.as_slice(), &identifier(mark)].concat();
    let ours = |leaf: &CertificateDer<'_>| memchr::memmem::find(leaf, &wanted).is_some();
    match session.peer_certificates().and_then(<[_]>::first) {
        Some(leaf) if session.alpn_protocol() == Some(tls_alpn::PROTOCOL) && ours(leaf) => Seen::Ours,
        Some(_) | None => Seen::Elsewhere("the certificate of another".to_owned()),
    }
}

fn config() -> Result<ClientConfig, Error> {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![tls_alpn::PROTOCOL.to_vec()];
    Ok(config)
}

/// Takes every certificate: what it says is looked at afterwards, and nothing is said to whoever has it.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
