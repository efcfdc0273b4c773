//! Where certificates, account keys and the history of attempts are kept: one file for each generation of a certificate.
//!
//! ```text
//! accounts/CA/account.json            key and URL of the account
//! certs/CA/NAME/00000001-SERIAL.pem   key and chain, the highest number is the newest; two are kept
//! certs/CA/NAME/meta.json             failures, next attempt, chosen moment of renewal
//! certs/CA/NAME/order.json            an order whose certificate is not stored yet, with its key
//! dns/TEXT.json                       a record in DNS that edge has published and must remove
//! internal/                           edge's own CA
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};
use rustls::crypto::CryptoProvider;

use crate::cert::bundle::{BundleError, CertBundle, MAX_SIZE};
use crate::cert::ca_id::CaId;
use crate::cert::dns_record::DnsRecord;
use crate::cert::history::History;
use crate::cert::pending::PendingOrder;
use crate::cert::store_error::StoreError;
use crate::cert::validity::Validity;
use crate::durable::{self, DurableError, Readers};
use crate::name::HostPattern;

const GENERATIONS_KEPT: usize = 2;

/// What is kept of one name.
#[derive(Debug, Default)]
pub struct Stored {
    /// The newest usable generation.
    pub bundle: Option<CertBundle>,
    /// The history; empty where there is none or it is damaged.
    pub history: History,
    /// What was found and could not be used.
    pub problems: Vec<StoreError>,
}

/// Keeps certificates. All calls block; each leaves either the old content or the new one, also after a crash, and may be
/// repeated.
pub trait CertStore: Send + Sync + 'static {
    /// Everything kept of `name` at `ca`. What is damaged is reported and skipped.
    fn load(&self, ca: &CaId, name: &HostPattern) -> Stored;
    /// Keeps one more generation. The order it came from is spent with that.
    fn save(&self, ca: &CaId, name: &HostPattern, bundle: &CertBundle) -> Result<(), StoreError>;
    /// Replaces the history.
    fn remember(&self, ca: &CaId, name: &HostPattern, history: &History) -> Result<(), StoreError>;
    /// Whether this process may order. Ends with the process, whatever happens to it; asked again until it is granted.
    fn try_own(&self) -> Result<bool, StoreError>;
}

/// Keeps account keys; the same promises as [`CertStore`].
pub trait AccountStore: Send + Sync + 'static {
    /// The record of the account at `ca`.
    fn load_account(&self, ca: &CaId) -> Result<Option<Vec<u8>>, StoreError>;
    /// Replaces it.
    fn save_account(&self, ca: &CaId, record: &[u8]) -> Result<(), StoreError>;
    /// Keeps it unless there is one; says whether it did.
    fn add_account(&self, ca: &CaId, record: &[u8]) -> Result<bool, StoreError>;
}

/// Keeps orders that have not led to a stored certificate; the same promises as [`CertStore`].
pub trait OrderStore: Send + Sync + 'static {
    /// The order under way for `name` at `ca`.
    fn load_order(&self, ca: &CaId, name: &HostPattern) -> Result<Option<PendingOrder>, StoreError>;
    /// Replaces it.
    fn save_order(&self, ca: &CaId, name: &HostPattern, order: &PendingOrder) -> Result<(), StoreError>;
    /// Forgets it.
    fn drop_order(&self, ca: &CaId, name: &HostPattern) -> Result<(), StoreError>;
}

/// Keeps which records edge has published in DNS; the same promises as [`CertStore`].
pub trait RecordStore: Send + Sync + 'static {
    /// All of them. What is damaged is skipped.
    fn load_records(&self) -> Result<Vec<DnsRecord>, StoreError>;
    /// Keeps one more.
    fn save_record(&self, record: &DnsRecord) -> Result<(), StoreError>;
    /// Forgets one.
    fn drop_record(&self, record: &DnsRecord) -> Result<(), StoreError>;
}

/// Everything kept of `name` at several CAs: the certificate that came last of those in force at `now`, where there are any, and
/// the position of its CA, with the history at the first.
pub fn load_best(
    store: &dyn CertStore,
    cas: &[CaId],
    name: &HostPattern,
    now: SystemTime,
) -> (Stored, usize) {
    let mut best = Stored::default();
    let mut from = 0;
    for (position, ca) in cas.iter().enumerate() {
        let found = store.load(ca, name);
        if position == 0 {
            best.history = found.history;
        }
        best.problems.extend(found.problems);
        // Not the one that ends last: it may be the one that an operator had replaced by a shorter one.
        let rank = |bundle: &CertBundle| {
            let Validity { not_before, not_after } = bundle.validity();
            (not_after > now, not_before, not_after)
        };
        if let Some(bundle) = found.bundle
            && best.bundle.as_ref().is_none_or(|known| rank(known) < rank(&bundle))
        {
            (best.bundle, from) = (Some(bundle), position);
        }
    }
    (best, from)
}

