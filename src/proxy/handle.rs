//! A request's way, whatever version of HTTP it came by: checked, routed, forwarded, answered. Infallible, because a client
//! always gets an answer; if it goes away, the future is dropped and the request ends everywhere.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HOST, SET_COOKIE, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{HeaderValue, Method, Response, Version};
use http_body::Body as _;

use crate::cert::challenge::Challenges;
use crate::config::model::{Protocol, Tls};
use crate::name::HostName;
use crate::proxy::attempt::{self, Verdict};
use crate::proxy::body::{Body, Content};
use crate::proxy::caller::Caller;
use crate::proxy::conn::ConnInfo;
use crate::proxy::entry::Entry;
use crate::proxy::error::ProxyError;
use crate::proxy::headers::{self, Forwarding};
use crate::proxy::plane::Plane;
use crate::proxy::reply;
use crate::proxy::route::{self, Asked, Decision, Secured, Site};
use crate::proxy::sticky;
use crate::proxy::target::{self, Authority, Present, Target};
use crate::proxy::upgrade::{self, Switch};
use crate::upstream::affinity::Home;
use crate::upstream::body::ResponseBody;
use crate::upstream::client_body::ClientBody;
use crate::upstream::error::SendError;
use crate::upstream::exchange::{Answer, Elsewhere, Interim, Tunnel, exchange};
use crate::upstream::pool::Wish;
use crate::upstream::request_body::RequestBody;
use crate::upstream::spool::spool;
use crate::upstream::stream;
use crate::upstream::wire::RequestHead;
use crate::worker::slot::Slot;

/// What a request is answered with.
pub struct Reply {
    /// The response.
    pub response: Response<Body>,
    /// With a 101, or the 200 of a CONNECT: what the connection, or the stream, is from then on. Boxed, because few have one.
    pub switch: Option<Box<Switch>>,
}

/// Answers one request. The future must be dropped when the client is gone. A worker's interim answers go to `early`, at once.
/// No `async fn`: its future would keep room for the parts that have moved on.
pub fn handle<'a>(
    parts: Parts,
    incoming: ClientBody,
    conn: &'a Rc<ConnInfo>,
    plane: &'a Rc<Plane>,
    early: Interim<'a>,
) -> impl Future<Output = Reply> + 'a {
    let mut passage = Passage::begin(parts, conn, plane);
    async move {
        let (site, host) = match passage.decide() {
            Ok(Step::Forward { site, host }) => (site, host),
            Ok(Step::Answer(response)) => return passage.end(Ok(Outcome::Answer(response))),
            Err(error) => return passage.end(Err(error)),
        };
        let outcome = passage.forward(&site, &host, incoming, early).await;
        passage.end(outcome)
    }
}

/// Answers what never became a request.
pub fn refuse(parts: Parts, error: ProxyError, conn: &Rc<ConnInfo>, plane: &Rc<Plane>) -> Reply {
    Passage::begin(parts, conn, plane).end(Err(error))
}

/// A request between its head and the head of its answer.
struct Passage<'a> {
    parts: Parts,
    present: Present,
    entry: Box<Entry>,
    conn: &'a ConnInfo,
    caller: Caller<'a>,
    plane: &'a Rc<Plane>,
}

/// What the head of a request leads to.
enum Step {
    /// To a worker of the site, under the one authority of the request.
    Forward {
        site: Arc<Site>,
        host: HeaderValue,
    },
    Answer(Response<Content>),
}

/// Where routing sends a request that it does not refuse.
enum Routed {
    To(Arc<Site>),
    Elsewhere(String),
}

/// A search for a worker.
struct Search {
    /// Where the client belongs.
    home: Home,
    /// From when the time in the queue counts; a body that is taken in first moves it on, and so does an attempt that failed.
    began: Instant,
}

/// What a request ends in.
enum Outcome {
    Answer(Response<Content>),
    Tunnel { head: Response<()>, worker: Tunnel },
}

impl<'a> Passage<'a> {
    fn begin(parts: Parts, conn: &'a ConnInfo, plane: &'a Rc<Plane>) -> Self {
        let routing = plane.routing.load();
        let caller = Caller::of(&parts, conn, routing.trusted_proxies(), &plane.clients);
        let entry = Entry::open(&parts, fastrand::u64(..), (caller.ip(), conn), plane);
        Self { parts, present: Present::default(), entry, conn, caller, plane }
    }

