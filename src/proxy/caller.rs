//! Whom a request is from: its connection's client or, behind a trusted proxy, the one that the proxy names.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use http::request::Parts;

use crate::config::networks::Networks;
use crate::proxy::clients::{Clients, Presence};
use crate::proxy::conn::ConnInfo;
use crate::proxy::forwarded::believed;

/// The client of one request. Without trusted proxies it is the connection's, and costs nothing.
pub struct Caller<'a> {
    conn: &'a ConnInfo,
    named: Option<Box<Named>>,
}

/// A client that a trusted proxy names.
struct Named {
    ip: IpAddr,
    text: HeaderValue,
    presence: Rc<Presence>,
    secure: Option<bool>,
    host: Option<HeaderValue>,
}

impl<'a> Caller<'a> {
    /// Who sent `parts` over `conn`.
    pub fn of(parts: &Parts, conn: &'a ConnInfo, trusted: &Networks, clients: &Arc<Clients>) -> Self {
        if trusted.is_empty() {
            return Self { conn, named: None };
        }
        let named = believed(conn.client_ip(), &parts.headers, trusted).map(|believed| {
            let ip = believed.client;
            Box::new(Named {
                ip,
                text: HeaderValue::from_str(&ip.to_string()).expect("an address is printable ASCII"),
                presence: clients.represent(ip),
                secure: believed.secure,
                host: believed.host,
            })
        });
        Self { conn, named }
    }

    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.named.as_ref().map_or_else(|| self.conn.client_ip(), |named| named.ip)
    }

    /// [`Self::ip`] as text, where that is not the connection's.
    pub fn named(&self) -> Option<&HeaderValue> {
        self.named.as_ref().map(|named| &named.text)
    }

    /// What it holds of edge.
    pub fn presence(&self) -> &Rc<Presence> {
        self.named.as_ref().map_or(&self.conn.presence, |named| &named.presence)
    }

    /// Whether it came by https, as far as anybody who is believed knows.
    pub fn is_secure(&self) -> bool {
        self.named.as_ref().and_then(|named| named.secure).unwrap_or(self.conn.tls.is_some())
    }

    /// The authority it asked for, where a proxy says that it asked for another than the request's.
    pub fn host(&self) -> Option<&HeaderValue> {
        self.named.as_ref().and_then(|named| named.host.as_ref())
    }

    /// Whether a trusted proxy passed its request on, so that edge's own port is none of its business.
    pub fn is_behind_proxy(&self) -> bool {
        self.named.is_some()
    }
}
