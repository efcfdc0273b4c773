//! The certificate that answers a TLS-ALPN-01 challenge (RFC 8737 §3), and the name it is asked for by (RFC 8738 §6).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{Certificate, CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::name::HostName;

/// The only protocol of such a handshake.
pub const PROTOCOL: &[u8] = b"acme-tls/1";

const HOUR: Duration = Duration::from_secs(3600);

/// Why no answer could be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum AnswerError {
    #[error("no TLS-ALPN-01 certificate could be made")]
    Make(#[from] rcgen::Error),
    #[error("the TLS-ALPN-01 certificate cannot be served")]
    Serve(#[from] rustls::Error),
}

/// What a handshake for `host` is answered with: `digest` is that of the key authorization.
pub fn answer(
    provider: &Arc<CryptoProvider>,
    host: &HostName,
    digest: &[u8],
    now: SystemTime,
) -> Result<Arc<ServerConfig>, AnswerError> {
    let (certificate, key) = certificate(host, digest, now)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Not the usual way: that reads the certificate, and knows nothing of its critical extension.
    let key = provider.key_provider.load_private_key(key)?;
    let certified = Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key));
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}

fn certificate(
    host: &HostName,
    digest: &[u8],
    now: SystemTime,
) -> Result<(Certificate, KeyPair), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_string()])?;
    // No subject: a common name has 64 characters at most, a host name 253.
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - HOUR).into();
    params.not_after = (now + 24 * HOUR).into();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    Ok((params.self_signed(&key)?, key))
}

/// The server name in such a handshake: an address has none, and goes by its name in the reverse zone.
pub fn server_name(host: &HostName) -> String {
    match host.ip() {
        None => host.to_string(),
        Some(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Some(IpAddr::V6(address)) => {
            let digits: Vec<String> = address
                .octets()
                .iter()
                .rev()
                .flat_map(|octet| [octet & 15, octet >> 4])
                .map(|digit| format!("{digit:x}"))
                .collect();
            format!("{}.ip6.arpa", digits.join("."))
        }
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    #[test]
    fn the_certificate_has_no_subject_and_exactly_two_extensions() {
        let now = SystemTime::UNIX_EPOCH + 24 * HOUR;
        let long = format!("{}.example", ["a".repeat(60), "b".repeat(60), "c".repeat(60)].join("."));
        for name in ["a.example", &long, "127.0.0.1"] {
            let host = HostName::parse(name).expect(name);
            let (made, _) = certificate(&host, &[7; 32], now).expect(name);
            let (_, read) = X509Certificate::from_der(made.der()).expect("readable");
            assert_eq!(read.subject().iter().count(), 0);
            let kinds: Vec<_> =
                read.extensions().iter().map(|found| (found.oid.to_id_string(), found.critical)).collect();
            assert!(kinds.contains(&("1.3.6.1.5.5.7.1.31".to_owned(), true)), "{kinds:?}");
            assert_eq!(kinds.len(), 2, "{kinds:?}");
        }
    }

    #[test]
    fn an_address_is_asked_for_by_its_reverse_name() {
        let name = |text| server_name(&HostName::parse(text).expect(text));
        assert_eq!(name("a.example"), "a.example");
        assert_eq!(name("192.0.2.1"), "1.2.0.192.in-addr.arpa");
        assert_eq!(
            name("2001:db8::1"),
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa"
        );
    }
}
