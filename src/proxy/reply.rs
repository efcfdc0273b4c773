//! Answers of edge's own making: refusals, redirects, challenge answers. Small, honest, never cached, and silent about what
//! stands behind edge.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER,
    SEC_WEBSOCKET_VERSION, UPGRADE, X_CONTENT_TYPE_OPTIONS,
};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, Version};

use crate::proxy::body::Content;
use crate::proxy::error::ProxyError;
use crate::upstream::error::{RequestBodyError, SendError};
use crate::upstream::stream_head::is_grpc;

/// Methods that are forwarded; others of the registry are not.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");

/// The page that tells why a request failed. Text, or HTML where the client asks for it.
pub fn refusal(error: &ProxyError, request: &Parts, request_id: u64) -> Response<Content> {
    let status = error.status();
    let why = explanation(error);
    // A client of gRPC reads no pages.
    if request.version == Version::HTTP_2 && is_grpc(&request.headers) {
        return grpc_refusal(status, &why, request_id);
    }
    if let (ProxyError::Crowded | ProxyError::TooMuchHeld, Version::HTTP_2) = (error, request.version) {
        return crowded(error);
    }
    let html = wants_html(request);
    let text = if html { html_page(status, &why, request_id) } else { text_page(status, &why, request_id) };
    let mut response = full(status, request, text);
    let headers = response.headers_mut();
    let kind = if html { "text/html; charset=utf-8" } else { "text/plain; charset=utf-8" };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(seconds) = error.retry_after() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let ProxyError::MethodRefused = error {
        headers.insert(ALLOW, METHODS);
    }
    if let ProxyError::WebSocketVersion = error {
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    if error.ends_connection() && request.version < Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A refusal as gRPC has it: trailers only, in a head that is all of the answer.
fn grpc_refusal(status: StatusCode, why: &str, request_id: u64) -> Response<Content> {
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", grpc_status(status).into());
    let mut message = String::with_capacity(why.len() + 32);
    for byte in format!("{why} Request {request_id:016x}").bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => message.push(char::from(byte)),
            // Writing to a String cannot fail.
            _ => drop(write!(message, "%{byte:02X}")),
        }
    }
    if let Ok(message) = HeaderValue::try_from(message) {
        headers.insert("grpc-message", message);
    }
    response
}

/// Told without a page: that would have to wait for windows, which a client that asks for too much may keep shut, and hold what a
/// stream needs as long.
fn crowded(error: &ProxyError) -> Response<Content> {
    let mut response = empty(error.status());
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, 0.into());
    if let Some(seconds) = error.retry_after() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// What clients of gRPC make of a status, where they get one.
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        413 => 8,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// 308 to `location`.
pub fn redirect(location: &str) -> Response<Content> {
    let mut response = empty(StatusCode::PERMANENT_REDIRECT);
    // A location is a checked host and a checked target: it is a field value.
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(LOCATION, location);
    }
    response.headers_mut().insert(CONTENT_LENGTH, 0.into());
    response
}

/// The key authorization of a pending challenge (RFC 8555 §8.3).
pub fn challenge(key_authorization: &str, request: &Parts) -> Response<Content> {
    let mut response = full(StatusCode::OK, request, key_authorization.to_owned());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// 204: what `OPTIONS *` gets.
pub fn options() -> Response<Content> {
    let mut response = empty(StatusCode::NO_CONTENT);
    response.headers_mut().insert(ALLOW, METHODS);
    response
}

fn empty(status: StatusCode) -> Response<Content> {
    let mut response = Response::new(Content::Empty);
    *response.status_mut() = status;
    response
}

fn full(status: StatusCode, request: &Parts, text: String) -> Response<Content> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, text.len().into());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if request.method != Method::HEAD {
        *response.body_mut() = Content::Full(Bytes::from(text));
    }
    response
}

fn wants_html(request: &Parts) -> bool {
    request.headers.get_all(ACCEPT).iter().any(|accept| {
        accept
            .as_bytes()
            .split(|b| matches!(b, b',' | b';'))
            .any(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"text/html"))
    })
}

