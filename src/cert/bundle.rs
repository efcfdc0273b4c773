//! A bundle: private key and certificate chain that belong together. What exists as this type was checked once: the key
//! fits the leaf, every part is readable, sizes are within bounds.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::cert::validity::Validity;
use crate::name::{HostName, HostPattern};

/// Longest bundle in bytes of PEM.
pub const MAX_SIZE: u64 = 64 * 1024;

const MAX_CHAIN: usize = 10;

/// The only feature that is in use is the OCSP answer.
const TLS_FEATURE: &str = "1.3.6.1.5.5.7.1.24";

/// Key, chain, and what the leaf says. The key is never printed.
#[derive(Clone)]
pub struct CertBundle {
    certified: Arc<CertifiedKey>,
    key: Arc<PrivateKeyDer<'static>>,
    names: Vec<HostPattern>,
    validity: Validity,
    issuer: String,
    serial: String,
    profile: Option<String>,
}

/// Why PEM text is not a usable bundle.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BundleError {
    #[error("it holds no certificate")]
    NoCertificate,
    #[error("it holds no private key")]
    NoKey,
    #[error("it is larger than {MAX_SIZE} bytes")]
    TooLarge,
    #[error("its chain has more than {MAX_CHAIN} certificates")]
    ChainTooLong,
    #[error("it is not valid PEM ({0})")]
    Pem(String),
    #[error("certificate {} of its chain cannot be read ({reason})", position + 1)]
    Unreadable { position: usize, reason: String },
    #[error("its private key does not belong to its certificate")]
    KeyMismatch,
    #[error("its private key cannot be used")]
    Key(#[source] rustls::Error),
    #[error("its certificate does not name {name}")]
    NameMissing { name: String },
    #[error("its certificate is not valid yet; is this machine's clock right?")]
    NotYetValid,
    #[error("its certificate is expired or about to be; is this machine's clock right?")]
    Expired,
    #[error("its certificate is expired")]
    Ended,
    #[error("certificate {} of its chain was not issued by the next one", position + 1)]
    BrokenChain { position: usize },
}

impl CertBundle {
    /// One PEM text with the private key and the chain, leaf first.
    pub fn parse(provider: &Arc<CryptoProvider>, pem: &[u8]) -> Result<Self, BundleError> {
        Self::parse_parts(provider, pem, pem)
    }

