//! Behind HTTP proxies and load balancers: whom they name is the client everywhere, and nobody else is believed.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::client::{Connection, PATIENCE, Raw, Wire, empty, tcp_from, tls_over};
use crate::support::edge::{Edge, Setup};
use crate::support::origin::Origin;
use crate::support::{until, within};

const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 3));

async fn edge(origin: &Origin, top: &str, app: &str) -> Edge {
    Setup::new().top(top).app("a", &format!("domains: [a.test]\n{app}\n{}", origin.upstream())).start().await
}

/// HTTP/1.1 from `from`, plain or not.
async fn connection(edge: &Edge, from: IpAddr, wire: Option<Wire>) -> Connection {
    let Some(wire) = wire else {
        let tcp = tcp_from(from, edge.http).await.unwrap();
        return Connection::over(tcp, "http", "a.test", Wire::H1).await.unwrap();
    };
    let tcp = tcp_from(from, edge.https).await.unwrap();
    let trust = edge.trust().await;
    let stream = tls_over(tcp, "a.test", trust.offering(&[wire.alpn()])).await.unwrap();
    Connection::over(stream, "https", "a.test", wire).await.unwrap()
}

/// Asks for `path` with these fields; returned are the status and what the worker saw of the client.
async fn asked(connection: &mut Connection, path: &str, fields: &[(&str, &str)]) -> (u16, String) {
    let request = connection.request("GET", path);
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = connection.exchange(request.body(empty()).unwrap()).await.unwrap();
    let text = answer.text();
    let field = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(field, _)| *field == name).map(|(_, value)| value).collect::<Vec<_>>().join("|")
    };
    let mut seen = String::new();
    for name in ["x-forwarded-for", "x-real-ip", "x-forwarded-proto", "x-forwarded-host", "forwarded"] {
        write!(seen, "{} ", field(name)).unwrap();
    }
    (answer.status.as_u16(), seen.trim_end().to_owned())
}

async fn client_in_log(edge: &Edge, path: &str) -> String {
    edge.wait_for_access(path).await["client"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn c01_whom_a_trusted_proxy_names_is_the_client_for_worker_and_log() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "trusted_proxies: [127.0.0.2, 10.0.0.0/8]", "").await;
    let spoof = [
        ("x-forwarded-for", "198.51.100.1, 203.0.113.7, 10.1.2.3"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "shop.example:8443"),
        ("x-real-ip", "198.51.100.2"),
    ];
    for wire in Wire::BOTH {
        let path = format!("/proxy-{wire:?}");
        let (status, seen) = asked(&mut connection(&edge, PROXY, Some(wire)).await, &path, &spoof).await;
        assert_eq!(status, 200);
        let element = "for=203.0.113.7;host=\"shop.example:8443\";proto=https";
        assert_eq!(seen, format!("203.0.113.7 203.0.113.7 https shop.example:8443 {element}"));
        assert_eq!(client_in_log(&edge, &path).await, "203.0.113.7");

        let path = format!("/stranger-{wire:?}");
        let (status, seen) = asked(&mut connection(&edge, STRANGER, Some(wire)).await, &path, &spoof).await;
        assert_eq!(status, 200);
        assert_eq!(seen, "127.0.0.3 127.0.0.3 https a.test for=127.0.0.3;host=a.test;proto=https");
        assert_eq!(client_in_log(&edge, &path).await, "127.0.0.3");
    }
    let mut proxy = connection(&edge, PROXY, Some(Wire::H1)).await;
    let told = [("forwarded", "for=\"198.51.100.1;, for=\"[2001:db8::7]:4711\";proto=https;host=b.test")];
    let (_, seen) = asked(&mut proxy, "/forwarded", &told).await;
    assert_eq!(seen, "2001:db8::7 2001:db8::7 https b.test for=\"[2001:db8::7]\";host=b.test;proto=https");
    // What was refused has its client in the log, too.
    let (status, _) = asked(&mut proxy, "/%zz", &[("x-forwarded-for", "203.0.113.9")]).await;
    assert_eq!((status, client_in_log(&edge, "/%zz").await.as_str()), (400, "203.0.113.9"));
    edge.stop().await;
}

