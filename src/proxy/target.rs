//! What a request asks for: its method, target and authority, checked before anything is routed by them.
//!
//! There is one authority, whatever part of the request named it; a request that names two is refused, because a worker might
//! believe the other one.

use std::net::SocketAddr;

use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Uri, Version};

use crate::config::limits::Limits;
use crate::proxy::error::ProxyError;

/// Longest method in bytes.
pub const METHOD_SIZE: usize = 32;

/// A request target in the two forms that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A path with or without query.
    Path,
    /// `OPTIONS *`: the server as a whole (RFC 9110 §9.3.7).
    Server,
}

/// What an extended CONNECT asks for (RFC 8441 §4). Its connection puts it among the request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extended {
    /// A WebSocket.
    WebSocket,
    /// Any other protocol.
    Other,
}

/// A host and port as a client wrote them: `host [":" port]` of RFC 3986 §3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority<'a> {
    /// The host, in any case, IPv6 in brackets.
    pub host: &'a str,
    /// The port, where one was written.
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Splits host and port. Whether the host is well formed is decided where it is looked up.
    pub fn parse(text: &'a str) -> Result<Self, ProxyError> {
        const WRONG: ProxyError = ProxyError::Malformed("its host is not a host name and port");
        let (host, port) = if text.starts_with('[') {
            let end = text.find(']').ok_or(WRONG)? + 1;
            match &text[end..] {
                "" => (&text[..end], None),
                rest => (&text[..end], Some(rest.strip_prefix(':').ok_or(WRONG)?)),
            }
        } else {
            match memchr::memchr(b':', text.as_bytes()) {
                Some(colon) => (&text[..colon], Some(&text[colon + 1..])),
                None => (text, None),
            }
        };
        if host.is_empty() {
            return Err(ProxyError::Malformed("its host is empty"));
        }
        let port = match port {
            None | Some("") => None,
            // `parse` alone would allow a sign.
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| WRONG)?)
            }
            Some(_) => return Err(WRONG),
        };
        Ok(Self { host, port })
    }

    /// Whether both name the same origin under `scheme_port`.
    fn is_same(&self, other: &Self, scheme_port: u16) -> bool {
        fn bare(host: &str) -> &str {
            host.strip_suffix('.').unwrap_or(host)
        }
        bare(self.host).eq_ignore_ascii_case(bare(other.host))
            && self.port.unwrap_or(scheme_port) == other.port.unwrap_or(scheme_port)
    }
}

/// How large a request is, and which of the fields that something depends on it has. Most have none: one look over all spares a search for each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Present {
    /// `Host`.
    pub host: bool,
    /// `Cookie`, more than once, over HTTP/2: in crumbs.
    pub crumbs: bool,
    /// `Connection`.
    pub connection: bool,
    /// `Content-Length`.
    pub length: bool,
    /// `Transfer-Encoding` or `Expect`.
    pub framing: bool,
    /// `TE`.
    pub te: bool,
    /// `Upgrade`.
    pub upgrade: bool,
    /// Bytes of target and fields.
    pub size: usize,
}

/// Refuses heads that are too large, in fields or in bytes, names and values counted; of others, tells what is there.
pub fn look_over(parts: &Parts, limits: &Limits) -> Result<Present, ProxyError> {
    let uri = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if uri > limits.uri_size {
        return Err(ProxyError::UriTooLong);
    }
    let mut present = Present { size: uri, ..Present::default() };
    let mut cookie = false;
    for (name, value) in &parts.headers {
        present.size += name.as_str().len() + value.len() + 4;
        present.host |= *name == HOST;
        if *name == COOKIE {
            present.crumbs |= std::mem::replace(&mut cookie, true) && parts.version == Version::HTTP_2;
        }
        present.connection |= *name == CONNECTION;
        present.length |= *name == CONTENT_LENGTH;
        present.framing |= *name == TRANSFER_ENCODING || *name == EXPECT;
        present.te |= *name == TE;
        present.upgrade |= *name == UPGRADE;
    }
    if parts.headers.len() > limits.header_fields || present.size > limits.head_size {
        return Err(ProxyError::HeadTooLarge);
    }
    Ok(present)
}

