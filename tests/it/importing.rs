//! A move from certbot or Caddy: what they obtained is served by edge, and no CA is asked.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::ca::free_port;
use crate::ca::pebble::Terms;
use crate::support::caddy::Caddy;
use crate::support::client::{Connection, Trust, Wire};
use crate::support::edge::{Edge, Setup, run};
use crate::support::until;

/// A CA that some other program had its certificates from.
struct OldCa {
    issuer: Issuer<'static, KeyPair>,
    root: String,
}

impl OldCa {
    fn new() -> Self {
        let mut root = CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "old root");
        let key = KeyPair::generate().unwrap();
        let certificate = root.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(root, key), root: certificate.pem() }
    }

    /// Chain and key of a certificate for `names` that ends in so many days.
    fn issue(&self, names: &[&str], days: i64) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut leaf =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        let now = time::OffsetDateTime::now_utc();
        leaf.not_before = now - time::Duration::days(30);
        leaf.not_after = now + time::Duration::days(days);
        let certificate = leaf.signed_by(&key, &self.issuer).unwrap();
        (format!("{}{}", certificate.pem(), self.root), key.serialize_pem())
    }

    fn trust(&self) -> Trust {
        Trust::in_pem(self.root.as_bytes()).unwrap()
    }
}

/// A lineage as certbot keeps it.
fn lineage(home: &Path, name: &str, (chain, key): &(String, String)) {
    let (archive, live) = (home.join("archive").join(name), home.join("live").join(name));
    fs::create_dir_all(&archive).unwrap();
    fs::create_dir_all(&live).unwrap();
    for (file, text) in [("fullchain", chain), ("privkey", key)] {
        fs::write(archive.join(format!("{file}1.pem")), text).unwrap();
        symlink(format!("../../archive/{name}/{file}1.pem"), live.join(format!("{file}.pem"))).unwrap();
    }
}

fn app(domains: &str, tls: &str) -> String {
    format!("domains: [{domains}]\ntls: {tls}\ncommand: edge hello\nworkers: 1")
}

