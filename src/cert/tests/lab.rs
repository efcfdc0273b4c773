//! A manager with the stub CA, the ports it validates at, and a time that tests move.

use std::cell::RefCell;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::ca::stub::{Step, Stub};
use super::setup::{LOCAL, SetClock, app, config, provider, trusted};
use crate::cert::challenge::Challenges;
use crate::cert::driver::Seams;
use crate::cert::issuer::AcmeIssuer;
use crate::cert::manager::{self, Manager};
use crate::cert::resolver::Certificates;
use crate::cert::self_check::SelfCheck;
use crate::cert::store::DirStore;
use crate::clock::Clock;
use crate::config::model::{Config, Tls};
use crate::listen::tls;
use crate::name::HostName;
use crate::scope::Scope;
use crate::telemetry::status::{CertificateState, CertificateStatus};

pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// Whether tests run at the length of the promise.
pub(super) fn full_length() -> bool {
    std::env::var_os("EDGE_TEST_FULL").is_some_and(|value| value == "1")
}

/// Runs a test that has a manager on its thread.
pub(super) async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

/// Whether all of them can be used.
pub(super) fn valid(all: &[CertificateStatus]) -> bool {
    all.iter().all(|one| one.state == CertificateState::Valid)
}

pub(super) struct Lab {
    pub(super) stub: Stub,
    pub(super) clock: Arc<SetClock>,
    pub(super) challenges: Arc<Challenges>,
    pub(super) storage: tempfile::TempDir,
    pub(super) http: u16,
    pub(super) tls: u16,
    /// Whether something works for edge that knows nothing of a time that tests move.
    pub(super) at_work: RefCell<Box<dyn Fn() -> bool>>,
    ports: Scope,
}

pub(super) struct Running {
    pub(super) scope: Scope,
    pub(super) manager: Manager,
    pub(super) certificates: Arc<Certificates>,
}

impl Lab {
    pub(super) async fn open() -> Self {
        let (challenges, ports) = (Challenges::new(), Scope::new());
        let http = answer_http01(Arc::clone(&challenges), &ports).await;
        let tls = answer_tls(Arc::clone(&challenges), &ports).await;
        let storage = tempfile::tempdir().expect("temporary directory");
        Self {
            stub: Stub::start(http, tls),
            clock: SetClock::new(),
            challenges,
            storage,
            http,
            tls,
            at_work: RefCell::new(Box::new(|| false)),
            ports,
        }
    }

    pub(super) fn config(&self, domains: &[&str]) -> Config {
        let mut config = config(&self.storage.path().join("store"), vec![app("api", domains, Tls::Acme)]);
        config.acme.directory = self.stub.directory();
        config.acme.ca_root = trusted(&self.stub.root());
        config
    }

    pub(super) fn run(&self, domains: &[&str]) -> Running {
        self.run_with(&self.config(domains), None)
    }

    pub(super) fn run_with(&self, config: &Config, looking: Option<SelfCheck>) -> Running {
        start(config, &self.clock, &self.challenges, looking)
    }