    /// Everything that is decided from the head alone.
    fn decide(&mut self) -> Result<Step, ProxyError> {
        let secure = self.conn.tls.is_some();
        if let Some(answer) = pending_challenge(&self.parts, &self.plane.challenges) {
            return Ok(Step::Answer(answer));
        }

        self.present = target::look_over(&self.parts, &self.plane.reach.limits)?;
        let target = target::check_target(&self.parts, secure)?;
        if self.present.framing {
            target::check_framing(&self.parts.headers)?;
        }
        let host = target::authority(&self.parts, &self.present, secure, self.conn.local)?;
        self.entry.record.host = Some(host.clone());
        let authority = Authority::parse(target::text(&host)?)?;
        match target {
            Target::Server => Ok(Step::Answer(reply::options())),
            Target::Path => Ok(match self.route(authority)? {
                Routed::To(site) => Step::Forward { site, host },
                Routed::Elsewhere(location) => Step::Answer(reply::redirect(&location)),
            }),
        }
    }

    fn route(&mut self, authority: Authority<'_>) -> Result<Routed, ProxyError> {
        let routing = self.plane.routing.load();
        let asked = Asked {
            authority,
            path_and_query: path_and_query(&self.parts),
            secured: self.conn.tls.as_ref().map(|tls| Secured {
                sni: tls.sni.as_ref(),
                names: &tls.served.names,
                client_auth: tls.served.client_auth.as_ref(),
            }),
            secure: self.caller.is_secure(),
            https_port: routing.https_port().filter(|_| {
                !self.caller.is_behind_proxy()
                    && !route::is_mapped(&authority, self.conn.tls.is_some(), self.conn.entrance)
            }),
        };
        let decision = routing.decide(&asked, |host| self.plane.certificates.pending(host));
        if let Some(site) = decision.site() {
            self.entry.record.app = Some(site.app.name.clone());
            self.entry.site = Some(Arc::clone(site));
            // A challenge that is not pending is nobody's: an app must not answer for its own certificate.
            if site.app.tls == Tls::Acme && route::challenge(self.parts.uri.path()).is_some() {
                return Err(match self.parts.method {
                    Method::GET | Method::HEAD => ProxyError::UnknownChallenge,
                    _ => ProxyError::MethodRefused,
                });
            }
        }
        match decision {
            Decision::Forward(site) => Ok(Routed::To(Arc::clone(site))),
            Decision::Redirect(_, location) => Ok(Routed::Elsewhere(location)),
            Decision::Refuse(_, error) => Err(error),
        }
    }

    /// The request goes to a worker of `site`, and to another where the first cannot answer it.
    #[expect(clippy::manual_async_fn, reason = "its future would have room for each parameter twice")]
    fn forward(
        &mut self,
        site: &Site,
        host: &HeaderValue,
        incoming: ClientBody,
        early: Interim<'_>,
    ) -> impl Future<Output = Result<Outcome, ProxyError>> {
        async move {
            if self.present.length {
                target::check_announced_length(&self.parts.headers, site.app.max_body)?;
            }
            let (plane, limits) = (self.plane, &self.plane.reach.limits);
            let held = plane.heads.hold(self.parts.headers.len(), self.present.size, limits);
            let _held = held.ok_or(ProxyError::TooMuchHeld)?;
            if self.parts.version == Version::HTTP_2 {
                headers::fit(&mut self.parts.headers);
            }
            let has_body = !incoming.is_end_stream();
            let unread = has_body.then_some(&self.conn.unread);
            let began = self.entry.enter(&self.caller, unread).await?;
            // A CONNECT has no need of the field.
            let may_open = self.present.upgrade || self.parts.method == Method::CONNECT;
            let opening = if may_open { upgrade::opening(&mut self.parts, has_body)? } else { None };

            // Of their own, because the answer borrows all of the passage.
            let (named, seen_host) = (self.caller.named().cloned(), self.caller.host().cloned());
            let about = Forwarding {
                client: self.caller.ip(),
                client_text: named.as_ref().unwrap_or(self.conn.client()),
                secure: self.caller.is_secure(),
                host: seen_host.as_ref().unwrap_or(host),
                request_id: self.entry.record.request_id,
                client_subject: self.conn.tls.as_ref().and_then(|tls| tls.client_subject.as_ref()),
                trailers: self.present.te
                    && opening.is_none()
                    && headers::takes_trailers(&self.parts.headers),
            };
            headers::request(&mut self.parts.headers, &self.present);

            let mut body = has_body.then(|| {
                let reach = &self.plane.reach;
                RequestBody::new(incoming, reach.deadlines.deadline(), reach.bounds(site.app.max_body))
            });
            let received = body.as_ref().map(|body| body.counter());
            let home = sticky::home(&site.app, &self.parts.headers, self.caller.ip());
            let answer = self
                .ask(site, (host, &about), Search { home, began }, opening.is_some(), &mut body, early)
                .await;
            // Of an answer's request more may come, which the answer's body counts.
            self.entry.record.bytes_in = received.map_or(0, |received| received.get());
            let mut answer = answer?;
            let slot = answer.slot().id.slot;
            if let Some(cookie) = sticky::cookie(&site.app, slot, home, self.caller.is_secure()) {
                answer.headers_mut().append(SET_COOKIE, cookie);
            }
            if self.parts.method == Method::GET && listens_on(&answer) {
                self.entry.become_stream();
            }
            match answer {
                Answer::Response(response) => {
                    if let Some(opening) = &opening {
                        opening.check_declined(response.status())?;
                    }
                    if !site.synchronous || response.body().is_whole() {
                        return Ok(Outcome::Answer(response.map(Content::Upstream)));
                    }
                    // Boxed: most requests need no room for this.
                    Ok(Outcome::Answer(Box::pin(self.read_ahead(response)).await))
                }
                Answer::Stream(response) => Ok(Outcome::Answer(response.map(Content::Stream))),
                Answer::Upgraded { head, tunnel } => {
                    let opening = opening.as_ref().ok_or(ProxyError::BadUpgrade("it was not asked for"))?;
                    let head = opening.open(head, tunnel.lease.slot().protocol)?;
                    Ok(Outcome::Tunnel { head, worker: tunnel })
                }
            }
        }
    }

