//! Edge is killed while it orders; two edges share a storage: there is one order, and nothing is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::ca::free_port;
use crate::ca::stub::{Fault, Step, Stub};
use crate::support::client::{Trust, tls};
use crate::support::edge::{Edge, Setup};
use crate::support::{full_length, until};

pub(super) const NAME: &str = "a.acme.example";
const APP: &str = "domains: [a.acme.example]\ntls: auto\nupstream: http://127.0.0.1:1";
/// A second execution waits some seconds before it goes on with what the first had begun.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);

/// Where edge is killed.
#[derive(Debug, Clone, Copy)]
enum Point {
    /// A request has come to the CA, which does nothing.
    Asked(Step),
    /// A request was carried out, and the answer is still at the CA.
    Answered(Step),
    /// A file whose name ends so has appeared.
    Written(&'static str),
    /// That long after the start.
    After(Duration),
}

const STEPS: [Step; 10] = [
    Step::Directory,
    Step::Nonce,
    Step::NewAccount,
    Step::Account,
    Step::NewOrder,
    Step::Authorization,
    Step::Challenge,
    Step::Order,
    Step::Finalize,
    Step::Certificate,
];
const FILES: [&str; 4] = ["account.json", "meta.json", "order.json", ".pem"];

fn points() -> Vec<Point> {
    let requests = STEPS.iter().flat_map(|step| [Point::Asked(*step), Point::Answered(*step)]);
    let mut points: Vec<_> = requests.chain(FILES.iter().map(|name| Point::Written(name))).collect();
    if full_length() {
        points = points.iter().copied().cycle().take(points.len() * 17).collect();
        while points.len() < 500 {
            points.push(Point::After(Duration::from_millis(fastrand::u64(..1500))));
        }
    } else {
        points.push(Point::After(Duration::from_millis(fastrand::u64(..1500))));
    }
    points
}

/// An edge that orders from `ca`, which validates where it listens.
pub(super) fn setup(ca: &Stub, (http, https): (u16, u16)) -> Setup {
    Setup::new().ports(http, https).top(&keys(ca)).app("a", APP)
}

fn keys(ca: &Stub) -> String {
    let (directory, root) = (ca.directory(), ca.root());
    format!(
        "email: ops@example.com\nacme:\n  ca: {directory}\n  ca_root: {}\n  self_check: false",
        root.display()
    )
}

pub(super) fn trust(ca: &Stub) -> Trust {
    Trust::in_pem(ca.books().root.as_bytes()).expect("a root")
}

/// The certificate that is served for the name, once a verifying client accepts it.
pub(super) async fn served(edge: &Edge, trust: &Trust) -> Option<CertificateDer<'static>> {
    let stream = tls(edge.https, NAME, trust.offering(&["h2"])).await.ok()?;
    let chain = stream.get_ref().1.peer_certificates()?;
    chain.first().map(|leaf| leaf.clone().into_owned())
}

/// Every file below `dir`.
pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found
}

/// How many certificates are stored; each must be whole, and so must every record.
pub(super) fn whole(storage: &Path, at: &str) -> usize {
    let mut bundles = 0;
    for path in files(storage) {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        // What was being written when edge died is nobody's yet.
        if name.ends_with(".new") {
            continue;
        }
        let content = fs::read(&path).expect("readable");
        if name.ends_with(".json") {
            let record = serde_json::from_slice::<serde_json::Value>(&content);
            assert!(record.is_ok(), "{at}: {} is torn", path.display());
        } else if name.ends_with(".pem") {
            bundles += 1;
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
            assert!(chain.is_ok_and(|chain| chain.len() == 2), "{at}: {} is torn", path.display());
            assert!(PrivateKeyDer::from_pem_slice(&content).is_ok(), "{at}: {} is torn", path.display());
        }
    }
    bundles
}