/// A store in a directory of this machine.
#[derive(Debug)]
pub struct DirStore {
    root: PathBuf,
    provider: Arc<CryptoProvider>,
    lock: Mutex<Option<Flock<fs::File>>>,
}

impl DirStore {
    /// The store in `root`, which is created where it does not exist.
    pub fn open(root: &Path, provider: Arc<CryptoProvider>) -> Result<Self, StoreError> {
        durable::create_private_dir(root)?;
        Ok(Self { root: root.to_owned(), provider, lock: Mutex::new(None) })
    }

    /// Directory of edge's own CA.
    pub fn internal(&self) -> PathBuf {
        self.root.join("internal")
    }

    /// Whether what is kept here is lost with the machine or container: the CA's limits are met sooner than one thinks.
    pub fn is_volatile(&self) -> bool {
        nix::sys::statfs::statfs(&self.root).is_ok_and(|found| {
            let kind = found.filesystem_type();
            kind == nix::sys::statfs::TMPFS_MAGIC || kind == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC
        })
    }

    fn directory(&self, ca: &CaId, name: &HostPattern) -> PathBuf {
        self.root.join("certs").join(ca.as_str()).join(encoded(name))
    }

    fn account(&self, ca: &CaId) -> PathBuf {
        self.root.join("accounts").join(ca.as_str()).join("account.json")
    }

    fn dns(&self) -> PathBuf {
        self.root.join("dns")
    }

    fn load_generation(&self, path: &Path, name: &HostPattern) -> Result<CertBundle, StoreError> {
        let bundle_error = |source| StoreError::Bundle { path: path.to_owned(), source };
        let pem = read_secret(path, MAX_SIZE)?.unwrap_or_default();
        let bundle = CertBundle::parse(&self.provider, &pem).map_err(bundle_error)?;
        if !bundle.covers(name) {
            return Err(bundle_error(BundleError::NameMissing { name: name.to_string() }));
        }
        Ok(bundle)
    }
}

impl CertStore for DirStore {
    fn load(&self, ca: &CaId, name: &HostPattern) -> Stored {
        let directory = self.directory(ca, name);
        let mut stored = Stored::default();
        match generations(&directory) {
            Ok(found) => {
                for (_, path) in found {
                    match self.load_generation(&path, name) {
                        Ok(bundle) => {
                            stored.bundle = Some(bundle);
                            break;
                        }
                        Err(error) => stored.problems.push(error),
                    }
                }
            }
            Err(error) => stored.problems.push(error),
        }
        match load_history(&directory.join("meta.json")) {
            Ok(history) => stored.history = history,
            Err(error) => stored.problems.push(error),
        }
        stored
    }

    fn save(&self, ca: &CaId, name: &HostPattern, bundle: &CertBundle) -> Result<(), StoreError> {
        let directory = self.directory(ca, name);
        durable::create_private_dir(&directory)?;
        let before = generations(&directory)?;
        let number = before.first().map_or(1, |(number, _)| number.saturating_add(1));
        let serial: String = bundle.serial().chars().take(40).collect();
        let path = directory.join(format!("{number:08}-{serial}.pem"));
        durable::write(&path, &bundle.to_pem(), Readers::Owner)?;
        for (_, old) in before.iter().skip(GENERATIONS_KEPT - 1) {
            durable::remove(old)?;
        }
        self.drop_order(ca, name)
    }

    fn remember(&self, ca: &CaId, name: &HostPattern, history: &History) -> Result<(), StoreError> {
        let directory = self.directory(ca, name);
        let path = directory.join("meta.json");
        durable::create_private_dir(&directory)?;
        let record = to_json(&path, history)?;
        Ok(durable::write(&path, &record, Readers::Owner)?)
    }

    fn try_own(&self) -> Result<bool, StoreError> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_some() {
            return Ok(true);
        }
        // On the directory itself: works on a read-only disk, and nobody can delete it from under us.
        let fail = |source| StoreError::List { path: self.root.clone(), source };
        let directory = fs::File::open(&self.root).map_err(fail)?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(held) => {
                *lock = Some(held);
                Ok(true)
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(false),
            Err((_, errno)) => Err(fail(errno.into())),
        }
    }
}

