//! What is read of other programs' trees, and what of it is taken.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use super::setup::{now, pattern, provider};
use crate::cert::account;
use crate::cert::bundle::{CertBundle, push_pem};
use crate::cert::ca_id::CaId;
use crate::cert::cas::Cas;
use crate::cert::foreign::{self, ForeignError, Origin, Tree};
use crate::cert::import::{Candidate, Configured, Kept, Planned, Skipped, may_replace, plan};
use crate::cert::internal::InternalCa;
use crate::cert::offer::{NotKept, Offer, keep};
use crate::cert::seconds;
use crate::cert::store::{AccountStore, CertStore, DirStore};
use crate::cert::validity::Validity;
use crate::config::model::Tls;
use crate::report::Report;

struct Home {
    dir: tempfile::TempDir,
    ca: InternalCa,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let ca = InternalCa::open(&dir.path().join("ca"), provider(), now()).expect("made");
        Self { dir, ca }
    }

    fn issue(&self, name: &str) -> CertBundle {
        self.ca.issue(&pattern(name), now()).expect("issued")
    }

    /// One of certbot's lineages; returned is where its two files are.
    fn lineage(&self, name: &str) -> PathBuf {
        let (live, archive) =
            (self.dir.path().join("live").join(name), self.dir.path().join("archive").join(name));
        fs::create_dir_all(&live).expect("made");
        fs::create_dir_all(&archive).expect("made");
        for file in ["fullchain", "privkey"] {
            fs::write(archive.join(format!("{file}1.pem")), self.issue(name).to_pem()).expect("written");
        }
        // One text holds both here: certificate and key must be of the same issue.
        fs::copy(archive.join("fullchain1.pem"), archive.join("privkey1.pem")).expect("copied");
        for file in ["fullchain", "privkey"] {
            symlink(format!("../../archive/{name}/{file}1.pem"), live.join(format!("{file}.pem")))
                .expect("linked");
        }
        archive
    }

    fn read(&self) -> Tree {
        foreign::read(self.dir.path(), &provider()).expect("a tree")
    }
}

fn told(tree: &Tree) -> String {
    match &tree.certificates[0].bundle {
        Ok(bundle) => format!("{:?}", bundle.names()),
        Err(reason) => Report(reason).to_string(),
    }
}

#[test]
fn a_damaged_lineage_is_explained_and_the_others_are_read() {
    type Damage = fn(&Home, &Path);
    let cases: [(Damage, &str); 9] = [
        (|_, at| fs::write(at.join("fullchain1.pem"), "").expect("written"), "it holds no certificate"),
        (|_, at| fs::write(at.join("privkey1.pem"), "text").expect("written"), "it holds no private key"),
        (|_, at| fs::write(at.join("fullchain1.pem"), vec![b'x'; 70_000]).expect("written"), "longer than"),
        (
            |home, at| fs::write(at.join("privkey1.pem"), home.issue("a.example").to_pem()).expect("written"),
            "its private key does not belong to its certificate",
        ),
        (|_, at| fs::remove_file(at.join("privkey1.pem")).expect("removed"), "is a link that leads nowhere"),
        (
            |_, at| {
                fs::remove_file(at.join("privkey1.pem")).expect("removed");
                symlink("privkey1.pem", at.join("privkey1.pem")).expect("linked");
            },
            "cannot read",
        ),
        (
            |_, at| {
                fs::remove_file(at.join("fullchain1.pem")).expect("removed");
                symlink("/dev/zero", at.join("fullchain1.pem")).expect("linked");
            },
            "it is not a regular file",
        ),
        (
            |_, at| {
                fs::remove_file(at.join("privkey1.pem")).expect("removed");
                nix::unistd::mkfifo(&at.join("privkey1.pem"), nix::sys::stat::Mode::S_IRWXU).expect("made");
            },
            "it is not a regular file",
        ),
        (
            |_, at| {
                fs::remove_file(at.join("fullchain1.pem")).expect("removed");
                fs::create_dir(at.join("fullchain1.pem")).expect("made");
            },
            "it is not a regular file",
        ),
    ];
    for (damage, words) in cases {
        let home = Home::new();
        let archive = home.lineage("a.example");
        home.lineage("b.example");
        damage(&home, &archive);
        let tree = home.read();
        assert_eq!((tree.origin, tree.certificates.len()), (Origin::Certbot, 2));
        assert!(told(&tree).contains(words), "{words}: {}", told(&tree));
        assert!(tree.certificates[1].bundle.is_ok());
    }
}

