//! A request's line in the access log, from its head to its last byte. Whatever way a request ends, dropping its entry writes
//! the line: answered, cut, or abandoned by a client that went away.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use http::request::Parts;

use crate::proxy::caller::Caller;
use crate::proxy::clients::{Crowded, InFlight};
use crate::proxy::conn::{ConnInfo, OpenRequest};
use crate::proxy::error::ProxyError;
use crate::proxy::plane::Plane;
use crate::proxy::route::Site;
use crate::telemetry::access::AccessRecord;
use crate::upstream::client_body::Unread;

/// An open request. Boxed, because it travels from the handler into the response's body, which every connection has room for.
pub struct Entry {
    /// What is known so far.
    pub record: AccessRecord,
    /// The site it was for, where one was found.
    pub site: Option<Arc<Site>>,
    started: Instant,
    plane: Rc<Plane>,
    _open: OpenRequest,
    /// Its place among the client's requests at workers.
    in_flight: Option<InFlight>,
    is_tunnel: bool,
    /// Its client has its status, or is about to be sent it: also where that is 499, which a worker may say.
    is_answered: bool,
    /// Edge ended before it.
    is_cut: bool,
    /// How long it took is known.
    is_over: bool,
}

impl Entry {
    /// The entry of a request whose head was just read. Until it has a status, its client counts as gone.
    pub fn open(
        parts: &Parts,
        request_id: u64,
        (client, conn): (IpAddr, &ConnInfo),
        plane: &Rc<Plane>,
    ) -> Box<Self> {
        Box::new(Self {
            record: AccessRecord {
                at: plane.clock.now(),
                app: None,
                worker: None,
                client,
                host: None,
                method: parts.method.clone(),
                uri: parts.uri.clone(),
                version: parts.version,
                status: client_gone(),
                bytes_in: 0,
                bytes_out: 0,
                duration: std::time::Duration::ZERO,
                queued: std::time::Duration::ZERO,
                upstream: None,
                retries: 0,
                tls: conn.tls.as_ref().map(|tls| tls.version),
                request_id,
                error: None,
            },
            site: None,
            started: Instant::now(),
            plane: Rc::clone(plane),
            _open: OpenRequest::on(conn),
            in_flight: None,
            is_tunnel: false,
            is_answered: false,
            is_cut: false,
            is_over: false,
        })
    }

    /// Takes a place among the requests of its client at workers, after a while where all are taken; told is when. Where it does
    /// not wait, that is when its head was read: what it takes until then is not worth another look at the clock. Its body, if it
    /// has one, is `unread` meanwhile.
    pub async fn enter(
        &mut self,
        caller: &Caller<'_>,
        unread: Option<&Rc<Unread>>,
    ) -> Result<Instant, ProxyError> {
        let most = self.plane.reach.limits.in_flight_per_client;
        if most == 0 {
            return Ok(self.started);
        }
        if let Some(entered) = caller.presence().try_enter(most) {
            self.in_flight = Some(entered);
            return Ok(self.started);
        }
        let _unread = unread.map(|unread| unread.add());
        // Boxed, because hardly any request needs the room.
        let waiting = Box::pin(caller.presence().enter(most, &self.plane.reach.deadlines));
        self.in_flight = Some(waiting.await.map_err(|Crowded| ProxyError::Crowded)?);
        Ok(Instant::now())
    }

    /// This is its answer.
    pub fn answer(&mut self, status: StatusCode) {
        self.record.status = status;
        self.is_answered = true;
    }

    /// It was over at this time, as others were: one look at the clock is enough for all of them.
    pub fn ended(mut self: Box<Self>, now: Instant) {
        self.record.duration = now - self.started;
        self.is_over = true;
    }

    /// From now on it is a WebSocket, which is open for hours: its place is given back, because it counts as a connection, and
    /// how long it takes says nothing of requests.
    pub fn become_tunnel(&mut self) {
        self.leave();
        self.is_tunnel = true;
    }

    /// From now on it is an event stream, which is open for as long as its client listens: its place is given back, because it
    /// counts as a connection.
    pub fn become_stream(&mut self) {
        let most = self.plane.reach.limits.connections_per_client;
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.stream(most);
        }
    }

    /// No worker has to do with it any more: its place is given back, however long the client is about taking the answer.
    pub fn leave(&mut self) {
        self.in_flight = None;
    }

    /// Who ended a connection that ended too early. That it was edge is counted.
    fn who_ended(&mut self) -> &'static str {
        if self.plane.tunnels.is_aborting() {
            self.is_cut = true;
            "edge ended"
        } else {
            "the client was gone"
        }
    }

    /// The answer has begun, and its end will not arrive.
    pub fn cut(&mut self) {
        let who = self.who_ended();
        self.blame(|| format!("{who} before the end of the answer"));
    }

    /// Edge ends, and cuts it.
    pub fn cut_at_end(&mut self) {
        self.is_cut = true;
        self.blame(|| "edge ended before the end of the answer".to_owned());
    }

    /// Notes why edge answered itself or cut the answer; the first reason stays.
    pub fn blame(&mut self, why: impl FnOnce() -> String) {
        self.record.error.get_or_insert_with(why);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.is_over {
            self.record.duration = self.started.elapsed();
        }
        if !self.is_answered {
            let who = self.who_ended();
            self.blame(|| format!("{who} before there was an answer"));
        }
        let tally = self.site.as_ref().map_or(&self.plane.strangers, |site| &site.tally);
        let duration = (!self.is_tunnel).then_some(self.record.duration);
        let status = self.is_answered.then(|| self.record.status.as_u16());
        tally.count(self.plane.thread, status, duration);
        if self.is_cut {
            tally.count_cut(self.plane.thread);
        }
        if self.record.retries > 0 {
            tally.count_retries(self.plane.thread, self.record.retries);
        }
        self.plane.access.record(&self.record);
    }
}

/// 499: what logs write where no status was sent.
fn client_gone() -> StatusCode {
    StatusCode::from_u16(499).expect("499 is a status")
}
