//! The HTTP client under the ACME library: a time limit and a size limit for each call, and refusals with everything the CA
//! said (status, `Retry-After`, also where the body is a web page), which the library would drop.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde::de::Error as _;

use crate::cert::failure::{Answer, short};
use crate::clock::Clock;
use crate::config::trusted::Trusted;

const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Challenges whose names are kept; an attempt needs one.
const MOST_ISSUERS: usize = 64;
const BODY_LIMIT: usize = 64 * 1024;
/// No CA needs more seconds than a day's to issue.
const LONGEST_PAUSE: u64 = 24 * 3600;
const AGENT: HeaderValue = HeaderValue::from_static(concat!("edge/", env!("CARGO_PKG_VERSION")));

/// Speaks HTTPS with one CA. Clones share their connections.
#[derive(Clone)]
pub struct CaClient {
    http: Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>,
    clock: Arc<dyn Clock>,
    built_in: bool,
    /// Seconds this machine's clock is ahead of the CA's.
    ahead: Arc<AtomicI64>,
    /// Under which names the CA wants to stand in records, by challenge: the library drops them.
    issuers: Arc<Mutex<HashMap<String, Vec<String>>>>,
}

/// An answer that is no refusal.
#[derive(Debug)]
pub struct Fetched {
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// How long the CA asks to wait before the next request.
    pub retry_after: Option<Duration>,
}

/// The client could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("TLS towards the CA cannot be set up")]
pub struct ClientError(#[from] rustls::Error);

/// The CA answered, and refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("HTTP status {status}{}", detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default())]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Type of the problem document, without its URN prefix.
    pub kind: Option<String>,
    /// The CA's own words.
    pub detail: Option<String>,
    /// How long it asks to wait.
    pub retry_after: Option<Duration>,
    /// A page where its operator can do something about it (RFC 8555 §7.3.3).
    pub page: Option<String>,
    /// What it is made of, where it says nothing itself (RFC 8555 §6.7.1).
    pub parts: Vec<Refusal>,
}

/// No answer within the limits.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CallError {
    #[error("no answer within {} s", TIME_LIMIT.as_secs())]
    TimedOut,
    #[error("connection failed")]
    Connection(#[source] hyper_util::client::legacy::Error),
    #[error("the answer broke off or was longer than {BODY_LIMIT} bytes")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Refusal {
    /// Whether it is of this kind, or made of one that is.
    pub fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind) || self.parts.iter().any(|part| part.is(kind))
    }

    /// The parts a failure is classified by.
    pub fn answer(&self) -> Answer<'_> {
        Answer {
            status: Some(self.status),
            kind: self.kind.as_deref(),
            detail: self.detail.as_deref(),
            retry_after: self.retry_after,
            page: self.page.as_deref(),
        }
    }
}

impl CaClient {
    /// A client that trusts `root`, or the system's where there is none.
    pub fn new(
        root: Option<&Trusted>,
        provider: &Arc<CryptoProvider>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClientError> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()?;
        Ok(match root {
            Some(root) => {
                Self::over(builder.with_root_certificates(root.roots()).with_no_client_auth(), clock, false)
            }
            None => match rustls_platform_verifier::Verifier::new(Arc::clone(provider)) {
                Ok(verifier) => {
                    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
                    Self::over(builder.with_no_client_auth(), clock, false)
                }
                Err(error) => {
                    // Minimal container images have no roots of their own.
                    tracing::info!(%error, "this system has no trusted roots; using the built-in ones");
                    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
                    Self::over(builder.with_root_certificates(roots).with_no_client_auth(), clock, true)
                }
            },
        })
    }

    pub(in crate::cert) fn over(config: ClientConfig, clock: Arc<dyn Clock>, built_in: bool) -> Self {
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1().build();
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .build(connector);
        Self { http, clock, built_in, ahead: Arc::default(), issuers: Arc::default() }
    }

    /// Whether it trusts the roots that edge brings along, because the system's could not be read.
    pub(in crate::cert) fn has_built_in_roots(&self) -> bool {
        self.built_in
    }

    /// Reads what anybody may read.
    pub async fn fetch(&self, url: &str) -> Result<Fetched, instant_acme::Error> {
        let request = Request::get(url).body(BodyWrapper::default())?;
        self.send(request).await
    }

    /// Sends `request` and returns the whole answer, unless it is a refusal.
    pub async fn send(&self, request: Request<BodyWrapper<Bytes>>) -> Result<Fetched, instant_acme::Error> {
        let mut answer = self.clone().call(request).await?;
        let body = answer.body.into_bytes().await.map_err(instant_acme::Error::Other)?;
        let refused = answer.parts.status.is_client_error();
        let headers = answer.parts.headers;
        if refused {
            // The one refusal that is let through for the library: a nonce.
            return match serde_json::from_slice(&body) {
                Ok(problem) => Err(instant_acme::Error::Api(problem)),
                Err(error) => Err(error.into()),
            };
        }
        let retry_after = retry_after(&headers, self.clock.now());
        Ok(Fetched { headers, body, retry_after })
    }