async fn served(edge: &Edge, host: &str, trust: &Trust) {
    until(Duration::from_secs(15), &format!("{host} is served"), async || {
        let mut connection = Connection::to(edge.https, host, Wire::H2, trust).await.ok()?;
        connection.try_get("/").await.ok().filter(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn a_running_edge_takes_over_certbots_certificates_and_orders_nothing() {
    // Every order would fail, and be told of.
    let gone = free_port();
    let mut edge = Setup::new()
        .top(&format!("acme:\n  ca: https://127.0.0.1:{gone}/dir\n  self_check: false"))
        .app("shop", &app("shop.acme.example, www.shop.acme.example", "auto"))
        .app("own", &app("own.acme.example", "internal"))
        .start()
        .await;
    let ca = OldCa::new();
    let home = tempfile::tempdir().unwrap();
    let both = ca.issue(&["shop.acme.example", "www.shop.acme.example", "gone.acme.example"], 40);
    lineage(home.path(), "shop.acme.example", &both);
    lineage(home.path(), "own.acme.example", &ca.issue(&["own.acme.example"], 40));
    lineage(home.path(), "old.acme.example", &ca.issue(&["shop.acme.example"], -1));
    let (chain, _) = ca.issue(&["mixed.acme.example"], 40);
    lineage(home.path(), "mixed.acme.example", &(chain, both.1.clone()));
    lineage(home.path(), "lost.acme.example", &both);
    fs::remove_file(home.path().join("archive/lost.acme.example/privkey1.pem")).unwrap();

    let output = edge.command(&["certs", "import", home.path().to_str().unwrap()]).await;
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "two lineages are damaged: {said}{complained}");
    for line in [
        "shop.acme.example: imported from ",
        "www.shop.acme.example: imported from ",
        "own.acme.example: skipped, apps.own.tls is not `auto`",
        "gone.acme.example: skipped, no app has this domain",
    ] {
        assert!(said.lines().any(|said| said.starts_with(line)), "{line}\n{said}{complained}");
    }
    assert!(complained.contains("mixed.acme.example: unusable, ") && complained.contains("does not belong"));
    assert!(complained.contains("lost.acme.example: unusable, ") && complained.contains("leads nowhere"));

    for host in ["shop.acme.example", "www.shop.acme.example"] {
        served(&edge, host, &ca.trust()).await;
        let certificate = edge.certificate(host).await;
        assert_eq!((&certificate["state"], &certificate["last_error"]), (&"valid".into(), &().into()));
        assert!(certificate["next_attempt"].is_null(), "{certificate}");
    }
    let again = edge.command(&["certs", "import", home.path().join("live").to_str().unwrap()]).await;
    let again = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.contains("\nshop.acme.example: skipped, edge has this certificate already\n"), "{again}");

    edge.kill().await;
    edge.restart().await;
    served(&edge, "www.shop.acme.example", &ca.trust()).await;
    let orders = edge.log_objects().iter().filter(|line| line["msg"] == "ordering a certificate").count();
    assert!(orders <= 2, "only the first attempt of each name, before the import: {orders}");
    edge.stop().await;
}

#[tokio::test]
async fn what_caddy_really_keeps_is_imported_with_its_account_before_the_first_start() {
    let (http, https) = (free_port(), free_port());
    let pebble = Terms::at(http).tls(https).start().await;
    let issued = Trust::issued_by(&pebble).await;
    let mut caddy = Caddy::start(
        &format!("http_port {http}\nhttps_port {https}\nemail ops@example.com"),
        &format!(
            "a.acme.example {{\ntls {{\nissuer acme {{\ndir {}\ntrusted_roots ca.pem\n}}\n}}\n}}\n\
             b.test {{\ntls internal\n}}",
            pebble.directory()
        ),
        "127.0.0.1 localhost\n",
        &[&pebble.root()],
    );
    let certificates = caddy.storage().join("certificates");
    until(Duration::from_secs(60), "Caddy has its certificates", async || {
        let cas = fs::read_dir(&certificates).ok()?.flatten();
        let names = cas.flat_map(|ca| fs::read_dir(ca.path()).into_iter().flatten().flatten());
        // The last of the three files that are written of each.
        let whole =
            |name: &fs::DirEntry| name.path().join(format!("{}.json", name.file_name().display())).exists();
        (names.filter(whole).count() == 2).then_some(())
    })
    .await;
    caddy.stop();
    let (orders, accounts) = (pebble.orders(), pebble.accounts());

    let mut setup = Setup::new().ports(http, https).top(&pebble.keys());
    setup = setup.app("a", &app("a.acme.example, c.acme.example", "auto")).app("b", &app("b.test", "auto"));
    let config = setup.written();
    let imported = run(&[], &["certs", "import", caddy.storage().to_str().unwrap()], &config).await;
    let said = String::from_utf8_lossy(&imported.stdout).into_owned();
    assert!(imported.status.success(), "{said}{}", String::from_utf8_lossy(&imported.stderr));
    assert!(said.contains(&format!("account at {}: imported\n", pebble.directory())), "{said}");
    assert!(said.contains("a.acme.example: imported from "), "{said}");
    assert!(said.contains("b.test: skipped, apps.b.tls is not `auto`\n"), "{said}");

    let edge = setup.start().await;
    served(&edge, "a.acme.example", &issued).await;
    served(&edge, "c.acme.example", &issued).await;
    assert_eq!(pebble.orders(), orders + 1, "only that of c.acme.example");
    edge.done(&["certs", "renew", "a.acme.example"]).await;
    served(&edge, "a.acme.example", &issued).await;
    assert_eq!(
        (pebble.orders(), pebble.accounts()),
        (orders + 2, accounts),
        "the imported account was not used"
    );
    edge.stop().await;
}

#[tokio::test]
async fn a_directory_that_is_neither_is_refused_with_what_was_looked_for() {
    let setup = Setup::new().app("a", &app("a.acme.example", "auto"));
    let config = setup.written();
    let nothing = tempfile::tempdir().unwrap();
    for (dir, words) in [
        (nothing.path().to_owned(), "is neither certbot's directory"),
        (PathBuf::from("/nowhere"), "cannot list /nowhere"),
    ] {
        let refused = run(&[], &["certs", "import", dir.to_str().unwrap()], &config).await;
        let complained = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && complained.contains(words), "{complained}");
    }
    assert!(!setup.dir().join("storage").exists(), "nothing was written");
}
