//! How certificates are obtained: checked values, part of the model.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::trusted::Trusted;
use crate::name::{HostName, HostPattern};

/// How certificates are obtained from a CA (RFC 8555).
#[derive(Debug, Clone, PartialEq)]
pub struct Acme {
    /// Contact address given to the CA.
    pub email: Option<String>,
    /// Directory URL of the CA.
    pub directory: String,
    /// Those of the CAs that are asked where it fails.
    pub fallbacks: Vec<String>,
    /// What is trusted for the CA's own HTTPS instead of the system's roots.
    pub ca_root: Option<Trusted>,
    /// Kind of key in new certificates.
    pub key_type: KeyType,
    /// How names are proven to be ours, the preferred kind first; never empty.
    pub challenges: Vec<ChallengeKind>,
    /// Kind of certificate, by the CA's name for it.
    pub profile: Option<String>,
    /// What binds the account to one made at the CA's site.
    pub eab: Option<Eab>,
    /// Whether edge looks if a name leads to it before it asks the CA.
    pub self_check: bool,
    /// How names are proven by records in DNS.
    pub dns: Dns,
}

impl Acme {
    /// The directory of each CA, in the order they are asked.
    pub fn directories(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.directory.as_str()).chain(self.fallbacks.iter().map(String::as_str))
    }

    /// The kinds of challenge that can prove `name`, the preferred first. A wildcard is proven by DNS alone (RFC 8555 §7.1.3 and
    /// the CAs' own rules): a publisher that is configured is used for it whether `challenges` lists it or not.
    pub fn challenges_for(&self, name: &HostPattern) -> Vec<ChallengeKind> {
        let possible = |kind: &ChallengeKind| match (name, kind) {
            (HostPattern::Exact(host), ChallengeKind::Dns01 | ChallengeKind::DnsPersist01) => {
                host.ip().is_none()
            }
            (HostPattern::Exact(_), ChallengeKind::Http01 | ChallengeKind::TlsAlpn01) => true,
            (HostPattern::Wildcard(_), kind) => kind.is_dns(),
        };
        let mut kinds: Vec<_> = self.challenges.iter().copied().filter(possible).collect();
        let wildcard = matches!(name, HostPattern::Wildcard(_));
        if wildcard && self.dns.publish.is_some() && !kinds.contains(&ChallengeKind::Dns01) {
            kinds.push(ChallengeKind::Dns01);
        }
        kinds
    }
}

/// Ways to prove to a CA that a name is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeKind {
    /// An answer over plain HTTP on port 80 (RFC 8555 §8.3).
    Http01,
    /// An answer in a handshake on port 443 (RFC 8737).
    TlsAlpn01,
    /// A record in DNS that edge publishes for each order (RFC 8555 §8.4).
    Dns01,
    /// A record in DNS that the operator makes once (draft-ietf-acme-dns-persist).
    DnsPersist01,
}

impl ChallengeKind {
    /// Whether the CA looks into DNS alone.
    pub fn is_dns(self) -> bool {
        match self {
            Self::Dns01 | Self::DnsPersist01 => true,
            Self::Http01 | Self::TlsAlpn01 => false,
        }
    }
}

/// An account made at a CA's site (RFC 8555 §7.3.4). Its key is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Eab {
    /// Its identifier.
    pub kid: String,
    /// Its secret.
    pub hmac_key: Vec<u8>,
}

impl fmt::Debug for Eab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Eab").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// Kinds of certificate key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// ECDSA on P-256.
    P256,
    /// ECDSA on P-384.
    P384,
    /// RSA with 2048 bits.
    Rsa2048,
}

/// How a record that proves a name is published, and how edge finds out that it can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Who publishes it; without, only records that stand already are of use.
    pub publish: Option<Publish>,
    /// How long publishing or removing one record may take.
    pub timeout: Duration,
    /// How long the zone's name servers may take to show it; zero does not look.
    pub propagation: Duration,
    /// Who is asked about names; the system's resolvers where it is empty.
    pub resolvers: Vec<SocketAddr>,
    /// Who is asked for the record; the zone's own name servers where it is empty.
    pub name_servers: Vec<SocketAddr>,
}

/// Who publishes a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publish {
    /// A program of the operator, with its first arguments.
    Exec {
        /// The program.
        program: PathBuf,
        /// What stands before edge's own arguments.
        arguments: Vec<String>,
    },
    /// A name server that takes dynamic updates.
    Update(Update),
}

/// A name server that takes dynamic updates (RFC 2136).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Where it is: an address, or a name to be resolved.
    pub server: HostName,
    /// Its port.
    pub port: u16,
    /// The zone that is changed; found by asking where nothing is written.
    pub zone: Option<HostName>,
    /// What updates are signed with (RFC 8945).
    pub key: Option<UpdateKey>,
}

/// A key shared with a name server. Its secret is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct UpdateKey {
    /// What the server calls it.
    pub name: HostName,
    /// How it signs.
    pub algorithm: UpdateAlgorithm,
    /// The secret.
    pub secret: Vec<u8>,
}

impl fmt::Debug for UpdateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateKey")
            .field("name", &self.name)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// How an update is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the algorithm of that name")]
pub enum UpdateAlgorithm {
    HmacSha256,
    HmacSha384,
    HmacSha512,
}
