//! `edge check --dns`: has somebody answer for edge, the running one or this process, and looks at every name from outside.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use crate::cert::challenge::Challenges;
use crate::cert::look_tls;
use crate::cert::reach::{self, Outcome, Reach};
use crate::cert::resolver::Certificates;
use crate::cert::self_check::{Found, Mark, SelfCheck, Verdict};
use crate::clock::{Clock, SystemClock};
use crate::config::model::Config;
use crate::daemon::ask::{AskError, Running};
use crate::daemon::operation::Operation;
use crate::daemon::progress::Said;
use crate::listen::socket;
use crate::listen::tls;
use crate::report::Report;
use crate::scope::Scope;

/// What a client of the few moments that this process listens may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the verdicts on single names end, which is said of an order.
const NOT_SENT: &str = ". Nothing was sent to the CA";

/// Looks at every name of `config`. Returned is what is to be printed, and whether every name would do.
pub fn check(config: &Config) -> (String, bool) {
    let self_check = SelfCheck::new(Challenges::new());
    check_by(config, &self_check)
}

fn check_by(config: &Config, self_check: &SelfCheck) -> (String, bool) {
    let mark = Mark::new();
    let running = Running { admin: &config.admin, config: &config.file };
    let lend = Operation::Answer { token: mark.token.clone(), answer: mark.answer.clone() };
    let mut looked = None;
    let asked = running.operate(&lend, |said| match said {
        // It answers from now on, for as long as this is heard.
        Said::Word(_) => {
            looked = Some(alone(reach::look(config, self_check, Some(&mark))));
            Err(io::ErrorKind::BrokenPipe.into())
        }
        Said::Complaint(_) | Said::End(_) => Ok(()),
    });
    let looked = match (looked, asked) {
        (Some(found), _) => found.map(|found| ("the running edge answers".to_owned(), found)),
        (None, Err(AskError::NotRunning { .. })) => {
            alone(by_ourselves(config, self_check, &mark)).and_then(|looked| looked)
        }
        (None, asked) => {
            let why = asked.err().map_or("it broke off".to_owned(), |error| Report(&error).to_string());
            let who =
                format!("only DNS was looked at: the running edge could not be asked to answer ({why})");
            alone(reach::look(config, self_check, None)).map(|found| (who, found))
        }
    };
    match looked {
        Ok((who, found)) => (rendered(&who, &found), !found.iter().any(Reach::fails)),
        Err(error) => (format!("names cannot be looked at: {error}\n"), false),
    }
}

/// On this thread, which waits for it.
fn alone<T>(look: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    Ok(LocalSet::new().block_on(&runtime, look))
}

/// Where no edge runs, this process listens for a moment.
async fn by_ourselves(
    config: &Config,
    self_check: &SelfCheck,
    mark: &Mark,
) -> io::Result<(String, Vec<Reach>)> {
    let scope = Scope::new();
    let mut who = "no edge is running; this process answered instead".to_owned();
    let challenges = Challenges::new();
    let lent = look_tls::lend(&challenges, mark, &reach::hosts(config), SystemClock.now());
    let _lent = lent.map_err(io::Error::other)?;
    let plain = config.listen.http.iter().map(|address| (address, Answers::Http(mark.clone())));
    let tls =
        config.listen.https.iter().map(|address| (address, Answers::Handshakes(Arc::clone(&challenges))));
    for (address, answers) in plain.chain(tls) {
        match socket::bind(*address, 1) {
            Ok(bound) => {
                for listener in bound.sockets {
                    let listener = TcpListener::from_std(listener)?;
                    drop(scope.spawn(answer(listener, answers.clone(), scope.clone())));
                }
            }
            // Whoever listens there is found out by looking.
            Err(error) => {
                who = format!(
                    "no edge is running, and this process could not answer instead: {}",
                    Report(&error)
                )
            }
        }
    }
    let found = reach::look(config, self_check, Some(mark)).await;
    scope.abort();
    scope.close(Duration::ZERO).await;
    Ok((who, found))
}

/// What is answered at an address.
#[derive(Clone)]
enum Answers {
    Http(Mark),
    Handshakes(Arc<Challenges>),
}

async fn answer(listener: TcpListener, answers: Answers, scope: Scope) {
    loop {
        tokio::select! {
            () = scope.aborted() => return,
            Ok((stream, _)) = listener.accept() => {
                let (answers, ends) = (answers.clone(), scope.clone());
                let answered = async move {
                    match answers {
                        // Whoever asks sees what went wrong.
                        Answers::Http(mark) => drop(answer_http(stream, &mark).await),
                        Answers::Handshakes(challenges) => {
                            let Ok(local) = stream.local_addr() else { return };
                            drop(tls::accept(stream, local.ip(), &Certificates::new(), &challenges).await);
                        }
                    }
                };
                drop(scope.spawn(async move {
                    tokio::select! {
                        () = ends.aborted() => {}
                        _ = tokio::time::timeout(PATIENCE, answered) => {}
                    }
                }));
            }
        }
    }
}

async fn answer_http(mut stream: TcpStream, mark: &Mark) -> io::Result<()> {
    let mut head = vec![0; 4096];
    let mut read = 0;
    while read < head.len() && !head[..read].windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut head[read..]).await? {
            0 => return Ok(()),
            more => read += more,
        }
    }
    let wanted = format!("GET /.well-known/acme-challenge/{} ", mark.token);
    let (status, body) = if head.starts_with(wanted.as_bytes()) {
        ("200 OK", mark.answer.as_str())
    } else {
        ("404 Not Found", "")
    };
    let reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

