//! Orders beside requests.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use edge::cert::ca_id::CaId;
use edge::cert::internal::InternalCa;
use edge::cert::store::{CertStore, DirStore};
use edge::name::HostPattern;

use crate::ca::free_port;
use crate::ca::stub::Stub;
use crate::support::client::Wire;
use crate::support::edge::{Edge, Setup};
use crate::support::full_length;
use crate::support::load::{Client, Load, Tally};

const MANY: usize = 500;
const DAY: Duration = Duration::from_secs(86_400);

/// Certificates of ninety days in `storage`, as if `ca` had issued them: each of them as old as `age` says.
fn store(storage: &Path, ca: &Stub, names: &[String], age: impl Fn(usize) -> Duration) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let store = DirStore::open(storage, Arc::clone(&provider)).unwrap();
    let issuer = InternalCa::open(&storage.join("made-for-this"), provider, SystemTime::now()).unwrap();
    for (index, name) in names.iter().enumerate() {
        let name: HostPattern = name.parse().unwrap();
        let bundle = issuer.issue(&name, SystemTime::now() - age(index)).unwrap();
        store.save(&CaId::of(&ca.directory()), &name, &bundle).unwrap();
    }
}

/// What clients of another app notice.
async fn noticed(edge: &Edge, length: Duration) -> Tally {
    edge.wait_until_up("b").await;
    let trust = edge.trust().await;
    let load = Load::start((0..4).map(|at| Client {
        address: edge.https,
        host: "b.test".into(),
        path: "/",
        wire: Wire::BOTH[at % 2],
        trust: trust.clone(),
        per_connection: 1000,
        pause: Duration::from_millis(4),
    }));
    tokio::time::sleep(length).await;
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    tally
}

#[tokio::test]
async fn orders_of_five_hundred_names_are_not_felt_by_requests() {
    // At full length often enough that one disturbance decides nothing.
    let (rounds, length, slow) = if full_length() { (5, 15, 1000) } else { (1, 4, 200) };
    let (length, slow) = (Duration::from_secs(length), Duration::from_millis(slow));
    let (http, https) = (free_port(), free_port());
    let ca = Stub::start(http, https);
    ca.books().slow = slow;
    let names: Vec<String> = (0..MANY).map(|one| format!("n{one:03}.acme.example")).collect();
    // The oldest first is not the order of the configuration.
    let rank = |index: usize| MANY - 1 - (index * 7) % MANY;
    let setup = Setup::new()
        .ports(http, https)
        .top(&format!(
            "acme:\n  ca: {}\n  ca_root: {}\n  self_check: false",
            ca.directory(),
            ca.root().display()
        ))
        .app("a", &format!("domains: [{}]\ntls: auto\nupstream: http://127.0.0.1:1", names.join(", ")))
        .app("b", "domains: [b.test]\ncommand: edge hello\nworkers: 1");
    let storage = setup.dir().join("storage");
    store(&storage, &ca, &names, |_| DAY);
    let mut edge = setup.start().await;
    let (mut idle, mut busy) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round > 0 {
            edge.kill().await;
            store(&storage, &ca, &names, |_| DAY);
            edge.restart().await;
        }
        let before = ca.orders().len();
        idle.push(noticed(&edge, length).await.at(0.99));
        assert_eq!(ca.orders().len(), before, "nothing is due");
        edge.kill().await;
        store(&storage, &ca, &names, |index| 80 * DAY - Duration::from_secs(600) * rank(index) as u32);
        edge.restart().await;
        busy.push(noticed(&edge, length).await.at(0.99));
        assert!(ca.orders().len() > before + 2, "{} and {before} orders", ca.orders().len());
        if round == 0 {
            // Later rounds also go on with orders that were broken off.
            ordered_as_they_end(&ca, |name| {
                rank(names.iter().position(|known| known == name).expect("known"))
            });
        }
    }
    edge.kill().await;
    println!(
        "figure: p99 of requests {:?} with nothing to order, {:?} while 500 names are due ({} ordered); \
         all: {idle:?} {busy:?}",
        middle(&idle),
        middle(&busy),
        ca.orders().len()
    );
    // A tenth. In a short run, beside other tests, one disturbance is its p99, and only what orders would hold up is told apart.
    let slack = if full_length() { Duration::ZERO } else { slow / 2 };
    let most = middle(&idle).mul_f64(1.1) + slack;
    assert!(middle(&busy) <= most, "{:?} is more than {most:?}", middle(&busy));
}

/// The certificates that end first are renewed first, four at once.
fn ordered_as_they_end(ca: &Stub, rank: impl Fn(&str) -> usize) {
    assert!(ca.books().most_open <= 4, "{} at once", ca.books().most_open);
    for (place, order) in ca.orders().iter().enumerate() {
        // Those under way at once may overtake each other.
        let by_age = rank(&order.name);
        assert!(by_age < place + 4, "{} came as {place}, and is {by_age} by age", order.name);
    }
}

fn middle(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}
