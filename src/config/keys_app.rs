//! The table of what an app may have, in the order of `config/reference.yaml`.

use crate::config::key::Place::{App, Own, Worker};
use crate::config::key::Preset::{Found, Is, Nothing};
use crate::config::key::{Key, key};

/// Every key that works in an app.
pub(super) const APP: &[Key] = &[
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
        "How a worker learns its address: `auto` looks at the command; or `uvicorn`, `fastapi`, `gunicorn`, `hypercorn`, `daphne`, `granian`, `waitress`, `node`, `puma`, `rails`, `generic`.",
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
        Found(
            "as many as a synchronous server works on, no limit for others, nor where gunicorn's configuration file or a script decides",
        ),
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
        "Priority of the workers for the CPU, from -20 (first) to 19; raising it takes root or CAP_SYS_NICE. The session a worker is started in gets it, too, for kernels that share the CPU out among sessions (`kernel.sched_autogroup_enabled`); in a control group that has its share of the CPU it counts within that.",
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
        "Path asked for readiness, where a status from 200 to 399 is a good answer; asked with the app's first domain as Host and with X-Forwarded-Proto `https`, or `http` with `tls: off`. Without it any HTTP answer to / means ready, and an `upstream` is taken to be.",
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
    key(
        "apps.NAME.stop_signal",
        Is("SIGTERM"),
        Worker,
        "Signal that asks a worker to end, and whom it leaves once it has ended.",
    ),
    key(
        "apps.NAME.stop_grace_period",
        Is("10s"),
        Worker,
        "From the stop signal to killing the worker's whole process group, with what it does in the background after its answers.",
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
        "A worker whose processes use more memory than this is replaced; it is measured every 5 s, and shared memory counts by share.",
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
