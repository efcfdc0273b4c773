//! Where a record belongs: the name it really has, its zone, and the servers of that.

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;

use crate::cert::dns_ask::{Unanswered, ask};
use crate::cert::dns_message::{About, Answer, refusal, spoken};
use crate::report::Report;

/// Where name servers listen.
const PORT: u16 = 53;
/// Longer chains of names are mistakes.
const MOST_ALIASES: usize = 8;
/// Zones have up to 13 servers; a longer answer shall not make edge ask whomever it names.
const MOST_SERVERS: usize = 16;
/// The system's own limit.
const MOST_RESOLVERS: usize = 3;
const SYSTEM: &str = "/etc/resolv.conf";

/// Resolvers that are asked about names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cert) struct Resolvers {
    /// Those of the configuration; empty for the system's.
    configured: Vec<SocketAddr>,
    /// Where the servers of zones listen.
    port: u16,
}

/// One server of a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cert) struct NameServer {
    /// Its name, or its address where the configuration names it so.
    pub(in crate::cert) name: String,
    /// Where it is.
    pub(in crate::cert) addresses: Vec<SocketAddr>,
}

impl Resolvers {
    pub(in crate::cert) fn new(configured: &[SocketAddr]) -> Self {
        Self { configured: configured.to_vec(), port: PORT }
    }

    /// With the servers of zones at another port.
    #[cfg(test)]
    pub(in crate::cert) fn at_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The name that `name` stands for after every CNAME, itself where it has none.
    pub(in crate::cert) async fn follow(&self, name: &Name) -> Result<Name, String> {
        let mut at = name.clone();
        for _ in 0..=MOST_ALIASES {
            let answer = self.ask(About::Alias, &at).await?;
            let Some((_, target)) = answer.aliases.into_iter().find(|(from, _)| *from == at) else {
                return Ok(at);
            };
            if target == *name {
                break;
            }
            at = target;
        }
        Err(format!(
            "the CNAME records of {} go round or are more than {MOST_ALIASES}. Correct them",
            spoken(name)
        ))
    }

    /// The zone that holds `name`.
    pub(in crate::cert) async fn zone(&self, name: &Name) -> Result<Name, String> {
        let mut at = name.clone();
        while !at.is_root() {
            if let Some(zone) = self.ask(About::Zone, &at).await?.zone {
                return Ok(zone);
            }
            // Some resolvers leave the zone out where a name does not exist.
            at = at.base_name();
        }
        Err(format!(
            "DNS does not say which zone {} is in. Is its domain registered and delegated?",
            spoken(name)
        ))
    }

    /// The servers of `zone`, [`MOST_SERVERS`] at most with as many addresses each. One whose address nobody knows has none.
    pub(in crate::cert) async fn servers(&self, zone: &Name) -> Result<Vec<NameServer>, String> {
        let names = self.ask(About::Servers, zone).await?.servers;
        if names.is_empty() {
            return Err(format!("DNS names no server of the zone {}", spoken(zone)));
        }
        let located = names.iter().take(MOST_SERVERS).map(|name| async {
            let (four, six) =
                futures_util::future::join(self.ask(About::Ipv4, name), self.ask(About::Ipv6, name)).await;
            let found = [four, six].into_iter().filter_map(Result::ok).flat_map(|answer| answer.addresses);
            let addresses =
                found.map(|ip: IpAddr| SocketAddr::new(ip, self.port)).take(MOST_SERVERS).collect();
            NameServer { name: spoken(name), addresses }
        });
        Ok(futures_util::future::join_all(located).await)
    }

    /// The first resolver's answer that is one.
    async fn ask(&self, about: About, of: &Name) -> Result<Answer, String> {
        let mut told = String::new();
        for resolver in self.all().await? {
            told = match ask(resolver, about, of, true).await {
                Ok(answer) => match answer.code {
                    ResponseCode::NoError | ResponseCode::NXDomain => return Ok(answer),
                    code => format!("the resolver {} about {}: {}", resolver.ip(), spoken(of), refusal(code)),
                },
                Err(
                    error @ (Unanswered::Silent | Unanswered::Unreachable(_) | Unanswered::Unreadable(_)),
                ) => {
                    format!("the resolver {}, asked about {}: {}", resolver.ip(), spoken(of), Report(&error))
                }
            };
        }
        Err(format!("DNS gives no answer: {told}"))
    }

    async fn all(&self) -> Result<Vec<SocketAddr>, String> {
        if !self.configured.is_empty() {
            return Ok(self.configured.clone());
        }
        // Read anew each time: networks change under a process that runs for months.
        let read = tokio::task::spawn_blocking(|| std::fs::read_to_string(SYSTEM)).await;
        let text = match read {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => return Err(format!("cannot read {SYSTEM}: {error}. Set `acme.dns.resolvers`")),
            Err(error) => return Err(format!("cannot read {SYSTEM}: {error}")),
        };
        let found = resolvers_in(&text);
        if found.is_empty() {
            return Err(format!("{SYSTEM} names no resolver. Set `acme.dns.resolvers`"));
        }
        Ok(found)
    }
}

fn resolvers_in(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let written = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A zone index is of use only with the link it names.
        Some(SocketAddr::new(written.split('%').next()?.parse().ok()?, PORT))
    };
    text.lines().filter_map(address).take(MOST_RESOLVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_resolvers_are_found() {
        let text = "# comment\nsearch a.example\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\noptions ndots:1\n";
        let found: Vec<String> = resolvers_in(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[fe80::1]:53"]);
    }
}
