//! Whether a name leads to this machine, found out before a CA is asked: a failed validation counts against the name, a look
//! costs nothing and says more.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cert::challenge::Challenges;
use crate::name::HostName;

/// How long a name and each of its addresses may take.
pub(in crate::cert) const LIMIT: Duration = Duration::from_secs(5);
/// A CA reads no more than that either.
const LONGEST_ANSWER: u64 = 4096;
pub(in crate::cert) const MOST_ADDRESSES: usize = 8;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The name leads here.
    Ready,
    /// It does not seem to, but from outside it may look otherwise.
    Unsure(String),
    /// It does not: a CA would fail.
    Unready(String),
}

/// The addresses of a name, or why there are none.
pub type Addresses = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>>>>;

/// Looks at names as a CA would.
#[derive(Clone)]
pub struct SelfCheck {
    challenges: Arc<Challenges>,
    resolve: fn(HostName) -> Addresses,
    /// Where HTTP is looked at.
    port: u16,
    /// Where handshakes are.
    pub(in crate::cert) tls: u16,
}

/// What one address answered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words it is shown by say it")]
pub enum Seen {
    Ours,
    Refused,
    Silent,
    Unreachable,
    Elsewhere(String),
    Redirected(String),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours => f.write_str("leads here"),
            Self::Refused => f.write_str("refuses connections"),
            Self::Silent => f.write_str("does not answer"),
            Self::Unreachable => f.write_str("cannot be reached from this machine"),
            Self::Elsewhere(what) => write!(f, "is another server: {what}"),
            Self::Redirected(to) => write!(f, "redirects to {to}"),
        }
    }
}

/// A name as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What follows from it.
    pub verdict: Verdict,
    /// Each address, with what it answered where it was asked.
    pub addresses: Vec<(IpAddr, Option<Seen>)>,
    /// What each of them did in a handshake, where it was asked for one.
    pub handshakes: Vec<(IpAddr, Seen)>,
}

/// What stands for edge while names are looked at: whoever answers with `answer` for `token` is edge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// What is asked for.
    pub token: String,
    /// What edge answers.
    pub answer: String,
}

impl Mark {
    /// Another one each time.
    pub fn new() -> Self {
        let token = format!("edge-self-check-{:016x}", fastrand::u64(..));
        let answer = format!("{token}.{:016x}", fastrand::u64(..));
        Self { token, answer }
    }
}

impl Default for Mark {
    fn default() -> Self {
        Self::new()
    }
}

impl SelfCheck {
    /// Over the system's resolver and port 80, where CAs look.
    pub fn new(challenges: Arc<Challenges>) -> Self {
        Self { challenges, resolve: |host| Box::pin(system(host)), port: 80, tls: 443 }
    }

    /// Over another resolver and port.
    pub fn with(challenges: Arc<Challenges>, resolve: fn(HostName) -> Addresses, port: u16) -> Self {
        Self { challenges, resolve, port, tls: 443 }
    }

    /// Looks at handshakes at another port.
    pub fn with_tls_at(self, port: u16) -> Self {
        Self { tls: port, ..self }
    }

    /// Looks at `host`; over HTTP only where the CA will do so.
    pub async fn check(&self, host: &HostName, over_http: bool) -> Verdict {
        let mark = Mark::new();
        // The token is edge's own, and of the right alphabet.
        let Ok(_published) = self.challenges.publish_http01(None, &mark.token, &mark.answer) else {
            return Verdict::Unsure("the name could not be looked at".to_owned());
        };
        self.look(host, over_http.then_some(&mark)).await.verdict
    }