#[tokio::test]
async fn clients_of_a_proxy_that_ends_tls_are_not_redirected_to_https_and_others_are() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "trusted_proxies: [127.0.0.2]", "hsts: true").await;
    let https = [("x-forwarded-proto", "https"), ("x-forwarded-for", "203.0.113.7")];
    let mut proxy = connection(&edge, PROXY, None).await;
    let (status, seen) = asked(&mut proxy, "/", &https).await;
    assert_eq!((status, seen.split(' ').nth(2)), (200, Some("https")));
    let request = proxy.request("GET", "/x").header("x-forwarded-proto", "http").body(empty()).unwrap();
    let answer = proxy.exchange(request).await.unwrap();
    // The port is the proxy's affair: edge's own would lead past it.
    assert_eq!((answer.status.as_u16(), answer.header("location")), (308, "https://a.test/x"));
    let mut stranger = connection(&edge, STRANGER, None).await;
    assert_eq!(asked(&mut stranger, "/", &https).await.0, 308, "nobody believes a stranger");
    let mut encrypted = connection(&edge, PROXY, Some(Wire::H2)).await;
    assert_eq!(asked(&mut encrypted, "/", &[("x-forwarded-proto", "http")]).await.0, 308);
    assert_eq!(asked(&mut encrypted, "/", &https).await.0, 200);
    edge.stop().await;
}

#[tokio::test]
async fn f04_requests_in_flight_are_counted_for_the_client_that_the_proxy_names() {
    let origin = Origin::start(async |mut peer| {
        while let Some(head) = peer.head().await {
            if head.request_line().contains("/hang") {
                peer.closed().await;
                return;
            }
            peer.answer("200 OK", "", "").await;
        }
    })
    .await;
    let top = "trusted_proxies: [127.0.0.2]\nlimits: {in_flight_per_client: 2, connections_per_client: 0}";
    let edge = edge(&origin, top, "").await;
    let mut hanging = Vec::new();
    for _ in 0..2 {
        let mut connection = connection(&edge, PROXY, Some(Wire::H1)).await;
        hanging.push(tokio::spawn(async move {
            let request = connection.request("GET", "/hang").header("x-forwarded-for", "203.0.113.7");
            drop(connection.exchange(request.body(empty()).unwrap()).await);
        }));
    }
    until(PATIENCE, "both are at the worker", async || (origin.accepted() == 2).then_some(())).await;
    let mut proxy = connection(&edge, PROXY, Some(Wire::H1)).await;
    assert_eq!(asked(&mut proxy, "/third", &[("x-forwarded-for", "203.0.113.7")]).await.0, 503);
    assert_eq!(asked(&mut proxy, "/other", &[("x-forwarded-for", "203.0.113.8")]).await.0, 200);
    assert_eq!(asked(&mut proxy, "/own", &[]).await.0, 200);
    hanging.iter().for_each(tokio::task::JoinHandle::abort);
    edge.stop().await;
}

#[tokio::test]
async fn trust_is_given_and_taken_by_a_reload_also_on_open_connections() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "trusted_proxies: [127.0.0.2]", "").await;
    let named = [("x-forwarded-for", "203.0.113.7")];
    let mut open = connection(&edge, PROXY, Some(Wire::H2)).await;
    assert!(asked(&mut open, "/", &named).await.1.starts_with("203.0.113.7 "));
    edge.edit("[127.0.0.2]", "[127.0.0.3]");
    edge.reload().await;
    assert!(asked(&mut open, "/", &named).await.1.starts_with("127.0.0.2 "));
    let mut other = connection(&edge, STRANGER, Some(Wire::H1)).await;
    assert!(asked(&mut other, "/", &named).await.1.starts_with("203.0.113.7 "));
    edge.stop().await;
}

const V1: &str = "PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n";

/// Version 2 of the same: the signature, a relayed stream over IPv4, an extension nobody knows.
fn v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend([0, 12 + 7, 203, 0, 113, 7, 192, 0, 2, 1, 0x12, 0x67, 1, 187]);
    header.extend([0xe4, 0, 4, 1, 2, 3, 4]);
    header
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n")
}

