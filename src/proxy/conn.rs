//! What is known of the connection a request came on.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;

use crate::cert::resolver::Served;
use crate::name::HostName;
use crate::proxy::clients::Presence;
use crate::upstream::client_body::Unread;

/// A client's connection. Shared by the requests on it.
pub struct ConnInfo {
    /// The other end, or whom a load balancer relays.
    pub peer: SocketAddr,
    /// Where it connected to, also where that is a load balancer.
    pub local: SocketAddr,
    /// The port of edge's own that it came in by.
    pub entrance: u16,
    /// What the handshake agreed on; `None` on plain HTTP.
    pub tls: Option<TlsInfo>,
    /// Requests open now; the connection's time-outs depend on it.
    pub open: Rc<Cell<u32>>,
    /// Requests that ever came, whatever became of them.
    pub requests: Cell<u64>,
    /// Those of them whose client wanted no answer any more before it began.
    pub taken_back: Cell<u64>,
    /// Bodies on it that nobody reads yet.
    pub unread: Rc<Unread>,
    /// The client, with whatever else it has open.
    pub presence: Rc<Presence>,
    /// The peer's address as every request on the connection tells it to the worker.
    client: HeaderValue,
}

/// What a handshake agreed on.
pub struct TlsInfo {
    /// The name the client asked for.
    pub sni: Option<HostName>,
    /// The certificate it got.
    pub served: Arc<Served>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The subject of the certificate that the client presented, which was verified.
    pub client_subject: Option<HeaderValue>,
}

impl ConnInfo {
    /// A connection without requests, to edge itself.
    pub fn new(peer: SocketAddr, local: SocketAddr, tls: Option<TlsInfo>, presence: Rc<Presence>) -> Self {
        let client = HeaderValue::from_str(&peer.ip().to_canonical().to_string())
            .expect("an address is printable ASCII");
        let entrance = local.port();
        Self {
            peer,
            local,
            entrance,
            tls,
            open: Rc::default(),
            requests: Cell::new(0),
            taken_back: Cell::new(0),
            unread: Rc::default(),
            presence,
            client,
        }
    }

    /// One more request came.
    pub fn count_request(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// The same, which came in by this port of edge's, whatever its relay says of the client's own connection.
    pub fn through(self, entrance: u16) -> Self {
        Self { entrance, ..self }
    }

    /// The client's address; an IPv4 client of a dual-stack socket has its IPv4 address.
    pub fn client_ip(&self) -> IpAddr {
        self.peer.ip().to_canonical()
    }

    /// [`Self::client_ip`] as text, shared by all requests of the connection.
    pub fn client(&self) -> &HeaderValue {
        &self.client
    }
}

/// Counts one open request on its connection until dropped: after the last byte of the response.
pub struct OpenRequest(Rc<Cell<u32>>);

impl OpenRequest {
    /// One more.
    pub fn on(conn: &ConnInfo) -> Self {
        conn.open.set(conn.open.get() + 1);
        Self(Rc::clone(&conn.open))
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