/// Refuses methods and targets that are never forwarded. `secure` says that the connection is TLS.
pub fn check_target(parts: &Parts, secure: bool) -> Result<Target, ProxyError> {
    if parts.method == Method::TRACE {
        return Err(ProxyError::MethodRefused);
    }
    if parts.method == Method::CONNECT {
        match parts.extensions.get() {
            Some(Extended::WebSocket) => {}
            Some(Extended::Other) => return Err(ProxyError::ProtocolUnsupported),
            None => return Err(ProxyError::MethodRefused),
        }
    }
    if parts.method.as_str().len() > METHOD_SIZE {
        return Err(ProxyError::Malformed("its method is too long"));
    }
    check_scheme(&parts.uri, secure)?;
    let path = parts.uri.path();
    if path == "*" {
        return match parts.method {
            Method::OPTIONS => Ok(Target::Server),
            _ => Err(ProxyError::Malformed("its target is not a path")),
        };
    }
    // The authority form, `GET x`, arrives without a path.
    if !path.starts_with('/') || (parts.uri.authority().is_some() && parts.uri.scheme().is_none()) {
        return Err(ProxyError::Malformed("its target is not a path"));
    }
    check_path(path.as_bytes())?;
    // Nothing is routed by the query: whatever it encodes is the app's to judge. Raw bytes are nobody's (RFC 3986 §2).
    if parts.uri.query().is_some_and(|query| !query.is_ascii()) {
        return Err(ProxyError::Malformed("its target holds characters that must be encoded"));
    }
    Ok(Target::Path)
}

fn check_scheme(uri: &Uri, secure: bool) -> Result<(), ProxyError> {
    let expected = if secure { "https" } else { "http" };
    match uri.scheme_str() {
        None => Ok(()),
        Some(scheme) if scheme.eq_ignore_ascii_case(expected) => Ok(()),
        Some(_) => Err(ProxyError::Malformed("its scheme is not the connection's")),
    }
}

fn check_path(path: &[u8]) -> Result<(), ProxyError> {
    if !path.is_ascii() {
        return Err(ProxyError::Malformed("its target holds characters that must be encoded"));
    }
    for at in memchr::memchr_iter(b'%', path) {
        match path.get(at + 1..at + 3) {
            Some(b"00") => return Err(ProxyError::Malformed("its path holds a NUL")),
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => {}
            Some(_) | None => return Err(ProxyError::Malformed("its path is encoded wrongly")),
        }
    }
    Ok(())
}

/// Refuses framing and expectations that are not understood (RFC 9112 §6.1, RFC 9110 §10.1.1).
pub fn check_framing(headers: &HeaderMap) -> Result<(), ProxyError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(ProxyError::CodingUnsupported);
    }
    match headers.get(EXPECT) {
        None => Ok(()),
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(()),
        Some(_) => Err(ProxyError::ExpectationUnsupported),
    }
}

/// Refuses at once a body that is announced as longer than `limit`.
pub fn check_announced_length(headers: &HeaderMap, limit: u64) -> Result<(), ProxyError> {
    let announced =
        headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.trim().parse::<u64>().ok());
    match announced {
        Some(length) if length > limit => Err(ProxyError::BodyTooLarge { limit }),
        Some(_) | None => Ok(()),
    }
}

/// The request's one authority as the client wrote it, from `Host`, an absolute target or `:authority`. Disagreement is
/// refused. A request of HTTP/1.0 may have none: it means the address it arrived at (RFC 9112 §3.3).
pub fn authority(
    parts: &Parts,
    present: &Present,
    secure: bool,
    local: SocketAddr,
) -> Result<HeaderValue, ProxyError> {
    let mut host = None;
    if present.host {
        let mut hosts = parts.headers.get_all(HOST).iter();
        host = hosts.next();
        if hosts.next().is_some() {
            return Err(ProxyError::Malformed("it has more than one Host"));
        }
    }
    match (host, parts.uri.authority()) {
        (Some(host), None) => Ok(host.clone()),
        (Some(host), Some(named)) => {
            let scheme_port = if secure { 443 } else { 80 };
            if !Authority::parse(text(host)?)?.is_same(&Authority::parse(named.as_str())?, scheme_port) {
                return Err(ProxyError::Malformed("its target and its Host disagree"));
            }
            Ok(host.clone())
        }
        // RFC 9113 §8.3.1; over HTTP/1.1 a Host is required even beside an absolute target (RFC 9112 §3.2).
        (None, Some(named)) if parts.version != Version::HTTP_11 => HeaderValue::from_str(named.as_str())
            .map_err(|_| ProxyError::Malformed("its host is not a host name and port")),
        (None, None) if parts.version < Version::HTTP_11 => {
            let local = SocketAddr::new(local.ip().to_canonical(), local.port());
            HeaderValue::from_str(&local.to_string()).map_err(|_| ProxyError::Malformed("it has no Host"))
        }
        (None, Some(_) | None) => Err(ProxyError::Malformed("it has no Host")),
    }
}

