//! A name server in this process that shows what a directory holds: `NAME/TEXT` is a TXT record, `NAME.cname` a CNAME. Programs
//! that tests run as hooks make and remove these files.

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, NS, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Publishes by files. `ACTION` and the like are replaced by what a test wants to happen first.
const HOOK: &str = r#"#!/bin/sh
set -eu
echo "$1 $2" >>DIR/calls
FIRST
case $1 in
present) mkdir -p "DIR/$2" && : >"DIR/$2/$3" ;;
cleanup) rm -f "DIR/$2/$3" ;;
*) echo "what is $1?" >&2; exit 64 ;;
esac
"#;

/// The server; it ends with this value. It is the only one of `example.com`, and every other zone's too.
pub(super) struct Zone {
    dir: tempfile::TempDir,
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    root: PathBuf,
    /// Texts are not shown.
    hidden: AtomicBool,
    ends: AtomicBool,
    asked: AtomicUsize,
}

impl Zone {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = socket.local_addr().expect("bound").port();
        let shared = Arc::new(Shared {
            root: dir.path().to_owned(),
            hidden: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
        });
        let kept = Arc::clone(&shared);
        let thread = std::thread::spawn(move || serve(&socket, &kept));
        Self { dir, port, shared, thread: Some(thread) }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Whether texts are kept to itself.
    pub(super) fn hide(&self, hidden: bool) {
        self.shared.hidden.store(hidden, Ordering::SeqCst);
    }

    /// Questions about texts so far.
    pub(super) fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// The texts of a name.
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        texts(self.dir.path(), name)
    }

    pub(super) fn put(&self, name: &str, text: &str) {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).expect("made");
        // A text may hold what a file's name cannot.
        std::fs::write(dir.join("text"), text).expect("written");
    }

    pub(super) fn alias(&self, name: &str, target: &str) {
        std::fs::write(self.dir.path().join(format!("{name}.cname")), target).expect("written");
    }

    /// A program that publishes here, after it has done `first`.
    pub(super) fn hook(&self, first: &str) -> PathBuf {
        let path = self.dir.path().join("hook");
        let dir = self.dir.path().display().to_string();
        // Written aside: the old one may be running.
        let fresh = self.dir.path().join("hook.new");
        std::fs::write(&fresh, HOOK.replace("FIRST", first).replace("DIR", &dir)).expect("written");
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o700)).expect("set");
        std::fs::rename(&fresh, &path).expect("renamed");
        path
    }

    /// Tells whether such a program runs, of whichever test.
    pub(super) fn at_work() -> Box<dyn Fn() -> bool> {
        Box::new(|| {
            let threads = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
            let children = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")));
            let children = children.flatten().collect::<Vec<_>>().concat();
            children.split_whitespace().any(|pid| {
                // Of one that is a zombie edge is told before its time is up.
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.contains("(hook)") && !stat.contains("(hook) Z")
            })
        })
    }

    /// What the program was called for, a line each.
    pub(super) fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        let wake = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        drop(wake.send_to(b"end", (Ipv4Addr::LOCALHOST, self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn texts(root: &Path, name: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join(name)) else { return Vec::new() };
    let text = |entry: std::fs::DirEntry| {
        let written = std::fs::read_to_string(entry.path()).unwrap_or_default();
        if written.is_empty() { entry.file_name().to_string_lossy().into_owned() } else { written }
    };
    entries.flatten().map(text).collect()
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut bytes = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut bytes) {
        if shared.ends.load(Ordering::SeqCst) {
            return;
        }
        let Ok(message) = Message::from_vec(&bytes[..length]) else { continue };
        let answer = answer(message, shared).to_vec().expect("written");
        drop(socket.send_to(&answer, from));
    }
}

fn answer(message: Message, shared: &Shared) -> Message {
    let mut answer = message.into_response();
    answer.edns = None;
    let Some(query) = answer.queries.first().cloned() else { return answer };
    let name = query.name().to_lowercase();
    let written = name.to_ascii().trim_end_matches('.').to_owned();
    let absolute = |text: &str| Name::from_ascii(format!("{text}.")).expect("a name");
    let record = |data: RData| Record::from_rdata(query.name().clone(), 1, data);
    if let Ok(target) = std::fs::read_to_string(shared.root.join(format!("{written}.cname"))) {
        answer.add_answer(record(RData::CNAME(CNAME(absolute(&target)))));
        return answer;
    }
    // The last two labels are the zone.
    let zone = name.trim_to(2);
    match query.query_type() {
        RecordType::TXT => {
            shared.asked.fetch_add(1, Ordering::SeqCst);
            if !shared.hidden.load(Ordering::SeqCst) {
                for text in texts(&shared.root, &written) {
                    answer.add_answer(record(RData::TXT(TXT::new(vec![text]))));
                }
            }
        }
        RecordType::NS if written == "many.example" => {
            for number in 0..40 {
                answer.add_answer(record(RData::NS(NS(absolute(&format!("ns{number}.many.example"))))));
            }
        }
        RecordType::NS if zone == name => {
            answer.add_answer(record(RData::NS(NS(absolute("ns1.example.com")))));
        }
        RecordType::A if written == "ns1.example.com" => {
            answer.add_answer(record(RData::A(A(Ipv4Addr::LOCALHOST))));
        }
        _ => {}
    }
    if answer.answers.is_empty() {
        let soa = SOA::new(absolute("ns1.example.com"), absolute("root.example.com"), 1, 1, 1, 1, 1);
        answer.add_authority(Record::from_rdata(zone, 1, RData::SOA(soa)));
        if query.query_type() != RecordType::SOA {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
    }
    answer
}
