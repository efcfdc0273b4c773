//! Validation as a CA does it: a connection to the name, and a look at what answers.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::books::{ISSUER, Validation};

type Outcome = Result<(), (&'static str, String)>;

pub(super) async fn validate(about: &Validation) -> Outcome {
    let limit = Duration::from_secs(5);
    let looked = async {
        match about.kind.as_str() {
            "http-01" => http01(about).await,
            "tls-alpn-01" => tls_alpn01(about).await,
            "dns-01" => dns01(about).await,
            "dns-persist-01" => dns_persist01(about).await,
            other => Err(("malformed", format!("{other} is not validated here"))),
        }
    };
    tokio::time::timeout(limit, looked).await.unwrap_or(Err(("connection", "timed out".to_owned())))
}

async fn connect(port: u16) -> Result<TcpStream, (&'static str, String)> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| ("connection", error.to_string()))
}

/// CAs look from several places at once, and want the same answer everywhere.
async fn http01(about: &Validation) -> Outcome {
    let looks = (0..about.perspectives).map(|_| http01_once(about));
    futures_util::future::try_join_all(looks).await.map(drop)
}

async fn http01_once(about: &Validation) -> Outcome {
    let mut stream = connect(about.http).await?;
    let host = if about.name.contains(':') { format!("[{}]", about.name) } else { about.name.clone() };
    let request = format!(
        "GET /.well-known/acme-challenge/{} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
        about.token
    );
    let failed = |error: std::io::Error| ("connection", error.to_string());
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let wanted = format!("{}.{}", about.token, about.thumbprint);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim_end());
    if answer.starts_with("HTTP/1.1 200") && body == wanted {
        return Ok(());
    }
    let status = answer.split(' ').nth(1).unwrap_or("nothing");
    Err(("unauthorized", format!("127.0.0.1: Invalid response from http://{}: {status}", about.name)))
}

async fn dns01(about: &Validation) -> Outcome {
    let authorization = format!("{}.{}", about.token, about.thumbprint);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, authorization.as_bytes());
    let wanted = BASE64_URL_SAFE_NO_PAD.encode(digest);
    let found = texts(about.dns, &format!("_acme-challenge.{}.", about.name)).await?;
    if found.contains(&wanted) {
        return Ok(());
    }
    let what = if found.is_empty() { "No TXT record found".to_owned() } else { format!("found {found:?}") };
    Err(("unauthorized", format!("{what} at _acme-challenge.{}", about.name)))
}

async fn dns_persist01(about: &Validation) -> Outcome {
    let policy = if about.wildcard { "; policy=wildcard" } else { "" };
    let wanted = format!("{ISSUER}; accounturi={}{policy}", about.account);
    let found = texts(about.dns, &format!("_validation-persist.{}.", about.name)).await?;
    if found.contains(&wanted) { Ok(()) } else { Err(("unauthorized", format!("found {found:?}"))) }
}

/// The texts of a name, CNAMEs followed as a resolver does.
async fn texts(port: u16, name: &str) -> Result<Vec<String>, (&'static str, String)> {
    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::{Name, RData, RecordType};
    let failed = |error: String| ("dns", error);
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    socket.connect((Ipv4Addr::LOCALHOST, port)).await.map_err(|error| failed(error.to_string()))?;
    let mut at = Name::from_ascii(name).expect("a name");
    for _ in 0..5 {
        let mut message = Message::query();
        message.add_query(Query::query(at.clone(), RecordType::TXT));
        socket.send(&message.to_vec().expect("written")).await.map_err(|error| failed(error.to_string()))?;
        let mut bytes = [0; 4096];
        let length = socket.recv(&mut bytes).await.map_err(|error| failed(error.to_string()))?;
        let answer = Message::from_vec(&bytes[..length]).map_err(|error| failed(error.to_string()))?;
        let mut found = Vec::new();
        let mut next = None;
        for record in answer.answers {
            match record.data {
                RData::TXT(text) => found.push(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
                RData::CNAME(target) => next = Some(target.0),
                _ => {}
            }
        }
        match next {
            Some(next) if found.is_empty() => at = next,
            _ => return Ok(found),
        }
    }
    Err(failed("CNAMEs go round".to_owned()))
}

async fn tls_alpn01(about: &Validation) -> Outcome {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let name = match about.name.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Ok(IpAddr::V6(address)) => {
            let nibbles =
                address.octets().into_iter().rev().map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4));
            format!("{}ip6.arpa", nibbles.collect::<String>())
        }
        Err(_) => about.name.clone(),
    };
    let name = ServerName::try_from(name).expect("a server name");
    let stream = connect(about.tls).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(|error| ("tls", error.to_string()))?;
    let (_, session) = stream.get_ref();
    let wrong = |what: &str| Err(("unauthorized", format!("127.0.0.1: {what}")));
    if session.alpn_protocol() != Some(b"acme-tls/1") {
        return wrong("another protocol was chosen");
    }
    let authorization = format!("{}.{}", about.token, about.thumbprint);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, authorization.as_bytes());
    let leaf = session.peer_certificates().and_then(|chain| chain.first()).expect("a certificate");
    let found = leaf.windows(digest.as_ref().len()).any(|window| window == digest.as_ref());
    if found { Ok(()) } else { wrong("the certificate does not hold the key authorization") }
}

/// A validating handshake trusts nobody and checks the content.
#[derive(Debug)]
struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA256,
        ]
    }
}