    /// A synchronous worker's response, read ahead of a client that would hold it up.
    async fn read_ahead(&self, response: Response<ResponseBody>) -> Response<Content> {
        let (head, body) = response.into_parts();
        let body = spool(body, &self.plane.reach.budget, &self.plane.tunnels).await;
        Response::from_parts(head, Content::Spooled(body))
    }

    /// Asks workers until one answers or asking again would be wrong.
    #[expect(clippy::manual_async_fn, reason = "its future would have room for each parameter twice")]
    fn ask(
        &mut self,
        site: &Site,
        (host, about): (&HeaderValue, &Forwarding<'_>),
        Search { home, mut began }: Search,
        upgrade: bool,
        body: &mut Option<Box<RequestBody>>,
        early: Interim<'_>,
    ) -> impl Future<Output = Result<Answer, ProxyError>> {
        async move {
            if let Some(body) = body.as_mut().filter(|_| site.synchronous) {
                let taken = body.take_in(&self.plane.reach.budget).await;
                taken.map_err(|error| ProxyError::Send(error.into()))?;
                began = Instant::now();
            }
            let head = RequestHead {
                method: &self.parts.method,
                target: path_and_query(&self.parts),
                host,
                headers: &self.parts.headers,
                add: &|out| headers::forwarding(out, about),
                upgrade,
            };
            let record = &mut self.entry.record;
            let has_body = body.is_some();
            let prompt = body.as_ref().is_none_or(|body| body.is_short());
            // The lease of the worker that is asked next: it was seen to have room, and another request would take that.
            let relieved = Cell::new(None);
            let relief = |slot: &Slot, now| {
                // A client that belongs to a worker is better off waiting for it, unless it reads nothing.
                let leaves = !home.is_settled() || slot.is_forsaken();
                let lease = leaves.then(|| site.pool.relieve(slot, now)).flatten();
                let found = lease.is_some();
                relieved.set(lease);
                found
            };
            let mut tried = [(0, 0); attempt::ATTEMPTS];
            let mut failed: Option<SendError> = None;
            let (mut made, mut fatal) = (0, 0);
            loop {
                let wish =
                    Wish { tried: &tried[..made], home, lasting: upgrade, queue: site.app.queue, now: began };
                let (lease, asked) = match relieved.take().or_else(|| site.pool.at_once(&wish)) {
                    Some(lease) => (lease, began),
                    None => {
                        let _unread = has_body.then(|| self.conn.unread.add());
                        let _wait = Wait { queued: &mut record.queued, began };
                        // Boxed: most requests find a worker at once.
                        match Box::pin(site.pool.acquire(&wish)).await {
                            Ok(lease) => (lease, Instant::now()),
                            // What the worker did tells more than that there is no other.
                            Err(none) => return Err(failed.map_or_else(|| none.into(), ProxyError::Send)),
                        }
                    }
                };
                // Now that there is another: where none is, the client gets the first one's failure.
                record.retries += u32::from(made > 0);
                record.worker = Some((lease.slot().id.slot, lease.slot().pid));
                tried[made] = (lease.slot().id.slot, lease.slot().id.incarnation);

                let answer = match lease.slot().protocol {
                    Protocol::Http1 => {
                        let may_leave = attempt::may_leave(made, failed.as_ref());
                        let elsewhere: Elsewhere<'_> = if may_leave { Some(&relief) } else { None };
                        exchange(&self.plane.reach, lease, &head, body, early, elsewhere).await
                    }
                    // Boxed, so that requests of the other kind need no room for it.
                    Protocol::H2c => {
                        Box::pin(stream::exchange(&self.plane.reach, lease, &head, body, early)).await
                    }
                };
                let took = asked.elapsed();
                record.upstream = Some(took);
                let error = match answer {
                    Ok(answer) => {
                        // What a client's upload took says nothing of the worker.
                        site.pool.note_answer(answer.slot(), prompt.then_some(took), asked + took);
                        return Ok(answer);
                    }
                    Err(error) => error,
                };
                let replayable = !has_body || body.is_some();
                made += 1;
                fatal += usize::from(attempt::is_fatal(&error));
                match attempt::verdict(&error, head.method, replayable, made, fatal) {
                    Verdict::GiveUp => return Err(ProxyError::Send(error)),
                    Verdict::Retry => {
                        tracing::debug!(app = %site.app.name, worker = tried[made - 1].0, %error, "asking another worker");
                        failed = Some(error);
                        began = Instant::now();
                    }
                }
            }
        }
    }

    /// The answer as the connection sends it, with the request's entry in its body.
    fn end(self, outcome: Result<Outcome, ProxyError>) -> Reply {
        let Self { parts, present: _, mut entry, conn: _, caller, plane: _ } = self;
        let mut response = match outcome {
            Ok(Outcome::Answer(response)) => response,
            Ok(Outcome::Tunnel { head, worker }) => {
                entry.answer(head.status());
                entry.become_tunnel();
                let switch = Some(Box::new(Switch::new(worker, entry)));
                return Reply { response: head.map(|()| Body::detached()), switch };
            }
            Err(error) => {
                entry.blame(|| error.cause());
                reply::refusal(&error, &parts, entry.record.request_id)
            }
        };
        // The worker's version is not the client's; the connection lowers it where it must.
        *response.version_mut() = Version::HTTP_11;
        let site = entry.site.as_ref().filter(|_| caller.is_secure());
        if let Some(hsts) = site.and_then(|site| site.hsts.as_ref()) {
            response.headers_mut().insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        if entry.record.host.is_none() {
            // Answered before it had an authority: the log has what was written.
            entry.record.host = parts.headers.get(HOST).cloned();
        }
        entry.answer(response.status());
        Reply { response: response.map(|content| Body::new(content, entry)), switch: None }
    }
}

/// Whether an answer to a GET is what a browser's EventSource listens to for hours. What a POST streams ends, and may cost its worker
/// much meanwhile.
fn listens_on(answer: &Answer) -> bool {
    match answer {
        Answer::Response(response) => is_endless(response),
        Answer::Stream(response) => is_endless(response),
        Answer::Upgraded { .. } => false,
    }
}

fn is_endless(response: &Response<impl http_body::Body>) -> bool {
    response.body().size_hint().exact().is_none() && headers::is_event_stream(response.headers())
}

/// A wait for a worker, which counts also where it ends with a refusal, or because the client went away.
struct Wait<'a> {
    queued: &'a mut Duration,
    began: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        *self.queued += self.began.elapsed();
    }
}

/// The answer to a pending HTTP-01 challenge. It comes before anything else: the CA may ask under any name, on any port.
fn pending_challenge(parts: &Parts, challenges: &Challenges) -> Option<Response<Content>> {
    let token = route::challenge(parts.uri.path()).filter(|token| route::is_token(token))?;
    match parts.method {
        Method::GET | Method::HEAD => {}
        _ => return None,
    }
    challenges.http01(token, asked_host(parts).as_ref()).map(|answer| reply::challenge(&answer, parts))
}

/// The host that was written, if it can be one: nothing is refused for it here.
fn asked_host(parts: &Parts) -> Option<HostName> {
    let written = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let written = written.or_else(|| parts.uri.authority().map(|authority| authority.as_str()))?;
    HostName::parse(Authority::parse(written).ok()?.host).ok()
}

/// The origin form of the target: what the client wrote, byte for byte.
fn path_and_query(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}
