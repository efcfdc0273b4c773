//! What certbot and Caddy left behind: their certificates, keys and accounts, read as they lie and changed in nothing.
//!
//! ```text
//! certbot   live/NAME/fullchain.pem, privkey.pem      links into archive/; renewal/NAME.conf has the CA's URL
//! Caddy     certificates/CA/NAME/NAME.crt, NAME.key   CA is the URL with `-` for `/`; acme/CA/users/WHO/*.json, *.key
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use crate::cert::account;
use crate::cert::bundle::{BundleError, CertBundle, MAX_SIZE};
use crate::cert::ca_id::CaId;
use crate::durable::{self, DurableError};

/// Directories of certificates that are looked into; a tree with more is not what it seems.
const MOST: usize = 10_000;

/// Where Caddy keeps its data, in the home of its user.
const CADDY_HOME: &str = ".local/share/caddy";

/// The program that kept the certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words say it")]
pub enum Origin {
    Certbot,
    Caddy,
}

/// All that was found.
#[derive(Debug)]
pub struct Tree {
    /// Whose it is.
    pub origin: Origin,
    /// Certificates, by name of their directory.
    pub certificates: Vec<Found>,
    /// Accounts at CAs.
    pub accounts: Vec<FoundAccount>,
}

/// One certificate.
#[derive(Debug)]
pub struct Found {
    /// Its directory.
    pub directory: PathBuf,
    /// The CA it is from, as far as the tree says.
    pub ca: Option<CaId>,
    /// Chain and key, or why they cannot be used.
    pub bundle: Result<CertBundle, Unusable>,
}

/// One account.
pub struct FoundAccount {
    /// At which CA.
    pub ca: CaId,
    /// Who is told of expiries.
    pub contact: Option<String>,
    /// The record that edge would keep of it, or why it cannot be used.
    pub record: Result<Vec<u8>, Unusable>,
}

impl std::fmt::Debug for FoundAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FoundAccount").field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// Why something that was found is of no use.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Unusable {
    #[error(transparent)]
    Disk(#[from] DurableError),
    #[error("{} is not there, or is a link that leads nowhere", .0.display())]
    Missing(PathBuf),
    #[error("{}", .path.display())]
    Bundle { path: PathBuf, source: BundleError },
    #[error("{} is no account of this program ({reason})", .path.display())]
    Account { path: PathBuf, reason: String },
    #[error("{} is signed by its own key: no CA's, and no browser would take it", .0.display())]
    SelfSigned(PathBuf),
    #[error("its key is RSA; edge's accounts have P-256 keys")]
    AccountKey,
}

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ForeignError {
    #[error("cannot list {}", .path.display())]
    List { path: PathBuf, source: io::Error },
    #[error(
        "{} is neither certbot's directory (it would have live/NAME/fullchain.pem) nor Caddy's (certificates/CA/NAME/NAME.crt)",
        .0.display()
    )]
    Unknown(PathBuf),
}

/// Reads the tree at `dir`: `/etc/letsencrypt` or its `live`; Caddy's data directory, its `certificates`, or the home of its user.
pub fn read(dir: &Path, provider: &Arc<CryptoProvider>) -> Result<Tree, ForeignError> {
    // Whatever cannot be looked into is said to be so, and not to be of an unknown kind.
    list(dir)?;
    let caddy = [dir.to_owned(), dir.join(CADDY_HOME)];
    for (live, root) in [(dir.join("live"), dir), (dir.to_owned(), dir.parent().unwrap_or(dir))] {
        let lineages = directories_with(&live, |name| name.join("fullchain.pem"))?;
        if !lineages.is_empty() {
            let certificates = lineages.into_iter().map(|at| lineage(at, root, provider)).collect();
            return Ok(Tree { origin: Origin::Certbot, certificates, accounts: certbot_accounts(root)? });
        }
    }
    let own = dir.file_name().is_some_and(|name| name == "certificates").then(|| dir.parent().unwrap_or(dir));
    for root in caddy.iter().map(PathBuf::as_path).chain(own) {
        let mut certificates = Vec::new();
        for ca in directories(&root.join("certificates"))? {
            let id = CaId::of(&file_name(&ca));
            for directory in directories_with(&ca, |at| at.join(format!("{}.crt", file_name(at))))? {
                let file = |extension| directory.join(format!("{}.{extension}", file_name(&directory)));
                let bundle = pair(&file("crt"), &file("key"), provider);
                certificates.push(Found { directory: directory.clone(), ca: Some(id.clone()), bundle });
            }
        }
        if !certificates.is_empty() {
            return Ok(Tree { origin: Origin::Caddy, certificates, accounts: caddy_accounts(root)? });
        }
    }
    Err(ForeignError::Unknown(dir.to_owned()))
}

/// One of certbot's lineages; `root` has the file that says which CA it is from.
fn lineage(directory: PathBuf, root: &Path, provider: &Arc<CryptoProvider>) -> Found {
    let settings = root.join("renewal").join(format!("{}.conf", file_name(&directory)));
    let settings = durable::read(&settings, MAX_SIZE).ok().flatten().unwrap_or_default();
    let ca = String::from_utf8_lossy(&settings).lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "server").then(|| CaId::of(value.trim()))
    });
    let bundle = pair(&directory.join("fullchain.pem"), &directory.join("privkey.pem"), provider);
    Found { directory, ca, bundle }
}

