//! A CA in this process for what Pebble cannot do: it asks to wait, breaks off, stalls, changes its mind and moves its renewal
//! windows exactly when a test says so. It validates by really connecting. It runs on a thread of its own, by a clock of its
//! own, and knows nothing of the code that is tested.

mod books;
pub(crate) mod garble;
mod validate;
mod wire;

use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

pub(crate) use books::{Ari, Books, ISSUER, Order};

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Directory,
    Nonce,
    NewAccount,
    Account,
    NewOrder,
    Order,
    Authorization,
    Challenge,
    Finalize,
    Certificate,
    RenewalInfo,
}

pub(crate) const STEPS: [Step; 11] = [
    Step::Directory,
    Step::Nonce,
    Step::NewAccount,
    Step::Account,
    Step::NewOrder,
    Step::Order,
    Step::Authorization,
    Step::Challenge,
    Step::Finalize,
    Step::Certificate,
    Step::RenewalInfo,
];

/// What goes wrong instead of an answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A refusal.
    Problem { status: u16, kind: &'static str, detail: &'static str, retry_after: Option<String> },
    /// A web page.
    Page(u16),
    /// The connection is reset.
    Reset,
    /// Nothing comes.
    Stall,
    /// It comes so much later.
    Slow(Duration),
    /// Half of the answer.
    Half,
    /// The request is carried out, and its answer lost.
    Lost,
    /// The request is carried out, and nothing comes.
    Mute,
    /// The answer is another in some place, which the number picks.
    Garbled(u64),
    /// The order turns invalid with this problem, after the request was answered well.
    Spoil { kind: &'static str, detail: &'static str },
}

impl Fault {
    pub(crate) fn problem(status: u16, kind: &'static str, detail: &'static str) -> Self {
        Self::Problem { status, kind, detail, retry_after: None }
    }

    pub(crate) fn limited(retry_after: &str) -> Self {
        Self::Problem {
            status: 429,
            kind: "rateLimited",
            detail: "too many certificates already issued for this exact set of names",
            retry_after: Some(retry_after.to_owned()),
        }
    }
}

/// The running CA; it ends with this value.
pub(crate) struct Stub {
    books: Arc<Mutex<Books>>,
    port: u16,
    dir: tempfile::TempDir,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Stub {
    /// A CA that validates HTTP-01 at `http` and TLS-ALPN-01 at `tls` of this machine.
    pub(crate) fn start(http: u16, tls: u16) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("set");
        let port = listener.local_addr().expect("bound").port();
        let books = Arc::new(Mutex::new(Books::new(port, http, tls)));
        let own = wire::own_certificate(dir.path());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let kept = Arc::clone(&books);
        let thread = std::thread::spawn(move || wire::serve(listener, own, kept, stopped));
        Self { books, port, dir, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    /// Trusted for its own https.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// What it knows, to be asked and to be changed.
    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("not poisoned")
    }

    /// The next request of this kind ends so; after that, the next one that was named.
    pub(crate) fn fail(&self, step: Step, fault: Fault) {
        self.books().faults.entry(step).or_default().push_back(fault);
    }

    /// How many requests of this kind there were.
    pub(crate) fn asked(&self, step: Step) -> usize {
        self.books().asked.get(&step).copied().unwrap_or_default()
    }

    /// How many requests there were of any kind, without those about renewals.
    pub(crate) fn requests(&self) -> usize {
        STEPS.iter().filter(|step| **step != Step::RenewalInfo).map(|step| self.asked(*step)).sum()
    }

    /// Time passes at the CA.
    pub(crate) fn pass(&self, by: Duration) {
        self.books().ahead += by;
    }

    /// How many requests there are that get no answer, but for the end of their connection.
    pub(crate) fn silent(&self) -> usize {
        self.books().silent
    }

    /// Whether a request is on its way to its answer.
    pub(crate) fn is_busy(&self) -> bool {
        let books = self.books();
        books.open > books.silent
    }

    pub(crate) fn now(&self) -> SystemTime {
        self.books().now()
    }

    pub(crate) fn orders(&self) -> Vec<Order> {
        self.books().orders.clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
