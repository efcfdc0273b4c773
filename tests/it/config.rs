//! The command line and the file: what is wrong is said at once, where it stands, with the exit status the contract names.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use nix::unistd::Pid;
use rcgen::{CertificateParams, KeyPair};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};

use crate::ca::free_port;
use crate::support::client::PATIENCE;
use crate::support::edge::{BINARY, run};
use crate::support::{processes, until};

const BAD: &str = "\
apps:
  api:
    domains: [api.example.com]
    command: uvicorn main:app
    workerz: 4
  shop:
    domains: [api.example.com]
    command: gunicorn shop.wsgi
    workers: many
    start_timeout: soon
";

async fn with_file(arguments: &[&str], text: &str) -> (Output, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.yaml");
    fs::write(&file, text).unwrap();
    (run(&[], arguments, &file).await, dir)
}

#[tokio::test]
async fn every_problem_is_printed_at_once_with_its_place() {
    for arguments in [&[][..], &["run"], &["check"]] {
        let (output, _dir) = with_file(arguments, BAD).await;
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        for (place, key) in [
            ("edge.yaml:5:", "apps.api.workerz"),
            ("edge.yaml:7:", "apps.shop.domains"),
            ("edge.yaml:9:", "apps.shop.workers"),
            ("edge.yaml:10:", "apps.shop.start_timeout"),
        ] {
            assert!(
                text.lines().any(|line| line.contains(place) && line.contains(key)),
                "{arguments:?}: {place} {key} not in:\n{text}"
            );
        }
        assert!(
            text.contains("\"workers\"") || text.contains("`workers`"),
            "no nearest spelling in:\n{text}"
        );
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[tokio::test]
async fn what_is_not_yaml_is_refused_with_its_place() {
    let (output, _dir) = with_file(&["check"], "apps:\n  api: [\n").await;
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("edge.yaml:"), "{text}");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let output = run(&[], &["check"], Path::new("/nonexistent/edge.yaml")).await;
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nonexistent/edge.yaml"));
}

#[tokio::test]
async fn check_prints_ok_and_the_command_lines() {
    let (output, _dir) = with_file(
        &["check"],
        "apps:\n  api:\n    domains: [api.test]\n    command: hypercorn main:app\n    workers: 2\n    working_dir: /tmp\n",
    )
    .await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let verdict = text.lines().last().unwrap();
    assert!(
        verdict.starts_with("ok") && text.contains("hypercorn main:app") && text.contains("-b"),
        "{text}"
    );
}

#[tokio::test]
async fn check_reads_the_certificates_that_operators_keep_as_a_start_would() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    for (name, from, to) in [("old", 2000, 2001), ("early", 2100, 2101), ("good", 2000, 2100)] {
        let mut params = CertificateParams::new(vec![format!("{name}.test")]).unwrap();
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        fs::write(dir.path().join(format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
    }
    fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
    fs::write(dir.path().join("other.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let file = dir.path().join("edge.yaml");
    let check = async |apps: &[(&str, &str, &str)]| {
        let mut text = "apps:\n".to_owned();
        for (name, domains, more) in apps {
            let more = more.replace("DIR", &dir.path().display().to_string());
            text += &format!("  {name}: {{domains: [{domains}], upstream: \"127.0.0.1:9\", {more}}}\n");
        }
        fs::write(&file, text).unwrap();
        let output = run(&[], &["check"], &file).await;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let pair = |name: &str| format!("tls: {{cert: DIR/{name}.pem, key: DIR/key.pem}}");

    let (old, early, good) = (pair("old"), pair("early"), pair("good"));
    let apps = [
        ("old", "old.test", &old[..]),
        ("early", "early.test", &early),
        ("good", "good.test, else.test", &good),
    ];
    let (code, text, _) = check(&apps).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("old.pem has been expired since 2001-01-01"), "{text}");
    assert!(text.contains("early.pem is not valid before 2100-01-01"), "{text}");
    assert!(text.contains("good.pem does not name else.test"), "{text}");
    assert!(text.ends_with("ok, 3 warnings\n"), "{text}");

    let unusable = [
        ("pair", "good.test", "tls: {cert: DIR/good.pem, key: DIR/other.pem}"),
        ("auth", "auth.test", "tls: internal, client_auth: {ca: DIR/key.pem}"),
    ];
    let (code, text, error) = check(&unusable).await;
    assert_eq!((code, &text[..]), (Some(78), ""), "{error}");
    for part in ["apps.pair.tls: ", "apps.auth.client_auth.ca: "] {
        assert!(error.lines().any(|line| line.contains(part)), "{part}: {error}");
    }
    let start = run(&[], &["run"], &file).await;
    let said = String::from_utf8_lossy(&start.stderr);
    assert_eq!(start.status.code(), Some(78), "a start: {said}");
    for part in ["edge: apps.pair.tls: cannot use ", "edge: apps.auth.client_auth.ca: cannot use "] {
        assert!(said.lines().any(|line| line.starts_with(part)), "{part}: a start: {said}");
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_is_warned_of_and_refuses_nothing() {
    let text = "defaults: {environment: {PATH: /usr/bin:/bin}}\napps:\n  api: {domains: [api.test], command: no-such-server}\n  \
                made: {domains: [made.test], command: ./venv/bin/run, before_start: sh build.sh}\n  \
                shell: {domains: [shell.test], command: [sh, -c, no-such-server]}\n  \
                gone: {domains: [gone.test], command: sh -m, before_start: [no-such-hook, sh -c true, no-other-hook x, no-other-hook y]}\n";
    let (output, _dir) = with_file(&["check"], text).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let of = |app: &str| {
        let lines = text.lines().skip_while(|line| !line.starts_with(app));
        let mine = lines.take_while(|line| line.starts_with(app) || line.starts_with(' '));
        mine.collect::<Vec<_>>().join("\n")
    };
    assert!(text.ends_with("\nok, 4 warnings\n"), "{text}");
    assert!(
        of("api").contains(
            "warning: on this machine, `no-such-server` is not in PATH (/usr/bin:/bin): install it"
        ),
        "{text}"
    );
    assert!(of("made").contains("does not exist") && of("made").contains("unless `before_start`"), "{text}");
    assert!(!of("shell").contains("warning"), "{text}");
    for hook in ["no-such-hook", "no-other-hook"] {
        let warning = format!("warning: on this machine, `before_start`: `{hook}` is not in PATH");
        assert!(of("gone").contains(&warning), "{text}");
    }
}

#[tokio::test]
async fn a_command_that_leaves_for_the_background_is_warned_of_and_a_reloader_is_explained() {
    let text = "apps:\n  away: {domains: [away.test], command: env gunicorn --daemon app}\n  \
                script: {domains: [script.test], command: [sh, -c, 'sleep 1 &']}\n  \
                dev: {domains: [dev.test], command: env fastapi dev main.py}\n  \
                watch: {domains: [watch.test], command: env gunicorn --reload app}\n";
    let (output, _dir) = with_file(&["check"], text).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for told in [
        "warning: `gunicorn --daemon` goes to the background, and edge takes it for dead: leave `--daemon` out",
        "warning: the script sends its last command to the background by `&` and ends",
        "note: `fastapi dev` is for development: edge runs it as it is",
        "note: `--reload` is for development: edge runs it as it is",
        "in production use `fastapi run`",
        "ok, 2 warnings\n",
    ] {
        assert!(text.contains(told), "{told} not in:\n{text}");
    }
}

#[tokio::test]
async fn a_size_that_lost_its_unit_is_warned_of() {
    let text = "apps:\n  api: {domains: [api.test], command: edge hello, max_memory: 400, memory_limit: 512}\n  \
                shop: {domains: [shop.test], command: edge hello, max_memory: 400MB}\n";
    let (output, _dir) = with_file(&["check"], text).await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for told in
        ["warning: `max_memory` is 400 bytes", "warning: `memory_limit` is 512 bytes", "ok, 2 warnings\n"]
    {
        assert!(text.contains(told), "{text}");
    }
}

#[tokio::test]
async fn a_file_that_holds_no_certificate_is_no_root_of_a_ca() {
    let text = "acme: {ca_root: edge.yaml}\napps:\n  api: {domains: [api.test], command: edge hello}\n";
    for arguments in [&["check"][..], &["run"]] {
        let (output, _dir) = with_file(arguments, text).await;
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("acme.ca_root: cannot use `edge.yaml`: it holds no certificate"), "{text}");
    }
}

#[tokio::test]
async fn explain_prints_command_and_environment_of_a_worker() {
    let (output, _dir) = with_file(
        &["explain", "api"],
        "apps:\n  api:\n    domains: [api.test]\n    command: uvicorn main:app\n    workers: 2\n    working_dir: /tmp\n",
    )
    .await;
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for wanted in ["uvicorn main:app", "UVICORN_UDS", "EDGE_WORKER", "WEB_CONCURRENCY"] {
        assert!(text.contains(wanted), "{wanted} not in:\n{text}");
    }
}

#[tokio::test]
async fn what_explain_prints_starts_the_worker_by_hand() {
    let text = "apps:\n  socket:\n    domains: [a.test]\n    command: edge hello\n    environment: {SECRET: written}\n  \
                port:\n    domains: [b.test]\n    command: python3 -m http.server --bind 127.0.0.1 {port}\n";
    let (output, dir) = with_file(&["explain", "socket"], text).await;
    let script = String::from_utf8(output.stdout).unwrap();
    assert!(!script.contains("written"), "{script}");
    let (status, said) = {
        let output = shell(&dir, &script, None).wait_with_output().await.unwrap();
        (output.status, String::from_utf8(output.stderr).unwrap())
    };
    assert!(!status.success() && said.contains("SECRET: the configuration has its value"), "{said}");

    let mut by_hand = shell(&dir, &script, Some("a secret"));
    let socket = dir.path().join("edge-socket-0.sock");
    until(PATIENCE, "the socket answers", async || UnixStream::connect(&socket).await.ok()).await;
    let pid = by_hand.id().unwrap();
    // Shells differ in whether one of their own stays in between.
    let own = processes::children_of(pid).first().map_or(pid, |(child, _)| *child);
    let environment = fs::read(format!("/proc/{own}/environ")).unwrap();
    let holds = |wanted: &[u8]| environment.split(|byte| *byte == 0).any(|one| one == wanted);
    assert!(holds(b"SECRET=a secret") && holds(b"EDGE_APP=socket"));
    end(&mut by_hand).await;

    let output = run(&[], &["explain", "port"], &dir.path().join("edge.yaml")).await;
    let (script, port) = (String::from_utf8(output.stdout).unwrap(), free_port());
    assert_eq!(script.matches("port=8000  #").count(), 1, "{script}");
    let mut by_hand = shell(&dir, &script.replace("port=8000", &format!("port={port}")), None);
    until(PATIENCE, "the port answers", async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
    end(&mut by_hand).await;
}

/// A shell that is given `script` as a paste gives it.
fn shell(dir: &tempfile::TempDir, script: &str, secret: Option<&str>) -> Child {
    let file = dir.path().join("paste");
    fs::write(&file, script).unwrap();
    Command::new("sh")
        .stdin(fs::File::open(file).unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env("TMPDIR", dir.path())
        .envs(secret.map(|secret| ("SECRET", secret)))
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Ends it and what it runs.
async fn end(shell: &mut Child) {
    let group = Pid::from_raw(shell.id().unwrap().cast_signed());
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
    shell.wait().await.unwrap();
}

#[tokio::test]
async fn usage_errors_end_with_64() {
    let long = "x".repeat(5000);
    for arguments in [
        &["frobnicate"][..],
        &["--frobnicate"],
        &["status", "--frobnicate"],
        &["scale", "a", "0"],
        &["scale", "A/B", "1"],
        &["reload", "a b"],
        &["certs", "renew", "a b"],
        &["maintenance", "on", "a", "-m", &long],
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("edge.yaml"), "apps: {}\n").unwrap();
        let output = Command::new(BINARY).current_dir(&dir).args(arguments).output().await.unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    for arguments in [&["--help"][..], &["--version"], &["status", "--help"]] {
        let output = Command::new(BINARY).args(arguments).output().await.unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty());
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_ends_with_1() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.yaml");
    let (address, below) = (taken.local_addr().unwrap(), dir.path().display());
    let text = format!(
        "storage: {below}/s\nruntime_dir: {below}/r\nlisten:\n  http: []\n  https: [\"{address}\"]\n\
         apps:\n  a:\n    domains: [a.test]\n    upstream: http://127.0.0.1:1\n"
    );
    fs::write(&file, text).unwrap();
    let output = run(&[], &[], &file).await;
    assert_eq!(output.status.code(), Some(1));
    let said = [output.stdout, output.stderr].concat();
    assert!(
        String::from_utf8_lossy(&said).contains(&address.to_string()),
        "{}",
        String::from_utf8_lossy(&said)
    );
}

#[tokio::test]
async fn an_editor_with_the_schema_takes_what_edge_takes_and_sees_mistyped_keys() {
    let (schema, _dir) = with_file(&["schema"], "never read").await;
    assert_eq!(schema.status.code(), Some(0));
    let good = ["reference", "edge", "demo"].map(|name| (format!("config/{name}.yaml"), true));
    let more = ["good-all", "good-dns", "good-small"].map(|name| (format!("tests/config/{name}.yaml"), true));
    let bad = ["spelling", "mistyped", "types"].map(|name| (format!("tests/config/bad-{name}.yaml"), false));
    let files: Vec<_> = good.into_iter().chain(more).chain(bad).collect();
    let mut python = Command::new("target/test-venv/bin/python")
        .arg("tests/apps/judge.py")
        .args(files.iter().map(|(file, _)| file))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(&schema.stdout).await.unwrap();
    let output = python.wait_with_output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let judged: Vec<_> =
        text.lines().map(|line| (line.split(' ').next().unwrap().to_owned(), line.ends_with(" 0"))).collect();
    assert_eq!(judged, files, "{text}");
}