/// A header value as text; hosts are ASCII.
pub fn text(value: &HeaderValue) -> Result<&str, ProxyError> {
    value.to_str().map_err(|_| ProxyError::Malformed("its host is not a host name and port"))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::config::check_limits::presets;

    fn request(method: &str, uri: &str, version: Version, hosts: &[&str]) -> Parts {
        let mut builder = Request::builder().method(method).uri(uri).version(version);
        for host in hosts {
            builder = builder.header(HOST, *host);
        }
        builder.body(()).expect("the test's request is well formed").into_parts().0
    }

    fn local() -> SocketAddr {
        "[::ffff:192.0.2.7]:80".parse().expect("valid")
    }

    #[test]
    fn a_request_has_exactly_one_authority() {
        let (_, limits) = presets();
        let h1 = Version::HTTP_11;
        let h2 = Version::HTTP_2;
        for (id, uri, version, hosts, expected) in [
            ("plain", "/", h1, &["a.test"][..], Some("a.test")),
            ("B01 none", "/", h1, &[], None),
            ("B01 two", "/", h1, &["a.test", "b.test"], None),
            ("B01 two equal", "/", h1, &["a.test", "a.test"], None),
            ("B03 equal", "http://a.test/", h1, &["a.test"], Some("a.test")),
            ("B03 equal but for spelling", "http://A.test.:80/", h1, &["a.test"], Some("a.test")),
            ("B03 differing", "http://a.test/", h1, &["b.test"], None),
            ("B03 differing port", "http://a.test:81/", h1, &["a.test"], None),
            ("B03 userinfo", "http://u@a.test/", h1, &["a.test"], None),
            ("absolute target alone", "http://a.test/", h1, &[], None),
            ("h2", "http://a.test/", h2, &[], Some("a.test")),
            ("h2 both", "http://a.test/", h2, &["a.test"], Some("a.test")),
            ("h2 Host alone", "/", h2, &["a.test"], Some("a.test")),
            ("B04 both and another", "http://a.test/", h2, &["a.test", "b.test"], None),
            ("B04 two", "/", h2, &["a.test", "a.test"], None),
            ("B04 differing", "http://a.test/", h2, &["b.test"], None),
            ("B04 neither", "/", h2, &[], None),
            ("HTTP/1.0 without", "/", Version::HTTP_10, &[], Some("192.0.2.7:80")),
        ] {
            let parts = request("GET", uri, version, hosts);
            let present = look_over(&parts, &limits).expect(id);
            let found = authority(&parts, &present, false, local());
            assert_eq!(found.ok().as_ref().map(|host| host.to_str().expect(id)), expected, "{id}");
        }
    }

    #[test]
    fn b02_an_authority_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("a.test", "a.test", None),
            ("a.test:443", "a.test", Some(443)),
            ("a.test:", "a.test", None),
            ("[2001:db8::1]", "[2001:db8::1]", None),
            ("[2001:db8::1]:8443", "[2001:db8::1]", Some(8443)),
        ] {
            assert_eq!(Authority::parse(text).expect(text), Authority { host, port });
        }
        for text in ["", ":80", "a:99999", "a:+80", "a:x", "a:80:80", "[::1", "[::1]80", "::1", "2001:db8::1"]
        {
            assert!(Authority::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_paths_are_served() {
        for (id, method, uri, expected) in [
            ("plain", "GET", "/a?b=%zz", Some(Target::Path)),
            ("B09 options", "OPTIONS", "*", Some(Target::Server)),
            ("B09 star", "GET", "*", None),
            ("B09 authority form", "GET", "x", None),
            ("B09 with port", "GET", "x:80", None),
            ("B10 trace", "TRACE", "/", None),
            ("B10 connect", "CONNECT", "a.test:443", None),
            ("B11 unknown method", "brew", "/", Some(Target::Path)),
            ("B11 long method", &"A".repeat(33), "/", None),
            ("B13 kept", "GET", "//x;y/a%2fb", Some(Target::Path)),
            ("B14 NUL", "GET", "/%00", None),
            ("B14 not hex", "GET", "/%zz", None),
            ("B14 cut", "GET", "/a%2", None),
            ("B14 raw path", "GET", "/\u{e9}", None),
            ("B14 raw query", "GET", "/?\u{e9}", None),
            ("F09 scheme", "GET", "https://a.test/", None),
            ("F09 ftp", "GET", "ftp://a.test/", None),
        ] {
            let parts = request(method, uri, Version::HTTP_11, &["a.test"]);
            assert_eq!(check_target(&parts, false).ok(), expected, "{id}");
        }
    }

    #[test]
    fn f10_only_a_websocket_is_connected_to() {
        for (asked, expected) in [
            (None, Err(405)),
            (Some(Extended::Other), Err(501)),
            (Some(Extended::WebSocket), Ok(Target::Path)),
        ] {
            let mut parts = request("CONNECT", "https://a.test/ws", Version::HTTP_2, &[]);
            parts.extensions.extend(
                asked
                    .map(|asked| {
                        let mut extensions = http::Extensions::new();
                        extensions.insert(asked);
                        extensions
                    })
                    .unwrap_or_default(),
            );
            let found = check_target(&parts, true).map_err(|error| error.status().as_u16());
            assert_eq!(found, expected, "{asked:?}");
        }
    }

    #[test]
    fn b15_c07_heads_are_bounded() {
        let (_, limits) = presets();
        let status = |parts: &Parts| look_over(parts, &limits).err().map(|error| error.status().as_u16());
        let path = |length: usize| format!("/{}", "a".repeat(length - 1));
        assert_eq!(status(&request("GET", &path(limits.uri_size), Version::HTTP_11, &["a"])), None);
        assert_eq!(status(&request("GET", &path(limits.uri_size + 1), Version::HTTP_11, &["a"])), Some(414));
        let mut parts = request("GET", "/", Version::HTTP_11, &["a"]);
        for _ in 1..limits.header_fields {
            parts.headers.append("cookie", HeaderValue::from_static("a=b"));
        }
        assert_eq!(status(&parts), None);
        parts.headers.append("cookie", HeaderValue::from_static("a=b"));
        assert_eq!(status(&parts), Some(431));
        let mut parts = request("GET", "/", Version::HTTP_11, &["a"]);
        parts.headers.insert("x", HeaderValue::from_str(&"a".repeat(limits.head_size)).expect("valid"));
        assert_eq!(status(&parts), Some(431));
    }

    #[test]
    fn a04_a17_only_understood_framing_and_expectations_pass() {
        for (name, values, status) in [
            ("transfer-encoding", &["chunked"][..], None),
            ("transfer-encoding", &["Chunked"], None),
            ("transfer-encoding", &["gzip, chunked"], Some(501)),
            ("transfer-encoding", &["identity, chunked"], Some(501)),
            ("transfer-encoding", &[",chunked"], Some(501)),
            ("transfer-encoding", &["chunked", "chunked"], Some(501)),
            ("expect", &["100-Continue"], None),
            ("expect", &["tea"], Some(417)),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(name, HeaderValue::from_static(value));
            }
            let found = check_framing(&headers).err().map(|error| error.status().as_u16());
            assert_eq!(found, status, "{name}: {values:?}");
        }
    }

    #[test]
    fn d09_a_body_announced_as_too_long_is_refused_before_it_is_read() {
        let mut headers = HeaderMap::new();
        assert!(check_announced_length(&headers, 10).is_ok());
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("10"));
        assert!(check_announced_length(&headers, 10).is_ok());
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("11"));
        assert_eq!(check_announced_length(&headers, 10).expect_err("longer").status().as_u16(), 413);
    }

    proptest! {
        #[test]
        fn no_text_is_parsed_into_a_host_it_does_not_hold(text in "\\PC{0,40}") {
            if let Ok(Authority { host, .. }) = Authority::parse(&text) {
                prop_assert!(!host.is_empty() && text.starts_with(host));
            }
        }
    }
}
