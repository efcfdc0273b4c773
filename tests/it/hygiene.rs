//! What workers can reach, and that nothing they start outlives them, however it hides.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Wire};
use crate::support::edge::{Edge, Setup, pid};
use crate::support::service::{Group, without_rights};
use crate::support::{processes, until};

const HELLO: &str = "domains: [a.test]\ncommand: edge hello\n";

#[tokio::test]
async fn a_worker_has_a_session_and_nothing_of_edges_but_its_three_streams() {
    let yaml = "domains: [a.test]\ncommand: sleep 1000\nworkers: 1";
    let edge = Setup::new().environment("TOP_SECRET", "x").app("a", yaml).start().await;
    let worker = pid(&edge.status().await["apps"]["a"]["workers"][0]).expect("a worker");
    let proc = PathBuf::from(format!("/proc/{worker}"));
    until(Duration::from_secs(5), "it executes its program", async || {
        fs::read(proc.join("cmdline")).is_ok_and(|line| line.starts_with(b"sleep")).then_some(())
    })
    .await;
    // Its own libraries are open for a moment; what it had from edge would stay.
    until(Duration::from_secs(5), "three streams alone", async || {
        let mut open: Vec<_> =
            fs::read_dir(proc.join("fd")).unwrap().flatten().map(|entry| entry.file_name()).collect();
        open.sort();
        (open == ["0", "1", "2"]).then_some(())
    })
    .await;
    assert_eq!(fs::read_link(proc.join("fd/0")).unwrap(), Path::new("/dev/null"));
    let stat = fs::read_to_string(proc.join("stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let own = worker.to_string();
    assert_eq!(fields[2..4], [own.as_str(), own.as_str()], "group and session: {stat}");
    let environment = String::from_utf8(fs::read(proc.join("environ")).unwrap()).unwrap();
    for name in ["TOP_SECRET", "NOTIFY_SOCKET", "LISTEN_FDS"] {
        assert!(!environment.contains(&format!("{name}=")), "{environment:?}");
    }
    assert!(environment.contains("EDGE_APP=a"), "{environment:?}");
    edge.stop().await;
}

#[tokio::test]
async fn a_capability_that_edge_was_given_is_not_its_workers() {
    if !processes::root() {
        return;
    }
    let given = ["setpriv", "--inh-caps=+net_bind_service", "--ambient-caps=+net_bind_service"];
    let edge = Setup::new().inside(&given).app("a", &format!("{HELLO}workers: 1")).start().await;
    edge.wait_until_up("a").await;
    let ambient = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapAmb:")).expect("Linux 4.3 or later");
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_ne!(ambient(edge.pid()), 0, "edge was given none");
    assert_eq!(ambient(edge.workers("a").await[0]), 0);
    edge.stop().await;
}

#[tokio::test]
async fn a_worker_that_other_machines_can_reach_is_named() {
    let server = |bind: &str| {
        format!("domains: [{bind}.test]\ncommand: python3 -m http.server {{port}} --bind {bind}\nworkers: 2")
    };
    let edge = Setup::new().app("open", &server("0.0.0.0")).app("closed", &server("127.0.0.1")).start().await;
    for app in ["open", "closed"] {
        edge.wait_until_up(app).await;
    }
    let line = edge.wait_for_log("who can be reached", |line| line["addresses"].is_string()).await;
    assert_eq!((&line["app"], &line["level"]), (&"open".into(), &"warn".into()), "{line}");
    let port = line["addresses"].as_str().unwrap().strip_prefix("0.0.0.0:").expect("the address");
    let told = edge.status().await["apps"]["open"]["workers"].to_string();
    assert!(told.contains(&format!("127.0.0.1:{port}\"")), "{told}");
    // Once for each generation; by the second one's, all looks at the first are long over.
    edge.done(&["reload", "open"]).await;
    let lines = until(Duration::from_secs(15), "the second look", async || {
        let lines: Vec<_> =
            edge.log_objects().into_iter().filter(|line| line["addresses"].is_string()).collect();
        (lines.len() > 1).then_some(lines)
    })
    .await;
    assert!(lines.len() == 2 && lines[1]["app"] == "open", "{lines:#?}");
    edge.stop().await;
}

/// A server that tries to reach what `paths` beside it lists, and answers with what it could.
const SNOOP: &str = r#"
import os, socket, stat, sys
server = socket.socket(socket.AF_UNIX)
server.bind(os.environ['EDGE_SOCKET'])
server.listen()
def reached(path):
    try:
        if path.isdigit():
            os.kill(int(path), 0)
        elif path.endswith('.sock'):
            socket.socket(socket.AF_UNIX).connect(path)
        else:
            open(path, 'rb').read(1)
        return True
    except OSError:
        return False
while True:
    client, _ = server.accept()
    # Its own attempt to connect comes this way too.
    if not client.recv(65536):
        continue
    paths = open(sys.argv[1]).read().split() + [os.environ['EDGE_SOCKET']]
    found = '\n'.join(path for path in paths if reached(path)).encode()
    client.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' % (len(found), found))
    client.close()
"#;

#[tokio::test]
async fn a_worker_of_another_user_reaches_no_key_no_admin_socket_and_no_other_apps_workers() {
    if !processes::root() {
        return;
    }
    let setup = Setup::new();
    let (script, paths) = (setup.dir().join("snoop.py"), setup.dir().join("paths"));
    fs::write(&script, SNOOP).unwrap();
    fs::write(&paths, "").unwrap();
    fs::set_permissions(&paths, fs::Permissions::from_mode(0o644)).unwrap();
    let snoop = format!(
        "domains: [b.test]\nworkers: 1\ncommand: python3 {} {}\nuser: nobody\ntransport: unix",
        script.display(),
        paths.display()
    );
    let edge = setup.app("a", &format!("{HELLO}workers: 1\ntransport: unix")).app("b", &snoop).start().await;
    edge.wait_until_up("b").await;
    let state = edge.wait_until_up("a").await;
    let theirs = state["workers"][0]["address"].as_str().unwrap().strip_prefix("unix:").unwrap().to_owned();
    let mut targets = files_below(&edge.dir().join("storage"));
    let holds_key = |path: &String| fs::read_to_string(path).is_ok_and(|text| text.contains("PRIVATE KEY"));
    assert!(targets.iter().any(holds_key), "there is a key to be read: {targets:?}");
    targets.extend([
        theirs,
        edge.dir().join("run/admin.sock").display().to_string(),
        format!("/proc/{}/environ", edge.pid()),
        format!("/proc/{}/mem", edge.pid()),
        edge.pid().to_string(),
        edge.workers("a").await[0].to_string(),
    ]);
    fs::write(&paths, targets.join("\n")).unwrap();
    let answer = Connection::open(&edge, "b.test", Wire::H1).await.get("/").await;
    let reached = answer.text();
    assert!(reached.ends_with(".sock") && reached.contains("/run/b/"), "it reaches its own alone: {reached}");
    assert_eq!(reached.lines().count(), 1, "{reached}");
    edge.stop().await;
}

/// I13: what is in its memory is in no core dump either, which is forbidden with the same word.
#[tokio::test]
async fn a_worker_of_edges_own_user_does_not_look_into_its_memory() {
    let setup = Setup::new();
    let (script, paths) = (setup.dir().join("snoop.py"), setup.dir().join("paths"));
    fs::write(&script, SNOOP).unwrap();
    fs::write(&paths, "").unwrap();
    let command = format!("python3 {} {}\ntransport: unix", script.display(), paths.display());
    let setup = setup.app_as_written("b", &format!("domains: [b.test]\nworkers: 1\ncommand: {command}"));
    let edge = without_rights(setup, None).start().await;
    edge.wait_until_up("b").await;
    let worker = edge.workers("b").await[0];
    assert_eq!(processes::uid_of(worker), processes::uid_of(edge.pid()));
    let theirs = |pid: u32| ["mem", "environ", "maps"].map(|file| format!("/proc/{pid}/{file}"));
    fs::write(&paths, [theirs(edge.pid()), theirs(worker)].concat().join("\n")).unwrap();
    let answer = Connection::open(&edge, "b.test", Wire::H1).await.get("/").await;
    let reached = answer.text();
    assert!(!reached.contains(&format!("/proc/{}/", edge.pid())), "{reached}");
    // So would edge's be reached, if it were as others are; `mem` has nothing at its beginning to be read.
    assert!(reached.contains(&format!("/proc/{worker}/environ")), "{reached}");
    edge.stop().await;
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => found.push(entry.path().display().to_string()),
        }
    }
    found
}

