//! The one table of everything that may be written: the checker's known keys and defaults, its spelling help and
//! `config/reference.yaml` all follow it.

/// A key that works.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Where it stands; `NAME` is the operator's name for an app.
    pub path: &'static str,
    /// What it is when it is not written.
    pub preset: Preset,
    /// Which apps may have it.
    pub place: Place,
    /// One sentence for the operator.
    pub about: &'static str,
}

/// What a key is when it is not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Exactly as if this were written.
    Is(&'static str),
    /// Found out, as these words say.
    Found(&'static str),
    /// Nothing; the key's sentence says what that means where it is not plain.
    Nothing,
}

/// Where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Outside the apps.
    Global,
    /// In every app, and under `defaults`.
    App,
    /// In apps with a `command`, and under `defaults`.
    Worker,
    /// In an app, but not under `defaults`: it says what makes this app another than the next.
    Own,
}

use Place::{App, Global, Own, Worker};
use Preset::{Found, Is, Nothing};

const fn key(path: &'static str, preset: Preset, place: Place, about: &'static str) -> Key {
    Key { path, preset, place, about }
}

/// Every key that works, in the order of `config/reference.yaml`.
pub const KEYS: &[Key] = &[
    key("email", Nothing, Global, "Contact address given to the CA."),
    key(
        "acme.ca",
        Is("letsencrypt"),
        Global,
        "Who issues public certificates: `letsencrypt`, `letsencrypt-staging`, `zerossl`, `google`, the https URL of an ACME directory, or a list of these, each asked where the one before fails.",
    ),
    key(
        "acme.ca_root",
        Nothing,
        Global,
        "PEM file trusted for the CA's own https instead of the system's roots, for a private CA.",
    ),
    key("acme.key_type", Is("p256"), Global, "Kind of key in new certificates: `p256`, `p384` or `rsa2048`."),
    key(
        "acme.challenges",
        Found(
            "[http-01, tls-alpn-01], as far as edge listens, then dns-01 where `dns` has a publisher; wildcards by DNS alone",
        ),
        Global,
        "How names are proven to be yours: `http-01` needs port 80, `tls-alpn-01` port 443, `dns-01` a publisher under `dns`, `dns-persist-01` a record you make once; a failure puts the next one first.",
    ),
    key(
        "acme.profile",
        Nothing,
        Global,
        "Kind of certificate by the CA's name for it, such as `tlsserver` or `shortlived`; where the CA has no such kind, its default.",
    ),
    key(
        "acme.eab",
        Nothing,
        Global,
        "Binds the account to one made at the CA's site, where the CA wants that: `{kid: ID, hmac_key_file: FILE}`.",
    ),
    key(
        "acme.self_check",
        Found("true without `ca_root`, false with it"),
        Global,
        "Whether edge looks if a name leads to it before it asks the CA, and says what is wrong instead of spending an attempt.",
    ),
    key(
        "acme.dns.exec",
        Nothing,
        Global,
        "Program that publishes and removes records for `dns-01`, run without a shell; the README says how it is called.",
    ),
    key(
        "acme.dns.rfc2136",
        Nothing,
        Global,
        "Name server that takes updates (RFC 2136) of these records: `{server: ADDRESS, zone: NAME, key_name: NAME, key_file: FILE, algorithm: hmac-sha256}`, where all but `server` may be left out.",
    ),
    key("acme.dns.timeout", Is("2m"), Global, "How long publishing or removing one record may take."),
    key(
        "acme.dns.propagation",
        Is("2m"),
        Global,
        "How long the zone's name servers may take to show a record before the CA is asked to look; 0 does not look.",
    ),
    key(
        "acme.dns.resolvers",
        Found("those of /etc/resolv.conf"),
        Global,
        "Addresses of the resolvers that tell where a record belongs.",
    ),
    key(
        "acme.dns.name_servers",
        Found("the zone's own"),
        Global,
        "Addresses of the servers that must show a record before the CA is asked to look.",
    ),
    key(
        "storage",
        Found("$STATE_DIRECTORY, else /var/lib/edge as root, else $XDG_STATE_HOME/edge"),
        Global,
        "Directory of certificates, account keys and renewal history.",
    ),
    key(
        "runtime_dir",
        Found("$RUNTIME_DIRECTORY, else /run/edge as root, else $XDG_RUNTIME_DIR/edge or /tmp/edge-UID"),
        Global,
        "Directory of worker sockets and the admin socket.",
    ),
    key(
        "listen.http",
        Is("[\":80\"]"),
        Global,
        "Addresses of plain HTTP; `:80` is that port of every address, `[]` turns it off.",
    ),
    key(
        "listen.https",
        Is("[\":443\"]"),
        Global,
        "Addresses of HTTPS; `[]` turns it off. Redirects name the first one's port unless it is 443, or the client asked port 80 and came in by another, as through a container's mapping of ports.",
    ),
    key(
        "trusted_proxies",
        Is("[]"),
        Global,
        "HTTP proxies in front of edge, addresses or networks such as 10.0.0.0/8, that are believed about the client: X-Forwarded-For and Forwarded are read from the right, through believed addresses to the first other one, and where both are sent and disagree, as far as they agree; the last X-Forwarded-Proto (or Forwarded's `proto`) says whether the client came by https and is not redirected there, the last X-Forwarded-Host (or `host`) is passed on, while apps are found by Host. From anybody else these are dropped.",
    ),
    key(
        "proxy_protocol",
        Is("[]"),
        Global,
        "Load balancers in front of edge, addresses or networks, whose connections to `listen.http` and `listen.https` must all begin with a PROXY header (version 1 or 2) that names the client; from anybody else it is not understood.",
    ),
    key("threads", Is("auto"), Global, "Event loops; `auto` is one for each CPU the process may use."),
    key(
        "log.level",
        Is("info"),
        Global,
        "Least severity that is logged: `error`, `warn`, `info`, `debug` or `trace`.",
    ),
    key(
        "log.format",
        Is("auto"),
        Global,
        "Shape of a line: `text`, `json`, or `auto`, which is text on a terminal and JSON otherwise.",
    ),
    key(
        "log.access",
        Is("true"),
        Global,
        "A line for each request: `true` (standard output), `false`, or the path of a file, reopened on SIGUSR1.",
    ),
    key(
        "metrics",
        Nothing,
        Global,
        "Address where Prometheus finds metrics, at /metrics in its text format; without it there are none. Whoever reaches it can read them.",
    ),
    key(
        "admin",
        Found("{runtime_dir}/admin.sock"),
        Global,
        "Path of the admin socket, which only edge's own user and root may open.",
    ),
    key("drain_timeout", Is("30s"), Global, "How long open requests may take at shutdown."),
    key(
        "timeouts.handshake",
        Is("10s"),
        Global,
        "From accepting a connection to the end of its TLS handshake.",
    ),
    key(
        "timeouts.headers",
        Is("10s"),
        Global,
        "From the first byte of a request head, or the start of its connection, to its end; 408 beyond.",
    ),
    key("timeouts.body", Is("30s"), Global, "A request body without progress; 408 beyond."),
    key(
        "timeouts.write",
        Is("30s"),
        Global,
        "A response that the client does not take; the connection is ended.",
    ),
    key("timeouts.keepalive", Is("60s"), Global, "An idle HTTP/1.1 client connection; it is closed."),
    key(
        "timeouts.keepalive_h2",
        Is("75s"),
        Global,
        "An idle HTTP/2 client connection; it is closed with GOAWAY.",
    ),
    key(
        "timeouts.connection_age",
        Is("1h"),
        Global,
        "A client connection's life; it then finishes what it has and is closed; 0 is never.",
    ),
    key("timeouts.connect", Is("1s"), Global, "Connecting to a worker or upstream server."),
    key("timeouts.first_byte", Is("60s"), Global, "A worker that is silent after the request; 504 beyond."),
    key(
        "timeouts.upstream_idle",
        Is("60s"),
        Global,
        "A worker that stops in the middle of a response; the response is cut visibly.",
    ),
    key(
        "timeouts.pool_idle",
        Is("auto"),
        Global,
        "An idle connection to a worker or upstream server; `auto` is less than its kind of server keeps it.",
    ),
    key("timeouts.tunnel", Is("10m"), Global, "An idle WebSocket."),
    key(
        "limits.connections",
        Is("auto"),
        Global,
        "Client connections at once; `auto` is half of the files that may be open, at most 20000. Idle ones go first.",
    ),
    key(
        "limits.connections_per_client",
        Is("256"),
        Global,
        "Client connections at once from one IPv4 address or IPv6 /64, others are refused; 0 is any number.",
    ),
    key(
        "limits.in_flight_per_client",
        Is("64"),
        Global,
        "Requests of one such client at workers at once; others wait for at most 1 s, then 503; 0 is any number.",
    ),
    key(
        "limits.requests_per_connection",
        Is("10000"),
        Global,
        "Requests on one client connection, which then finishes what it has and is closed; 0 is any number.",
    ),
    key("limits.handshakes", Is("512"), Global, "TLS handshakes at once; others wait."),
    key(
        "limits.body_rate",
        Is("1KB"),
        Global,
        "Least speed of a request body in bytes a second, on average once `timeouts.body` has passed; 408 beyond; 0 is any.",
    ),
    key("limits.head_size", Is("16KB"), Global, "Longest request head; 431 beyond."),
    key(
        "limits.header_fields",
        Is("100"),
        Global,
        "Most header fields of a request, each cookie of HTTP/2 counted; 431 beyond.",
    ),
    key("limits.uri_size", Is("8KB"), Global, "Longest path and query; 414 beyond."),
    key(
        "limits.chunk_extensions",
        Is("4KB"),
        Global,
        "Chunk extensions of one message, which mean nothing and are dropped; 400 or 502 beyond.",
    ),
    key("limits.trailer_size", Is("16KB"), Global, "Longest trailer section; 400 or 502 beyond."),
    key("limits.trailer_fields", Is("32"), Global, "Most trailer fields; 400 or 502 beyond."),
    key("limits.streams", Is("100"), Global, "HTTP/2 streams at once on one client connection."),
    key("limits.window", Is("256KB"), Global, "What an HTTP/2 client may send ahead on one stream."),
    key(
        "limits.connection_window",
        Is("1MB"),
        Global,
        "What an HTTP/2 client may send ahead on all streams of a connection.",
    ),
    key("limits.response_head_size", Is("64KB"), Global, "Longest head of a worker's answer; 502 beyond."),
    key(
        "limits.response_header_fields",
        Is("200"),
        Global,
        "Most header fields of a worker's answer; 502 beyond.",
    ),
    key(
        "limits.interim_responses",
        Is("10"),
        Global,
        "Interim (1xx) answers to one request; 502 beyond. Clients get them, but for 100, which edge sends itself, and clients of HTTP/1.0.",
    ),
    key(
        "limits.early_response_drain",
        Is("64KB"),
        Global,
        "Request body that is read on after an answer that did not wait for it, for at most 2 s.",
    ),
    key(
        "defaults",
        Nothing,
        Global,
        "Keys of an app for every app, except `domains`, `default`, `command`, `upstream` and `redirect_to`; what an app says itself wins.",
    ),
    key(
        "apps.NAME.domains",
        Nothing,
        Own,
        "Host names and IP addresses it answers for; `*.example.com` stands for one label.",
    ),
    key(
        "apps.NAME.default",
        Is("false"),
        Own,
        "Whether it also takes names that no app has; without such an app they are refused.",
    ),
    key(
        "apps.NAME.command",
        Nothing,
        Own,
        "What starts a worker, split like a shell would but run without one; may hold {socket}, {port}, {worker}, {app}.",
    ),
    key(
        "apps.NAME.upstream",
        Nothing,
        Own,
        "Instead of `command`: address or list of servers that edge does not run, such as http://10.0.0.7:8080 or unix:/run/x.sock.",
    ),
    key(
        "apps.NAME.server",
        Is("auto"),
        Worker,
        "How a worker learns its address: `auto` looks at the command; or `uvicorn`, `fastapi`, `gunicorn`, `hypercorn`, `daphne`, `granian`, `waitress`, `node`, `puma`, `generic`.",
    ),
    key(
        "apps.NAME.transport",
        Is("auto"),
        Worker,
        "Between edge and the workers: `unix`, `tcp`, or `auto`, which prefers unix.",
    ),
    key(
        "apps.NAME.workers",
        Is("auto"),
        Worker,
        "Number of worker processes: a number, `auto` (one for each CPU), or `{min: 2, max: 8}`, which follows the load: more at once when requests wait or workers are busy, fewer one at a time after 30 s with little to do.",
    ),
    key(
        "apps.NAME.concurrency",
        Found("as many as a synchronous server works on, no limit for others"),
        Worker,
        "Requests in flight at one worker, the rest waits in the queue; 0 is no limit.",
    ),
    key(
        "apps.NAME.queue.size",
        Is("100"),
        App,
        "Requests that wait for a worker while none is free or ready; 503 with Retry-After beyond.",
    ),
    key(
        "apps.NAME.queue.timeout",
        Is("10s"),
        App,
        "How long a request waits for a worker; 503 with Retry-After beyond.",
    ),
    key(
        "apps.NAME.protocol",
        Is("http1"),
        App,
        "What workers or upstream servers speak: `http1`, or `h2c`, HTTP/2 without TLS from the first byte, as gRPC servers do.",
    ),
    key(
        "apps.NAME.sticky",
        Is("none"),
        App,
        "Whether a client stays with one worker: `none`, by a `cookie`, or by its `ip` address.",
    ),
    key(
        "apps.NAME.working_dir",
        Found("the directory of this file"),
        Worker,
        "Directory the workers start in; relative to this file.",
    ),
    key(
        "apps.NAME.user",
        Found("edge's own; as root the owner of working_dir, or nobody where that is root"),
        Worker,
        "User the workers run as, by name or number; only root can choose.",
    ),
    key(
        "apps.NAME.group",
        Found("the user's"),
        Worker,
        "Group the workers run as, by name or number; only root can choose.",
    ),
    key(
        "apps.NAME.environment",
        Is("{}"),
        Worker,
        "Variables for the workers; each also wins over `env_file`.",
    ),
    key(
        "apps.NAME.env_file",
        Is("[]"),
        Worker,
        "File or list of files with NAME=VALUE lines for the workers; relative to this file, later files win.",
    ),
    key(
        "apps.NAME.ulimits",
        Is("{}"),
        Worker,
        "Limits of each worker process by name, such as `nofile: 65536` or `core: {soft: 0, hard: unlimited}`; those not named are edge's own.",
    ),
    key(
        "apps.NAME.nice",
        Found("edge's own"),
        Worker,
        "Priority of the workers for the CPU, from -20 (first) to 19; only root can raise it.",
    ),
    key(
        "apps.NAME.before_start",
        Is("[]"),
        Worker,
        "Command or list of commands run once before the first worker of each generation, such as migrations; a failure keeps the old generation.",
    ),
    key(
        "apps.NAME.before_start_timeout",
        Is("5m"),
        Worker,
        "How long those commands may take together; beyond, they are ended like a worker, and the old generation stays.",
    ),
    key(
        "apps.NAME.healthcheck.path",
        Nothing,
        Worker,
        "Path asked for readiness; without it any HTTP answer to / means ready, and an `upstream` is taken to be.",
    ),
    key(
        "apps.NAME.healthcheck.interval",
        Is("10s"),
        Worker,
        "How often a worker that serves is asked for that path.",
    ),
    key("apps.NAME.healthcheck.timeout", Is("5s"), Worker, "How long its answer may take."),
    key(
        "apps.NAME.healthcheck.retries",
        Is("3"),
        Worker,
        "Failures in a row after which the worker is replaced, its successor ready first.",
    ),
    key("apps.NAME.start_timeout", Is("60s"), Worker, "How long a worker may take to become ready."),
    key(
        "apps.NAME.drain_timeout",
        Is("30s"),
        Worker,
        "How long a worker's open requests may take before its stop signal.",
    ),
    key("apps.NAME.stop_signal", Is("SIGTERM"), Worker, "Signal that asks a worker to end."),
    key(
        "apps.NAME.stop_grace_period",
        Is("10s"),
        Worker,
        "From the stop signal to killing the worker's whole process group.",
    ),
    key(
        "apps.NAME.restart.backoff",
        Is("200ms"),
        Worker,
        "Pause before the second restart in a row, doubled each time; the first is at once.",
    ),
    key(
        "apps.NAME.restart.max_backoff",
        Is("30s"),
        Worker,
        "Longest pause between restarts; edge never gives up.",
    ),
    key(
        "apps.NAME.hang_timeout",
        Is("30s"),
        Worker,
        "A worker that reads nothing this long is aborted and replaced, after 2 s without new requests; 0 is never.",
    ),
    key(
        "apps.NAME.max_requests",
        Is("0"),
        Worker,
        "A worker is replaced after that many requests, its successor ready first; 0 is never.",
    ),
    key(
        "apps.NAME.max_requests_jitter",
        Is("20%"),
        Worker,
        "By how much more it may be, drawn anew for each worker, so that they do not go together.",
    ),
    key(
        "apps.NAME.max_lifetime",
        Is("0"),
        Worker,
        "A worker is replaced after that time, up to a tenth sooner; 0 is never.",
    ),
    key(
        "apps.NAME.max_memory",
        Nothing,
        Worker,
        "A worker whose processes use more memory than this is replaced; shared memory counts by share.",
    ),
    key(
        "apps.NAME.memory_limit",
        Nothing,
        Worker,
        "Memory a worker and all it starts may use, kept by the kernel, which kills it beyond; needs a delegated control group, see the README.",
    ),
    key(
        "apps.NAME.tls",
        Is("auto"),
        App,
        "Certificates: `auto` (ACME; edge's own CA for localhost, *.localhost, *.test, *.internal and private addresses), `internal`, `off`, or `{cert: FILE, key: FILE}`.",
    ),
    key(
        "apps.NAME.client_auth",
        Nothing,
        App,
        "Certificates that clients are asked for in the handshake, `{ca: FILE, mode: require}` or `mode: request`, which lets in those without one: one that is presented must be of a CA in the PEM file and in force; its subject reaches the worker in X-Client-Cert-Subject. A changed file is noticed within a minute or at a reload, for handshakes from then on.",
    ),
    key(
        "apps.NAME.http",
        Is("redirect"),
        App,
        "What plain HTTP gets: `redirect` to https, or `serve` (the only choice with `tls: off`).",
    ),
    key(
        "apps.NAME.redirect_to",
        Nothing,
        Own,
        "One of the app's own domains; its other domains are answered with a redirect there.",
    ),
    key(
        "apps.NAME.hsts",
        Is("false"),
        App,
        "Strict-Transport-Security on https answers: `true` is one year, or a duration.",
    ),
    key("apps.NAME.max_body", Is("100MB"), App, "Longest request body; 413 beyond."),
];

