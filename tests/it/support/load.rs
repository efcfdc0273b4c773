//! Steady requests while something happens, each of them counted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::client::{Connection, Trust, Wire};
use super::stalls::{self, Stalls};

/// What became of the requests.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Complete answers with status 200.
    pub(crate) good: u64,
    /// Everything else, in words.
    pub(crate) failed: Vec<String>,
    /// Connections opened.
    pub(crate) handshakes: u64,
    /// The longest any request took.
    pub(crate) slowest: Duration,
    /// What each of them took, of the time in which the machine ran.
    took: Vec<Duration>,
    /// From the first request to the last answer.
    span: Duration,
}

impl Tally {
    /// What the quickest `share` of the requests took at most.
    pub(crate) fn at(&self, share: f64) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default()
    }

    /// How long the clients were at work.
    pub(crate) fn span(&self) -> Duration {
        self.span
    }

    fn add(&mut self, client: Work, stalls: &Stalls) {
        self.good += client.good;
        self.failed.extend(client.failed);
        self.handshakes += client.handshakes;
        self.took.extend(client.asked.iter().map(|(begun, ended)| stalls.awake(*begun, *ended)));
        self.slowest = self.took.iter().max().copied().unwrap_or_default();
        self.span = self.span.max(client.span);
    }
}

/// What became of the requests of one client.
#[derive(Default)]
struct Work {
    good: u64,
    failed: Vec<String>,
    handshakes: u64,
    /// When each request was sent, and when its answer was here.
    asked: Vec<(Instant, Instant)>,
    span: Duration,
}

/// Clients at work.
pub(crate) struct Load {
    clients: Vec<JoinHandle<Work>>,
    enough: CancellationToken,
}

/// What one client does, again and again.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    pub(crate) host: String,
    pub(crate) path: &'static str,
    pub(crate) wire: Wire,
    pub(crate) trust: Trust,
    /// Requests before the connection is opened anew.
    pub(crate) per_connection: u32,
    /// Rest after each request.
    pub(crate) pause: Duration,
}

impl Load {
    /// Sets clients to work.
    pub(crate) fn start(clients: impl IntoIterator<Item = Client>) -> Self {
        stalls::watch();
        let enough = CancellationToken::new();
        let clients = clients.into_iter().map(|client| tokio::spawn(work(client, enough.clone()))).collect();
        Self { clients, enough }
    }

    /// Lets every client finish its request, and counts.
    pub(crate) async fn stop(self) -> Tally {
        self.enough.cancel();
        let mut clients = Vec::new();
        for client in self.clients {
            clients.push(client.await.expect("a client does not panic"));
        }
        let (mut total, stalls) = (Tally::default(), Stalls::so_far());
        for client in clients {
            total.add(client, &stalls);
        }
        total
    }
}

async fn work(client: Client, enough: CancellationToken) -> Work {
    let mut tally = Work::default();
    let first = Instant::now();
    let mut connection: Option<(Connection, u32)> = None;
    while !enough.is_cancelled() {
        let (mut open, used) = match connection.take() {
            Some(open) => open,
            None => {
                tally.handshakes += 1;
                match Connection::to(client.address, &client.host, client.wire, &client.trust).await {
                    Ok(open) => (open, 0),
                    Err(error) => {
                        tally.failed.push(format!("handshake: {error}"));
                        tokio::time::sleep(client.pause).await;
                        continue;
                    }
                }
            }
        };
        let begun = Instant::now();
        match open.try_get(client.path).await {
            Ok(answer) if answer.status == 200 => {
                tally.good += 1;
                if used + 1 < client.per_connection && answer.header("connection") != "close" {
                    connection = Some((open, used + 1));
                }
            }
            Ok(answer) => tally.failed.push(format!("{}: {}", answer.status, answer.text())),
            Err(error) => tally.failed.push(format!("{error}")),
        }
        tally.asked.push((begun, Instant::now()));
        tally.span = first.elapsed();
        tokio::time::sleep(client.pause).await;
    }
    tally
}