/// What the person in front of the screen is told. Causes inside are for the log only.
fn explanation(error: &ProxyError) -> Cow<'static, str> {
    Cow::Borrowed(match error {
        ProxyError::Malformed(why) => {
            return Cow::Owned(format!("The request could not be understood: {why}."));
        }
        ProxyError::CertificatePending { why } => {
            return Cow::Owned(format!("The certificate of this host is not there yet: {why}"));
        }
        ProxyError::Maintenance { text } => return Cow::Owned(text.to_string()),
        ProxyError::BodyTooLarge { limit }
        | ProxyError::Send(SendError::RequestBody(RequestBodyError::TooLarge { limit })) => {
            return Cow::Owned(format!("The request body may have at most {limit} bytes."));
        }
        ProxyError::Send(SendError::Unwritable(_)) => "The request could not be understood.",
        ProxyError::MethodRefused => "This method is not served here.",
        ProxyError::ProtocolUnsupported | ProxyError::Send(SendError::NoWebSockets) => {
            "This protocol is not spoken here."
        }
        ProxyError::CodingUnsupported => "Transfer codings other than chunked are not supported.",
        ProxyError::ExpectationUnsupported => "The request expects something that is not supported.",
        ProxyError::VersionUnsupported => "HTTP/1.1, HTTP/1.0 and HTTP/2 are spoken here.",
        ProxyError::HeadTooSlow => "The request did not arrive in time.",
        ProxyError::UriTooLong => "The address is too long.",
        ProxyError::HeadTooLarge => "The request has too many or too long header fields.",
        ProxyError::WebSocketVersion => "WebSocket version 13 is required.",
        ProxyError::UnknownHost => "Nothing is served under this name.",
        ProxyError::Misdirected => "This name is not served on this connection.",
        ProxyError::UnknownChallenge => "No such challenge is pending.",
        ProxyError::Crowded => {
            "Too many requests from your address are being answered. Please try again in a moment."
        }
        ProxyError::TooMuchHeld => "Too many requests are waiting. Please try again in a moment.",
        ProxyError::Acquire(_) | ProxyError::Send(SendError::Refused) => {
            "The application is busy or starting. Please try again in a moment."
        }
        ProxyError::Send(SendError::RequestBody(RequestBodyError::TooSlow)) => {
            "The request body did not arrive in time."
        }
        ProxyError::Send(SendError::RequestBody(RequestBodyError::TrailersTooLarge)) => {
            "The request has too many or too long trailer fields."
        }
        ProxyError::Send(SendError::RequestBody(RequestBodyError::Broken(_))) => {
            "The request body was cut or malformed."
        }
        ProxyError::Send(SendError::Unread | SendError::TimedOut) => {
            "The application did not answer in time."
        }
        ProxyError::Send(
            SendError::Connect(_)
            | SendError::Closed { .. }
            | SendError::Bodiless { .. }
            | SendError::Hung
            | SendError::Reset(_)
            | SendError::BadResponse(_),
        )
        | ProxyError::BadUpgrade(_) => "The application did not give a usable answer.",
    })
}

fn text_page(status: StatusCode, why: &str, request_id: u64) -> String {
    format!("{} {}\n{why}\nRequest {request_id:016x}\n", status.as_u16(), reason(status))
}

fn html_page(status: StatusCode, why: &str, request_id: u64) -> String {
    let (code, reason) = (status.as_u16(), reason(status));
    let mut page = String::with_capacity(640 + why.len());
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{code} {reason}</title>\n\
         <style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;\
         margin:20vh auto;padding:0 1.5rem}}h1{{font-size:1.4rem}}small{{opacity:.6}}</style>\n\
         <h1>{code} {reason}</h1>\n<p>"
    );
    escape(why, &mut page);
    let _ = write!(page, "</p>\n<p><small>Request {request_id:016x}</small></p>\n</html>\n");
    page
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Error")
}

