use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::{Request, StatusCode};
use http_body_util::BodyExt;

use super::*;
use crate::cert::challenge::Challenges;
use crate::cert::resolver::Certificates;
use crate::clock::SystemClock;
use crate::config::model::Timeouts;
use crate::deadline::Deadlines;
use crate::proxy::conn::ConnInfo;
use crate::proxy::plane::{AccessSink, Plane};
use crate::scope::Scope;
use crate::telemetry::access::AccessRecord;
use crate::telemetry::tally::Tally;
use crate::upstream::exchange::Reach;

#[derive(Default)]
struct Lines(RefCell<Vec<AccessRecord>>);

impl AccessSink for Lines {
    fn record(&self, record: &AccessRecord) {
        self.0.borrow_mut().push(record.clone());
    }
}

fn open_entry() -> (Box<Entry>, Rc<Lines>, ConnInfo) {
    let second = std::time::Duration::from_secs(1);
    let timeouts = Timeouts {
        handshake: second,
        headers: second,
        body: second,
        write: second,
        keepalive: second,
        keepalive_h2: second,
        connection_age: second,
        pool_idle: None,
        connect: second,
        first_byte: second,
        upstream_idle: second,
        tunnel: second,
    };
    let lines = Rc::new(Lines::default());
    let plane = Rc::new(Plane {
        thread: 0,
        strangers: Arc::new(Tally::new(1)),
        routing: Arc::default(),
        certificates: Certificates::new(),
        challenges: Challenges::new(),
        reach: Reach {
            idle: crate::upstream::idle::IdleConnections::new(),
            shared: crate::upstream::multiplex::SharedConnections::new(Scope::new()),
            deadlines: Deadlines::new(),
            budget: crate::upstream::budget::Budget::new(),
            timeouts,
            limits: crate::config::check_limits::presets().1,
        },
        access: Rc::clone(&lines) as Rc<dyn AccessSink>,
        tunnels: Scope::new(),
        clients: Arc::default(),
        heads: Rc::new(crate::proxy::heads::Heads::new(1)),
        proxy_protocol: Default::default(),
        clock: Arc::new(SystemClock),
    });
    let address: std::net::SocketAddr = "[::ffff:192.0.2.1]:5".parse().expect("valid");
    let conn = ConnInfo::new(address, address, None, plane.clients.represent(address.ip()));
    let parts = Request::new(()).into_parts().0;
    (Entry::open(&parts, 7, (conn.client_ip(), &conn), &plane), lines, conn)
}

#[tokio::test]
async fn the_line_is_written_once_after_the_last_byte() {
    let (mut entry, lines, conn) = open_entry();
    entry.answer(StatusCode::OK);
    let mut body = Body::new(Content::Full("page".into()), entry);
    assert_eq!(conn.open.get(), 1);
    assert!(body.frame().await.expect("one frame").is_ok());
    assert!(lines.0.borrow().is_empty());
    drop(body);
    let lines = lines.0.borrow();
    assert_eq!(lines.len(), 1);
    assert_eq!((lines[0].bytes_out, lines[0].status.as_u16(), lines[0].request_id), (4, 200, 7));
    assert_eq!(lines[0].error, None);
    assert_eq!(lines[0].client.to_string(), "192.0.2.1");
    assert_eq!(conn.open.get(), 0);
}

#[test]
fn a_client_that_left_before_an_answer_is_499_in_the_log() {
    let (entry, lines, conn) = open_entry();
    drop(entry);
    assert_eq!(lines.0.borrow()[0].status.as_u16(), 499);
    assert!(lines.0.borrow()[0].error.is_some());
    assert_eq!(conn.open.get(), 0);
}

#[test]
fn an_answer_cut_by_the_client_is_logged_as_cut() {
    let (mut entry, lines, _conn) = open_entry();
    entry.answer(StatusCode::OK);
    drop(Body::new(Content::Full("page".into()), entry));
    assert_eq!(lines.0.borrow()[0].status.as_u16(), 200);
    assert!(lines.0.borrow()[0].error.is_some());
}

#[test]
fn an_answer_without_body_is_complete_without_being_read() {
    let (mut entry, lines, _conn) = open_entry();
    entry.answer(StatusCode::NO_CONTENT);
    drop(Body::new(Content::Empty, entry));
    assert_eq!(lines.0.borrow()[0].error, None);
}
