//! Answers that are complete before the request's body is: the client gets them whole, whatever it still has to send.

use std::fs;
use std::time::{Duration, Instant};

use ::h2::Reason;
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::support::client::{Connection, PATIENCE, Wire, by_frames};
use crate::support::edge::{Edge, Setup};
use crate::support::h2::{self, H2};
use crate::support::origin::Origin;
use crate::support::{stalls, until, within};

/// For how long edge reads on.
const READ_ON: Duration = Duration::from_secs(2);

#[tokio::test]
async fn curl_gets_the_413_page_of_an_upload_over_the_limit() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .app("a", &format!("domains: [a.test]\nmax_body: 1MB\n{}", origin.upstream()))
        .start()
        .await;
    for version in ["--http2", "--http1.1"] {
        let answer = upload(&edge, version).await;
        assert!(answer.contains("at most 1000000 bytes"), "{version}: {answer}");
        assert!(answer.ends_with(" 413"), "{version}: {answer}");
    }
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn curl_gets_the_error_of_a_server_that_reads_no_upload() {
    // Also where the server means to keep the connection, and where its answer has no length.
    let answers = [
        "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\npage",
        "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npage\r\n0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 4\r\n\r\npage",
    ];
    for answer in answers {
        let origin = Origin::start(move |mut peer| async move {
            if peer.head().await.is_some() {
                peer.write(answer).await;
                // Reads nothing, and closes only once nobody needs the connection.
                tokio::time::sleep(PATIENCE).await;
            }
        })
        .await;
        let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
        assert_eq!(upload(&edge, "--http2").await, "page 404", "{answer}");
        edge.stop().await;
    }
}

#[tokio::test]
async fn an_upload_without_end_is_read_on_for_two_seconds_while_its_worker_is_free() {
    let origin = Origin::start(async |mut peer| {
        while peer.head().await.is_some() {
            peer.answer("403 Forbidden", "", "no").await;
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let (frames, body) = by_frames();
    let request = connection.request("POST", "/endless").body(body).unwrap();
    stalls::watch();
    let asked = Instant::now();
    let answer = connection.send(request).await.unwrap();
    let answered = Instant::now();
    assert_eq!(answer.status(), 403);
    let page = within(PATIENCE, "the whole answer", answer.into_body().collect()).await.unwrap();
    assert_eq!(page.to_bytes(), "no");

    edge.wait_for_access("/endless").await;
    let worker = edge.status().await["apps"]["a"]["workers"][0].take();
    assert_eq!(worker["in_flight"], 0, "{worker}");
    let took = stalls::awake_since(answered);
    assert!(took < READ_ON, "the access line and the worker did not wait for the upload: {took:?}");

    // The client's side lets go of the body once its stream is reset.
    until(PATIENCE, "the stream is reset", async || {
        frames.send(Frame::data(vec![0; 1024].into())).is_err().then_some(())
    })
    .await;
    // Edge has answered somewhere between: whoever hears of it late must not take that for an early end.
    let (at_most, at_least) = (asked.elapsed(), stalls::awake_since(answered));
    assert!(at_most >= READ_ON && at_least < READ_ON * 2, "reset after {at_least:?} to {at_most:?}");
    assert_eq!(connection.get("/").await.status, 403, "the connection stays usable");
    edge.stop().await;
}

#[tokio::test]
async fn an_upload_that_its_client_resets_is_no_whole_one_whatever_the_reason() {
    let (report, mut seen) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut peer| {
        let report = report.clone();
        async move {
            peer.head().await.expect("a request");
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n").await;
            loop {
                let chunk = peer.chunk().await;
                let goes_on = chunk.as_ref().is_some_and(|data| !data.is_empty());
                report.send(chunk).expect("the test listens");
                if !goes_on {
                    return;
                }
            }
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for reason in [Reason::NO_ERROR, Reason::CANCEL] {
        let mut client = H2::open(&edge, "a.test", &[]).await;
        let authority = format!("a.test:{}", edge.https.port());
        client.send(h2::headers(1, false, &h2::request("POST", &authority, "/", &[]))).await;
        client.send(h2::frame(h2::DATA, 0, 1, b"half")).await;
        assert_eq!(within(PATIENCE, "the first half", seen.recv()).await.unwrap().unwrap(), b"half");
        while client.next().await.expect("the answer begins").kind != h2::DATA {}
        client.send(h2::frame(h2::RST_STREAM, 0, 1, &u32::from(reason).to_be_bytes())).await;
        let end = within(PATIENCE, "the upload ends", seen.recv()).await.unwrap();
        assert_eq!(end, None, "{reason:?}: it breaks off, and has no last chunk");
    }
    edge.stop().await;
}

/// Uploads 10 MB with curl, which must be content; returned is the body of the answer and its status.
async fn upload(edge: &Edge, version: &str) -> String {
    let file = edge.dir().join("upload");
    fs::write(&file, vec![b'x'; 10_000_000]).expect("the file is written");
    let port = edge.https.port();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--insecure", "--max-time", "10", version])
        .args([
            "--resolve",
            &format!("a.test:{port}:127.0.0.1"),
            "--write-out",
            " %{http_code}",
            "--upload-file",
        ])
        .arg(&file)
        .arg(format!("https://a.test:{port}/upload"));
    let output = curl.output().await.expect("curl is installed");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "curl {version}: {}: {errors}{said}", output.status);
    said.into_owned()
}
