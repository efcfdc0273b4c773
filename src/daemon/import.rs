//! `edge certs import`: what another program obtained, into the running edge or, where none runs, into its storage. One line
//! for each name.
//!
//! Whoever calls may read the other program's files, and the running edge may not: keys go over the admin socket.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::cert::bundle::CertBundle;
use crate::cert::ca_id::CaId;
use crate::cert::cas::Cas;
use crate::cert::foreign::{self, ForeignError, Found, FoundAccount, Origin, Tree};
use crate::cert::import::{Candidate, Configured, Planned, plan};
use crate::cert::manager::Manager;
use crate::cert::offer::{NotKept, Offer, keep};
use crate::cert::seconds::rfc3339;
use crate::cert::store::{AccountStore, CertStore, DirStore};
use crate::cert::store_error::StoreError;
use crate::clock::{Clock, SystemClock};
use crate::config::model::Config;
use crate::daemon::ask::{AskError, Running};
use crate::daemon::operation::{Import, Operation};
use crate::daemon::progress::{Failed, Progress, Said};
use crate::report::Report;

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ImportError {
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "an edge uses {} and does not answer on {}: name the configuration that it runs with",
        .storage.display(),
        .admin.display()
    )]
    InUse { storage: PathBuf, admin: PathBuf },
    #[error("cannot become user {uid}, who owns {}", .storage.display())]
    Owner { uid: u32, storage: PathBuf, source: io::Error },
    #[error("cannot print")]
    Print(#[from] io::Error),
}

/// Imports what is in `dir`, prints what became of it, and returns the exit status: 1 where anything could not be read or kept.
pub fn import(config: &Config, dir: &Path) -> Result<u8, ImportError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tree = foreign::read(dir, &provider)?;
    let now = SystemClock.now();
    let cas = Cas::of(&config.acme);
    let mut told = Told { failed: false };
    let home = match tree.origin {
        Origin::Certbot => "certbot",
        Origin::Caddy => "Caddy",
    };
    told.say(&format!("{}: kept by {home}", dir.display()))?;
    let goal = Goal::find(config, &provider)?;
    for (url, account) in accounts(&tree, config) {
        match &account.record {
            Ok(record) => told.account(url, goal.take_account(&CaId::of(url), record)?)?,
            Err(reason) => {
                told.say(&format!("account at {url}: left, {}; edge makes one of its own", Report(reason)))?;
            }
        }
    }
    let candidates = candidates(&tree, &cas, &mut told)?;
    let configured: Vec<Configured> = config
        .apps
        .iter()
        .flat_map(|app| app.domains.iter().map(move |name| (app, name)))
        .map(|(app, name)| Configured { name: name.clone(), app: app.name.clone(), tls: app.tls_for(name) })
        .collect();
    for Planned { name, take } in plan(&candidates, &configured, now) {
        let found = match take {
            Ok(index) => {
                tree.certificates.get(index).and_then(|found| Some((found, found.bundle.as_ref().ok()?)))
            }
            Err(reason) => {
                told.say(&format!("{name}: skipped, {reason}"))?;
                continue;
            }
        };
        let Some((found, bundle)) = found else { continue };
        let offer = Offer { name: name.clone(), ca: found.ca.clone(), bundle: bundle.clone() };
        match goal.take(&cas, offer)? {
            Taken::Kept => told.say(&format!(
                "{name}: imported from {}, valid until {}",
                found.directory.display(),
                rfc3339(bundle.validity().not_after)
            ))?,
            Taken::Present(reason) => told.say(&format!("{name}: skipped, {reason}"))?,
            Taken::Failed(reason) => told.complain(&format!("{name}: not imported, {reason}"))?,
        }
    }
    Ok(u8::from(told.failed))
}

/// The account at each CA that edge uses, by the CA's URL: the one with the contact of the configuration before others, and one
/// that can be used before one that cannot.
fn accounts<'a>(tree: &'a Tree, config: &'a Config) -> Vec<(&'a str, &'a FoundAccount)> {
    let rank = |account: &&FoundAccount| {
        (account.record.is_err(), account.contact.is_none() || account.contact != config.acme.email)
    };
    let of = |url: &'a str| {
        let ca = CaId::of(url);
        let there = tree.accounts.iter().filter(|account| account.ca.is(&ca));
        Some((url, there.min_by_key(rank)?))
    };
    config.acme.directories().filter_map(of).collect()
}

/// The certificates that can be used; what is wrong with the others is told.
fn candidates<'a>(tree: &'a Tree, cas: &Cas, told: &mut Told) -> io::Result<Vec<Candidate<'a>>> {
    let mut candidates = Vec::new();
    for (index, Found { directory, ca, bundle }) in tree.certificates.iter().enumerate() {
        match bundle {
            Ok(bundle) => {
                let ours = |ca: &CaId| cas.ids.iter().any(|known| known.is(ca));
                let public = ca.as_ref().is_none_or(|ca| ours(ca) || !ca.is_for_tests());
                candidates.push(Candidate { index, bundle, public });
            }
            Err(reason) => {
                told.complain(&format!("{}: unusable, {}", directory.display(), Report(reason)))?
            }
        }
    }
    Ok(candidates)
}

/// What is printed.
struct Told {
    failed: bool,
}

