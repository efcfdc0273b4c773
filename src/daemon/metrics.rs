//! The endpoint that Prometheus asks. Whoever reaches its address may read; nobody can make it work for long, or much.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{AcquireError, Mutex, Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::config::model::ListenAddr;
use crate::listen::socket::{self, BindError, Bound, Neighbours};
use crate::report::Report;
use crate::scope::Scope;
use crate::telemetry::metrics;

/// From the connection to the last byte of its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections at once. One more ends the oldest that has not asked anything, or waits.
const CONNECTIONS: usize = 16;

/// How long a connection may ask nothing before one more ends it: whoever asks does so as soon as it can.
const HASTE: Duration = Duration::from_secs(1);

/// The longest head that is read.
const LONGEST_HEAD: usize = 16 << 10;

/// How long one measurement is good: measuring asks the kernel for the memory of every worker.
const FRESH: Duration = Duration::from_millis(500);

/// A text on its way: measuring takes a moment.
pub type Measuring = Pin<Box<dyn Future<Output = String>>>;

/// What measures.
pub type Measure = Rc<dyn Fn() -> Measuring>;

/// The endpoint of this run, where there is one.
#[derive(Default)]
pub struct Endpoint {
    open: RefCell<Option<Open>>,
    /// Who owns the tasks, and what they answer with.
    behind: RefCell<Option<(Scope, Measure)>>,
}

struct Open {
    what: ListenAddr,
    address: SocketAddr,
    scope: Scope,
}

/// A bound address nobody can connect to yet.
pub struct Reserved {
    what: ListenAddr,
    bound: Bound,
}

/// Binds `what` for an endpoint; addresses of this process on the same port are no hindrance to one with `neighbours`.
pub fn reserve(what: ListenAddr, neighbours: Neighbours) -> Result<Reserved, BindError> {
    Ok(Reserved { what, bound: socket::reserve(what, 1, neighbours)? })
}

impl Endpoint {
    /// From now on `measure` answers, in tasks of `scope`.
    pub fn attach(&self, scope: &Scope, measure: Measure) {
        *self.behind.borrow_mut() = Some((scope.clone(), measure));
    }

    /// As [`reserve`], beside the present address.
    pub fn reserve(&self, wanted: ListenAddr) -> Result<Reserved, BindError> {
        let present = self.open.borrow().as_ref().map(|open| open.what);
        reserve(wanted, Neighbours::of(wanted, present))
    }

    /// Answers at `reserved` from now on, and nowhere else. Questions that are being answered elsewhere still are.
    pub fn move_to(&self, reserved: Option<Reserved>) {
        if let Some(before) = self.open.borrow_mut().take() {
            tracing::info!(address = %before.address, "no metrics at this address any more");
            before.scope.drain();
        }
        let (Some(Reserved { what, bound }), Some((above, measure))) = (reserved, &*self.behind.borrow())
        else {
            return;
        };
        let address = bound.address;
        let listening = bound.listen().and_then(|()| {
            let socket = bound.sockets.into_iter().next().ok_or(std::io::ErrorKind::NotFound)?;
            TcpListener::from_std(socket)
        });
        match listening {
            Ok(listener) => {
                tracing::info!(%address, "metrics");
                let scope = above.child();
                drop(above.spawn(serve(listener, scope.clone(), above.clone(), Rc::clone(measure))));
                *self.open.borrow_mut() = Some(Open { what, address, scope });
            }
            Err(error) => tracing::error!(%address, error = %Report(&error), "no metrics"),
        }
    }
}

/// The last measurement.
#[derive(Default)]
struct Last(Mutex<Option<(Instant, Bytes)>>);

impl Last {
    /// One that is fresh. Those who ask at the same time wait for one measurement.
    async fn text(&self, measure: &Measure) -> Bytes {
        let mut last = self.0.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < FRESH
        {
            return text.clone();
        }
        let text = Bytes::from(measure().await);
        *last = Some((Instant::now(), text.clone()));
        text
    }
}

/// A connection's other end, as the loop that accepts sees it.
struct Asker {
    since: Instant,
    asked: Cell<bool>,
    /// Somebody else needs its place.
    enough: Notify,
}

/// Connections on which nothing was asked yet, the oldest first.
#[derive(Default)]
struct Silent(VecDeque<Rc<Asker>>);

impl Silent {
    fn add(&mut self) -> Rc<Asker> {
        // Of one that is gone nobody else holds anything.
        self.0.retain(|asker| Rc::strong_count(asker) > 1 && !asker.asked.get());
        let asker = Rc::new(Asker { since: Instant::now(), asked: Cell::default(), enough: Notify::new() });
        self.0.push_back(Rc::clone(&asker));
        asker
    }

    /// The oldest.
    fn oldest(&mut self) -> Option<Rc<Asker>> {
        self.0.retain(|asker| Rc::strong_count(asker) > 1 && !asker.asked.get());
        self.0.front().map(Rc::clone)
    }

    /// A place for one more, made where nobody gives one up.
    async fn place(&mut self, permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, AcquireError> {
        let mut free = pin!(Arc::clone(permits).acquire_owned());
        while let Some(oldest) = self.oldest() {
            tokio::select! {
                biased;
                permit = &mut free => return permit,
                () = tokio::time::sleep_until(oldest.since + HASTE) => {}
            }
            if !oldest.asked.get() {
                oldest.enough.notify_one();
                break;
            }
        }
        free.await
    }
}

/// Answers until `scope` drains; connections belong to `above`.
async fn serve(listener: TcpListener, scope: Scope, above: Scope, measure: Measure) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let last = Rc::new(Last::default());
    let mut silent = Silent::default();
    loop {
        let next = async {
            let accepted = listener.accept().await;
            (silent.place(&permits).await, accepted)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = scope.drained() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (last, measure, ends) = (Rc::clone(&last), Rc::clone(&measure), above.clone());
                let asker = silent.add();
                drop(above.spawn(async move {
                    connection(stream, &asker, last, measure, ends).await;
                    drop(permit);
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the address of the metrics");
                // Out of descriptors, most likely: asking again at once would spin.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, asker: &Asker, last: Rc<Last>, measure: Measure, scope: Scope) {
    let service = service_fn(|request| {
        asker.asked.set(true);
        let (last, measure) = (Rc::clone(&last), Rc::clone(&measure));
        async move { Ok::<_, Infallible>(answer(&request, &last, &measure).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(LONGEST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = connection => {
            if let Err(error) = ended {
                tracing::debug!(error = %Report(&error), "a connection to the metrics broke off");
            }
        }
        () = asker.enough.notified() => {}
        () = tokio::time::sleep(PATIENCE) => {}
        () = scope.aborted() => {}
    }
}

async fn answer(request: &Request<Incoming>, last: &Last, measure: &Measure) -> Response<Full<Bytes>> {
    let (status, text) = match (request.uri().path(), request.method()) {
        ("/metrics", &Method::GET | &Method::HEAD) => (StatusCode::OK, last.text(measure).await),
        ("/metrics", _) => {
            (StatusCode::METHOD_NOT_ALLOWED, Bytes::from_static(b"this method is not for this\n"))
        }
        _ => (StatusCode::NOT_FOUND, Bytes::from_static(b"metrics are at /metrics\n")),
    };
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