/// Keys below `tls` where it is a mapping.
pub const TLS_KEYS: [&str; 2] = ["cert", "key"];

/// Keys below `client_auth`.
pub const CLIENT_AUTH_KEYS: [&str; 2] = ["ca", "mode"];

/// Keys below `acme.eab`.
pub const EAB_KEYS: [&str; 2] = ["kid", "hmac_key_file"];

/// Keys below `acme.dns.rfc2136`.
pub const RFC2136_KEYS: [&str; 5] = ["server", "zone", "key_name", "key_file", "algorithm"];

/// The key at `path`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// What may be written directly below `parent` (`""` is the top), each once.
pub fn children(parent: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for key in KEYS {
        let below = if parent.is_empty() {
            Some(key.path)
        } else {
            key.path.strip_prefix(parent).and_then(|rest| rest.strip_prefix('.'))
        };
        let name = below.and_then(|below| below.split('.').next());
        names.extend(name.filter(|name| !names.contains(name)));
    }
    if parent == "apps.NAME.tls" {
        names.extend(TLS_KEYS);
    }
    if parent == "apps.NAME.client_auth" {
        names.extend(CLIENT_AUTH_KEYS);
    }
    if parent == "acme.eab" {
        names.extend(EAB_KEYS);
    }
    if parent == "acme.dns.rfc2136" {
        names.extend(RFC2136_KEYS);
    }
    names
}

