//! What the store does with what it finds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P521_SHA512};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::setup::{now, pattern, provider};
use crate::cert::bundle::{BundleError, CertBundle};
use crate::cert::ca_id::CaId;
use crate::cert::failure::Class;
use crate::cert::history::History;
use crate::cert::internal::InternalCa;
use crate::cert::store::{AccountStore, CertStore, DirStore, load_best};
use crate::report::Report;

struct Shelf {
    dir: tempfile::TempDir,
    store: DirStore,
    ca: InternalCa,
}

fn shelf() -> Shelf {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = DirStore::open(&dir.path().join("store"), provider()).expect("opened");
    let ca = InternalCa::open(&dir.path().join("ca"), provider(), now()).expect("made");
    Shelf { dir, store, ca }
}

impl Shelf {
    fn issue(&self, name: &str) -> CertBundle {
        self.ca.issue(&pattern(name), now()).expect("issued")
    }

    fn save(&self, name: &str) -> CertBundle {
        let bundle = self.issue(name);
        self.store.save(&id(), &pattern(name), &bundle).expect("saved");
        bundle
    }

    fn files(&self, name: &str) -> Vec<PathBuf> {
        let directory = self.dir.path().join("store/certs").join("ca.test_dir").join(name);
        let mut files: Vec<_> =
            fs::read_dir(directory).expect("listed").map(|e| e.expect("entry").path()).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "pem"));
        files.sort();
        files
    }
}

fn id() -> CaId {
    CaId::of("https://ca.test/dir")
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
}

#[test]
fn the_newest_of_two_kept_generations_is_loaded() {
    let shelf = shelf();
    for _ in 0..4 {
        shelf.save("a.test");
    }
    let last = shelf.save("a.test");
    let stored = shelf.store.load(&id(), &pattern("a.test"));
    assert_eq!(stored.bundle.expect("found").serial(), last.serial());
    assert!(stored.problems.is_empty());
    let of_profile = shelf.issue("a.test").of_profile(Some("shortlived".to_owned()));
    shelf.store.save(&id(), &pattern("a.test"), &of_profile).expect("saved");
    let stored = shelf.store.load(&id(), &pattern("a.test"));
    assert_eq!(stored.bundle.expect("found").profile(), Some("shortlived"));
    let files = shelf.files("a.test");
    assert_eq!(files.len(), 2);
    for file in &files {
        assert_eq!(fs::metadata(file).expect("exists").permissions().mode() & 0o777, 0o600);
    }
    let directory = files[0].parent().expect("has one");
    assert_eq!(fs::metadata(directory).expect("exists").permissions().mode() & 0o777, 0o700);
}

#[test]
fn damage_to_the_newest_generation_falls_back_to_the_one_before_and_is_explained() {
    type Damage = fn(&Path, &Shelf);
    let cases: [(&str, Damage, &str); 6] = [
        ("empty", |path, _| fs::write(path, "").expect("written"), "no private key"),
        ("torn", |path, _| fs::write(path, &fs::read(path).expect("read")[..300]).expect("written"), ""),
        ("not PEM", |path, _| fs::write(path, [0xff; 64]).expect("written"), ""),
        ("huge", |path, _| fs::write(path, vec![b'a'; 100_000]).expect("written"), "longer than"),
        (
            "of another name",
            |path, shelf| fs::write(path, shelf.issue("b.test").to_pem()).expect("written"),
            "does not name a.test",
        ),
        ("readable by others", |path, _| chmod(path, 0o640), "chmod 600"),
    ];
    for (what, damage, wanted) in cases {
        let shelf = shelf();
        let first = shelf.save("a.test");
        shelf.save("a.test");
        let newest = shelf.files("a.test").pop().expect("two");
        damage(&newest, &shelf);
        let stored = shelf.store.load(&id(), &pattern("a.test"));
        assert_eq!(stored.bundle.expect(what).serial(), first.serial(), "{what}");
        let [problem] = &stored.problems[..] else { panic!("{what}: {:?}", stored.problems) };
        let problem = Report(problem).to_string();
        assert!(
            problem.contains(&newest.display().to_string()) && problem.contains(wanted),
            "{what}: {problem}"
        );
        // The next generation is still the newest.
        let third = shelf.save("a.test");
        let stored = shelf.store.load(&id(), &pattern("a.test"));
        assert_eq!(stored.bundle.expect(what).serial(), third.serial(), "{what}");
    }
}

