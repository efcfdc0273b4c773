//! What the tests of this folder share: configurations, clocks, handshakes.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};
use tokio::time::Instant;

use crate::clock::{Clock, SystemClock};
use crate::config::model::{
    AccessLog, Acme, Address, App, Backend, Before, ChallengeKind, Config, Dns, KeyType, Listen, Log,
    LogFormat, LogLevel, PlainHttp, Queue, Sticky, Timeouts, Tls,
};
use crate::config::trusted::Trusted;
use crate::name::{HostName, HostPattern};
use crate::telemetry::status::{CertificateStatus, OrderCounts};

pub(super) const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(super) fn now() -> SystemTime {
    SystemClock.now()
}

/// A wall clock that goes with tokio's time, also while that is paused, until it is set.
pub(super) struct SetClock {
    started: Instant,
    at: Mutex<SystemTime>,
}

impl SetClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), at: Mutex::new(now()) })
    }

    /// Sets it forward.
    pub(super) fn forward(&self, by: Duration) {
        *self.at.lock().expect("not poisoned") += by;
    }

    /// Sets it back.
    pub(super) fn back(&self, by: Duration) {
        *self.at.lock().expect("not poisoned") -= by;
    }
}

impl Clock for SetClock {
    fn now(&self) -> SystemTime {
        *self.at.lock().expect("not poisoned") + self.started.elapsed()
    }
}

pub(super) fn host(text: &str) -> HostName {
    HostName::parse(text).expect(text)
}

pub(super) fn pattern(text: &str) -> HostPattern {
    text.parse().expect(text)
}

pub(super) fn app(name: &str, domains: &[&str], tls: Tls) -> Arc<App> {
    Arc::new(App {
        name: name.parse().expect(name),
        domains: domains.iter().map(|text| pattern(text)).collect(),
        default: false,
        backend: Backend::Upstream(vec![Address::Unix("/nowhere".into())]),
        tls,
        client_auth: None,
        http: PlainHttp::Redirect,
        redirect_to: None,
        hsts: None,
        max_body: 1,
        queue: Queue { size: 100, timeout: Duration::from_secs(10) },
        protocol: crate::config::model::Protocol::Http1,
        sticky: Sticky::None,
    })
}

/// What a CA of the tests wants to be trusted by.
pub(super) fn trusted(root: &Path) -> Option<Trusted> {
    Some(Trusted::parse(&std::fs::read(root).expect("a file")).expect("certificates"))
}

pub(super) fn config(storage: &Path, apps: Vec<Arc<App>>) -> Config {
    let second = Duration::from_secs(1);
    Config {
        file: "edge.yaml".into(),
        acme: Acme {
            email: None,
            directory: "https://localhost:1/dir".to_owned(),
            fallbacks: Vec::new(),
            ca_root: None,
            key_type: KeyType::P256,
            challenges: vec![ChallengeKind::Http01, ChallengeKind::TlsAlpn01],
            profile: None,
            eab: None,
            self_check: false,
            dns: Dns {
                publish: None,
                timeout: Duration::from_secs(20),
                propagation: Duration::from_secs(20),
                resolvers: Vec::new(),
                name_servers: Vec::new(),
            },
        },
        storage: storage.to_owned(),
        runtime_dir: storage.to_owned(),
        before: Before::default(),
        listen: Listen { http: Vec::new(), https: Vec::new() },
        threads: NonZeroUsize::MIN,
        log: Log { level: LogLevel::Info, format: LogFormat::Auto, access: AccessLog::Off },
        admin: storage.join("admin.sock"),
        metrics: None,
        drain_timeout: second,
        timeouts: Timeouts {
            handshake: second,
            headers: second,
            body: second,
            write: second,
            keepalive: second,
            keepalive_h2: second,
            connection_age: second,
            pool_idle: None,
            connect: second,
            first_byte: second,
            upstream_idle: second,
            tunnel: second,
        },
        limits: crate::config::check_limits::presets().1,
        apps,
    }
}

/// What a restart must not change: all but the counts of this run.
pub(super) fn lasting(status: Vec<CertificateStatus>) -> Vec<CertificateStatus> {
    let lasts = |one| CertificateStatus { orders: OrderCounts::default(), ..one };
    status.into_iter().map(lasts).collect()
}

/// Completes a handshake in memory for `name` and returns the protocol agreed on.
pub(super) fn handshake(
    server: &Arc<rustls::ServerConfig>,
    root: &CertificateDer<'static>,
    name: &str,
) -> Result<Option<Vec<u8>>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone())?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from(name.to_owned()).expect("a server name");
    let mut client = ClientConnection::new(Arc::new(config), name)?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("memory");
        server.read_tls(&mut wire.as_slice()).expect("memory");
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).expect("memory");
        client.read_tls(&mut wire.as_slice()).expect("memory");
        client.process_new_packets()?;
    }
    Ok(client.alpn_protocol().map(<[u8]>::to_vec))
}