/// A line for each name, with what was found below it.
fn rendered(who: &str, found: &[Reach]) -> String {
    let names: Vec<String> = found.iter().map(|reach| reach.name.to_string()).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut out = format!("{who}\n");
    for (name, reach) in names.iter().zip(found) {
        let (word, told) = match &reach.outcome {
            Outcome::Private => ("-", "no public CA is asked for it".to_owned()),
            Outcome::Dns(Ok(how)) => ("ok", format!("proven by DNS: {how}")),
            Outcome::Dns(Err(why)) => ("FAILS", why.clone()),
            Outcome::Looked(Found { verdict: Verdict::Ready, .. }) => ("ok", String::new()),
            Outcome::Looked(Found { verdict: Verdict::Unsure(why), .. }) => ("unsure", why.clone()),
            Outcome::Looked(Found { verdict: Verdict::Unready(why), .. }) => ("FAILS", why.clone()),
        };
        let told = told.strip_suffix(NOT_SENT).unwrap_or(&told);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", format!("{name:<width$}  {word:<6}  {told}").trim_end());
        let Outcome::Looked(found) = &reach.outcome else { continue };
        for (address, seen) in &found.addresses {
            let kind = if address.is_ipv4() { "A" } else { "AAAA" };
            let shaken = found.handshakes.iter().find(|(of, _)| of == address).map(|(_, seen)| seen);
            let ports = [("port 80", seen.as_ref()), ("port 443", shaken)];
            let told: Vec<_> =
                ports.iter().filter_map(|(port, seen)| Some(format!("{port} {}", (*seen)?))).collect();
            let told = if told.is_empty() { "was not asked".to_owned() } else { told.join(", ") };
            let _ = writeln!(out, "    {kind:<4}  {address}  {told}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::path::Path;

    use super::*;
    use crate::cert::self_check::Addresses;
    use crate::config::surroundings::Surroundings;
    use crate::config::{check, raw};
    use crate::name::HostName;

    /// `two` has an AAAA record that leads nowhere.
    fn resolve(host: HostName) -> Addresses {
        Box::pin(async move {
            match host.as_str() {
                "one.example.com" => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
                "two.example.com" => Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
                _ => Err(io::Error::other("Name or service not known")),
            }
        })
    }

    fn config(dir: &Path, (port, tls): (u16, u16)) -> Config {
        let text = format!(
            "storage: {0}\nruntime_dir: {0}\nlisten: {{http: \"127.0.0.1:{port}\", https: \"127.0.0.1:{tls}\"}}\n\
             acme: {{challenges: [http-01, dns-persist-01], dns: {{resolvers: \"127.0.0.1:9\", name_servers: \"127.0.0.1:9\"}}}}\n\
             apps: {{a: {{domains: [one.example.com, two.example.com, none.example.com, \"*.example.com\", a.test], upstream: \"unix:/x\"}}}}",
            dir.display()
        );
        let root = raw::parse(&text).root.expect("yaml");
        check::check(&root, &dir.join("edge.yaml"), dir, &Surroundings::of_this_process())
            .expect("no problem")
    }

    fn free_port() -> u16 {
        std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port()
    }

    #[test]
    fn each_name_is_told_in_a_line_that_says_what_to_do_and_one_that_fails_fails_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let (port, tls) = (free_port(), free_port());
        let self_check = SelfCheck::with(Challenges::new(), resolve, port).with_tls_at(tls);
        let (text, sound) = check_by(&config(dir.path(), (port, tls)), &self_check);
        assert!(!sound);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("no edge is running; this process answered"), "{text}");
        assert_eq!(lines[1], "one.example.com   ok", "{text}");
        assert_eq!(lines[2], "    A     127.0.0.1  port 80 leads here, port 443 leads here", "{text}");
        assert!(
            lines[3].starts_with("two.example.com   FAILS") && lines[3].contains("AAAA record ::1"),
            "{text}"
        );
        let refused = "    AAAA  ::1  port 80 refuses connections, port 443 refuses connections";
        assert_eq!(lines[5], refused, "{text}");
        assert!(
            lines[6].starts_with("none.example.com  FAILS   none.example.com has no A or AAAA record"),
            "{text}"
        );
        assert!(!text.contains("sent to the CA"), "{text}");
        assert!(lines[7].starts_with("*.example.com     FAILS   DNS gives no answer"), "{text}");
        assert!(lines[8].starts_with("a.test            -"), "{text}");
    }

    #[test]
    fn another_server_on_the_port_is_said_to_be_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let other = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = other.local_addr().expect("bound").port();
        let server = std::thread::spawn(move || {
            use std::io::{Read, Write};
            for stream in other.incoming().take(2) {
                let mut stream = stream.expect("a connection");
                let _read = stream.read(&mut [0; 1000]).expect("read");
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nServer: Apache\r\n\r\n").expect("written");
            }
        });
        let tls = free_port();
        let self_check = SelfCheck::with(Challenges::new(), resolve, port).with_tls_at(tls);
        let (text, sound) = check_by(&config(dir.path(), (port, tls)), &self_check);
        assert!(!sound);
        assert!(text.contains("could not answer instead: cannot listen on"), "{text}");
        assert!(
            text.contains("127.0.0.1 port 80 is another server: it answers with status 404 from 'Apache'"),
            "{text}"
        );
        server.join().expect("ended");
    }
}