    /// Chain and key from two PEM texts.
    pub fn parse_parts(
        provider: &Arc<CryptoProvider>,
        chain: &[u8],
        key: &[u8],
    ) -> Result<Self, BundleError> {
        if chain.len().max(key.len()) as u64 > MAX_SIZE {
            return Err(BundleError::TooLarge);
        }
        let profile = profile_of(key);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| BundleError::Pem(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => BundleError::NoKey,
            other => BundleError::Pem(other.to_string()),
        })?;
        Ok(Self::assemble(provider, chain, key)?.of_profile(profile))
    }

    /// With the CA's name for the kind of certificate that was ordered.
    pub fn of_profile(self, profile: Option<String>) -> Self {
        Self { profile, ..self }
    }

    /// A chain, leaf first, and the key of its leaf.
    pub fn assemble(
        provider: &Arc<CryptoProvider>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, BundleError> {
        if chain.len() > MAX_CHAIN {
            return Err(BundleError::ChainTooLong);
        }
        for (position, certificate) in chain.iter().enumerate() {
            read_certificate(position, certificate)?;
        }
        let leaf = read_certificate(0, chain.first().ok_or(BundleError::NoCertificate)?)?;
        let names = names_of(&leaf);
        let validity = Validity {
            not_before: wall_time(leaf.validity().not_before.timestamp()),
            not_after: wall_time(leaf.validity().not_after.timestamp()),
        };
        let issuer = common_name(&leaf).unwrap_or_else(|| leaf.issuer().to_string());
        let serial = leaf.tbs_certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
        let certified = match CertifiedKey::from_der(chain.clone(), key.clone_key(), provider) {
            Ok(certified) => Arc::new(certified),
            Err(rustls::Error::InconsistentKeys(_)) => return Err(BundleError::KeyMismatch),
            Err(other) => return Err(BundleError::Key(other)),
        };
        Ok(Self { certified, key: Arc::new(key), names, validity, issuer, serial, profile: None })
    }

    /// Key and chain in the form a handshake uses.
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The hosts its certificate names.
    pub fn names(&self) -> &[HostPattern] {
        &self.names
    }

    /// When it may be used.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Common name of who issued it.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Serial number in hexadecimal digits.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The CA's name for the kind of certificate that was ordered, where one was named.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    /// Whether a client that asked for any host of `pattern` would accept it.
    pub fn covers(&self, pattern: &HostPattern) -> bool {
        self.names.iter().any(|name| match pattern {
            HostPattern::Exact(host) => name.covers(host),
            HostPattern::Wildcard(_) => name == pattern,
        })
    }

    /// What a bundle that just came from a CA must fulfil before it may replace anything: it names `wanted`, is valid now
    /// with some of its life left, and each certificate is signed by the next.
    pub fn check_issued(&self, wanted: &HostPattern, now: SystemTime) -> Result<(), BundleError> {
        if !self.covers(wanted) {
            return Err(BundleError::NameMissing { name: wanted.to_string() });
        }
        // A CA's clock may be a little ahead; an hour also covers a machine set to a wrong time zone by hand.
        if self.validity.not_before > now + Duration::from_secs(3600) {
            return Err(BundleError::NotYetValid);
        }
        // A share of the life, not a fixed time: test certificates live for a minute.
        if now + self.validity.life() / 10 >= self.validity.not_after {
            return Err(BundleError::Expired);
        }
        self.check_chain()
    }

    /// Whether its certificate demands an OCSP answer in the handshake (RFC 7633).
    pub fn wants_staple(&self) -> bool {
        let leaf = self.certified.cert.first().and_then(|leaf| read_certificate(0, leaf).ok());
        leaf.is_some_and(|leaf| leaf.iter_extensions().any(|found| found.oid.to_id_string() == TLS_FEATURE))
    }

    /// Whether its certificate is signed by its own key: no CA's.
    pub fn is_self_signed(&self) -> bool {
        let leaf = self.certified.cert.first().and_then(|leaf| read_certificate(0, leaf).ok());
        leaf.is_some_and(|leaf| leaf.verify_signature(None).is_ok())
    }

    /// Whether each certificate is signed by the next.
    pub fn check_chain(&self) -> Result<(), BundleError> {
        for (position, pair) in self.certified.cert.windows(2).enumerate() {
            let [below, above] = pair else { continue };
            let below = read_certificate(position, below)?;
            let above = read_certificate(position + 1, above)?;
            let named = below.issuer().as_raw() == above.subject().as_raw();
            let signed = match below.verify_signature(Some(above.public_key())) {
                Ok(()) => true,
                // Signed in a way that cannot be checked here, such as with a key on P-521: clients may know it.
                Err(error) => error == X509Error::SignatureUnsupportedAlgorithm,
            };
            if !named || !signed {
                return Err(BundleError::BrokenChain { position });
            }
        }
        Ok(())
    }

    /// The bundle as one PEM text: a line with the profile, the key, then the chain. Secret.
    pub fn to_pem(&self) -> Vec<u8> {
        let mut text = String::new();
        if let Some(profile) = &self.profile {
            // What stands before a PEM block is for people (RFC 7468 §2), and for edge.
            text.push_str(&format!("{PROFILE}{profile}\n"));
        }
        let label = match &*self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        push_pem(&mut text, label, self.key.secret_der());
        for certificate in &self.certified.cert {
            push_pem(&mut text, "CERTIFICATE", certificate);
        }
        text.into_bytes()
    }
}

impl fmt::Debug for CertBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertBundle")
            .field("names", &self.names)
            .field("validity", &self.validity)
            .field("issuer", &self.issuer)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

const PROFILE: &str = "Profile: ";

/// The profile that is named before the first block.
fn profile_of(pem: &[u8]) -> Option<String> {
    let text = pem.strip_prefix(PROFILE.as_bytes())?;
    let word = std::str::from_utf8(text.split(|byte| *byte == b'\n').next()?).ok()?;
    let plain = word.len() <= 64 && word.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| word.to_owned())
}

/// Appends one PEM block (RFC 7468).
pub(in crate::cert) fn push_pem(text: &mut String, label: &str, der: &[u8]) {
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in encoded.as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
}

fn read_certificate<'a>(position: usize, der: &'a [u8]) -> Result<X509Certificate<'a>, BundleError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(BundleError::Unreadable { position, reason: error.to_string() }),
    }
}

fn names_of(leaf: &X509Certificate<'_>) -> Vec<HostPattern> {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else { return Vec::new() };
    // Names that no host is called (mail addresses, odd labels) can never be asked for, so they are left out.
    extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(text) => text.parse().ok(),
            GeneralName::IPAddress(octets) => {
                address(octets).map(|address| HostPattern::Exact(HostName::from_ip(address)))
            }
            _ => None,
        })
        .collect()
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into())
}

fn common_name(leaf: &X509Certificate<'_>) -> Option<String> {
    leaf.issuer().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

fn wall_time(seconds: i64) -> SystemTime {
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH),
        Err(_) => UNIX_EPOCH,
    }
}
