//! Heads of HTTP/2 towards a worker, without I/O: what a request becomes, and what an answer must keep to.

use bytes::Bytes;
use h2::ext::Protocol;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_KEY,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri, response};

use crate::config::limits::ResponseLimits;
use crate::upstream::wire::{Malformed, RequestHead, check_request, content_length, is_connection_field};

/// Most lines that edge itself adds to a request.
const OWN_LINES: usize = 64;

/// The head of a request (RFC 9113 §8.3.1). `length` is its body's, where that is known and there is one. Fields of one hop in
/// HTTP/1.1 are left out, but for `TE`, which edge itself adds. A WebSocket is asked for as RFC 8441 §5 has it, without a key.
pub(super) fn request(head: &RequestHead<'_>, length: Option<u64>) -> Result<Request<()>, Malformed> {
    let RequestHead { method, target, host, headers, add, upgrade } = *head;
    check_request(method, target)?;
    let mut uri = Uri::default().into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority =
        Some(Authority::try_from(host.as_bytes()).map_err(|_| Malformed("the host is not an authority"))?);
    uri.path_and_query =
        Some(PathAndQuery::try_from(target).map_err(|_| Malformed("the target is not a path"))?);
    let mut request = Request::new(());
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Malformed("the target is not a path"))?;
    *request.method_mut() = if upgrade { Method::CONNECT } else { method.clone() };
    if upgrade {
        request.extensions_mut().insert(Protocol::from_static("websocket"));
    }
    let fields = request.headers_mut();
    fields.reserve(headers.len() + 8);
    for (name, value) in headers {
        let keyed = upgrade && *name == SEC_WEBSOCKET_KEY;
        if *name != HOST && *name != CONTENT_LENGTH && !keyed && !is_connection_field(name) {
            fields.append(name, value.clone());
        }
    }
    add_own(fields, add)?;
    if let Some(length) = length {
        fields.insert(CONTENT_LENGTH, length.into());
    }
    Ok(request)
}

/// Adds the lines that edge writes for HTTP/1.1.
fn add_own(fields: &mut HeaderMap, add: &dyn Fn(&mut Vec<u8>)) -> Result<(), Malformed> {
    const BAD: Malformed = Malformed("a field of edge's own is malformed");
    let mut text = Vec::with_capacity(512);
    add(&mut text);
    text.extend_from_slice(b"\r\n");
    let text = Bytes::from(text);
    let mut lines = [httparse::EMPTY_HEADER; OWN_LINES];
    let Ok(httparse::Status::Complete((_, lines))) = httparse::parse_headers(&text, &mut lines) else {
        return Err(BAD);
    };
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| BAD)?;
        if name != CONNECTION {
            fields.append(name, HeaderValue::from_maybe_shared(text.slice_ref(line.value)).map_err(|_| BAD)?);
        }
    }
    Ok(())
}

/// Whether a request is a call of gRPC, which has a deadline of its own, and whose server may be silent up to that.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| {
        let kind = kind.as_bytes().strip_prefix(b"application/grpc");
        kind.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// Checks the head of an interim answer and takes out what was for edge alone.
pub(super) fn check_interim(head: &mut response::Parts, limits: &ResponseLimits) -> Result<(), Malformed> {
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Malformed("it switches protocols, which HTTP/2 has not"));
    }
    let _of_no_body = check_fields(&mut head.headers, limits)?;
    head.headers.remove(CONTENT_LENGTH);
    Ok(())
}

/// Checks the head of an answer and takes out what was for edge alone. Returns the length of the body where it is known;
/// `Some(0)` where there is none, whatever the fields say.
pub(super) fn check_response(
    head: &mut response::Parts,
    asked: &Method,
    limits: &ResponseLimits,
) -> Result<Option<u64>, Malformed> {
    if !(200..600).contains(&head.status.as_u16()) {
        return Err(Malformed("its status is not between 200 and 599"));
    }
    let fields = &mut head.headers;
    let length = check_fields(fields, limits)?;
    if head.status == StatusCode::NO_CONTENT {
        fields.remove(CONTENT_LENGTH);
        return Ok(Some(0));
    }
    let bodiless = *asked == Method::HEAD || head.status == StatusCode::NOT_MODIFIED;
    Ok(if bodiless { Some(0) } else { length })
}