#[test]
fn certbots_tree_is_read_from_its_top_and_from_live_with_the_ca_of_each_lineage() {
    let home = Home::new();
    home.lineage("a.example");
    fs::write(home.dir.path().join("live/README"), "text").expect("written");
    fs::create_dir(home.dir.path().join("renewal")).expect("made");
    let settings = "[renewalparams]\nserver = https://ca.example:14000/dir\nkey_type = ecdsa\n";
    fs::write(home.dir.path().join("renewal/a.example.conf"), settings).expect("written");
    let account = home.dir.path().join("accounts/ca.example:14000/dir/0123");
    fs::create_dir_all(&account).expect("made");
    fs::write(account.join("private_key.json"), r#"{"kty":"RSA"}"#).expect("written");
    for dir in [home.dir.path().to_owned(), home.dir.path().join("live")] {
        let tree = foreign::read(&dir, &provider()).expect("a tree");
        assert_eq!(tree.certificates.len(), 1);
        let ca = CaId::of("https://ca.example:14000/dir");
        assert_eq!(tree.certificates[0].ca.as_ref(), Some(&ca));
        assert!(tree.accounts.len() == 1 && tree.accounts[0].ca.is(&ca) && tree.accounts[0].record.is_err());
    }
}

#[test]
fn caddys_tree_is_read_from_each_of_its_tops_with_its_accounts() {
    let home = Home::new();
    let root = home.dir.path().join(".local/share/caddy");
    for (ca, name) in [("ca.example-14000-dir", "wildcard_.a.example"), ("local", "b.example")] {
        let at = root.join("certificates").join(ca).join(name);
        fs::create_dir_all(&at).expect("made");
        let pem = home.issue(&name.replace("wildcard_", "*")).to_pem();
        fs::write(at.join(format!("{name}.crt")), &pem).expect("written");
        fs::write(at.join(format!("{name}.key")), &pem).expect("written");
    }
    let user = root.join("acme/ca.example-14000-dir/users/default");
    fs::create_dir_all(&user).expect("made");
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
    let mut pem = String::new();
    push_pem(&mut pem, "EC PRIVATE KEY", key.private_key().as_der().expect("encoded").as_ref());
    fs::write(user.join("default.key"), pem).expect("written");
    let text =
        r#"{"status":"valid","contact":["mailto:a@a.example"],"location":"https://ca.example:14000/acct/1"}"#;
    fs::write(user.join("default.json"), text).expect("written");
    for dir in [home.dir.path().to_owned(), root.clone(), root.join("certificates")] {
        let tree = foreign::read(&dir, &provider()).expect("a tree");
        assert_eq!((tree.origin, tree.certificates.len(), tree.accounts.len()), (Origin::Caddy, 2, 1));
        let known = CaId::of("https://ca.example:14000/dir");
        assert!(tree.certificates[0].ca.as_ref().is_some_and(|ca| ca.is(&known)));
        assert!(tree.certificates[1].ca.as_ref().is_some_and(CaId::is_for_tests));
        assert_eq!(tree.accounts[0].contact.as_deref(), Some("a@a.example"));
        assert!(account::is_usable(tree.accounts[0].record.as_ref().expect("usable")));
    }
    for (file, text) in
        [("default.json", "{}"), ("default.key", "nonsense"), ("default.json", r#"{"location":"file:///x"}"#)]
    {
        fs::write(user.join(file), text).expect("written");
        let tree = foreign::read(&root, &provider()).expect("a tree");
        assert!(tree.accounts[0].record.is_err() && tree.certificates.len() == 2, "{file} {text}");
    }
}

#[test]
fn a_tree_of_another_kind_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::create_dir_all(dir.path().join("live/empty")).expect("made");
    assert!(matches!(foreign::read(dir.path(), &provider()), Err(ForeignError::Unknown(_))));
    assert!(matches!(foreign::read(&dir.path().join("no"), &provider()), Err(ForeignError::List { .. })));
}

#[test]
fn each_name_is_planned_once_with_the_certificate_that_is_valid_longest() {
    let home = Home::new();
    let later = now() + Duration::from_secs(3600);
    let short = home.issue("a.example");
    let long = home.ca.issue(&pattern("a.example"), later).expect("issued");
    let (wild, other, local) = (home.issue("*.w.example"), home.issue("o.example"), home.issue("l.example"));
    let bundles = [&short, &long, &wild, &other, &local];
    let candidates: Vec<_> = bundles
        .iter()
        .enumerate()
        .map(|(index, bundle)| Candidate { index, bundle, public: index != 4 })
        .collect();
    let configured =
        |name: &str, tls| Configured { name: pattern(name), app: "x".parse().expect("a name"), tls };
    let configured = [
        configured("a.example", Tls::Acme),
        configured("one.w.example", Tls::Acme),
        configured("l.example", Tls::Acme),
        configured("none.example", Tls::Acme),
        configured("o.example", Tls::Internal),
    ];
    // The internal CA dates its certificates back.
    let planned = plan(&candidates, &configured, later);
    let planned: Vec<_> =
        planned.into_iter().map(|Planned { name, take }| (name.to_string(), take)).collect();
    let app = "x".parse().expect("a name");
    let expected = [
        ("a.example".to_owned(), Ok(1)),
        ("l.example".to_owned(), Err(Skipped::NotPublic)),
        ("o.example".to_owned(), Err(Skipped::NotAuto { app })),
        ("one.w.example".to_owned(), Ok(2)),
    ];
    assert_eq!(planned, expected);
    let ended = plan(&candidates, &configured, now() + Duration::from_secs(4000 * 86_400));
    assert_eq!(ended[0].take, Err(Skipped::Unfit("its certificate is expired".to_owned())));
}

#[test]
fn a_newer_or_longer_certificate_is_never_replaced() {
    let at = |from: u64, to: u64| {
        let moment = |days: u64| std::time::UNIX_EPOCH + Duration::from_secs(days * 86_400);
        Validity { not_before: moment(from), not_after: moment(to) }
    };
    let today = at(50, 50).not_before;
    for (present, offered, expected) in [
        (at(0, 90), (at(10, 100), "2"), Ok(())),
        (at(10, 100), (at(0, 90), "2"), Err(Kept::Newer)),
        (at(45, 52), (at(0, 90), "2"), Err(Kept::Newer)),
        (at(0, 90), (at(10, 60), "2"), Err(Kept::Longer)),
        (at(40, 49), (at(0, 90), "2"), Ok(())),
        (at(0, 90), (at(10, 100), "1"), Err(Kept::Same)),
    ] {
        assert_eq!(may_replace(Some((present, "1")), offered, today), expected, "{present:?} {offered:?}");
    }
    assert_eq!(may_replace(None, (at(0, 90), "2"), today), Ok(()));
}

#[test]
fn what_is_kept_in_the_storage_is_found_there_with_its_usual_renewal_and_once_only() {
    let home = Home::new();
    let store = DirStore::open(&home.dir.path().join("store"), provider()).expect("opened");
    let (name, first) = (pattern("a.example"), CaId::of("https://one.example/dir"));
    let cas = Cas { ids: vec![first.clone(), CaId::of("https://two.example/dir")], settings: String::new() };
    let bundle = home.issue("a.example");
    let ca = Some(CaId::of("two.example-dir"));
    let offer = Offer { name: name.clone(), ca, bundle: bundle.clone() };
    keep(&store, &cas, &offer, now()).expect("kept");
    let stored = store.load(&cas.ids[1], &name);
    assert_eq!(stored.bundle.expect("a bundle").serial(), bundle.serial());
    let history = store.load(&first, &name).history;
    assert_eq!(history.renew_for.as_deref(), Some(bundle.serial()));
    assert!(history.renew_at.is_some_and(|at| at > now()) && history.last_error.is_none());
    // It is none of the orders that the CA counts: edge's own CA dates it back.
    let start = seconds::whole(bundle.validity().not_before);
    assert!(history.obtained_at == Some(start) && start + Duration::from_secs(60) < now(), "{history:?}");
    assert!(matches!(keep(&store, &cas, &offer, now()), Err(NotKept::Kept(Kept::Same))));
    assert!(store.add_account(&first, b"one").expect("kept"));
    assert!(!store.add_account(&first, b"two").expect("looked at"));
    assert_eq!(store.load_account(&first).expect("read").as_deref(), Some(b"one".as_slice()));
}