impl RecordStore for DirStore {
    fn load_records(&self) -> Result<Vec<DnsRecord>, StoreError> {
        let directory = self.dns();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::List { path: directory, source }),
        };
        let mut records = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|kind| kind != "json") {
                continue;
            }
            let Some(content) = read_secret(&path, MAX_SIZE)? else { continue };
            match serde_json::from_slice::<DnsRecord>(&content) {
                Ok(record) if record.is_sound() => records.push(record),
                Ok(_) | Err(_) => {
                    tracing::warn!(path = %path.display(), "the note of a record in DNS is damaged; remove it");
                }
            }
        }
        Ok(records)
    }

    fn save_record(&self, record: &DnsRecord) -> Result<(), StoreError> {
        let directory = self.dns();
        durable::create_private_dir(&directory)?;
        let path = directory.join(format!("{}.json", record.value));
        let content = to_json(&path, record)?;
        Ok(durable::write(&path, &content, Readers::Owner)?)
    }

    fn drop_record(&self, record: &DnsRecord) -> Result<(), StoreError> {
        Ok(durable::remove(&self.dns().join(format!("{}.json", record.value)))?)
    }
}

impl AccountStore for DirStore {
    fn load_account(&self, ca: &CaId) -> Result<Option<Vec<u8>>, StoreError> {
        read_secret(&self.account(ca), MAX_SIZE)
    }

    fn save_account(&self, ca: &CaId, record: &[u8]) -> Result<(), StoreError> {
        let path = self.account(ca);
        if let Some(directory) = path.parent() {
            durable::create_private_dir(directory)?;
        }
        Ok(durable::write(&path, record, Readers::Owner)?)
    }

    fn add_account(&self, ca: &CaId, record: &[u8]) -> Result<bool, StoreError> {
        let path = self.account(ca);
        if let Some(directory) = path.parent() {
            durable::create_private_dir(directory)?;
        }
        Ok(durable::add(&path, record, Readers::Owner)?)
    }
}

impl OrderStore for DirStore {
    fn load_order(&self, ca: &CaId, name: &HostPattern) -> Result<Option<PendingOrder>, StoreError> {
        let path = self.directory(ca, name).join("order.json");
        let Some(record) = read_secret(&path, MAX_SIZE)? else { return Ok(None) };
        serde_json::from_slice(&record).map(Some).map_err(|source| StoreError::Record { path, source })
    }

    fn save_order(&self, ca: &CaId, name: &HostPattern, order: &PendingOrder) -> Result<(), StoreError> {
        let directory = self.directory(ca, name);
        let path = directory.join("order.json");
        durable::create_private_dir(&directory)?;
        let record = to_json(&path, order)?;
        Ok(durable::write(&path, &record, Readers::Owner)?)
    }

    fn drop_order(&self, ca: &CaId, name: &HostPattern) -> Result<(), StoreError> {
        Ok(durable::remove(&self.directory(ca, name).join("order.json"))?)
    }
}

/// Reads a file that holds a key, unless somebody else could have read or replaced it.
pub(in crate::cert) fn read_secret(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DurableError { action: "read", path: path.to_owned(), source }.into()),
    };
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Exposed { path: path.to_owned(), mode });
    }
    let own = nix::unistd::geteuid().as_raw();
    if metadata.uid() != own && metadata.uid() != 0 {
        return Err(StoreError::Foreign { path: path.to_owned(), uid: metadata.uid(), own });
    }
    Ok(durable::read(path, limit)?)
}

pub(in crate::cert) fn to_json(path: &Path, record: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec_pretty(record).map_err(|source| StoreError::Record { path: path.to_owned(), source })
}

fn load_history(path: &Path) -> Result<History, StoreError> {
    let Some(record) = durable::read(path, MAX_SIZE)? else { return Ok(History::default()) };
    serde_json::from_slice(&record).map_err(|source| StoreError::Record { path: path.to_owned(), source })
}

/// The generations in a directory, newest first.
fn generations(directory: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let fail = |source| StoreError::List { path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(fail(source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
            let (number, _serial) = name.strip_suffix(".pem")?.split_once('-')?;
            number.parse::<u64>().ok()
        });
        found.extend(number.map(|number| (number, path)));
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// A name as one path component. Host names are lower case and hold neither capitals nor `+`, so nothing collides.
fn encoded(name: &HostPattern) -> String {
    match name {
        HostPattern::Exact(host) => host.as_str().replace(':', "+"),
        HostPattern::Wildcard(suffix) => format!("WILDCARD.{suffix}"),
    }
}