fn pair(chain: &Path, key: &Path, provider: &Arc<CryptoProvider>) -> Result<CertBundle, Unusable> {
    let (chain_pem, key_pem) = (content(chain)?, content(key)?);
    let bundle = CertBundle::parse_parts(provider, &chain_pem, &key_pem).map_err(|source| {
        let at_fault = match source {
            BundleError::NoKey | BundleError::Key(_) => key,
            BundleError::NoCertificate
            | BundleError::TooLarge
            | BundleError::ChainTooLong
            | BundleError::Pem(_)
            | BundleError::Unreadable { .. }
            | BundleError::KeyMismatch
            | BundleError::NameMissing { .. }
            | BundleError::NotYetValid
            | BundleError::Expired
            | BundleError::Ended
            | BundleError::BrokenChain { .. } => chain,
        };
        Unusable::Bundle { path: at_fault.to_owned(), source }
    })?;
    if bundle.is_self_signed() { Err(Unusable::SelfSigned(chain.to_owned())) } else { Ok(bundle) }
}

fn content(path: &Path) -> Result<Vec<u8>, Unusable> {
    durable::read(path, MAX_SIZE)?.ok_or_else(|| Unusable::Missing(path.to_owned()))
}

/// What Caddy remembers of an account.
#[derive(Deserialize)]
struct CaddyAccount {
    #[serde(default)]
    contact: Vec<String>,
    location: String,
}

fn caddy_accounts(root: &Path) -> Result<Vec<FoundAccount>, ForeignError> {
    let mut found = Vec::new();
    for ca in directories(&root.join("acme"))? {
        for user in directories(&ca.join("users"))? {
            for file in
                list(&user)?.into_iter().filter(|path| path.extension().is_some_and(|it| it == "json"))
            {
                let known = caddy_account(&file);
                let contact = known.as_ref().ok().and_then(|(contact, _)| contact.clone());
                let record = known.map(|(_, record)| record);
                found.push(FoundAccount { ca: CaId::of(&file_name(&ca)), contact, record });
            }
        }
    }
    Ok(found)
}

fn caddy_account(file: &Path) -> Result<(Option<String>, Vec<u8>), Unusable> {
    let no_account = |path: &Path, reason: String| Unusable::Account { path: path.to_owned(), reason };
    let text = content(file)?;
    let known: CaddyAccount =
        serde_json::from_slice(&text).map_err(|error| no_account(file, error.to_string()))?;
    let key_file = file.with_extension("key");
    let key = PrivateKeyDer::from_pem_slice(&content(&key_file)?)
        .map_err(|error| no_account(&key_file, error.to_string()))?;
    let pair = match &key {
        PrivateKeyDer::Sec1(der) => {
            EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_sec1_der())
        }
        PrivateKeyDer::Pkcs8(der) => {
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
        }
        _ => return Err(Unusable::AccountKey),
    };
    let unfit = |_| no_account(&key_file, "its key is not of the kind P-256".to_owned());
    let der = pair.map_err(unfit)?.to_pkcs8v1().map_err(|_| Unusable::AccountKey)?;
    let contact = known.contact.first().map(|mail| mail.trim_start_matches("mailto:").to_owned());
    let record = account::record(der.as_ref(), &known.location)
        .ok_or_else(|| no_account(file, "its key or URL cannot be used".to_owned()))?;
    Ok((contact, record))
}

/// Certbot's accounts, `accounts/HOST/PATH…/ID`: their keys are RSA.
fn certbot_accounts(root: &Path) -> Result<Vec<FoundAccount>, ForeignError> {
    let mut found = Vec::new();
    let mut below = vec![(root.join("accounts"), String::new())];
    while let Some((at, url)) = below.pop() {
        if at.join("private_key.json").exists() {
            let ca = url.rsplit_once('/').map_or(url.as_str(), |(ca, _)| ca);
            let record = Err(Unusable::AccountKey);
            found.push(FoundAccount { ca: CaId::of(ca), contact: None, record });
        } else if url.matches('/').count() < 8 && found.len() < MOST {
            let step = |path: PathBuf| {
                let url =
                    if url.is_empty() { file_name(&path) } else { format!("{url}/{}", file_name(&path)) };
                (path, url)
            };
            below.extend(directories(&at)?.into_iter().map(step));
        }
    }
    Ok(found)
}

fn directories_with(path: &Path, file: impl Fn(&Path) -> PathBuf) -> Result<Vec<PathBuf>, ForeignError> {
    let mut found = directories(path)?;
    // Also as a link that leads nowhere: it is to be told of.
    found.retain(|directory| file(directory).symlink_metadata().is_ok());
    Ok(found)
}

/// The directories in `path`, in order; none where it is none.
fn directories(path: &Path) -> Result<Vec<PathBuf>, ForeignError> {
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = list(path)?;
    found.retain(|entry| entry.is_dir());
    Ok(found)
}

fn list(path: &Path) -> Result<Vec<PathBuf>, ForeignError> {
    let fail = |source| ForeignError::List { path: path.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)?.take(MOST) {
        found.push(entry.map_err(fail)?.path());
    }
    found.sort();
    Ok(found)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