#[test]
fn a_key_that_fits_another_certificate_is_refused() {
    let shelf = shelf();
    let (one, two) = (shelf.issue("a.test").to_pem(), shelf.issue("a.test").to_pem());
    let error = CertBundle::parse_parts(&provider(), &one, &two).expect_err("refused");
    assert!(matches!(error, BundleError::KeyMismatch), "{error}");
}

#[test]
fn a_bundle_from_a_ca_must_name_what_was_asked_be_valid_and_be_linked() {
    let shelf = shelf();
    let bundle = shelf.issue("a.test");
    let wanted = pattern("a.test");
    assert!(bundle.check_issued(&wanted, now()).is_ok());
    assert!(bundle.check_issued(&pattern("*.test"), now()).is_err());
    assert!(matches!(bundle.check_issued(&wanted, SystemTime::UNIX_EPOCH), Err(BundleError::NotYetValid)));
    let late = now() + Duration::from_secs(89 * 24 * 3600);
    assert!(matches!(bundle.check_issued(&wanted, late), Err(BundleError::Expired)));
    let other = InternalCa::open(&shelf.dir.path().join("other"), provider(), now()).expect("made");
    let mut pem = bundle.to_pem();
    let foreign = fs::read(other.root_file()).expect("read");
    let root = fs::read(shelf.ca.root_file()).expect("read");
    // Same subject name, another key: only the signature tells.
    pem.truncate(pem.len() - root.len());
    pem.extend_from_slice(&foreign);
    let mixed = CertBundle::parse(&provider(), &pem).expect("readable");
    assert!(matches!(mixed.check_issued(&wanted, now()), Err(BundleError::BrokenChain { position: 0 })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// P9: whatever became of a file, it is an error, or a key with a certificate that belongs to it.
    #[test]
    fn no_damage_to_a_bundle_panics_or_parts_key_and_certificate(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..40_usize), 1..4),
    ) {
        static PEM: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| shelf().issue("a.test").to_pem());
        let mut pem = PEM.clone();
        for (at, byte, length) in damage {
            let at = at.index(pem.len());
            // Changed, cut out, or said twice.
            match length {
                0..10 => pem[at] = byte,
                10..25 => drop(pem.drain(at..(at + length * 20).min(pem.len()))),
                _ => {
                    let again = pem[at..(at + length * 20).min(pem.len())].to_vec();
                    pem.extend(again);
                }
            }
            pem.push(b'\n');
        }
        if let Ok(bundle) = CertBundle::parse(&provider(), &pem) {
            prop_assert!(bundle.certified().keys_match().is_ok());
            prop_assert!(CertBundle::parse(&provider(), &bundle.to_pem()).is_ok(), "it cannot be stored");
        }
    }
}

#[test]
fn a_key_is_never_printed() {
    let bundle = shelf().issue("a.test");
    let printed = format!("{bundle:?}");
    assert!(printed.contains("edge internal CA") && !printed.to_lowercase().contains("key"), "{printed}");
}

#[test]
fn history_survives_and_damage_to_it_costs_only_the_history() {
    let shelf = shelf();
    let name = pattern("*.a.test");
    let history = History {
        failures: [(Class::Validation, 3)].into(),
        last_error: Some("why".to_owned()),
        next_attempt: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
        ..History::default()
    };
    let bundle = shelf.issue("*.a.test");
    shelf.store.save(&id(), &name, &bundle).expect("saved");
    shelf.store.remember(&id(), &name, &history).expect("saved");
    assert_eq!(shelf.store.load(&id(), &name).history, history);
    let record = shelf.files("WILDCARD.a.test")[0].with_file_name("meta.json");
    fs::write(record, "{").expect("written");
    let stored = shelf.store.load(&id(), &name);
    assert_eq!(stored.history, History::default());
    assert_eq!(stored.problems.len(), 1);
    assert!(stored.bundle.is_some());
}