impl Told {
    fn say(&self, text: &str) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    fn complain(&mut self, text: &str) -> io::Result<()> {
        self.failed = true;
        writeln!(io::stderr().lock(), "{text}")
    }

    fn account(&mut self, url: &str, taken: Taken) -> io::Result<()> {
        match taken {
            Taken::Kept => self.say(&format!("account at {url}: imported")),
            Taken::Present(reason) => self.say(&format!("account at {url}: left, {reason}")),
            Taken::Failed(reason) => self.complain(&format!("account at {url}: not imported, {reason}")),
        }
    }
}

/// How one thing was taken.
enum Taken {
    Kept,
    /// There is one that is as good, for this reason.
    Present(String),
    Failed(String),
}

/// Where things go.
enum Goal<'a> {
    Edge(Running<'a>),
    Storage(DirStore),
}

/// What a running edge says of something that it leaves as it is, before the reason.
const LEFT: &str = "left: ";

impl<'a> Goal<'a> {
    fn find(config: &'a Config, provider: &Arc<CryptoProvider>) -> Result<Self, ImportError> {
        let running = Running { admin: &config.admin, config: &config.file };
        match running.uses_this_file() {
            Ok(()) => return Ok(Self::Edge(running)),
            Err(AskError::NotRunning { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        become_owner(&config.storage)?;
        let store = DirStore::open(&config.storage, Arc::clone(provider))?;
        if !store.try_own()? {
            return Err(ImportError::InUse { storage: config.storage.clone(), admin: config.admin.clone() });
        }
        Ok(Self::Storage(store))
    }

    fn take(&self, cas: &Cas, offer: Offer) -> Result<Taken, ImportError> {
        match self {
            Self::Storage(store) => Ok(match keep(store, cas, &offer, SystemClock.now()) {
                Ok(()) => Taken::Kept,
                Err(NotKept::Kept(kept)) => Taken::Present(kept.to_string()),
                Err(NotKept::Store(error)) => Taken::Failed(Report(&error).to_string()),
            }),
            Self::Edge(running) => {
                let ca = offer.ca.map(|ca| ca.as_str().to_owned()).unwrap_or_default();
                let pem = String::from_utf8_lossy(&offer.bundle.to_pem()).into_owned();
                ask(running, Import::Certificate { name: offer.name, ca, pem })
            }
        }
    }

    fn take_account(&self, ca: &CaId, record: &[u8]) -> Result<Taken, ImportError> {
        match self {
            Self::Storage(store) => Ok(match store.add_account(ca, record) {
                Ok(true) => Taken::Kept,
                Ok(false) => Taken::Present(HAS_ACCOUNT.to_owned()),
                Err(error) => Taken::Failed(Report(&error).to_string()),
            }),
            Self::Edge(running) => {
                let record = String::from_utf8_lossy(record).into_owned();
                ask(running, Import::Account { ca: ca.as_str().to_owned(), record })
            }
        }
    }
}

const HAS_ACCOUNT: &str = "edge has one there already";

fn ask(running: &Running<'_>, what: Import) -> Result<Taken, ImportError> {
    let (mut word, mut complaint) = (String::new(), String::new());
    let status = running.operate(&Operation::Import(what), |said| {
        match said {
            Said::Word(text) => word.clone_from(text),
            Said::Complaint(text) => complaint.clone_from(text),
            Said::End(_) => {}
        }
        Ok(())
    })?;
    Ok(match (status, word.strip_prefix(LEFT)) {
        (0, None) => Taken::Kept,
        (0, Some(reason)) => Taken::Present(reason.to_owned()),
        _ => Taken::Failed(complaint),
    })
}

/// The running edge's side: takes what came over the admin socket.
pub async fn receive(manager: &Manager, what: Import, told: &Progress) -> Result<(), Failed> {
    match what {
        Import::Certificate { name, ca, pem } => {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let bundle = CertBundle::parse(&provider, pem.as_bytes())
                .map_err(|error| Failed::because(Report(&error).to_string()))?;
            let ca = (!ca.is_empty()).then(|| CaId::of(&ca));
            let offer = Offer { name: name.clone(), ca, bundle };
            match manager.import(offer).await.map_err(Failed::because)? {
                Ok(()) => told.say(format!("{name}: imported")),
                Err(kept) => told.say(format!("{LEFT}{kept}")),
            }
        }
        Import::Account { ca, record } => {
            let kept = manager.import_account(CaId::of(&ca), record.into_bytes()).await;
            match kept.map_err(Failed::because)? {
                true => told.say(format!("account at {ca}: imported")),
                false => told.say(format!("{LEFT}{HAS_ACCOUNT}")),
            }
        }
    }
    Ok(())
}

/// What root writes for an edge that is not root must be that user's. Everything else was read before.
fn become_owner(storage: &Path) -> Result<(), ImportError> {
    let Ok(metadata) = fs::metadata(storage) else { return Ok(()) };
    let (uid, gid) = (metadata.uid(), metadata.gid());
    if !nix::unistd::geteuid().is_root() || uid == 0 {
        return Ok(());
    }
    let fail = |errno: nix::errno::Errno| ImportError::Owner {
        uid,
        storage: storage.to_owned(),
        source: errno.into(),
    };
    nix::unistd::setegid(nix::unistd::Gid::from_raw(gid)).map_err(fail)?;
    nix::unistd::seteuid(nix::unistd::Uid::from_raw(uid)).map_err(fail)
}
