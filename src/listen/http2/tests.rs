//! A connection whose client is a script of bytes.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::listen::http1::tests::world;

/// The preface, no settings, and the question what the server is able to.
const ASKED: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x15\x01\x05\x00\x00\x00\x01\
    \x02\x07OPTIONS\x86\x04\x01*\x01\x06a.test";

/// A client that always has room.
impl Client for DuplexStream {
    fn part(&mut self) {}

    fn reset_on_close(&self) {}

    fn is_under_way(&self) -> bool {
        false
    }

    fn taken(&self) -> u32 {
        0
    }
}

#[tokio::test]
async fn an_answer_that_leaves_while_its_connection_is_aborted_is_told_as_sent() {
    let world = world(0).await;
    let (mut client, stream) = tokio::io::duplex(1 << 16);
    client.write_all(ASKED).await.expect("open");
    let stage = Stage::default();
    world.plane.tunnels.abort();
    tokio::select! {
        biased;
        () = stage.follow(&world.plane.tunnels, &world.plane.reach.deadlines) => {}
        () = std::future::ready(()) => {}
    }
    assert_eq!(stage.step(), Step::Aborting);
    let peer = "192.0.2.1:5".parse().expect("an address");
    let conn = Rc::new(ConnInfo::new(peer, peer, None, world.plane.clients.represent(peer.ip())));
    let tasks = (Scope::new(), Standby::default());
    serve_http2(stream, conn, Rc::clone(&world.plane), stage, tasks, Rc::default()).await;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("all that was sent");
    let head = answer.windows(9).any(|frame| frame[3..] == [1, 5, 0, 0, 0, 1]);
    assert!(head, "the answer left: {answer:x?}");
    let line = world.lines.next().await;
    assert!(line.status.is_success() && line.error.is_none(), "{} {:?}", line.status, line.error);
}