#[tokio::test]
async fn whom_a_balancer_introduces_is_the_client_with_and_without_tls() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "proxy_protocol: [127.0.0.2]", "http: serve").await;
    let trust = edge.trust().await;
    for (name, header) in [("v1", V1.as_bytes().to_vec()), ("v2", v2())] {
        // In one piece with what follows it, and byte by byte.
        let path = format!("/{name}-at-once");
        let mut plain = Raw::new(tcp_from(PROXY, edge.http).await.unwrap());
        plain.write([&header[..], get(&path).as_bytes()].concat()).await;
        assert!(
            plain.read_to("x-real-ip: 203.0.113.7\r\n").await.contains("x-forwarded-for: 203.0.113.7\r\n")
        );
        assert_eq!(client_in_log(&edge, &path).await, "203.0.113.7");

        for wire in Wire::BOTH {
            let path = format!("/{name}-{wire:?}");
            let tcp = tcp_from(PROXY, edge.https).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let mut tcp = Raw::new(tcp);
            for byte in &header {
                tcp.write([*byte]).await;
                tokio::task::yield_now().await;
            }
            let stream = tls_over(tcp.into_inner(), "a.test", trust.offering(&[wire.alpn()])).await.unwrap();
            let mut connection = Connection::over(stream, "https", "a.test", wire).await.unwrap();
            let (status, seen) = asked(&mut connection, &path, &[("x-forwarded-for", "198.51.100.1")]).await;
            assert_eq!((status, seen.split(' ').next()), (200, Some("203.0.113.7")));
            assert_eq!(client_in_log(&edge, &path).await, "203.0.113.7");
        }
    }
    for (path, header) in
        [("/unknown", &b"PROXY UNKNOWN\r\n"[..]), ("/own", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")]
    {
        let mut own = Raw::new(tcp_from(PROXY, edge.http).await.unwrap());
        own.write([header, get(path).as_bytes()].concat()).await;
        own.read_to("x-real-ip: 127.0.0.2\r\n").await;
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_balancer_that_does_not_introduce_is_closed_and_logged_and_nobody_else_is_asked() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "proxy_protocol: [127.0.0.2]\ntimeouts: {handshake: 1s}", "http: serve").await;
    let wrong_checksum =
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x00\0\x07"[..], &[3, 0, 4, 1, 2, 3, 4], get("/").as_bytes()].concat();
    for (what, address, bytes, logged) in [
        ("nothing but a request", edge.http, get("/").into_bytes(), "does not begin with a PROXY header"),
        (
            "TLS at once",
            edge.https,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            "does not begin",
        ),
        ("a broken line", edge.http, b"PROXY TCP4 203.0.113.7\r\n".to_vec(), "malformed"),
        ("a wrong checksum", edge.https, wrong_checksum, "checksum"),
        (
            "too long a header",
            edge.http,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec(),
            "longer than 4096 bytes",
        ),
    ] {
        // Lines about the same trouble are a second apart.
        until(PATIENCE, what, async || {
            let mut balancer = Raw::new(tcp_from(PROXY, address).await.unwrap());
            balancer.write(&bytes).await;
            assert_eq!(balancer.read_to_close().await, "", "{what}");
            edge.log_objects().into_iter().find(|line| {
                let error = line["error"].as_str().unwrap_or_default();
                line["balancer"] == "127.0.0.2" && error.contains(logged)
            })
        })
        .await;
    }
    // One that says nothing, or not enough, has as long as a handshake.
    for start in ["", "PROXY TCP4 203.0.1"] {
        let begun = Instant::now();
        let mut silent = Raw::new(tcp_from(PROXY, edge.http).await.unwrap());
        silent.write(start).await;
        assert_eq!(silent.read_to_close().await, "");
        assert!(begun.elapsed() >= Duration::from_millis(900), "{start:?} {:?}", begun.elapsed());
    }
    // From others a header is what it looks like: no request, no TLS.
    let mut stranger = Raw::new(tcp_from(STRANGER, edge.http).await.unwrap());
    stranger.write(format!("{V1}{}", get("/stranger"))).await;
    let answer = stranger.read_to_close().await;
    assert!(!answer.contains("203.0.113.7") && !answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut stranger = Raw::new(tcp_from(STRANGER, edge.https).await.unwrap());
    stranger.write(V1).await;
    stranger.read_to_close().await;
    let mut stranger = connection(&edge, STRANGER, None).await;
    assert_eq!(asked(&mut stranger, "/", &[]).await.0, 200);
    edge.stop().await;
}

#[tokio::test]
async fn d05_a_balancers_clients_are_counted_each_and_not_as_the_balancer() {
    let origin = Origin::mirror().await;
    let top = "proxy_protocol: [127.0.0.2]\nlimits: {connections_per_client: 3}";
    let edge = edge(&origin, top, "http: serve").await;
    let introduced = async |client: &str| {
        let mut balancer = Raw::new(tcp_from(PROXY, edge.http).await.unwrap());
        balancer.write(format!("PROXY TCP4 {client} 192.0.2.1 4711 443\r\n{}", get("/"))).await;
        balancer
    };
    let mut held = Vec::new();
    // Nobody has said yet whose these are.
    for _ in 0..10 {
        held.push(Raw::new(tcp_from(PROXY, edge.http).await.unwrap()));
    }
    for last in 1..=5 {
        for _ in 0..3 {
            let mut connection = introduced(&format!("203.0.113.{last}")).await;
            assert!(connection.read_to("\r\n").await.starts_with("HTTP/1.1 200 "));
            held.push(connection);
        }
    }
    let mut fourth = introduced("203.0.113.1").await;
    assert_eq!(fourth.read_to_close().await, "");
    edge.wait_for_log("a line that names the client and the limit", |line| {
        line["limit"] == "limits.connections_per_client" && line["client"] == "203.0.113.1"
    })
    .await;
    // Somebody who connects as one of them is that client as well.
    let mut own = Raw::new(tcp_from(PROXY, edge.http).await.unwrap());
    own.write(format!("PROXY UNKNOWN\r\n{}", get("/"))).await;
    assert!(own.read_to("\r\n").await.starts_with("HTTP/1.1 200 "));
    edge.stop().await;
}

#[tokio::test]
async fn proxy_protocol_follows_a_reload_for_connections_that_come_later() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "proxy_protocol: []", "http: serve").await;
    let mut before = connection(&edge, PROXY, None).await;
    assert_eq!(asked(&mut before, "/", &[]).await.0, 200);
    edge.edit("proxy_protocol: []", "proxy_protocol: [127.0.0.2]");
    edge.reload().await;
    let mut after = Raw::new(tcp_from(PROXY, edge.http).await.unwrap());
    after.write(format!("{V1}{}", get("/"))).await;
    after.read_to("x-real-ip: 203.0.113.7\r\n").await;
    assert_eq!(asked(&mut before, "/", &[]).await.0, 200, "it began without");
    edge.stop().await;
}

