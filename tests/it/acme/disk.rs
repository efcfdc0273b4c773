//! A storage that takes nothing: nothing is ordered that could not be written down, and what comes all the same is served.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::crashes::{NAME, PATIENCE, files, served, setup, trust, whole};
use crate::ca::free_port;
use crate::ca::stub::{Fault, Step, Stub};
use crate::support::edge::{Edge, Setup};
use crate::support::{processes, until};

/// Why it takes nothing.
#[derive(Debug, Clone, Copy)]
enum Closed {
    /// There is no room.
    Full,
    /// It is mounted so.
    ReadOnly,
    /// By its modes, for whoever is not above them.
    Modes,
}

impl Closed {
    /// What the system says then.
    fn words(self) -> &'static str {
        match self {
            Self::Full => "No space left",
            Self::ReadOnly => "Read-only file system",
            Self::Modes => "Permission denied",
        }
    }

    /// Has edge executed where `storage` is closed from the start.
    fn wrapper(self, storage: &Path) -> Vec<String> {
        let at = storage.display();
        let mount = match self {
            Self::Full => format!(
                "mount -t tmpfs -o size=128k,mode=700 tmpfs {at} && {{ head -c 200k /dev/zero > {at}/filler; }}"
            ),
            Self::ReadOnly => format!("mount --bind {at} {at} && mount -o remount,bind,ro {at}"),
            Self::Modes => {
                set_modes(storage, 0o500);
                // Root without its privilege over modes is like everybody else.
                return processes::without("-dac_override,-dac_read_search");
            }
        };
        let unshare: &[&str] = if processes::root() { &[] } else { &["--map-root-user"] };
        let script = format!("{mount}; exec \"$0\" \"$@\"");
        let words = [&["unshare", "--mount"], unshare, &["sh", "-c", &script]].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    /// Opens it.
    fn open(self, edge: &Edge, storage: &Path) {
        match self {
            Self::Full => fs::remove_file(seen(edge, storage).join("filler")).expect("removed"),
            Self::ReadOnly => within(edge, &["umount", "--lazy", &storage.display().to_string()]),
            Self::Modes => set_modes(storage, 0o700),
        }
    }

    /// Closes it again.
    fn close(self, edge: &Edge, storage: &Path) {
        let at = storage.display().to_string();
        match self {
            Self::Full => fill(&seen(edge, storage).join("filler")),
            Self::ReadOnly => {
                within(
                    edge,
                    &["sh", "-c", &format!("mount --bind {at} {at} && mount -o remount,bind,ro {at}")],
                );
            }
            Self::Modes => set_modes(storage, 0o500),
        }
    }
}

/// Where the test sees what edge sees at `path`.
fn seen(edge: &Edge, path: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", edge.pid(), path.display()))
}

/// Runs a command among the mounts of edge.
fn within(edge: &Edge, words: &[&str]) {
    let user: &[&str] = if processes::root() { &[] } else { &["--user", "--preserve-credentials"] };
    let pid = edge.pid().to_string();
    let status = Command::new("nsenter").args(["--target", &pid, "--mount"]).args(user).args(words).status();
    assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{words:?}: {status:?}");
}

/// Of a directory and all below it.
fn set_modes(dir: &Path, mode: u32) {
    // Those that are closed could not be listed otherwise.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).expect("set");
    for entry in fs::read_dir(dir).expect("listed").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            set_modes(&entry.path(), mode);
        }
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).expect("set");
}

/// Fills a file system, from the outside of its namespace, until nothing goes on it.
fn fill(filler: &Path) {
    use std::io::Write;

    let mut file = fs::File::create(filler).expect("room for a name");
    while file.write_all(&[0; 512]).is_ok() {}
}