    /// Under which names the CA of the challenge at `url` wants to stand in a record (draft-ietf-acme-dns-persist).
    pub fn issuers(&self, url: &str) -> Vec<String> {
        let known = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(url).cloned().unwrap_or_default()
    }

    fn remember_issuers(&self, body: &[u8]) {
        if memchr::memmem::find(body, b"issuer-domain-names").is_none() {
            return;
        }
        let Ok(authorization) = serde_json::from_slice::<Authorization>(body) else { return };
        let mut known = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        for challenge in authorization.challenges {
            if known.len() >= MOST_ISSUERS {
                known.clear();
            }
            if !challenge.issuers.is_empty() {
                known.insert(challenge.url, challenge.issuers);
            }
        }
    }

    /// How many seconds this machine's clock is ahead of the CA's, as the last answer said.
    pub fn clock_ahead(&self) -> i64 {
        self.ahead.load(Ordering::Relaxed)
    }

    /// The time by the CA's clock, as far as its last answer told: what it made is in force by that.
    pub fn their_time(&self) -> SystemTime {
        let (now, ahead) = (self.clock.now(), self.clock_ahead());
        let by = Duration::from_secs(ahead.unsigned_abs());
        let theirs = if ahead > 0 { now.checked_sub(by) } else { now.checked_add(by) };
        theirs.unwrap_or(now)
    }

    fn compare_clocks(&self, headers: &HeaderMap) {
        let Some(theirs) = date(headers) else { return };
        let ahead = match self.clock.now().duration_since(theirs) {
            Ok(ahead) => i64::try_from(ahead.as_secs()).unwrap_or(i64::MAX),
            Err(behind) => -i64::try_from(behind.duration().as_secs()).unwrap_or(i64::MAX),
        };
        self.ahead.store(ahead, Ordering::Relaxed);
    }

    async fn call(
        self,
        mut request: Request<BodyWrapper<Bytes>>,
    ) -> Result<BytesResponse, instant_acme::Error> {
        request.headers_mut().insert(USER_AGENT, AGENT);
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let exchanged = async {
            let response = self.http.request(request).await.map_err(CallError::Connection)?;
            whole(response).await
        };
        let answered = tokio::time::timeout(TIME_LIMIT, exchanged).await.unwrap_or(Err(CallError::TimedOut));
        let (mut parts, body) = match answered {
            Ok(answer) => answer.into_parts(),
            Err(error) => {
                tracing::debug!(%method, %uri, %error, "no answer from the CA");
                return Err(instant_acme::Error::Other(Box::new(error)));
            }
        };
        tracing::debug!(%method, %uri, status = parts.status.as_u16(), "answer from the CA");
        self.compare_clocks(&parts.headers);
        self.remember_issuers(&body);
        check_nonces(&body)?;
        if !parts.status.is_client_error() && !parts.status.is_server_error() {
            drop_endless_pause(&mut parts.headers);
            return Ok(BytesResponse { parts, body: Box::new(body) });
        }
        let refusal = refusal(parts.status.as_u16(), &parts.headers, &body, self.clock.now());
        if refusal.kind.as_deref() == Some("badNonce") {
            // The library signs again with the nonce of this answer; only it holds the key.
            return Ok(BytesResponse { parts, body: Box::new(body) });
        }
        Err(instant_acme::Error::Other(Box::new(refusal)))
    }
}

impl HttpClient for CaClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        Box::pin(self.clone().call(request))
    }
}