    /// Time passes everywhere, once nothing is under way that it would overtake: edge would take an answer that is on its way
    /// for one that does not come.
    pub(super) async fn pass(&self, by: Duration) {
        for _ in 0..2000 {
            if !self.stub.is_busy() && !self.at_work.borrow()() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.stub.pass(by);
        pass(by).await;
    }

    /// Lets time pass in steps until `holds`; what a step leads to gets some real time.
    pub(super) async fn pass_until(
        &self,
        running: &Running,
        step: Duration,
        mut holds: impl FnMut(&[CertificateStatus]) -> bool,
    ) {
        for _ in 0..400 {
            for _ in 0..20 {
                if holds(&running.manager.status()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.pass(step).await;
        }
        panic!("never: {:?}", running.manager.status());
    }

    /// Lets time pass in steps until one certificate more was issued and is in use.
    pub(super) async fn renewed(&self, running: &Running, step: Duration) {
        let issued = self.stub.books().issued;
        self.pass_until(running, step, |all| self.stub.books().issued > issued && valid(all)).await;
    }

    /// How long it is from now to the next attempt for a name.
    pub(super) fn until_next(&self, running: &Running, index: usize) -> Duration {
        let next = running.status(index).next_attempt.expect("planned");
        let next = OffsetDateTime::parse(&next, &Rfc3339).expect("a date");
        SystemTime::from(next).duration_since(self.clock.now()).unwrap_or_default()
    }

    /// Waits until the CA has seen `wanted` requests of this kind.
    pub(super) async fn until_asked(&self, step: Step, wanted: usize) {
        for _ in 0..4000 {
            if self.stub.asked(step) >= wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{step:?} was asked {} times", self.stub.asked(step));
    }

    pub(super) async fn close(self) {
        self.ports.abort();
        self.ports.close(Duration::ZERO).await;
    }
}

/// A manager over the real storage and the real issuer.
pub(super) fn start(
    config: &Config,
    clock: &Arc<SetClock>,
    challenges: &Arc<Challenges>,
    looking: Option<SelfCheck>,
) -> Running {
    let (scope, certificates) = (Scope::new(), Certificates::new());
    let store = Arc::new(DirStore::open(&config.storage, provider()).expect("opened"));
    let internal = store.internal();
    let mut issuer = AcmeIssuer::new(
        config.acme.clone(),
        provider(),
        Arc::clone(clock) as _,
        Arc::clone(challenges),
        Arc::clone(&store) as _,
        Arc::clone(&store) as _,
        Arc::clone(&store) as _,
    );
    if let Some(looking) = looking {
        issuer = issuer.looking(looking);
    }
    let seams = Seams {
        clock: Arc::clone(clock) as _,
        store,
        issuer: Rc::new(issuer),
        internal,
        provider: provider(),
    };
    let manager = manager::start_with(config, seams, Arc::clone(&certificates), &scope).expect("started");
    Running { scope, manager, certificates }
}

/// Time passes on this thread's clocks.
pub(super) async fn pass(by: Duration) {
    tokio::time::pause();
    tokio::time::advance(by).await;
    tokio::time::resume();
}

impl Running {
    pub(super) fn status(&self, index: usize) -> CertificateStatus {
        self.manager.status()[index].clone()
    }

    /// Another configuration takes effect.
    pub(super) async fn reload(&self, config: Config) {
        let prepared = self.manager.prepare(Arc::new(config)).await.expect("runs").expect("prepared");
        self.manager.adopt(prepared).await;
    }

    pub(super) fn error(&self, index: usize) -> String {
        self.status(index).last_error.unwrap_or_default()
    }

    pub(super) async fn until(&self, what: &str, mut holds: impl FnMut(&[CertificateStatus]) -> bool) {
        for _ in 0..12_000 {
            if holds(&self.manager.status()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never {what}: {:?}", self.manager.status());
    }

    pub(super) async fn until_valid(&self) {
        self.until("valid", valid).await;
    }

    pub(super) async fn stop(self) {
        assert!(self.scope.close(Duration::from_secs(20)).await, "it drains by itself");
    }

    /// Nothing runs to its end any more.
    pub(super) async fn kill(self) {
        self.scope.abort();
        self.scope.close(Duration::ZERO).await;
    }
}

/// Answers HTTP-01 from `challenges` on a free port of loopback and returns the port.
pub(super) async fn answer_http01(challenges: Arc<Challenges>, scope: &Scope) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let scope_of_task = scope.clone();
    scope.spawn(async move {
        loop {
            tokio::select! {
                () = scope_of_task.aborted() => return,
                Ok((stream, _)) = listener.accept() => answer(stream, &challenges).await,
            }
        }
    });
    port
}

async fn answer(mut stream: TcpStream, challenges: &Challenges) {
    let mut head = [0; 4096];
    let read = stream.read(&mut head).await.unwrap_or(0);
    let text = String::from_utf8_lossy(&head[..read]);
    let token = text.split(' ').nth(1).and_then(|path| path.strip_prefix("/.well-known/acme-challenge/"));
    let host = text.split("Host: ").nth(1).and_then(|rest| HostName::parse(rest.lines().next()?).ok());
    let reply = match token.and_then(|token| challenges.http01(token, host.as_ref())) {
        Some(answer) => format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
            answer.len()
        ),
        None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
    };
    drop(stream.write_all(reply.as_bytes()).await);
}

/// What is logged on this thread.
#[derive(Clone, Default)]
pub(super) struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    /// Everything from now on, down to the finest detail, until the guard is dropped.
    pub(super) fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        // While there is one subscriber alone, a line that another test's thread comes to first is off for every thread.
        static SECOND: OnceLock<tracing::Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default()));
        let logged = Self::default();
        let writer = logged.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        (logged, guard)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("not poisoned")).into_owned()
    }

    /// How many lines say this.
    pub(super) fn lines(&self, words: &str) -> usize {
        self.text().lines().filter(|line| line.contains(words)).count()
    }
}

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut *self.0.lock().expect("not poisoned"), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Handshakes as edge makes them, on a free port of loopback.
pub(super) async fn answer_tls(challenges: Arc<Challenges>, scope: &Scope) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let ends = scope.clone();
    scope.spawn(async move {
        let certificates = Certificates::new();
        loop {
            tokio::select! {
                () = ends.aborted() => return,
                Ok((stream, _)) = listener.accept() => {
                    // A CA's validation ends with an error that says so; others are of no interest here.
                    drop(tls::accept(stream, LOCAL, &certificates, &challenges).await);
                }
            }
        }
    });
    port
}
