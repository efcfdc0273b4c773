//! Which certificate a client gets: the published snapshot of everything that can be served now.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::cert::bundle::CertBundle;
use crate::cert::client_policy::ClientPolicy;
use crate::config::model::ClientAuth;
use crate::name::{HostName, HostPattern};

/// A certificate ready to be served.
#[derive(Debug)]
pub struct Served {
    /// What `tokio_rustls` accepts a connection with; ALPN `h2`, `http/1.1`. Its tickets are good for this app only.
    pub config: Arc<rustls::ServerConfig>,
    /// Hosts that may be asked for on a connection with this certificate.
    pub names: Vec<HostPattern>,
    /// What clients were asked for.
    pub client_auth: Option<ClientAuth>,
}

impl Served {
    /// Makes `bundle` ready. `tickets` belongs to the app and outlives its certificates, so that a renewal does not end
    /// resumption. With `clients` there is none: a session that is resumed shows no certificate, so whoever had one would go on
    /// after its end, and after its CA's.
    pub fn new(
        bundle: &CertBundle,
        provider: &Arc<CryptoProvider>,
        tickets: &Arc<dyn ProducesTickets>,
        clients: Option<&ClientPolicy>,
    ) -> Result<Arc<Self>, rustls::Error> {
        let resolver = Arc::new(Single(Arc::clone(bundle.certified())));
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()?;
        let builder = match clients {
            Some(policy) => builder.with_client_cert_verifier(Arc::clone(policy.verifier())),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        match clients {
            Some(_) => config.send_tls13_tickets = 0,
            None => {
                config.ticketer = Arc::clone(tickets);
                // A client that comes back uses one, and gets another; each further one is paid for in every handshake.
                config.send_tls13_tickets = 1;
            }
        }
        // Tickets hold the state at the client; a cache here would only hold memory.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Early data can be replayed by anybody who recorded it (RFC 8446 §8).
        config.max_early_data_size = 0;
        let client_auth = clients.map(|policy| policy.auth().clone());
        Ok(Arc::new(Self { config: Arc::new(config), names: bundle.names().to_vec(), client_auth }))
    }
}

#[derive(Debug)]
struct Single(Arc<CertifiedKey>);

impl ResolvesServerCert for Single {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// What is known of one configured name.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name.
    pub name: HostPattern,
    /// Whether its app takes names nobody configured.
    pub default: bool,
    /// What it is served with.
    pub state: EntryState,
}

/// How one configured name is served over TLS.
#[derive(Debug, Clone)]
pub enum EntryState {
    /// With this certificate.
    Served(Arc<Served>),
    /// Not yet, and why.
    Pending(Arc<str>),
    /// Not at all: plain HTTP only.
    Plain,
}

/// The publication: one writer (the manager), many readers (every handshake).
#[derive(Debug, Default)]
pub struct Certificates {
    snapshot: ArcSwap<Snapshot>,
}

#[derive(Debug, Default)]
struct Snapshot {
    exact: HashMap<HostName, Arc<Served>>,
    wildcard: HashMap<HostName, Arc<Served>>,
    address: HashMap<IpAddr, Arc<Served>>,
    default: Option<Arc<Served>>,
    pending: HashMap<HostName, Arc<str>>,
    pending_wildcard: HashMap<HostName, Arc<str>>,
    plain: HashSet<HostName>,
}

impl Certificates {
    /// Nothing to serve yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The certificate for a ClientHello: exact name, then one-label wildcard; without SNI that of the local address; then the
    /// default app's. `None` is answered with `unrecognized_name`.
    pub fn find(&self, sni: Option<&HostName>, local: IpAddr) -> Option<Arc<Served>> {
        let snapshot = self.snapshot.load();
        let Some(host) = sni else {
            let own = snapshot.address.get(&local.to_canonical());
            return own.or(snapshot.default.as_ref()).cloned();
        };
        if let Some(served) = snapshot.exact.get(host) {
            return Some(Arc::clone(served));
        }
        // A name that is configured for itself never borrows a certificate: the client would meet another app's policy.
        if snapshot.pending.contains_key(host) || snapshot.plain.contains(host) {
            return None;
        }
        if let Some(parent) = host.parent() {
            if let Some(served) = snapshot.wildcard.get(parent) {
                return Some(Arc::clone(served));
            }
            if snapshot.pending_wildcard.contains_key(parent) {
                return None;
            }
        }
        snapshot.default.clone()
    }

    /// Why `host`, which is configured, has no certificate yet, in words for the person waiting; `None` where it has one or
    /// needs none.
    pub fn pending(&self, host: &HostName) -> Option<Arc<str>> {
        let snapshot = self.snapshot.load();
        if let Some(reason) = snapshot.pending.get(host) {
            return Some(Arc::clone(reason));
        }
        if snapshot.exact.contains_key(host) || snapshot.plain.contains(host) {
            return None;
        }
        snapshot.pending_wildcard.get(host.parent()?).cloned()
    }

    /// Replaces everything. One writer only. Of several default names, the first with a certificate serves.
    pub fn publish(&self, entries: &[Entry]) {
        let mut snapshot = Snapshot::default();
        for Entry { name, default, state } in entries {
            match (state, name) {
                (EntryState::Served(served), HostPattern::Exact(host)) => {
                    if let Some(address) = host.ip() {
                        snapshot.address.insert(address, Arc::clone(served));
                    }
                    snapshot.exact.insert(host.clone(), Arc::clone(served));
                }
                (EntryState::Served(served), HostPattern::Wildcard(suffix)) => {
                    snapshot.wildcard.insert(suffix.clone(), Arc::clone(served));
                }
                (EntryState::Pending(reason), HostPattern::Exact(host)) => {
                    snapshot.pending.insert(host.clone(), Arc::clone(reason));
                }
                (EntryState::Pending(reason), HostPattern::Wildcard(suffix)) => {
                    snapshot.pending_wildcard.insert(suffix.clone(), Arc::clone(reason));
                }
                (EntryState::Plain, HostPattern::Exact(host)) => {
                    snapshot.plain.insert(host.clone());
                }
                (EntryState::Plain, HostPattern::Wildcard(_)) => {}
            }
            if *default
                && snapshot.default.is_none()
                && let EntryState::Served(served) = state
            {
                snapshot.default = Some(Arc::clone(served));
            }
        }
        self.snapshot.store(Arc::new(snapshot));
    }
}