/// A running HAProxy.
struct Haproxy(Child);

impl Haproxy {
    async fn start(edge: &Edge, config: &str, listening: SocketAddr) -> Self {
        let file = edge.dir().join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("haproxy is installed");
        until(PATIENCE, "haproxy listens", async || TcpStream::connect(listening).await.ok()).await;
        Self(child)
    }

    async fn stop(mut self) {
        self.0.start_kill().unwrap();
        within(PATIENCE, "haproxy ends", self.0.wait()).await.unwrap();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn haproxy_and_curl_are_understood() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "proxy_protocol: [127.0.0.1, 127.0.0.2]", "http: serve").await;
    let trust = edge.trust().await;
    let mut config =
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n".to_owned();
    let ways = [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options ssl,unique-id,crc32c",
        "send-proxy-v2-ssl-cn",
    ];
    let mut ports = Vec::new();
    for (at, way) in ways.iter().enumerate() {
        let port = free_port();
        let (https, http) = (edge.https, edge.http);
        writeln!(
            config,
            "frontend f{at}\n bind 127.0.0.1:{port}\n unique-id-format %ci\n default_backend b{at}"
        )
        .unwrap();
        writeln!(config, "backend b{at}\n source 127.0.0.2\n server s {https} {way}\n server check {http} backup {way} check inter 100ms check-send-proxy").unwrap();
        ports.push(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let haproxy = Haproxy::start(&edge, &config, ports[0]).await;
    for (at, port) in ports.iter().enumerate() {
        for wire in Wire::BOTH {
            let path = format!("/way-{at}-{wire:?}");
            let client = IpAddr::from([127, 0, 0, 9]);
            let tcp = tcp_from(client, *port).await.unwrap();
            let stream = tls_over(tcp, "a.test", trust.offering(&[wire.alpn()])).await.unwrap();
            let mut connection = Connection::over(stream, "https", "a.test", wire).await.unwrap();
            let (status, seen) = asked(&mut connection, &path, &[]).await;
            assert_eq!((status, seen.split(' ').next()), (200, Some("127.0.0.9")), "{}", ways[at]);
            assert_eq!(client_in_log(&edge, &path).await, "127.0.0.9", "{}", ways[at]);
        }
    }
    haproxy.stop().await;
    let misunderstood = |line: &Value| line["balancer"].is_string();
    assert_eq!(edge.log_objects().into_iter().find(misunderstood), None, "health checks are understood, too");

    let curl = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--haproxy-protocol",
            "--interface",
            "127.0.0.2",
        ])
        .args(["-H", "Host: a.test", &format!("http://{}/curl", edge.http)])
        .output();
    let output = within(PATIENCE, "curl ends", curl).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("x-real-ip: 127.0.0.2"), "{output:?}");
    edge.stop().await;
}