async fn nothing_is_lost(closed: Closed) {
    let ports = (free_port(), free_port());
    let ca = Stub::start(ports.0, ports.1);
    // Waits follow the life of a certificate.
    ca.books().life = Duration::from_secs(200);
    let trust = trust(&ca);
    let setup = setup(&ca, ports);
    let storage = setup.dir().join("storage");
    fs::create_dir(&storage).unwrap();
    fs::set_permissions(&storage, fs::Permissions::from_mode(0o700)).unwrap();
    let wrapper = closed.wrapper(&storage);
    let edge = setup.inside(&wrapper).start().await;
    let inside = seen(&edge, &storage);
    let words = closed.words();

    let error =
        |certificate: &serde_json::Value| certificate["last_error"].as_str().unwrap_or_default().to_owned();
    let failed = until(PATIENCE, "the closed storage shows", async || {
        let certificate = edge.certificate(NAME).await;
        (!error(&certificate).is_empty()).then_some(certificate)
    })
    .await;
    assert!(error(&failed).contains(words), "{closed:?}: {failed}");
    let (_, refusal) = edge.failing(&["certs", "renew", NAME]).await;
    assert!(refusal.contains(words), "{closed:?}: {refusal}");
    assert_eq!(ca.asked(Step::NewOrder), 0, "{closed:?}: nothing is ordered that could not be written down");
    assert_eq!(files(&inside).iter().filter(|path| !path.ends_with("filler")).count(), 0, "{closed:?}");
    closed.open(&edge, &storage);
    edge.done(&["certs", "renew", NAME]).await;
    let first = served(&edge, &trust).await.expect("served");

    // The order is written down; what comes of it cannot be.
    ca.fail(Step::Certificate, Fault::Slow(Duration::from_secs(2)));
    let renewing = async {
        let output = edge.command(&["certs", "renew", NAME]).await;
        assert!(!output.status.success(), "{closed:?}: it could not be stored");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let closing = async {
        until(PATIENCE, "the second is downloaded", async || {
            (ca.asked(Step::Certificate) == 2).then_some(())
        })
        .await;
        closed.close(&edge, &storage);
    };
    let (said, ()) = tokio::join!(renewing, closing);
    assert!(said.contains(words), "{closed:?}: {said}");
    let second = until(PATIENCE, "served without a disk", async || {
        served(&edge, &trust).await.filter(|leaf| *leaf != first)
    })
    .await;
    let certificate = edge.certificate(NAME).await;
    assert!(error(&certificate).contains(words), "{closed:?}: {certificate}");
    assert_eq!(whole(&inside, "closed"), 1, "{closed:?}");
    closed.open(&edge, &storage);
    let opened = Instant::now();
    until(PATIENCE, "stored", async || (whole(&inside, "open") == 2).then_some(())).await;
    println!(
        "figure: a certificate that came to a storage that took nothing ({words}) is stored {:?} after it does",
        opened.elapsed()
    );
    assert_eq!(served(&edge, &trust).await, Some(second));
    assert_eq!(ca.orders().len(), 2, "{closed:?}: and was not ordered again");
    edge.stop().await;
}

#[tokio::test]
async fn on_a_full_disk_nothing_is_ordered_and_what_comes_is_served_until_there_is_room() {
    nothing_is_lost(Closed::Full).await;
}

#[tokio::test]
async fn on_a_disk_mounted_read_only_nothing_is_ordered_and_what_comes_is_served_until_it_is_writable() {
    nothing_is_lost(Closed::ReadOnly).await;
}

#[tokio::test]
async fn in_a_storage_closed_by_its_modes_nothing_is_ordered_and_what_comes_is_served_until_it_is_open() {
    nothing_is_lost(Closed::Modes).await;
}

#[tokio::test]
async fn edges_own_ca_waits_for_room_on_a_full_disk_says_so_and_serves_soon_after() {
    let setup = Setup::new();
    let storage = setup.dir().join("storage");
    fs::create_dir(&storage).expect("made");
    let edge = setup
        .inside(&Closed::Full.wrapper(&storage))
        .app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    let told = edge
        .wait_for_log("it says what it waits for", |line| {
            line["cert"] == "a.test" && line["msg"] == "no certificate was obtained"
        })
        .await;
    let error = told["error"].as_str().expect("a reason");
    assert!(error.starts_with("edge's own CA cannot be used yet: "), "{error}");
    assert!(error.contains(&storage.display().to_string()) && error.contains("No space left"), "{error}");
    let moment =
        |text: &Value| OffsetDateTime::parse(text.as_str().expect("a time"), &Rfc3339).expect("a time");
    let wait = moment(&told["next_attempt"]) - moment(&told["ts"]);
    assert!(wait <= Duration::from_secs(6), "{wait}");
    let certificate = edge.certificate("a.test").await;
    assert!(certificate["last_error"].as_str().is_some_and(|said| said == error), "{certificate}");
    assert!(certificate["next_attempt"].is_string(), "{certificate}");
    Closed::Full.open(&edge, &storage);
    let begun = Instant::now();
    until(Duration::from_secs(15), "the certificate", async || {
        (edge.certificate("a.test").await["state"] == "valid").then_some(())
    })
    .await;
    println!("figure: edge's own CA after a full disk: served {:?} after there was room", begun.elapsed());
    edge.stop().await;
}