/// The library takes on trust that a directory's `newNonce` is a URL, and panics where it is none.
fn check_nonces(body: &[u8]) -> Result<(), instant_acme::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Nonces {
        new_nonce: String,
    }
    if memchr::memmem::find(body, b"newNonce").is_none() {
        return Ok(());
    }
    match serde_json::from_slice::<Nonces>(body) {
        Ok(Nonces { new_nonce }) if new_nonce.parse::<Uri>().is_err() => {
            Err(serde_json::Error::custom("`newNonce` of the directory is no URL").into())
        }
        // What else is wrong with it the library sees itself.
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn whole(response: Response<Incoming>) -> Result<Response<Bytes>, CallError> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(CallError::Body)?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// What the library does not read of an authorization.
#[derive(serde::Deserialize)]
struct Authorization {
    challenges: Vec<Challenge>,
}

#[derive(serde::Deserialize)]
struct Challenge {
    url: String,
    #[serde(default, rename = "issuer-domain-names")]
    issuers: Vec<String>,
}

#[derive(serde::Deserialize)]
struct ProblemDocument {
    r#type: Option<String>,
    detail: Option<String>,
    instance: Option<String>,
    #[serde(default)]
    subproblems: Vec<ProblemDocument>,
}

fn refusal(status: u16, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Refusal {
    let retry_after = retry_after(headers, now);
    let json = headers.get(CONTENT_TYPE).is_none_or(|kind| kind.as_bytes().windows(4).any(|w| w == b"json"));
    let problem = json.then(|| serde_json::from_slice::<ProblemDocument>(body).ok()).flatten();
    let Some(problem) = problem else {
        return Refusal { status, kind: None, detail: None, retry_after, page: None, parts: Vec::new() };
    };
    told(status, retry_after, problem)
}

fn told(status: u16, retry_after: Option<Duration>, problem: ProblemDocument) -> Refusal {
    let kind = problem.r#type.as_deref().map(|kind| short(kind).to_owned());
    let parts: Vec<Refusal> = match kind.as_deref() {
        Some("compound") => {
            problem.subproblems.into_iter().map(|part| told(status, retry_after, part)).collect()
        }
        Some(_) | None => Vec::new(),
    };
    let is_page = |url: &String| {
        url.starts_with("https://") && url.len() < 500 && url.bytes().all(|b| b.is_ascii_graphic())
    };
    Refusal {
        status,
        kind,
        detail: problem.detail,
        retry_after,
        page: problem.instance.filter(is_page),
        parts,
    }
}

/// Seconds or a date (RFC 9110 §10.2.3), which is one of the CA's clock: this machine's may be hours from it.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    Some(until.duration_since(date(headers).unwrap_or(now)).unwrap_or_default())
}

fn date(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()
}

/// The library adds the seconds to this machine's time, and panics where that has an end.
fn drop_endless_pause(headers: &mut HeaderMap) {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    if seconds.is_some_and(|seconds| seconds > LONGEST_PAUSE) {
        headers.remove(RETRY_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn read(status: u16, fields: &[(&'static str, &str)], body: &str) -> Refusal {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.insert(*name, value.parse().expect("valid"));
        }
        refusal(status, &headers, body.as_bytes(), UNIX_EPOCH + Duration::from_secs(784_111_777))
    }

    #[test]
    fn a_directory_whose_place_of_nonces_is_no_url_does_not_reach_the_library() {
        for (place, fine) in [
            ("https://ca.test/nonce", true),
            ("https://ca.test/no nce", false),
            ("", false),
            ("ht\u{e9}", false),
        ] {
            let body = serde_json::json!({ "newNonce": place, "newOrder": "x" }).to_string();
            assert_eq!(check_nonces(body.as_bytes()).is_ok(), fine, "{place}");
        }
        assert!(check_nonces(b"{\"newNonce\": 5}").is_ok(), "the library's own to refuse");
    }

    #[test]
    fn a_refusal_keeps_what_the_ca_said() {
        let problem = r#"{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many","status":429}"#;
        let json = ("content-type", "application/problem+json");
        let refused = read(429, &[json, ("retry-after", "3600")], problem);
        assert_eq!(refused.kind.as_deref(), Some("rateLimited"));
        assert_eq!(refused.detail.as_deref(), Some("too many"));
        assert_eq!(refused.retry_after, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn a_date_to_wait_for_is_one_of_the_cas_clock() {
        let until = ("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT");
        for (theirs, wait) in [("08:45:37", 300), ("08:50:37", 0), ("09:50:37", 0)] {
            let date = format!("Sun, 06 Nov 1994 {theirs} GMT");
            let refused = read(503, &[until, ("date", &date)], "");
            assert_eq!(refused.retry_after, Some(Duration::from_secs(wait)), "{theirs}");
        }
    }

    #[test]
    fn a_date_and_a_web_page_are_understood() {
        let date = ("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT");
        let refused = read(503, &[("content-type", "text/html"), date], "<h1>busy</h1>");
        assert_eq!(refused.kind, None);
        assert_eq!(refused.retry_after, Some(Duration::from_secs(60)));
        assert_eq!(read(503, &[("retry-after", "soon")], "{").retry_after, None);
    }

    #[test]
    fn a_page_that_helps_is_kept_and_nothing_else_that_stands_in_its_place() {
        let page = |instance: &str| {
            let body = serde_json::json!({"type": "userActionRequired", "instance": instance});
            read(403, &[], &body.to_string()).page
        };
        assert_eq!(page("https://ca.test/terms?v=2").as_deref(), Some("https://ca.test/terms?v=2"));
        for instance in ["javascript:x", "https://ca.test/a b", "https://ca.test/\u{1b}[31m", "/terms"] {
            assert_eq!(page(instance), None, "{instance}");
        }
    }

    #[test]
    fn a_compound_problem_comes_in_parts() {
        let body = r#"{"type":"urn:ietf:params:acme:error:compound","subproblems":
            [{"type":"urn:ietf:params:acme:error:caa","detail":"forbidden"},
             {"type":"urn:ietf:params:acme:error:compound","subproblems":[{"type":"dns"}]}]}"#;
        let refused = read(403, &[], body);
        let kinds: Vec<_> = refused.parts.iter().map(|part| part.kind.as_deref()).collect();
        assert_eq!(kinds, [Some("caa"), Some("compound")]);
        assert_eq!(refused.parts[1].parts[0].kind.as_deref(), Some("dns"));
    }
}
