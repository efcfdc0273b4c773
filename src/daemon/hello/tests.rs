//! The demo worker over real sockets, in this process.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::Message;

use super::*;

const LONG: Duration = Duration::from_secs(20);

struct Served {
    dir: tempfile::TempDir,
    hello: Rc<Hello>,
    exit: tokio::task::JoinHandle<Option<u8>>,
}

impl Served {
    fn path(&self) -> PathBuf {
        self.dir.path().join("worker.sock")
    }

    async fn connect(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(self.path()).await.expect("connects"))
    }

    /// The whole answer to one request on its own connection.
    async fn get(&self, path: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    }

    async fn send(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = Vec::new();
        // A broken connection is an answer, too.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn end(self) -> Option<u8> {
        assert!(self.hello.scope.close(LONG).await, "something did not finish");
        self.exit.await.expect("no panic")
    }
}

/// Runs `test` against a worker on a unix socket in this process.
async fn served<F: Future<Output = ()>>(faults: bool, test: impl FnOnce(Served) -> F) {
    let dir = tempfile::tempdir().expect("a directory");
    let place = Place::Unix(dir.path().join("worker.sock"));
    let hello = Hello::new("api".to_owned(), "1".to_owned(), faults);
    let local = LocalSet::new();
    local
        .run_until(async {
            let listener = Listener::bind(&place).expect("binds");
            let serving = Rc::clone(&hello);
            let exit = hello.scope.spawn(async move { serving.serve(listener).await });
            tokio::time::timeout(LONG, test(Served { dir, hello, exit })).await.expect("in time");
        })
        .await;
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn shows_who_answered_and_what_edge_said_of_the_client() {
    served(false, |worker| async move {
        let head = "Host: a.test\r\nX-Forwarded-Proto: https\r\nX-Forwarded-For: 10.0.0.9\r\nX-Two: a\r\nX-Two: b\r\n";
        let answer = worker.send(&format!("GET /json?q=1 HTTP/1.1\r\n{head}Connection: close\r\n\r\n")).await;
        let seen: serde_json::Value = serde_json::from_str(body(&answer)).expect("JSON");
        for (key, value) in [
            ("app", "api"),
            ("worker", "1"),
            ("scheme", "https"),
            ("client", "10.0.0.9"),
            ("host", "a.test"),
            ("path", "/json?q=1"),
            ("version", "HTTP/1.1"),
        ] {
            assert_eq!(seen[key], value, "{key}");
        }
        assert_eq!(seen["headers"]["x-two"], "a, b");
        let page = worker
            .send("GET / HTTP/1.1\r\nHost: <b>\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n")
            .await;
        assert!(page.contains("<td>https</td>") && page.contains("&lt;b&gt;"), "{page}");
        assert!(!page.contains("{{"));
    })
    .await;
}

#[tokio::test]
async fn answers_each_route_as_it_says() {
    served(false, |worker| async move {
        for (path, status, expected) in [
            ("/status/503", "503", "503 Service Unavailable\n"),
            ("/status/204", "204", ""),
            ("/status/99", "400", "write /status/CODE, 200 to 599\n"),
            ("/slow/1", "200", "after 1 ms\n"),
            ("/bytes/3", "200", "\0\u{1}\u{2}"),
            ("/bytes/0", "200", ""),
            ("/bytes/x", "400", "write /bytes/N\n"),
        ] {
            let answer = worker.get(path).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {answer}");
            assert_eq!(body(&answer), expected, "{path}");
        }
        assert!(worker.get("/exit/3").await.starts_with("HTTP/1.1 404 "), "faults are closed");
    })
    .await;
}

#[tokio::test]
async fn streams_down_and_up_and_back() {
    served(false, |worker| async move {
        let mut stream = worker.connect().await;
        stream.write_all(b"GET /bytes/1000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("writes");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("reads");
        let start = answer.len() - 1_000_000;
        assert!(answer[start..].iter().enumerate().all(|(at, byte)| usize::from(*byte) == at % 251));

        let upload = "POST /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                      5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n";
        assert_eq!(body(&worker.send(upload).await), "{\"received\":8}\n");

        // The echo of the first part arrives before the second is sent.
        let mut stream = worker.connect().await;
        stream
            .write_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfirst")
            .await
            .expect("writes");
        let mut got = String::new();
        while !got.contains("first") {
            let mut part = [0; 256];
            let length = stream.read(&mut part).await.expect("reads");
            got.push_str(&String::from_utf8_lossy(&part[..length]));
        }
        stream.write_all(b"after").await.expect("writes");
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).await.expect("reads");
        assert_eq!(&rest, b"after");
    })
    .await;
}

#[tokio::test]
async fn trailers_follow_for_those_who_take_them() {
    served(false, |worker| async move {
        let answer = worker
            .send("GET /chunked HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n")
            .await;
        assert!(answer.ends_with("6\r\nthree\n\r\n0\r\nx-lines: 3\r\n\r\n"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_websocket_echoes_and_is_told_when_the_worker_ends() {
    served(false, |worker| async move {
        let stream = UnixStream::connect(worker.path()).await.expect("connects");
        let (mut socket, _) = tokio_tungstenite::client_async("ws://x/ws", stream).await.expect("upgrades");
        for message in [Message::text("hello"), Message::binary(vec![7; 100_000])] {
            socket.send(message.clone()).await.expect("sends");
            assert_eq!(socket.next().await.expect("a message").expect("reads"), message);
        }
        worker.hello.scope.drain();
        let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("no close frame") };
        assert_eq!(u16::from(frame.code), 1001);
        while let Some(Ok(_)) = socket.next().await {}
        assert_eq!(worker.end().await, None);
    })
    .await;
}

#[tokio::test]
async fn events_tick_and_end_with_the_worker() {
    served(false, |worker| async move {
        let mut stream = worker.connect().await;
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
        let mut lines = stream.lines();
        loop {
            let line = lines.next_line().await.expect("reads").expect("a line");
            if line.starts_with("data: ") {
                break;
            }
        }
        worker.hello.scope.drain();
        while let Some(line) = lines.next_line().await.expect("reads") {
            assert!(!line.contains("error"));
        }
        worker.end().await;
    })
    .await;
}

#[tokio::test]
async fn finishes_requests_in_flight_and_leaves_no_socket() {
    served(false, |worker| async move {
        let mut stream = worker.connect().await;
        stream.write_all(b"GET /slow/100 HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
        while worker.hello.requests.get() == 0 {
            tokio::task::yield_now().await;
        }
        worker.hello.scope.drain();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        assert!(answer.ends_with("after 100 ms\n"), "{answer}");
        let path = worker.path();
        assert!(worker.hello.scope.close(LONG).await);
        assert!(!path.exists());
    })
    .await;
}

#[tokio::test]
async fn breaks_in_the_ways_it_is_asked_to() {
    served(true, |worker| async move {
        let cut = worker.get("/truncate").await;
        assert!(cut.contains("content-length: 1000") && body(&cut).starts_with("0123456789"), "{cut}");
        assert!(body(&cut).len() < 1000);
        assert!(worker.get("/garbage").await.starts_with("\0\u{fffd}this is not HTTP"));
        let mut stream = worker.connect().await;
        stream.write_all(b"GET /exit/3 HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("writes");
        assert_eq!(worker.exit.await.expect("no panic"), Some(3));
    })
    .await;
}

#[test]
fn listens_where_it_is_told() {
    let choose = |socket: Option<&str>, port: Option<&str>| {
        Place::choose(socket.map(str::to_owned), port.map(str::to_owned)).map(|place| place.to_string())
    };
    assert_eq!(choose(Some("/x.sock"), Some("1")).expect("valid"), "unix:/x.sock");
    assert_eq!(choose(None, Some("8123")).expect("valid"), "http://127.0.0.1:8123");
    assert_eq!(choose(None, None).expect("valid"), "http://127.0.0.1:8000");
    assert_eq!(choose(None, Some("x")).expect_err("no port").to_string(), "PORT is not a port: \"x\"");
}