    /// Looks at `host`; over HTTP only for a mark, which somebody answers with.
    pub async fn look(&self, host: &HostName, mark: Option<&Mark>) -> Found {
        let found = |verdict, addresses| Found { verdict, addresses, handshakes: Vec::new() };
        let unready = |message| found(Verdict::Unready(message), Vec::new());
        let addresses = match host.ip() {
            Some(address) => vec![address],
            None => match tokio::time::timeout(LIMIT, (self.resolve)(host.clone())).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(error)) => return unready(unresolved(host, &error)),
                Err(_) => {
                    let message =
                        format!("the name servers of {host} do not answer. Nothing was sent to the CA");
                    return unready(message);
                }
            },
        };
        if addresses.is_empty() {
            return unready(missing(host));
        }
        let Some(mark) = mark else {
            let addresses = addresses.into_iter().map(|address| (address, None)).collect();
            return found(Verdict::Ready, addresses);
        };
        let looks = addresses.iter().take(MOST_ADDRESSES).map(|address| async {
            let looked = tokio::time::timeout(LIMIT, look(*address, self.port, host, mark));
            (*address, looked.await.unwrap_or(Seen::Silent))
        });
        let seen = futures_util::future::join_all(looks).await;
        let verdict = judge(host, 80, &seen);
        found(verdict, seen.into_iter().map(|(address, seen)| (address, Some(seen))).collect())
    }
}

async fn system(host: HostName) -> io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> =
        tokio::net::lookup_host((host.as_str(), 0)).await?.map(|found| found.ip()).collect();
    addresses.sort();
    addresses.dedup();
    Ok(addresses)
}

fn missing(host: &HostName) -> String {
    format!(
        "{host} has no A or AAAA record in DNS. Add one that points at this machine. Nothing was sent to the CA"
    )
}

/// The system tells only by its words whether a name does not exist.
fn unresolved(host: &HostName, error: &io::Error) -> String {
    let text = error.to_string();
    if text.contains("not known") || text.contains("No address") {
        missing(host)
    } else {
        format!(
            "DNS gives no answer about {host} ({text}). Repair the zone's name servers. Nothing was sent to the CA"
        )
    }
}

/// A connection, or what the lack of one says.
pub(in crate::cert) async fn connect(address: SocketAddr) -> Result<TcpStream, Seen> {
    TcpStream::connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Seen::Refused,
        // This machine may have no IPv6, which says nothing about others.
        io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::AddrNotAvailable => Seen::Unreachable,
        _ => Seen::Silent,
    })
}

async fn look(address: IpAddr, port: u16, host: &HostName, mark: &Mark) -> Seen {
    let mut stream = match connect(SocketAddr::new(address, port)).await {
        Ok(stream) => stream,
        Err(seen) => return seen,
    };
    let named = if host.ip().is_some_and(|ip| ip.is_ipv6()) { format!("[{host}]") } else { host.to_string() };
    let request = format!(
        "GET /.well-known/acme-challenge/{} HTTP/1.1\r\nHost: {named}\r\nUser-Agent: edge/{} (self-check)\r\nConnection: close\r\n\r\n",
        mark.token,
        env!("CARGO_PKG_VERSION")
    );
    let mut read = Vec::new();
    let exchanged = async {
        stream.write_all(request.as_bytes()).await?;
        (&mut stream).take(LONGEST_ANSWER).read_to_end(&mut read).await
    };
    match exchanged.await {
        Ok(_) => {}
        // What came before the connection broke may be enough.
        Err(_) if !read.is_empty() => {}
        Err(_) => return Seen::Silent,
    }
    understand(&read, &mark.answer)
}

fn understand(read: &[u8], answer: &str) -> Seen {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(end)) = head.parse(read) else {
        return Seen::Elsewhere("something that is not HTTP".to_owned());
    };
    let body = read.get(end..).unwrap_or_default();
    let status = head.code.unwrap_or_default();
    if status == 200 && body.trim_ascii_end() == answer.as_bytes() {
        return Seen::Ours;
    }
    let field = |name: &str| {
        let found = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        Some(printable(found.value))
    };
    if let (301 | 302 | 307 | 308, Some(to)) = (status, field("location")) {
        return Seen::Redirected(to);
    }
    let server = field("server").map(|server| format!(" from '{server}'")).unwrap_or_default();
    let start = printable(body);
    let shown = if start.is_empty() { String::new() } else { format!(" that begins '{start}'") };
    Seen::Elsewhere(format!("status {status}{server}{shown}"))
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(40).collect::<String>().trim().to_owned()
}

