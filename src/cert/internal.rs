//! Edge's own CA for `localhost`, test names and `tls: internal`. Its root certificate may be trusted by hand; its key never
//! leaves the storage.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::FromDer;

use crate::cert::bundle::{BundleError, CertBundle, MAX_SIZE, push_pem};
use crate::cert::seconds::is_plausible;
use crate::cert::store::read_secret;
use crate::cert::store_error::StoreError;
use crate::durable::{self, Readers};
use crate::name::HostPattern;

const ROOT_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Browsers refuse more than 398 days; short enough that a restored backup is not a risk for long.
const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// Clients whose clocks are behind accept a new certificate all the same.
const BACKDATE: Duration = Duration::from_secs(3600);
const COMMON_NAME: &str = "edge internal CA";

/// The CA, ready to issue.
pub struct InternalCa {
    provider: Arc<CryptoProvider>,
    root: CertificateDer<'static>,
    root_ends: SystemTime,
    issuer: Issuer<'static, KeyPair>,
    root_file: PathBuf,
}

/// Why the CA could not issue.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum InternalError {
    #[error("the certificate could not be made")]
    Make(#[from] rcgen::Error),
    #[error("the new certificate is not usable")]
    Check(#[from] BundleError),
}

impl InternalCa {
    /// The CA kept in `directory`; made there if there is none yet, or if the one there has less than a leaf's life left.
    pub fn open(
        directory: &Path,
        provider: Arc<CryptoProvider>,
        now: SystemTime,
    ) -> Result<Self, StoreError> {
        let (root_file, ca_file) = (directory.join("root.pem"), directory.join("ca.pem"));
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Internal {
            path: directory.to_owned(),
            source,
        };
        let kept = || match read_secret(&ca_file, MAX_SIZE)? {
            Some(pem) => Self::parse(&pem, Arc::clone(&provider), root_file.clone()).map(Some).map_err(fail),
            None => Ok(None),
        };
        let before = kept()?;
        let renews = before.is_some();
        if let Some(ca) = before.filter(|ca| ca.root_ends > now + LEAF_LIFE) {
            ca.write_root()?;
            return Ok(ca);
        }
        if !is_plausible(now) {
            let wrong = "this machine's clock is wrong, and a root made by it could never be used. Fix NTP";
            return Err(fail(wrong.into()));
        }
        let made = Self::create(Arc::clone(&provider), root_file.clone(), now);
        let (mut ca, pem) = made.map_err(|error| fail(Box::new(error)))?;
        durable::create_private_dir(directory)?;
        if renews {
            durable::write(&ca_file, pem.as_bytes(), Readers::Owner)?;
        } else if !durable::add(&ca_file, pem.as_bytes(), Readers::Owner)? {
            // Another edge on this storage was faster: clients trust one root, and it is to be that of both.
            ca = kept()?.unwrap_or(ca);
        }
        ca.write_root()?;
        Ok(ca)
    }

    /// Also finds out where a crash left the file of an earlier root behind, which nobody should be told to trust.
    fn write_root(&self) -> Result<(), StoreError> {
        let mut text = String::new();
        push_pem(&mut text, "CERTIFICATE", &self.root);
        match durable::read(&self.root_file, MAX_SIZE)? {
            Some(found) if found == text.as_bytes() => {}
            Some(_) => durable::write(&self.root_file, text.as_bytes(), Readers::Everyone)?,
            // Where another edge was faster, it wrote the same.
            None => drop(durable::add(&self.root_file, text.as_bytes(), Readers::Everyone)?),
        }
        Ok(())
    }

    fn create(
        provider: Arc<CryptoProvider>,
        root_file: PathBuf,
        now: SystemTime,
    ) -> Result<(Self, String), rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let root_ends = now + ROOT_LIFE;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(COMMON_NAME);
        // The path length forbids intermediates: the key signs leaves and nothing else.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATE).into();
        params.not_after = root_ends.into();
        let root = params.self_signed(&key)?.der().clone();
        let mut pem = String::new();
        push_pem(&mut pem, "PRIVATE KEY", key.serialized_der());
        push_pem(&mut pem, "CERTIFICATE", &root);
        // Read back like a stored one, so that both ways lead to the same issuer.
        let issuer = Issuer::from_ca_cert_der(&root, key)?;
        Ok((Self { provider, root, root_ends, issuer, root_file }, pem))
    }

    fn parse(
        pem: &[u8],
        provider: Arc<CryptoProvider>,
        root_file: PathBuf,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let root = CertificateDer::from_pem_slice(pem)?;
        let key = PrivateKeyDer::from_pem_slice(pem)?;
        let key = KeyPair::try_from(key.secret_der())?;
        let (_, read) = x509_parser::certificate::X509Certificate::from_der(&root)?;
        if read.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(BundleError::KeyMismatch.into());
        }
        let ends = u64::try_from(read.validity().not_after.timestamp()).unwrap_or_default();
        let root_ends = SystemTime::UNIX_EPOCH + Duration::from_secs(ends);
        let issuer = Issuer::from_ca_cert_der(&root, key)?;
        Ok(Self { provider, root, root_ends, issuer, root_file })
    }

    /// A new certificate for `name`, with a new key.
    pub fn issue(&self, name: &HostPattern, now: SystemTime) -> Result<CertBundle, InternalError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![subject(name)?];
        // Clients read the alternative name only, and a common name holds no more than 64 characters.
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + LEAF_LIFE).min(self.root_ends).into();
        let leaf = params.signed_by(&key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // The root is sent as well: it costs 400 bytes and tells a person at a browser what to trust.
        let bundle = CertBundle::assemble(&self.provider, vec![leaf, self.root.clone()], key)?;
        bundle.check_issued(name, now)?;
        Ok(bundle)
    }

    /// Whether `bundle` was issued by this root, not by one before it.
    pub fn issued(&self, bundle: &CertBundle) -> bool {
        bundle.certified().cert.get(1).is_some_and(|above| *above == self.root)
    }

    /// The root certificate as a PEM file everybody may read.
    pub fn root_file(&self) -> &Path {
        &self.root_file
    }

    /// The root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn subject(name: &HostPattern) -> Result<SanType, rcgen::Error> {
    if let HostPattern::Exact(host) = name
        && let Some(address) = host.ip()
    {
        return Ok(SanType::IpAddress(address));
    }
    Ok(SanType::DnsName(name.to_string().try_into()?))
}