/// Where else a key of this name belongs, if there is exactly one such place.
pub fn elsewhere(name: &str) -> Option<&'static str> {
    let mut places = KEYS.iter().map(|key| key.path).filter(|path| path.rsplit('.').next() == Some(name));
    match (places.next(), places.next()) {
        (Some(place), None) => Some(place),
        (_, Some(_)) | (None, None) => None,
    }
}

/// The known word that `written` was probably meant to be: at most a third of its letters differ.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words are no typing mistake, and the distance takes time in the product of the lengths.
    if written.len() > 40 {
        return None;
    }
    let lower = written.to_lowercase().replace('-', "_");
    let distance = |word: &str| strsim::damerau_levenshtein(&lower, &word.replace('-', "_"));
    let (steps, word) =
        known.into_iter().map(|word| (distance(word), word)).min_by_key(|(steps, _)| *steps)?;
    (steps * 3 <= lower.len().max(word.len())).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_spelling_is_offered_and_strangers_are_not() {
        let app = children("apps.NAME");
        for (written, meant) in [
            ("worker", Some("workers")),
            ("Domains", Some("domains")),
            ("work_dir", Some("working_dir")),
            ("stop-signal", Some("stop_signal")),
            ("rate_limit", None),
            ("compression", None),
            ("x", None),
        ] {
            assert_eq!(nearest(written, app.iter().copied()), meant, "{written}");
        }
    }

    #[test]
    fn a_key_in_the_wrong_place_is_recognised() {
        assert_eq!(elsewhere("workers"), Some("apps.NAME.workers"));
        assert_eq!(elsewhere("drain_timeout"), None, "there are two");
    }

    #[test]
    fn each_key_stands_once_and_is_told_in_one_sentence() {
        for (index, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..index].iter().all(|other| other.path != key.path), "{} twice", key.path);
            assert!(key.about.ends_with('.') && !key.about.contains('\n'), "{}", key.path);
        }
    }
}