/// All addresses count: a CA asks from several places, and IPv6 first.
pub(in crate::cert) fn judge(host: &HostName, port: u16, seen: &[(IpAddr, Seen)]) -> Verdict {
    let ours = seen.iter().any(|(_, seen)| *seen == Seen::Ours);
    let ours_by_ipv4 = seen.iter().any(|(address, seen)| address.is_ipv4() && *seen == Seen::Ours);
    let nothing = "Nothing was sent to the CA";
    let mut unsure = None;
    for (address, seen) in seen {
        if address.is_ipv6()
            && ours_by_ipv4
            && matches!(seen, Seen::Refused | Seen::Silent | Seen::Elsewhere(_))
        {
            return Verdict::Unready(format!(
                "{host}: its AAAA record {address} does not lead here, and a CA prefers IPv6. Remove that record or open \
                 port {port} on the address. {nothing}"
            ));
        }
        match seen {
            Seen::Ours | Seen::Unreachable => {}
            Seen::Refused => {
                return Verdict::Unready(format!(
                    "{host}: {address} refuses connections on port {port}. Point its A and AAAA records at this machine and open \
                     port {port}. {nothing}"
                ));
            }
            Seen::Elsewhere(what) => {
                return Verdict::Unready(format!(
                    "{host}: {address} port {port} is another server: it answers with {what}. Point its A and AAAA records at this \
                     machine, or stop the other server. {nothing}"
                ));
            }
            Seen::Redirected(to) => unsure = Some(format!("{host}: {address} redirects to {to}")),
            Seen::Silent => {
                unsure = Some(format!(
                    "{host}: {address} does not answer on port {port}, seen from this machine. A firewall, or a router that does \
                     not let its own network in from outside"
                ));
            }
        }
    }
    match unsure {
        Some(message) => Verdict::Unsure(message),
        None if ours => Verdict::Ready,
        None => Verdict::Unsure(format!("{host}: none of its addresses can be reached from this machine")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> HostName {
        HostName::parse("shop.example").expect("a name")
    }

    fn judged(seen: &[(&str, Seen)]) -> Verdict {
        let seen: Vec<_> = seen.iter().map(|(at, seen)| (at.parse().expect(at), seen.clone())).collect();
        judge(&host(), 80, &seen)
    }

    #[test]
    fn each_finding_has_its_verdict() {
        let says = |verdict: Verdict, wanted: &str| match verdict {
            Verdict::Unready(message) => assert!(message.contains(wanted), "{message}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(judged(&[("192.0.2.1", Seen::Ours), ("2001:db8::1", Seen::Ours)]), Verdict::Ready);
        assert_eq!(judged(&[("192.0.2.1", Seen::Ours), ("2001:db8::1", Seen::Unreachable)]), Verdict::Ready);
        says(judged(&[("192.0.2.1", Seen::Ours), ("2001:db8::1", Seen::Silent)]), "AAAA record 2001:db8::1");
        says(judged(&[("192.0.2.1", Seen::Refused)]), "refuses connections");
        let apache = Seen::Elsewhere("status 404 from 'Apache'".to_owned());
        says(
            judged(&[("203.0.113.9", apache)]),
            "203.0.113.9 port 80 is another server: it answers with status 404",
        );
        assert!(matches!(judged(&[("192.0.2.1", Seen::Silent)]), Verdict::Unsure(_)));
        let redirected = Seen::Redirected("https://shop.example/".to_owned());
        assert!(matches!(judged(&[("192.0.2.1", redirected)]), Verdict::Unsure(_)));
    }

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(understand(b"HTTP/1.1 200 OK\r\n\r\nkey\n", "key"), Seen::Ours);
        assert_eq!(
            understand(b"HTTP/1.1 404 Not Found\r\nServer: Apache\r\n\r\n<html>\r\n<head>", "key"),
            Seen::Elsewhere("status 404 from 'Apache' that begins '<html>  <head>'".to_owned())
        );
        assert_eq!(
            understand(b"HTTP/1.1 301 Moved\r\nLocation: https://a/\r\n\r\n", "key"),
            Seen::Redirected("https://a/".to_owned())
        );
        assert!(matches!(understand(b"SSH-2.0-OpenSSH_9\r\n", "key"), Seen::Elsewhere(_)));
    }
}