#[test]
fn names_and_cas_become_single_safe_path_components() {
    let shelf = shelf();
    for name in ["a.test", "*.a.test", "2001:db8::1", "127.0.0.1"] {
        shelf.save(name);
        assert!(shelf.store.load(&id(), &pattern(name)).bundle.is_some(), "{name}");
    }
    for url in ["https://../..", "https://a/b/../../../etc", "x", "https://h:14000/dir?q=/"] {
        let ca = CaId::of(url);
        shelf.store.save_account(&ca, b"{}").expect(url);
        assert!(shelf.store.load_account(&ca).expect(url).is_some());
    }
    let accounts = fs::read_dir(shelf.dir.path().join("store/accounts")).expect("listed").count();
    assert_eq!(accounts, 4);
}

#[test]
fn one_process_at_a_time_may_order() {
    let shelf = shelf();
    let second = DirStore::open(&shelf.dir.path().join("store"), provider()).expect("opened");
    assert!(shelf.store.try_own().expect("locked"));
    assert!(shelf.store.try_own().expect("still locked"));
    assert!(!second.try_own().expect("refused"));
    drop(shelf.store);
    assert!(second.try_own().expect("free now"));
}

#[test]
fn a_chain_that_is_signed_in_a_way_edge_cannot_check_is_taken_by_its_names() {
    let ca = |name: &str| {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        (params.self_signed(&key).expect("signed"), Issuer::new(params, key))
    };
    let ((own, issuer), (stranger, _)) = (ca("a CA"), ca("another CA"));
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["a.test".to_owned()]).expect("a name");
    params.not_before = (now() - Duration::from_secs(3600)).into();
    params.not_after = (now() + Duration::from_secs(90 * 86_400)).into();
    let leaf = params.signed_by(&key, &issuer).expect("signed");
    let checked = |above: &rcgen::Certificate| {
        let pem = format!("{}{}{}", key.serialize_pem(), leaf.pem(), above.pem());
        let bundle = CertBundle::parse(&provider(), pem.as_bytes()).expect("readable");
        bundle.check_issued(&pattern("a.test"), now())
    };
    checked(&own).expect("P-521 is as good as P-256");
    assert!(matches!(checked(&stranger), Err(BundleError::BrokenChain { position: 0 })));
}

#[test]
fn of_several_cas_the_certificate_that_came_last_is_loaded_while_it_is_in_force() {
    const DAY: Duration = Duration::from_secs(86_400);
    let made = |begun: u32, ends: u32| {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["a.test".to_owned()]).expect("a name");
        (params.not_before, params.not_after) = ((now() - begun * DAY).into(), (now() + ends * DAY).into());
        let pem = params.self_signed(&key).expect("signed").pem();
        CertBundle::parse(&provider(), format!("{}{pem}", key.serialize_pem()).as_bytes()).expect("readable")
    };
    let (shelf, name, other) = (shelf(), pattern("a.test"), CaId::of("https://other.test/dir"));
    // That of the CA that stood in, and the shorter one that an operator had made since.
    let (long, short) = (made(10, 80), made(2, 4));
    shelf.store.save(&other, &name, &long).expect("saved");
    shelf.store.save(&id(), &name, &short).expect("saved");
    let cas = [id(), other];
    for (later, serial, position) in [(0, short.serial(), 0), (5, long.serial(), 1), (90, short.serial(), 0)]
    {
        let (stored, from) = load_best(&shelf.store, &cas, &name, now() + later * DAY);
        assert_eq!((stored.bundle.expect("one").serial(), from), (serial, position), "in {later} days");
    }
}

#[test]
fn edges_that_start_at_once_on_an_empty_storage_have_one_root() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().expect("temporary directory");
        let directory = dir.path().join("internal");
        let line = Barrier::new(4);
        let open = || {
            line.wait();
            InternalCa::open(&directory, provider(), now()).expect("opened").root().clone()
        };
        let roots = thread::scope(|scope| {
            let edges: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            edges.into_iter().map(|edge| edge.join().expect("did not panic")).collect::<Vec<_>>()
        });
        let kept = InternalCa::open(&directory, provider(), now()).expect("opened");
        assert!(roots.iter().all(|root| root == kept.root()), "as many roots as edges");
        let told = fs::read(kept.root_file()).expect("written");
        assert_eq!(CertificateDer::from_pem_slice(&told).expect("a certificate"), *kept.root());
        let mut left: Vec<_> = fs::read_dir(&directory)
            .expect("listed")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["ca.pem", "root.pem"]);
    }
}