/// A server that starts a daemon as they are written: two forks, a session of its own, no descriptors, no environment, another
/// directory, deaf to every request to end. Only its process id is written down, for the test.
const DAEMON: &str = r#"
import os, signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        with open(os.path.join(sys.argv[1], 'daemon-%d' % os.getpid()), 'w'): pass
        os.chdir('/')
        os.closerange(0, 100)
        os.execve('/bin/sh', ['sh', '-c', 'trap "" TERM HUP INT; while :; do sleep 5; done'], {})
    os._exit(0)
os.wait()
server = socket.socket(socket.AF_UNIX)
server.bind(os.environ['EDGE_SOCKET'])
server.listen()
while True:
    client, _ = server.accept()
    client.recv(65536)
    client.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
    client.close()
"#;

/// An app for each way such a server is started: alone, by a shell that waits for it, and as `npm run` does it.
fn daemons() -> Setup {
    let setup = Setup::new();
    let script = setup.dir().join("daemon.py");
    fs::write(&script, DAEMON).unwrap();
    let python = format!("python3 {} {}", script.display(), setup.dir().display());
    let node = "require('child_process').spawn('sh',['-c',process.argv[1]+'; true'],{stdio:'inherit'}).on('exit',process.exit)";
    let commands =
        [python.clone(), format!("sh -c \"{python}; true\""), format!("node -e \"{node}\" \"{python}\"")];
    commands.iter().zip(["a", "b", "c"]).fold(setup, |setup, (command, app)| {
        let command = command.replace('\'', "''");
        let yaml = format!(
            "domains: [{app}.test]\nworkers: 1\nserver: generic\ntransport: unix\nstop_grace_period: 1s\ncommand: '{command}'"
        );
        setup.app(app, &yaml)
    })
}

