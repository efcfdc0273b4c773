//! `edge` stands between the internet and an application: it ends TLS, obtains certificates, speaks HTTP/1.1 and HTTP/2, and
//! forwards to worker processes that it spawns, watches, drains and replaces.
//!
//! One process. Its main thread is the control plane: supervisors, certificates, admin socket, signals. Each further thread is
//! a data plane of its own, with its listening sockets, connections and idle worker connections; a request that finds a worker
//! waits for no other thread. An HTTP/2 stream that is not answered at once has a task while it lasts, and a WebSocket on one its own; an
//! HTTP/1.1 request, and a WebSocket after it, have their connection's. A request that has to wait for a worker stands in a line
//! behind a short lock; a synchronous worker's answer that is longer than one read has a task that reads it ahead of the client;
//! so have each connection over HTTP/2 to a worker, which its requests share, and an upload there that goes on after the answer
//! began.
//!
//! # Three ways
//! - **A request:** `listen/accept` → `listen/tls` → `listen/http1`, or `http2` and `stream` → `proxy/handle`, which asks `proxy/route` for the
//!   app, `upstream/pool` for a lease on a worker's slot (chosen by `upstream/balance`, waited for in `upstream/queue`),
//!   `proxy/headers` for what to pass on, and `upstream/exchange` for the answer, which `upstream/wire` reads and strips of what
//!   was only said to edge; `proxy/attempt` decides whether another worker is tried. `proxy/body` gives the lease back with the
//!   last byte, and `telemetry/access` writes the line.
//! - **A certificate:** `cert/schedule` decides what is due, now and for renewal; `cert/driver`, as `cert/gate` lets it, has
//!   `cert/issuer` order it (what a failure means is in `cert/failure`, when to try again in `cert/delay`), while
//!   `cert/challenge` lends the answers to the request path; `cert/bundle` checks it, `cert/store` keeps it, and `cert/resolver`
//!   serves it.
//! - **A worker:** `worker/rollout` decides who is launched and retired, `worker/lifecycle` what happens to each next: started,
//!   admitted, suspected, drained, told to stop, killed. `worker/supervisor` performs it through its `worker/crew`, which
//!   `worker/watchdog` and `worker/recycling` tell who hangs and who is due: `worker/adapter` has the command line,
//!   `worker/launch` spawns, `worker/child` signals and kills, `worker/probe` asks whether it is ready, `worker/slot` opens and
//!   closes it to requests.
//!
//! A changed configuration comes in by `daemon/reload`: `config/load` reads it, `config/diff` says what is touched, and in
//! `daemon/adoption` what can fail (addresses, new apps, new workers) is done before the certificates, the routing and the listeners
//! change.
//!
//! # Publications
//! One writer, many readers, replaced whole: the roster of slots (`worker/slot`: supervisor → pool), certificates
//! (`cert/resolver`: driver → handshakes), the routing (`proxy/route`: `daemon/live` → requests), challenges (`cert/challenge`:
//! whoever proves a name → requests). Beyond these, threads share counters, each slot's latency, and the line of requests that
//! wait for an app.
//!
//! # Many cores
//! What a request touches that another thread touches too: its app's slots, six to eight atomic changes of the chosen one and reads
//! of those it is chosen among, two where there are more than eight; the count of its client's requests, one cache line for each
//! client; snapshots, which are read without a write that others see. None of it is a lock, except where a request comes through
//! a trusted proxy: its client is looked up behind one of 64.
//!
//! `cargo bench --bench cores` measures that without sockets, so that threads meet some thirty times as often as in service. On two
//! cores of a virtual machine it takes a thread 0.5 to 0.8 µs of a request's 15 to 20; the most that another thread at the same
//! slots added was 0.6 µs with four of them and 0.2 µs with 32. A line went from one core to the other in up to 150 ns. With that
//! as the service time of a queue for each slot, 32 threads that could serve 50,000 requests a second each come to 4 % less than
//! if nothing were shared with 32 workers, 7 % with four, 11 % with one; at 250 ns, as between sockets, to 6, 16 and 38 %. For two
//! threads at four slots the same reckoning says 1 µs, so it is on the careful side; on 32 cores nothing was measured.
//!
//! Two things are shared and serial: the line of an app whose workers are all taken, behind a lock that such a request takes a few
//! times (1.7 µs of CPU on one thread, 2.2 to 2.9 with two in the same line); and the writer of the access log, one thread for each
//! destination, which wrote two gigabytes a second and beyond its limit drops lines, counted. 100,000 idle connections are memory
//! (`tests/bench/compare --metrics f`) and one entry each in their thread's table of deadlines, which is looked through ten times a
//! second: half a hundredth of a core for all of them on one thread. Coming and going, each takes one of 64 locks, 0.3 to 0.7 µs.
//! Connections are spread over threads by the kernel as they come (`SO_REUSEPORT`), and stay: a few long and busy ones can be
//! unevenly spread. A socket that a service manager holds is one for all threads: each connection wakes those that wait, and goes
//! to whoever is first. A thread with clearly more than its share (`listen/share`) leaves the next once, for a millisecond; what
//! nobody has taken by then it takes, and what comes until none wait: where the others are busy there is no bound to what it has.
//!
//! # The map
//! A file imports floor 0, its own folder, and what its line or its floor's heading names after `←`. `P` is pure: it decides,
//! and never waits, reads a clock, touches a file or a socket, or logs. A test holds the code to this.
//! ```text
//! ── floor 0: words and tools ── open to every file
//!   name.rs                P  host names, app names and worker identities: parsed once, compared, printed
//!   backoff.rs             P  growing delays between restarts
//!   report.rs              P  one error chain on one line
//!   tls_words.rs           P  what the TLS library finds wrong, as an operator would say it
//!   clock.rs                  wall time as a seam
//!   complaint.rs              trouble that comes again and again and is told once
//!   deadline.rs               time-outs of the request path without a timer each
//!   fading.rs              P  how what was seen counts less with time
//!   boxed.rs               P  futures in memory of their own, made there
//!   inflow.rs                 reading without a buffer for each connection
//!   outbox.rs                 what is on its way to a client or a worker
//!   prefixed.rs               a stream of which too much was read
//!   pidfd.rs                  a process by descriptor
//!   offspring.rs              children that somebody waits for, and no reaper of orphans
//!   durable.rs                state files written whole or not at all
//!   scope.rs                  ownership of tasks: the only place that spawns; ends by drain, then abort
//!
//! ── floor 1: config ── what the operator wrote, and the checked form the program uses
//!   config/scalar.rs       P  sizes, durations, addresses: each parses itself and says what it wanted
//!   config/care.rs         P  how workers are limited, asked for their health and recycled
//!   config/acme.rs         P  how certificates are obtained, and names proven
//!   config/trusted.rs      P  certificates trusted because the operator's file holds them
//!   config/networks.rs     P  networks of addresses, and whether an address is in one
//!   config/limits.rs       P  deadlines and bounds of connections and requests
//!   config/model.rs        P  the checked configuration: a value of these types holds no nonsense
//!   config/problem.rs      P  one fault with its place, key and remedy; all of them in order
//!   config/script.rs       P  the script that a command hands to a shell, and whether arguments reach it
//!   config/env_file.rs     P  files of NAME=VALUE lines
//!   config/surroundings.rs    what a file's meaning depends on besides its text: tests make it up
//!   config/account.rs         who workers run as: names and numbers of the system's accounts
//!   config/key.rs          P  what there is to know of one key
//!   config/keys_global.rs  P  the table of what may be written outside the apps
//!   config/keys_app.rs     P  the table of what an app may have
//!   config/keys.rs         P  the keys that exist, and the nearest to one that does not
//!   config/schema.rs       P  the keys as a JSON Schema, for editors
//!   config/raw.rs          P  the file's shape with positions
//!   config/section.rs      P  reading one mapping: known keys, defaults, spelling help
//!   config/context.rs         what reading an app needs besides its section, and the files its keys name
//!   config/check_acme.rs      who issues certificates, and how names are proven
//!   config/check_dns.rs       how records in DNS are published and looked for
//!   config/check_limits.rs    deadlines and bounds
//!   config/check_worker.rs    how an app's workers are run
//!   config/check_app.rs       names, certificates, redirects, and who answers
//!   config/check.rs           raw to checked, or every problem
//!   config/diff.rs         P  what a changed configuration asks of a running edge
//!   config/load.rs            file to text to raw to checked
//!
//! ── floor 2: telemetry ── what edge says of itself
//!   telemetry/line.rs      P  the alphabet of every line edge writes
//!   telemetry/access.rs    P  one line for each request, as JSON and as text
//!   telemetry/status.rs    P  what `edge status --json` prints
//!   telemetry/tally.rs     P  what is counted of requests, by each thread for itself
//!   telemetry/metrics.rs   P  the running state as Prometheus reads it
//!   telemetry/sink.rs         lines to standard output or a file, reopened on request   ← config
//!   telemetry/buffer.rs       a thread's lines on their way to a sink; the access log as one thread sees it
//!   telemetry/log.rs          events to the same place, as the configuration wants them   ← config
//!
//! ── floor 3: worker ── processes: spawned, watched, drained, replaced   ← config
//!   worker/slot.rs            a worker's place as the request path sees it; the roster of an app
//!   worker/program.rs      P  which server a command starts, behind whatever wrappers
//!   worker/background.rs   P  which commands leave for the background
//!   worker/deaf.rs         P  which programs do not read `PORT`, and which answer no HTTP
//!   worker/flags.rs        P  a server's options looked up, taken out and added
//!   worker/servers.rs      P  each server's own way of being told its address
//!   worker/family.rs          everything a worker started
//!   worker/delegation.rs   P  which control group edge may divide among its workers
//!   worker/cgroup.rs          a control group for each worker: its limit of memory, its end
//!   worker/environment.rs     what a worker inherits, and the directory of its sockets
//!   worker/runnable.rs        whether a program is there and its user may run it, for messages
//!   worker/guard.rs           ends the workers of an edge that was killed
//!   worker/leftovers.rs       what a killed edge left behind, removed before new workers start
//!   worker/registry.rs        the workers that live, written down for the next edge
//!   worker/before_start.rs    what is run once before the first worker of a generation
//!   worker/change.rs          what an operator asked of an app's workers, and why it failed
//!   worker/child.rs           one running worker: its end, its signals
//!   worker/listening.rs       where a worker listens really, for the messages
//!   worker/last_words.rs   P  which of a dead worker's last lines says why it died
//!   worker/past.rs         P  what a slot remembers of the workers it had   ← telemetry
//!   worker/priority.rs        the priority of a worker's session
//!   worker/member.rs          one worker as its crew holds it   ← telemetry
//!   worker/unread.rs          bytes that the other end was sent and has not read
//!   worker/watchdog.rs        whether a worker that serves reads what it is sent
//!   worker/deserted.rs        whether anybody listens still where a worker that serves did
//!   worker/answering.rs       whether the files a worker is started from answer at all
//!   worker/setup.rs           what the workers of one generation are run by
//!   worker/recycling.rs       when a worker that serves well is replaced all the same
//!   worker/scaling.rs         how a crew comes to another number of workers
//!   worker/launching.rs       how a crew starts a worker
//!   worker/staffing.rs        how a crew carries out each other decision   ← telemetry
//!   worker/remarks.rs         what operators hear of workers while it is so
//!   worker/crew.rs            the workers of one app as their supervisor holds them   ← telemetry
//!   worker/lifecycle.rs    P  one worker's life: state, input, actions
//!   worker/places.rs       P  the slots of an app: who is in each, and when the next may be launched
//!   worker/rollout.rs      P  how many to launch, whom to retire, when a death is a crash loop
//!   worker/scale.rs        P  more workers or fewer, by what they have to do
//!   worker/headcount.rs    P  how many workers there shall be, and who decides that   ← telemetry
//!   worker/adapter.rs      P  how each server learns its address: final command line and environment
//!   worker/launch.rs          the only place that makes workers
//!   worker/journal.rs         what an app's workers printed last
//!   worker/output.rs          what workers print, as log lines
//!   worker/probe_http2.rs     a question to a worker that speaks HTTP/2
//!   worker/probe.rs           one attempt to find a worker ready
//!   worker/usage.rs           memory of a worker, read from the kernel
//!   worker/supervisor.rs      driver of one app's workers; publishes the roster   ← telemetry
//!
//! ── floor 3: cert ── certificates: decided when, ordered, stored, published   ← config
//!   cert/seconds.rs        P  moments as whole seconds
//!   cert/bundle.rs         P  chain and key that belong together, names, validity
//!   cert/failure.rs        P  what went wrong, as a class, and what an operator does
//!   cert/validity.rs       P  the time of a certificate, and the moment in it to renew
//!   cert/advice.rs         P  when a CA wants a certificate renewed, and the second that is chosen
//!   cert/history.rs        P  what is remembered of a name over restarts   ← telemetry::status
//!   cert/delay.rs          P  how long to wait after a failure, by its class
//!   cert/turns.rs          P  which of several CAs is asked
//!   cert/gate.rs           P  how many orders run at once, and which come first
//!   cert/schedule.rs       P  what is due now, and when to look again   ← telemetry::status
//!   cert/pending.rs        P  an order whose certificate is not stored yet
//!   cert/dns_record.rs     P  where records stand, and one that edge has published and must remove
//!   cert/dns_persist.rs    P  the record of dns-persist-01, as it is made and as it is found
//!   cert/dns_message.rs    P  messages to and from name servers
//!   cert/dns_ask.rs           one question to one name server
//!   cert/dns_zone.rs          where a record belongs: its real name, its zone, the servers of that
//!   cert/dns_watch.rs         whether every server of a zone shows a record
//!   cert/dns_hook.rs          the operator's program that publishes records
//!   cert/dns_update.rs        records published by dynamic updates
//!   cert/reach.rs             whether every configured name leads here, on demand
//!   cert/dns_proof.rs         records published, seen, and removed whatever happens
//!   cert/challenge.rs         the answers to pending challenges, published for requests and handshakes
//!   cert/tls_alpn.rs          the certificate that answers a TLS-ALPN-01 challenge
//!   cert/self_check.rs        whether a name leads here, before a CA is asked
//!   cert/look_tls.rs          whether port 443 leads here, on demand
//!   cert/import.rs         P  which certificates of another program are taken over, and for which names
//!   cert/ca_id.rs          P  a CA as the store and other programs name it
//!   cert/cas.rs               the CAs of a configuration
//!   cert/store_error.rs       what of the store, or of the operator's files, cannot be used
//!   cert/store.rs             certificates, accounts, orders and failures on disk
//!   cert/disk.rs              writes in order, away from the thread that drives
//!   cert/files.rs             certificates the operator maintains as files
//!   cert/ca_client.rs         the HTTP client towards a CA, with limits
//!   cert/trouble.rs           what a CA refused, and patience with its nonces
//!   cert/directory.rs         what a CA offers
//!   cert/binding.rs           an account that is bound to one made at the CA's site
//!   cert/account.rs           the account at a CA
//!   cert/foreign.rs           what certbot and Caddy left behind
//!   cert/ca.rs                one CA: its directory, account, client and clock
//!   cert/authorize.rs         challenges picked, answered and explained
//!   cert/client_policy.rs     what an app asks of its clients in a handshake
//!   cert/subject.rs        P  the subject of a client's certificate as one line
//!   cert/internal.rs          edge's own CA
//!   cert/order.rs             one order at an ACME CA, resumed or new
//!   cert/issuer.rs            the seam towards CAs, and ACME behind it
//!   cert/resolver.rs          which certificate a client gets: the published snapshot
//!   cert/names.rs             every configured name with its certificate   ← telemetry::status
//!   cert/file_watch.rs        the operator's files read again: what is served of them, and from when
//!   cert/telling.rs           what is told of the names: to handshakes, on pages, in the status   ← telemetry::status
//!   cert/change.rs            from the names of one configuration to those of the next
//!   cert/driver.rs            performs what schedule and gate decide   ← telemetry
//!   cert/ordering.rs          the driver's side of an order   ← telemetry
//!   cert/offer.rs             a certificate of another program, on its way into the storage   ← telemetry
//!   cert/importing.rs         the driver's side of one   ← telemetry
//!   cert/reconfigure.rs       the driver's side of another configuration   ← telemetry
//!   cert/manager.rs           loads what is stored, starts the driver, tells the status   ← telemetry
//!
//! ── floor 4: upstream ── choosing and reaching a worker   ← config, worker::slot
//!   upstream/error.rs      P  what can go wrong between choosing a worker and the end of its answer
//!   upstream/balance.rs    P  which of several slots is best: in flight, latency, silence, age
//!   upstream/affinity.rs   P  which slot a client stays with
//!   upstream/queue.rs      P  who waits for a worker, who is refused, who is next
//!   upstream/relief.rs     P  how many requests that lie unread may be given to another worker
//!   upstream/wire.rs       P  HTTP/1.1 with a worker, without sockets: requests written, answers read and stripped
//!   upstream/framing.rs    P  where a body begins and ends on the wire; which trailers pass
//!   upstream/lease.rs         one request in flight on one slot, given back when dropped
//!   upstream/pool.rs          a lease at once, or after waiting in line, or an error
//!   upstream/unix_socket.rs   a unix socket, and when to listen for room on it   ← worker::unread
//!   upstream/connection.rs    one connection to a worker, and whether it may be used again
//!   upstream/idle.rs          this thread's idle connections, last in first out
//!   upstream/budget.rs        what a thread holds in memory so that workers need not wait for clients
//!   upstream/client_body.rs   a client's body as it comes, read on after an early answer
//!   upstream/request_body.rs  a client's body on its way: bounded, watched, counted
//!   upstream/upload.rs        the sending half of an attempt
//!   upstream/body.rs          a worker's body, with what is left of the upload
//!   upstream/spool.rs         a synchronous worker's body, read faster than its client takes it
//!   upstream/stream_head.rs P  heads of HTTP/2 with a worker, without sockets: the same
//!   upstream/hearing.rs       when a worker was last heard of on a connection that is shared, and who waits for that
//!   upstream/multiplex.rs     this thread's connections of HTTP/2, shared by its requests
//!   upstream/stream_upload.rs the sending half of a stream
//!   upstream/duplex.rs        a stream of HTTP/2 as a stream of bytes, for a WebSocket
//!   upstream/stream_body.rs   a worker's body over HTTP/2
//!   upstream/exchange.rs      one attempt: a request out, the head of the answer in
//!   upstream/stream.rs        the same over HTTP/2
//!
//! ── floor 5: proxy ── HTTP meaning, independent of the wire version   ← config
//!   proxy/clients.rs          what each client holds: connections, requests in flight   ← telemetry::metrics
//!   proxy/conn.rs             what is known of the client's connection   ← cert::resolver, upstream::client_body
//!   proxy/target.rs        P  what a request asks for, checked before it is routed
//!   proxy/forwarded.rs     P  what proxies say of a client, and how much of it is believed
//!   proxy/caller.rs           whom a request is from: the connection's client, or whom a trusted proxy names
//!   proxy/frames.rs        P  where one WebSocket frame ends and the next begins
//!   proxy/heads.rs            what the requests that wait hold with their heads, over all clients together
//!   proxy/plane.rs            what one data-plane thread needs to answer   ← cert, upstream, telemetry
//!   proxy/entry.rs            a request's access line, from its head to its last byte   ← telemetry, upstream::client_body
//!   proxy/relay.rs            bytes both ways after a protocol switch
//!   proxy/error.rs         P  every way a request fails: whose fault, which status   ← upstream::error
//!   proxy/route.rs            host and path to app, redirect, challenge or refusal   ← upstream::pool, worker::adapter, telemetry::tally
//!   proxy/sticky.rs           the cookie or address that keeps a client with a worker   ← upstream::affinity
//!   proxy/headers.rs       P  what is removed from requests, added, rewritten
//!   proxy/attempt.rs       P  try again or not   ← upstream::error
//!   proxy/reply.rs            the answers edge writes itself   ← upstream::error, upstream::stream_head
//!   proxy/body.rs             bodies with their limits, their lease and their access line   ← upstream, telemetry
//!   proxy/upgrade.rs          WebSocket tunnels   ← upstream, telemetry
//!   proxy/handle.rs           a request's way, a step a paragraph   ← upstream, worker::slot, cert, telemetry
//!
//! ── floor 6: listen ── bytes to requests   ← config
//!   listen/socket.rs          bound addresses
//!   listen/inherited.rs       those that a service manager holds for edge
//!   listen/arrivals.rs        connections that wait to be accepted
//!   listen/tcp.rs             a client's TCP connection, below TLS   ← worker::unread
//!   listen/meter.rs           what moves on a connection, for time-outs that ask for progress; when nothing is there to read
//!   listen/stage.rs           serving, draining or ending, for every connection of a thread to look at
//!   listen/watch.rs        P  which time-out a connection is under now
//!   listen/linger.rs          closing without losing the last answer
//!   listen/request.rs      P  the head of a client's HTTP/1 request, read or refused   ← proxy::error, proxy::target, upstream::wire
//!   listen/response.rs     P  the head of a response, and how its body ends   ← upstream::framing
//!   listen/wire.rs            a client's HTTP/1 connection, and the body of the request on it   ← upstream
//!   listen/http1.rs           HTTP/1.1 with a client, one request after the other   ← proxy, upstream
//!   listen/http1/answer.rs    one answer on its way, framed   ← proxy, upstream
//!   listen/date.rs            the date of a response, written once a second
//!   listen/standby.rs         tasks that are kept for the next thing to wait for
//!   listen/outflow.rs         what answers have handed on to a client's HTTP/2 connection   ← proxy, upstream
//!   listen/stream.rs          one request on a client's HTTP/2 connection, and its answer   ← proxy, upstream
//!   listen/http2.rs           a client's HTTP/2 connection   ← proxy
//!   listen/complaint.rs       what clients do that operators are told of
//!   listen/proxy_header.rs P  the PROXY protocol: for whom a load balancer connects
//!   listen/introduction.rs    that header read off a connection, and nothing more
//!   listen/handshakes.rs      how many handshakes are under way, and who makes room
//!   listen/share.rs           how many of all connections a thread serves
//!   listen/accept.rs          the accept loop; a connection from handshake to end   ← proxy
//!   listen/tls.rs             handshake: name, certificate, ALPN, validation by a CA   ← cert, proxy::conn
//!
//! ── floor 7: daemon ── assembly, no policy   ← everything above
//!   daemon/cli.rs             the command line
//!   daemon/signals.rs         signals to commands
//!   daemon/operation.rs    P  what an operator can ask a running edge to do
//!   daemon/progress.rs        what an operation says while it runs, and how it ends
//!   daemon/admin.rs           the local socket that answers for the running state, and takes operations
//!   daemon/elsewhere.rs       the running edge of a file that was changed to another admin socket
//!   daemon/ask.rs             the client's side of that socket
//!   daemon/table.rs        P  columns for people
//!   daemon/interrupted.rs     a command whose operator does not want to wait any more
//!   daemon/check_certificates.rs  the operator's own certificates, as a start, a reload and a check find them
//!   daemon/check_names.rs     somebody answers for edge while its names are looked at
//!   daemon/command.rs         the subcommands that ask or read, and print
//!   daemon/words.rs        P  times, sizes and texts of others as operators read them
//!   daemon/render_certificates.rs P  certificates for people
//!   daemon/render_past.rs  P  what operators are told of workers that have ended
//!   daemon/render.rs       P  the running state for people
//!   daemon/import.rs          `edge certs import`
//!   daemon/explain.rs         a worker's final command line and environment
//!   daemon/hello.rs           the built-in demo worker
//!   daemon/hello/routes.rs    its pages and streams
//!   daemon/hello/faults.rs    how it misbehaves when asked
//!   daemon/start_error.rs     what stands against a start
//!   daemon/threads.rs         the data-plane threads
//!   daemon/listeners.rs       bound addresses, opened and closed while connections live on
//!   daemon/metrics.rs         the endpoint that Prometheus asks
//!   daemon/live.rs            what runs: configuration, apps, listeners; publishes the routing
//!   daemon/rolling.rs         what operators hear where workers are to be replaced
//!   daemon/adoption.rs        a changed configuration put in force, or nothing
//!   daemon/reload.rs          the file read again, and what is to change by that
//!   daemon/perform.rs         what an operator asked for, done: reload, restart, scale, maintenance, logs, renewal
//!   daemon/run.rs             serve until told, then stop in order
//! ```

pub mod backoff;
pub mod boxed;
pub mod clock;
pub mod complaint;
pub mod deadline;
pub mod durable;
pub mod fading;
pub mod inflow;
pub mod name;
pub mod offspring;
pub mod outbox;
pub mod pidfd;
pub mod prefixed;
pub mod report;
pub mod scope;
pub mod tls_words;

pub mod config;
pub mod telemetry;

pub mod cert;
pub mod worker;

pub mod upstream;

pub mod proxy;

pub mod listen;

pub mod daemon;