/// What any answer's fields must keep to. Returns what `Content-Length` says, which is there once or not at all from then on.
fn check_fields(fields: &mut HeaderMap, limits: &ResponseLimits) -> Result<Option<u64>, Malformed> {
    let size: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if fields.len() > limits.fields {
        return Err(Malformed("its head has too many fields"));
    }
    if size > limits.head_size {
        return Err(Malformed("its head is too long"));
    }
    let foreign: Vec<HeaderName> = fields.keys().filter(|name| is_connection_field(name)).cloned().collect();
    for name in foreign {
        fields.remove(name);
    }
    let mut lengths = fields.get_all(CONTENT_LENGTH).iter().map(|value| content_length(value.as_bytes()));
    let length = lengths.next().transpose()?;
    if lengths.any(|other| other != length.ok_or(Malformed("its Content-Length is malformed"))) {
        return Err(Malformed("it has two different Content-Length fields"));
    }
    if let Some(length) = length {
        // One spelling, once.
        fields.insert(CONTENT_LENGTH, length.into());
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;
    use crate::config::check_limits::presets;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            (name.parse::<HeaderName>().expect("name"), value.parse::<HeaderValue>().expect("value"))
        });
        fields.collect()
    }

    fn written(fields: &[(&str, &str)], own: &'static str, length: Option<u64>) -> Request<()> {
        let head = RequestHead {
            method: &Method::POST,
            target: "/a?b=c",
            host: &HeaderValue::from_static("a.test:443"),
            headers: &map(fields),
            add: &|out| out.extend_from_slice(own.as_bytes()),
            upgrade: false,
        };
        request(&head, length).expect("valid")
    }

    #[test]
    fn a_request_has_one_authority_edges_lines_and_no_fields_of_another_hop() {
        let fields = [
            ("host", "b.test"),
            ("connection", "x"),
            ("upgrade", "h2c"),
            ("content-length", "7"),
            ("x", "y"),
        ];
        let found = written(&fields, "x-real-ip: 1\r\nte: trailers\r\nconnection: te\r\n", Some(3));
        assert_eq!(found.uri(), "http://a.test:443/a?b=c");
        let expected = [("x", "y"), ("x-real-ip", "1"), ("te", "trailers"), ("content-length", "3")];
        assert_eq!(*found.headers(), map(&expected));
        assert_eq!(written(&[("content-length", "7")], "", None).headers().len(), 0);
    }

    #[test]
    fn an_answer_keeps_to_the_rules_of_http_1() {
        let (_, limits) = presets();
        let check = |status: u16, fields: &[(&str, &str)], method: Method| {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::from_u16(status).expect("valid");
            *response.headers_mut() = map(fields);
            let mut head = response.into_parts().0;
            check_response(&mut head, &method, &limits.response).map(|left| (left, head.headers.len())).ok()
        };
        let length = [("content-length", "07")];
        assert_eq!(check(200, &length, Method::GET), Some((Some(7), 1)));
        assert_eq!(check(200, &[("x", "y")], Method::GET), Some((None, 1)));
        assert_eq!(check(200, &length, Method::HEAD), Some((Some(0), 1)));
        assert_eq!(check(304, &length, Method::GET), Some((Some(0), 1)));
        assert_eq!(check(204, &length, Method::GET), Some((Some(0), 0)));
        assert_eq!(
            check(200, &[("connection", "x"), ("keep-alive", "1"), ("te", "x")], Method::GET),
            Some((None, 0))
        );
        let twice = [("content-length", "7"), ("content-length", "8")];
        for (status, fields) in
            [(101, &[][..]), (600, &[]), (200, &twice), (200, &[("content-length", "+7")])]
        {
            assert_eq!(check(status, fields, Method::GET), None, "{status} {fields:?}");
        }
        let many: Vec<_> = (0..=limits.response.fields).map(|_| ("a", "b")).collect();
        assert_eq!(check(200, &many, Method::GET), None);
        let long = "x".repeat(limits.response.head_size);
        assert_eq!(check(200, &[("a", &long)], Method::GET), None);
    }

    #[test]
    fn an_interim_answer_has_no_length_no_fields_of_one_hop_and_switches_nothing() {
        let (_, limits) = presets();
        let check = |status: u16, fields: &[(&str, &str)]| {
            let mut head = Response::new(()).into_parts().0;
            head.status = StatusCode::from_u16(status).expect("valid");
            head.headers = map(fields);
            check_interim(&mut head, &limits.response).map(|()| head.headers).ok()
        };
        let fields = [("link", "</a>"), ("content-length", "5"), ("connection", "x"), ("te", "x")];
        assert_eq!(check(103, &fields), Some(map(&[("link", "</a>")])));
        assert_eq!(check(101, &[("upgrade", "websocket")]), None);
        assert_eq!(check(103, &[("content-length", "+5")]), None);
        let many: Vec<_> = (0..=limits.response.fields).map(|_| ("a", "b")).collect();
        assert_eq!(check(103, &many), None);
        let long = "x".repeat(limits.response.head_size);
        assert_eq!(check(103, &[("a", &long)]), None);
    }

    #[test]
    fn a_call_of_grpc_has_its_content_type_or_a_kind_of_it() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpcx", false),
            ("text/plain", false),
        ] {
            assert_eq!(is_grpc(&map(&[("content-type", kind)])), expected, "{kind}");
        }
        assert!(!is_grpc(&map(&[])));
    }
}