fn escape(text: &str, page: &mut String) {
    for character in text.chars() {
        match character {
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '&' => page.push_str("&amp;"),
            '"' => page.push_str("&quot;"),
            other => page.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: Method, accept: &str) -> Parts {
        let request = Request::builder().method(method).uri("/").header(ACCEPT, accept).body(());
        request.expect("well formed").into_parts().0
    }

    fn text(response: &Response<Content>) -> &str {
        match response.body() {
            Content::Full(page) => std::str::from_utf8(page).expect("pages are text"),
            Content::Empty | Content::Upstream(_) | Content::Stream(_) | Content::Spooled(_) => "",
        }
    }

    #[test]
    fn a_page_is_html_for_browsers_and_text_for_everybody_else() {
        let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
        for (accept, kind) in [(browser, "text/html; charset=utf-8"), ("*/*", "text/plain; charset=utf-8")] {
            let response = refusal(&ProxyError::UnknownHost, &parts(Method::GET, accept), 0xabc);
            assert_eq!(response.headers()[CONTENT_TYPE], kind);
            assert_eq!(response.status(), 404);
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
            assert_eq!(response.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
            assert!(text(&response).contains("0000000000000abc"), "{}", text(&response));
        }
    }

    #[test]
    fn a_page_says_nothing_of_what_is_behind_edge() {
        let cause = std::io::Error::other("/run/edge/api-0.sock refused");
        let error = ProxyError::Send(SendError::Connect(cause));
        let response = refusal(&error, &parts(Method::GET, "*/*"), 1);
        assert_eq!(response.status(), 502);
        assert!(!text(&response).contains("sock"), "{}", text(&response));
    }

    #[test]
    fn a_pending_certificate_is_a_503_that_says_why_and_when_to_come_back() {
        let why = "the CA says <b>no</b>".into();
        let response = refusal(&ProxyError::CertificatePending { why }, &parts(Method::GET, "text/html"), 1);
        assert_eq!(response.status(), 503);
        assert!(response.headers().contains_key(RETRY_AFTER));
        assert!(text(&response).contains("the CA says &lt;b&gt;no&lt;/b&gt;"), "{}", text(&response));
    }

    #[test]
    fn head_gets_the_length_of_the_page_but_not_the_page() {
        let response = refusal(&ProxyError::UnknownHost, &parts(Method::HEAD, "*/*"), 1);
        assert_ne!(response.headers()[CONTENT_LENGTH], "0");
        assert!(matches!(response.body(), Content::Empty));
    }

    #[test]
    fn a_client_of_grpc_gets_a_status_of_grpc() {
        let call = |kind: &str| {
            let request = Request::builder().method("POST").uri("/a.B/C").version(Version::HTTP_2);
            request.header(CONTENT_TYPE, kind).body(()).expect("well formed").into_parts().0
        };
        let gone = ProxyError::Send(SendError::Connect(std::io::ErrorKind::ConnectionRefused.into()));
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
            let response = refusal(&gone, &call(kind), 0xabc);
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["grpc-status"], "14");
            let message = "The application did not give a usable answer. Request 0000000000000abc";
            assert_eq!(response.headers()["grpc-message"], message);
            assert!(matches!(response.body(), Content::Empty));
        }
        for kind in ["application/grpc-web", "application/json"] {
            assert_eq!(refusal(&gone, &call(kind), 1).status(), 502, "{kind}");
        }
        let odd = ProxyError::Maintenance { text: "90 % \u{fc}ber\n".into() };
        let response = refusal(&odd, &call("application/grpc"), 1);
        assert_eq!(response.headers()["grpc-message"], "90 %25 %C3%BCber%0A Request 0000000000000001");
        for (error, status) in [
            (ProxyError::BodyTooLarge { limit: 1 }, "8"),
            (ProxyError::UnknownHost, "12"),
            (ProxyError::Malformed("x"), "13"),
            (ProxyError::Misdirected, "2"),
        ] {
            let response = refusal(&error, &call("application/grpc"), 1);
            assert_eq!(response.headers()["grpc-status"], status, "{error:?}");
        }
    }

    #[test]
    fn refusals_that_need_a_field_have_it() {
        let get = parts(Method::GET, "*/*");
        let b10 = refusal(&ProxyError::MethodRefused, &get, 1);
        assert_eq!((b10.status().as_u16(), &b10.headers()[ALLOW]), (405, &METHODS));
        let g3u = refusal(&ProxyError::WebSocketVersion, &get, 1);
        assert_eq!((g3u.status().as_u16(), &g3u.headers()[SEC_WEBSOCKET_VERSION]), (426, &13.into()));
        assert_eq!(g3u.headers()[UPGRADE], "websocket");
        let d09 = refusal(&ProxyError::BodyTooLarge { limit: 1 }, &get, 1);
        assert_eq!(
            (d09.status().as_u16(), &d09.headers()[CONNECTION]),
            (413, &"close".parse().expect("valid"))
        );
    }
}