/// Returns whether the CA gave the first order up.
async fn killed_at(point: Point, run: usize) -> bool {
    let at = format!("run {run}, {point:?}");
    let ports = (free_port(), free_port());
    let ca = Stub::start(ports.0, ports.1);
    match point {
        Point::Asked(step) => ca.fail(step, Fault::Stall),
        Point::Answered(step) => ca.fail(step, Fault::Mute),
        Point::Written(_) | Point::After(_) => {}
    }
    let mut edge = setup(&ca, ports).launch();
    let storage = edge.dir().join("storage");
    until(PATIENCE, &format!("{at}: the point is reached"), async || {
        let reached = match point {
            Point::Asked(_) | Point::Answered(_) => ca.silent() > 0,
            Point::Written(end) => files(&storage).iter().any(|path| path.to_string_lossy().ends_with(end)),
            Point::After(time) => edge.executed_at().elapsed() >= time,
        };
        reached.then_some(())
    })
    .await;
    edge.kill().await;
    let bundles = whole(&storage, &at);
    let finalized = ca.books().issued;

    edge.execute_again();
    let trust = trust(&ca);
    until(PATIENCE, &format!("{at}: served in the end"), async || served(&edge, &trust).await).await;
    let (orders, issued) = (ca.orders(), ca.books().issued);
    // An order whose URL was lost with the answer is found by ordering the same again. One for which the CA looked while edge
    // was dead is invalid for good (RFC 8555 §7.1.6), and nothing that edge could have kept brings it back.
    let given_up = orders[0].status == "invalid";
    assert_eq!(orders.len(), if given_up { 2 } else { 1 }, "{at}: {orders:?}");
    assert_eq!(issued, 1, "{at}: resumed where it was broken off (finalized before: {finalized})");
    assert_eq!(ca.books().accounts.len(), 1, "{at}");
    edge.kill().await;
    assert_eq!(whole(&storage, &at), 1, "{at}: one certificate is stored ({bundles} before)");
    let log = edge.log();
    assert!(!log.contains("damaged") && !log.contains("panicked"), "{at}: {log}");
    given_up
}

#[tokio::test]
async fn killed_at_any_point_of_an_order_edge_goes_on_with_it() {
    let points = points();
    let many = points.len();
    let begun = Instant::now();
    // Most of the time of a run is waiting.
    let given_up = futures_util::stream::iter(points.into_iter().enumerate())
        .map(|(run, point)| killed_at(point, run))
        .buffer_unordered(if full_length() { 20 } else { 10 })
        .filter(|given_up| std::future::ready(*given_up))
        .count()
        .await;
    println!(
        "figure: {many} kills: no torn file, one certificate each, one order each but for {given_up} that the CA gave up while \
         edge was dead, in {:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_second_edge_serves_what_the_first_obtains_and_takes_over_once_it_is_killed() {
    let (first_ports, second_ports) = ((free_port(), free_port()), (free_port(), free_port()));
    let ca = Stub::start(first_ports.0, first_ports.1);
    let trust = trust(&ca);
    let mut first = setup(&ca, first_ports).start().await;
    let storage = first.dir().join("storage");
    let second = setup(&ca, second_ports).storage(&storage).start().await;
    second.wait_for_log("that another edge orders", |line| says(line, "another edge orders")).await;
    let found = until(PATIENCE, "the second serves too", async || served(&second, &trust).await).await;
    assert_eq!(served(&first, &trust).await, Some(found.clone()));
    assert_eq!(ca.orders().len(), 1, "one order for the name");
    let (_, refusal) = second.failing(&["certs", "renew", NAME]).await;
    assert!(refusal.contains("another edge"), "{refusal}");

    first.done(&["certs", "renew", NAME]).await;
    let renewed = served(&first, &trust).await.expect("served");
    assert_ne!(renewed, found);
    let begun = Instant::now();
    until(PATIENCE, "the second serves the new one", async || {
        served(&second, &trust).await.filter(|leaf| *leaf == renewed)
    })
    .await;
    println!("figure: the follower serves a renewed certificate {:?} later", begun.elapsed());
    assert_eq!(ca.orders().len(), 2);

    first.kill().await;
    let killed = Instant::now();
    second.wait_for_log("that it takes over", |line| says(line, "the other edge is gone")).await;
    let took = killed.elapsed();
    println!("figure: the follower takes over {took:?} after the owner is killed");
    assert!(took <= Duration::from_secs(5), "{took:?}");
    (ca.books().http, ca.books().tls) = second_ports;
    second.done(&["certs", "renew", NAME]).await;
    assert_eq!(ca.orders().len(), 3);
    assert_ne!(served(&second, &trust).await, Some(renewed));
    second.stop().await;
}

fn says(line: &serde_json::Value, words: &str) -> bool {
    line["msg"].as_str().is_some_and(|text| text.contains(words))
}
