//! What operators hear while something goes wrong, not only once it is over.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::edge::{Edge, Setup};
use crate::support::{client::PATIENCE, until};

/// Setup and directory of an app whose program is `text`.
fn with_program(name: &str, text: &str) -> (Setup, std::path::PathBuf) {
    let setup = Setup::new();
    let dir = setup.dir().join("app");
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    write(&dir.join(name), text);
    (setup, dir)
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

async fn shown(edge: &Edge, words: &str) -> String {
    until(PATIENCE, words, async || {
        let text = edge.done(&["status"]).await;
        text.contains(words).then_some(text)
    })
    .await
}

/// Does not end when it is asked to.
const STUBBORN: &str = "
import http.server, os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
address = ('127.0.0.1', int(os.environ['PORT']))
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
";

#[tokio::test]
async fn a_deploy_says_whom_it_killed_and_by_which_key() {
    let (setup, dir) = with_program("stubborn.py", STUBBORN);
    let yaml = format!(
        "domains: [a.test]\ncommand: python3 stubborn.py\nworkers: 1\nstop_grace_period: 1s\nworking_dir: {}",
        dir.display()
    );
    let edge = setup.app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    for call in [&["restart", "a"][..], &["reload", "a"]] {
        let said = edge.done(call).await;
        assert!(said.contains("a: worker 0 was killed after `stop_grace_period` (1 s)"), "{call:?}: {said}");
    }
    edge.wait_for_log("the key and its value", |line| {
        line["worker"] == 0 && line.to_string().contains("did not end within `stop_grace_period` (1 s)")
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn while_a_worker_is_waited_for_it_is_said_why() {
    let astray = "domains: [b.test]\ncommand: python3 -m http.server --bind 127.0.0.1 0\nworkers: 1";
    let served = "domains: [a.test]\ncommand: python3 -m http.server --bind 127.0.0.1 {port}\nworkers: 1\n\
                  start_timeout: 8s\nhealthcheck: {path: /}";
    let edge = Setup::new().app("a", served).app("b", astray).start().await;
    edge.wait_until_up("a").await;
    // One listens where nobody told it to.
    let hint = edge
        .wait_for_log("what it waits for", |line| {
            line["app"] == "b" && line.to_string().contains("the worker is not ready after 5 s")
        })
        .await;
    let reason = hint["reason"].as_str().unwrap();
    assert!(reason.contains("it listens on 127.0.0.1:") && reason.contains("give it {port}"), "{hint}");
    let text = shown(&edge, "! not ready yet: nothing listens at 127.0.0.1:").await;
    assert!(text.contains("give it {port}"), "{text}");
    // Another answers from the first second, but not as it should.
    let before = edge.workers("a").await;
    edge.edit("healthcheck: {path: /}", "healthcheck: {path: /nothing}");
    let output = edge.command(&["reload"]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    let words =
        "a: worker 0 is not ready after 5 s: GET /nothing answered 404; it has until `start_timeout` (8 s)";
    assert!(said.contains(words), "{said}");
    // The end of a newcomer is not told of the worker that serves on.
    let text =
        shown(&edge, "new workers did not take over: not ready in 8 s: GET /nothing answered 404").await;
    assert!(!text.contains("last exit"), "{text}");
    assert_eq!(edge.workers("a").await, before);
    let status = edge.status().await;
    assert!(status["apps"]["a"]["workers"][0]["last_exit"].is_null(), "{status}");
    edge.edit("healthcheck: {path: /nothing}", "healthcheck: {path: /}");
    edge.done(&["reload", "a"]).await;
    let text = edge.done(&["status"]).await;
    assert!(!text.contains("did not take over"), "{text}");
    edge.stop().await;
}

/// Unwell once there is a file `ill`.
const FRAIL: &str = "
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if os.path.exists('ill') else 200)
        self.send_header('Content-Length', '0')
        self.end_headers()
http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
";

#[tokio::test]
async fn a_worker_that_fails_its_health_check_is_marked_with_what_it_answered() {
    let (setup, dir) = with_program("frail.py", FRAIL);
    let yaml = format!(
        "domains: [a.test]\ncommand: python3 frail.py\nworkers: 1\nworking_dir: {}\n\
         healthcheck: {{path: /health, interval: 200ms, retries: 2}}",
        dir.display()
    );
    let edge = setup.app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    assert!(!edge.done(&["status"]).await.contains("health check"));
    write(&dir.join("ill"), "");
    let text = shown(&edge, "health checks: GET /health answered 503").await;
    assert!(text.contains("1 with a failed health check"), "{text}");
    let line = edge
        .wait_for_log("that it is to be replaced", |line| {
            line.to_string().contains("fails its health checks")
        })
        .await;
    assert_eq!((line["path"].as_str(), line["failures"].as_u64()), (Some("/health"), Some(2)), "{line}");
    assert_eq!(line["reason"], "GET /health answered 503", "{line}");
    std::fs::remove_file(dir.join("ill")).unwrap();
    until(PATIENCE, "it is well again", async || {
        (!edge.done(&["status"]).await.contains("health check: ")).then_some(())
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn a_failed_command_before_the_start_is_told_by_its_number_and_what_an_app_printed_last_is_shown() {
    let failing = "domains: [a.test]\ncommand: edge hello\nworkers: 1\nrestart: {backoff: 100ms}\nbefore_start:\n\
                   - sh -c 'echo one'\n- sh -c 'echo the table is locked >&2; exit 4'";
    let broken = "domains: [b.test]\ncommand: sh -c 'echo no such module >&2; exit 3'\nworkers: 1";
    let edge = Setup::new().app("a", failing).app("b", broken).start().await;
    let words = "command 2 of 2 (`sh …`) of `before_start` failed: exit status 4";
    let text = shown(&edge, words).await;
    assert!(text.contains("! its last line: the table is locked"), "{text}");
    shown(&edge, "! its last line: no such module").await;
    let (status, errors) = edge.failing(&["restart", "a"]).await;
    assert_eq!(status, 1);
    assert!(errors.contains(words) && errors.contains("no worker of it serves"), "{errors}");
    edge.stop().await;
}

/// What matters here of `rails server`: it does not start where its pid file is there, and one that is killed leaves it.
const RAILS: &str = "#!/usr/bin/env python3
import http.server, os, sys
words = sys.argv[1:]
value = lambda name: words[words.index(name) + 1]
try:
    file = os.open(value('-P'), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
except FileExistsError:
    sys.exit('A server is already running. Check ' + value('-P'))
os.write(file, b'%d' % os.getpid())
address = (value('-b'), int(value('-p')))
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
";

#[tokio::test]
async fn each_worker_of_rails_has_a_pid_file_of_its_own_and_none_is_in_the_way_of_the_next() {
    let (setup, dir) = with_program("bin/rails", RAILS);
    let yaml =
        format!("domains: [a.test]\ncommand: bin/rails server\nworkers: 2\nworking_dir: {}", dir.display());
    let mut edge = setup.app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    edge.done(&["reload", "a"]).await;
    edge.kill().await;
    edge.restart().await;
    edge.wait_until_up("a").await;
    let run = edge.dir().join("run/a");
    let pid_files = std::fs::read_dir(&run).unwrap().flatten();
    assert_eq!(pid_files.filter(|entry| entry.path().extension().is_some_and(|e| e == "pid")).count(), 2);
    edge.done(&["scale", "a", "1"]).await;
    assert_eq!(std::fs::read_dir(&run).unwrap().count(), 1);
    edge.stop().await;
}