async fn all_up(edge: &Edge) {
    for app in ["a", "b", "c"] {
        edge.wait_until_up(app).await;
    }
}

/// The daemons started so far that live.
fn living(dir: &Path) -> Vec<u32> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pids = names.filter_map(|name| name.strip_prefix("daemon-")?.parse().ok());
    pids.filter(|pid| processes::is_alive(*pid)).collect()
}

/// The three of them, one for each app: a daemon writes itself down after its server is ready, or before.
async fn three_live(edge: &Edge) -> Vec<u32> {
    let three = async || Some(living(edge.dir())).filter(|living| living.len() == 3);
    until(Duration::from_secs(10), "one daemon for each app", three).await
}

fn no_zombies(edge: &Edge) -> bool {
    processes::children_of(edge.pid()).iter().all(|(_, state)| *state != 'Z')
}

#[tokio::test]
async fn a_daemon_that_hides_ends_with_the_worker_that_started_it() {
    let edge = daemons().start().await;
    all_up(&edge).await;
    let first = three_live(&edge).await;
    edge.done(&["restart", "a"]).await;
    let old = first.iter().filter(|pid| processes::is_alive(**pid)).count();
    assert_eq!(old, 2, "that of the app is gone, the others' were not touched");
    three_live(&edge).await;
    processes::signal(edge.workers("b").await[0], Signal::SIGKILL);
    until(Duration::from_secs(10), "a worker that died took its daemon along", async || {
        let now = living(edge.dir());
        (now.len() == 3 && now.iter().filter(|pid| first.contains(pid)).count() == 1).then_some(())
    })
    .await;
    until(Duration::from_secs(5), "no zombie", async || no_zombies(&edge).then_some(())).await;
    let dir = edge.dir().to_owned();
    let last = living(&dir);
    edge.stop().await;
    let left: Vec<_> = last.into_iter().filter(|pid| processes::is_alive(*pid)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_daemon_that_hides_does_not_outlive_an_edge_that_was_killed() {
    let mut edge = daemons().start().await;
    all_up(&edge).await;
    three_live(&edge).await;
    edge.kill().await;
    until(Duration::from_secs(5), "the daemons are gone", async || {
        living(edge.dir()).is_empty().then_some(())
    })
    .await;
    edge.restart().await;
    all_up(&edge).await;
    three_live(&edge).await;
    // Its guard too: now it is the next start's to find them.
    let guard = processes::children_of(edge.pid()).into_iter().find(|(pid, _)| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "edge-guard")
    });
    processes::signal(guard.expect("a guard").0, Signal::SIGKILL);
    edge.kill().await;
    let survivors = living(edge.dir());
    assert_eq!(survivors.len(), 3, "nobody has told them");
    edge.restart().await;
    let left: Vec<_> = survivors.into_iter().filter(|pid| processes::is_alive(*pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    all_up(&edge).await;
    edge.stop().await;
}

#[tokio::test]
async fn as_process_1_edge_reaps_and_leaves_nothing() {
    if !processes::root() {
        return;
    }
    let mut edge = daemons().inside(&["unshare", "--pid", "--fork", "--mount-proc"]).start().await;
    all_up(&edge).await;
    assert_eq!(edge.status().await["pid"], 1);
    let (inner, _) = processes::children_of(edge.pid())[0];
    // Each daemon has one process of its own, which it starts after its server is ready, or before.
    let sleeping =
        |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep");
    let before = until(Duration::from_secs(10), "three daemons that sleep", async || {
        let all = processes::beside(inner);
        (all.iter().filter(|(pid, _)| sleeping(pid)).count() == 3).then_some(all.len())
    })
    .await;
    for app in ["a", "b", "c"] {
        edge.done(&["restart", app]).await;
    }
    until(Duration::from_secs(10), "as many processes as before, and no zombie", async || {
        let now = processes::beside(inner);
        (now.len() == before && now.iter().all(|(_, state)| *state != 'Z')).then_some(())
    })
    .await;
    processes::signal(inner, Signal::SIGTERM);
    assert_eq!(edge.ended(Duration::from_secs(25)).await.code(), Some(0));
    edge.assert_nothing_left().await;
}

fn members(group: &Path) -> Vec<u32> {
    let list = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    list.lines().map(|line| line.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_control_group_of_edges_own_holds_each_worker_with_all_it_starts_and_is_left_empty() {
    let Some(group) = Group::new() else { return };
    let mut edge = daemons()
        .app("d", "domains: [d.test]\nworkers: 1\ncommand: edge hello\nmemory_limit: 300MB")
        .inside(&group.entered())
        .start()
        .await;
    all_up(&edge).await;
    let limited = edge.wait_until_up("d").await;
    let daemons = three_live(&edge).await;
    assert!(members(group.path()).is_empty());
    assert!(members(&group.path().join("edge")).contains(&edge.pid()));
    assert_eq!(group.leaves().len(), 4, "{:?}", group.leaves());
    for daemon in daemons {
        assert!(group.leaves().iter().any(|leaf| members(leaf).contains(&daemon)), "{daemon} is in no leaf");
    }
    let has_memory = fs::read_to_string(group.path().join("cgroup.controllers")).unwrap().contains("memory");
    if has_memory {
        assert_eq!(limited["workers"][0]["memory_limit_bytes"], 300_000_000);
    } else {
        assert!(limited["workers"][0]["memory_limit_bytes"].is_null());
        let said = |line: &serde_json::Value| line.to_string().contains("has no memory controller");
        edge.wait_for_log("why the limit is not kept", said).await;
    }
    for process in members(&group.path().join("edge")) {
        processes::signal(process, Signal::SIGKILL);
    }
    edge.ended(Duration::from_secs(5)).await;
    let survivors = living(edge.dir());
    assert_eq!((survivors.len(), group.leaves().len()), (3, 4), "nobody has told them");
    edge.restart().await;
    let left: Vec<_> = survivors.into_iter().filter(|pid| processes::is_alive(*pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    all_up(&edge).await;
    edge.wait_until_up("d").await;
    assert_eq!(group.leaves().len(), 4, "{:?}", group.leaves());
    edge.stop().await;
    assert!(group.leaves().is_empty(), "{:?}", group.leaves());
}

#[tokio::test]
async fn a_limit_that_nobody_can_keep_is_said_once_and_workers_run() {
    let limited =
        |domain: &str| format!("domains: [{domain}]\nworkers: 2\ncommand: edge hello\nmemory_limit: 300MB");
    // Beside another process, so that the group is nobody's to divide, wherever the tests run.
    let edge = Setup::new()
        .inside(&["sh", "-c", "sleep 1000 & exec \"$0\" \"$@\""])
        .app("a", &limited("a.test"))
        .app("b", &limited("b.test"))
        .start()
        .await;
    edge.wait_until_up("a").await;
    edge.wait_until_up("b").await;
    let said: Vec<_> =
        edge.log_objects().into_iter().filter(|line| line.to_string().contains("memory_limit")).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0]["cause"].as_str().is_some_and(|cause| cause.contains("control group")), "{said:#?}");
    let other = processes::children_of(edge.pid()).into_iter().find(|(pid, _)| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
    });
    processes::signal(other.expect("the other process").0, Signal::SIGKILL);
    edge.stop().await;
}
