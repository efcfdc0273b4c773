//! Sockets that a service manager holds: nobody is refused while edge is restarted.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::PATIENCE;
use crate::support::edge::Setup;
use crate::support::{until, within};

const HELLO: &str = "domains: [a.test]\ncommand: edge hello\nworkers: 1\nhttp: serve";

/// A socket that listens on a free port, and its address.
fn held() -> (std::net::TcpListener, SocketAddr) {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

/// Connects, asks, and reads the answer to its end.
async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn nobody_is_refused_while_edge_is_restarted_on_sockets_that_are_held_for_it() {
    let (socket, address) = held();
    let mut edge = Setup::new().ports(address.port(), 0).holding(socket).app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    assert_eq!(edge.http, address);
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let asking = tokio::spawn(async move {
        let (mut answered, mut longest) = (0, Duration::ZERO);
        loop {
            let begun = Instant::now();
            let answer = ask(address).await.unwrap_or_else(|error| panic!("after {answered}: {error}"));
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("</html>"), "{answer}");
            answered += 1;
            longest = longest.max(begun.elapsed());
            if *stopped.borrow_and_update() {
                return (answered, longest);
            }
        }
    });
    for _ in 0..3 {
        let before = edge.log_objects().iter().filter(|line| line["path"] == "/").count();
        edge.signal(Signal::SIGTERM);
        assert_eq!(edge.ended(PATIENCE).await.code(), Some(0));
        edge.restart().await;
        until(PATIENCE, "it answers again", async || {
            let now = edge.log_objects().iter().filter(|line| line["path"] == "/").count();
            (now > before + 1).then_some(())
        })
        .await;
    }
    stop.send(true).expect("it asks");
    let (answered, longest) = within(PATIENCE, "the last answer", asking).await.expect("every answer");
    println!(
        "figure: three restarts on a held socket: {answered} answered, none refused, the slowest in {longest:?}"
    );
    edge.stop().await;
}

#[tokio::test]
async fn at_an_address_that_a_reload_takes_away_clients_wait_until_it_comes_back() {
    let (socket, address) = held();
    let edge = Setup::new().ports(address.port(), 0).holding(socket).app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let line = format!("http: [\"{address}\"]");
    edge.edit(&line, "http: []");
    edge.reload().await;
    let mut waiting = TcpStream::connect(address).await.expect("the service manager's socket takes it");
    waiting.write_all(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await.expect("open");
    edge.edit("http: []", &line);
    edge.reload().await;
    let mut answer = String::new();
    within(PATIENCE, "an answer", waiting.read_to_string(&mut answer)).await.expect("open");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    edge.stop().await;
}

#[tokio::test]
async fn a_socket_that_no_address_asks_for_is_told_and_one_that_is_none_stops_the_start() {
    let (socket, address) = held();
    let edge = Setup::new().holding(socket).app("a", HELLO).start().await;
    let said = edge.wait_for_log("a warning", |line| line["address"] == address.to_string()).await;
    assert_eq!(said["level"], "warn", "{said}");
    edge.stop().await;
    let pass = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3</dev/null";
    let mut edge = Setup::new().inside(&["sh", "-c", pass, "sh"]).app("a", HELLO).launch();
    assert_eq!(edge.ended(PATIENCE).await.code(), Some(1));
    assert!(edge.log().contains("descriptor 3, which LISTEN_FDS passes"), "{}", edge.log());
}

#[tokio::test]
async fn a_passed_socket_that_is_in_the_way_is_named_with_what_it_would_have_to_be() {
    let launched = async |at: &str, pass: &str, count: &str| {
        let socket = std::net::TcpListener::bind((at, 0)).expect("a free port");
        let port = socket.local_addr().expect("bound").port();
        let setup = Setup::new().ports(port, 0).holding(socket).environment("LISTEN_FDS", count);
        let mut edge = setup.inside(&["sh", "-c", pass, "sh"]).app("a", HELLO).launch();
        assert_eq!(edge.ended(PATIENCE).await.code(), Some(1), "{}", edge.log());
        (port, edge.log())
    };
    let (port, log) = launched("0.0.0.0", "export LISTEN_PID=$$; exec \"$@\" 3<&0 0</dev/null", "1").await;
    assert!(log.contains(&format!("a socket at 0.0.0.0:{port} in its place")), "{log}");
    assert!(log.contains(&format!("ListenStream=127.0.0.1:{port}")), "{log}");
    let (_, log) = launched("127.0.0.1", "export LISTEN_PID=1; exec \"$@\" 3<&0 0</dev/null", "1").await;
    assert!(log.contains("to process 1 (LISTEN_PID), which is not edge"), "{log}");
    let pass = "export LISTEN_PID=$$; exec \"$@\" 3<&0 4<&0 0</dev/null";
    let (port, log) = launched("127.0.0.1", pass, "2").await;
    assert!(log.contains(&format!("two sockets at 127.0.0.1:{port}")), "{log}");
}
