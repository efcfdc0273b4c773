//! One line for each request: the record, and its forms as JSON and text.
//!
//! Pure: a record is plain data, and writing it appends to a buffer. `telemetry::sink` carries the buffer away.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode, Uri, Version};

use crate::name::AppName;
use crate::telemetry::line::{Palette, Shape, Stamp, put_json, put_millis, put_number, put_text};

/// What is known of a request when its last byte is out.
#[derive(Debug, Clone)]
pub struct AccessRecord {
    /// When its head was read.
    pub at: SystemTime,
    /// The app it was for, where one was found.
    pub app: Option<AppName>,
    /// Slot and process id of the worker that answered, or was asked last.
    pub worker: Option<(u32, u32)>,
    /// Address of the client.
    pub client: IpAddr,
    /// Host as the client wrote it.
    pub host: Option<http::HeaderValue>,
    /// Method.
    pub method: Method,
    /// Target; only path and query are printed.
    pub uri: Uri,
    /// HTTP version towards the client.
    pub version: Version,
    /// Status sent; 499 where the client was gone before there was one.
    pub status: StatusCode,
    /// Bytes of the request's body that were read.
    pub bytes_in: u64,
    /// Bytes of the response's body that were handed to the connection.
    pub bytes_out: u64,
    /// Head read to last byte.
    pub duration: Duration,
    /// Time spent waiting for a worker.
    pub queued: Duration,
    /// Request sent to response head read, of the last attempt.
    pub upstream: Option<Duration>,
    /// Attempts after the first.
    pub retries: u32,
    /// TLS version, where there was TLS: `TLSv1.3`.
    pub tls: Option<&'static str>,
    /// The id sent to the worker in `X-Request-ID`, printed as 16 hexadecimal digits.
    pub request_id: u64,
    /// Why edge answered itself, or why the answer was cut, in one sentence.
    pub error: Option<String>,
}

impl AccessRecord {
    /// Appends the record as one line with its line feed.
    pub fn write(&self, shape: Shape, stamp: &mut Stamp, out: &mut Vec<u8>) {
        match shape {
            Shape::Json => self.write_json(stamp, out),
            Shape::Text { colour } => self.write_text(Palette::new(colour), stamp, out),
        }
    }

    fn write_json(&self, stamp: &mut Stamp, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"ts\":\"");
        out.extend_from_slice(stamp.full(self.at));
        out.extend_from_slice(b"\",\"app\":");
        put_or_null(out, self.app.as_ref(), |out, app| put_plain(out, app.as_str()));
        out.extend_from_slice(b",\"worker\":");
        put_or_null(out, self.worker, |out, (slot, _)| put_number(out, slot));
        out.extend_from_slice(b",\"pid\":");
        // A server that edge does not run has a place and no process id.
        let pid = self.worker.map(|(_, pid)| pid).filter(|pid| *pid != 0);
        put_or_null(out, pid, put_number);
        out.extend_from_slice(b",\"client\":\"");
        put_client(out, self.client);
        out.extend_from_slice(b"\",\"host\":");
        put_or_null(out, self.host.as_ref(), |out, host| put_json(out, host.as_bytes()));
        out.extend_from_slice(b",\"method\":");
        put_json(out, self.method.as_str().as_bytes());
        out.extend_from_slice(b",\"path\":");
        put_json(out, self.path().as_bytes());
        out.extend_from_slice(b",\"proto\":\"");
        out.extend_from_slice(proto(self.version).as_bytes());
        out.extend_from_slice(b"\",\"status\":");
        put_number(out, self.status.as_u16());
        out.extend_from_slice(b",\"bytes_in\":");
        put_number(out, self.bytes_in);
        out.extend_from_slice(b",\"bytes_out\":");
        put_number(out, self.bytes_out);
        out.extend_from_slice(b",\"duration_ms\":");
        put_millis(out, self.duration);
        out.extend_from_slice(b",\"queue_ms\":");
        put_millis(out, self.queued);
        out.extend_from_slice(b",\"upstream_ms\":");
        put_or_null(out, self.upstream, put_millis);
        out.extend_from_slice(b",\"retries\":");
        put_number(out, self.retries);
        out.extend_from_slice(b",\"tls\":");
        put_or_null(out, self.tls, put_plain);
        out.extend_from_slice(b",\"request_id\":\"");
        put_id(out, self.request_id);
        out.push(b'"');
        if let Some(error) = &self.error {
            out.extend_from_slice(b",\"error\":");
            put_json(out, error.as_bytes());
        }
        out.extend_from_slice(b"}\n");
    }

    /// `12:00:00.000Z 200 GET       12.345ms  api/0[4711]  10.0.0.1 HTTP/2 https://api.test/path  in 0 out 512`: what is read
    /// in columns comes first, what varies in length last.
    fn write_text(&self, palette: Palette, stamp: &mut Stamp, out: &mut Vec<u8>) {
        out.extend_from_slice(palette.faint.as_bytes());
        out.extend_from_slice(stamp.short(self.at));
        out.extend_from_slice(palette.reset.as_bytes());
        out.push(b' ');
        out.extend_from_slice(self.colour(palette).as_bytes());
        put_number(out, self.status.as_u16());
        out.extend_from_slice(palette.reset.as_bytes());
        out.push(b' ');
        padded(out, 7, Align::Left, |out| put_text(out, self.method.as_str().as_bytes()));
        out.push(b' ');
        padded(out, 10, Align::Right, |out| put_millis(out, self.duration));
        out.extend_from_slice(b"ms  ");
        out.extend_from_slice(palette.name.as_bytes());
        padded(out, 13, Align::Left, |out| self.put_worker(out));
        out.extend_from_slice(palette.reset.as_bytes());
        out.extend_from_slice(b"  ");
        put_client(out, self.client);
        out.push(b' ');
        out.extend_from_slice(proto(self.version).as_bytes());
        out.extend_from_slice(if self.tls.is_some() { b" https://" } else { b" http://" });
        put_text(out, self.host.as_ref().map_or(&b"-"[..], http::HeaderValue::as_bytes));
        put_text(out, self.path().as_bytes());
        out.extend_from_slice(palette.faint.as_bytes());
        out.extend_from_slice(b"  in ");
        put_number(out, self.bytes_in);
        out.extend_from_slice(b" out ");
        put_number(out, self.bytes_out);
        if self.queued >= Duration::from_millis(1) {
            out.extend_from_slice(b" queue ");
            put_millis(out, self.queued);
            out.extend_from_slice(b"ms");
        }
        if self.retries > 0 {
            out.extend_from_slice(b" retries ");
            put_number(out, self.retries);
        }
        out.extend_from_slice(palette.reset.as_bytes());
        if let Some(error) = &self.error {
            out.extend_from_slice(b"  error: ");
            put_text(out, error.as_bytes());
            out.extend_from_slice(b" (request ");
            put_id(out, self.request_id);
            out.push(b')');
        }
        out.push(b'\n');
    }

    /// Path and query; `*` of OPTIONS and the authority of CONNECT as they are.
    fn path(&self) -> &str {
        match self.uri.path_and_query() {
            Some(path) => path.as_str(),
            None => self.uri.authority().map_or("", http::uri::Authority::as_str),
        }
    }

    fn put_worker(&self, out: &mut Vec<u8>) {
        let Some(app) = &self.app else {
            out.push(b'-');
            return;
        };
        out.extend_from_slice(app.as_str().as_bytes());
        if let Some((slot, pid)) = self.worker {
            out.push(b'/');
            put_number(out, slot);
            if pid != 0 {
                out.push(b'[');
                put_number(out, pid);
                out.push(b']');
            }
        }
    }

    fn colour(&self, palette: Palette) -> &'static str {
        match self.status.as_u16() {
            500.. => palette.bad,
            400..500 => palette.warn,
            _ => palette.good,
        }
    }
}

fn put_or_null<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => put(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

/// A JSON string of a text that by its type holds nothing to escape.
fn put_plain(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

fn put_client(out: &mut Vec<u8>, client: IpAddr) {
    match client.to_canonical() {
        IpAddr::V4(address) => {
            for (place, octet) in address.octets().into_iter().enumerate() {
                if place > 0 {
                    out.push(b'.');
                }
                put_number(out, octet);
            }
        }
        IpAddr::V6(address) => {
            use std::io::Write;
            // Writing to a Vec cannot fail.
            let _ = write!(out, "{address}");
        }
    }
}

fn put_id(out: &mut Vec<u8>, id: u64) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for shift in (0..16).rev() {
        out.push(HEX[((id >> (shift * 4)) & 15) as usize]);
    }
}

fn proto(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

#[derive(Clone, Copy)]
enum Align {
    Left,
    Right,
}

/// Appends what `put` appends in at least `width` columns.
fn padded(out: &mut Vec<u8>, width: usize, align: Align, put: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    put(out);
    let missing = width.saturating_sub(out.len() - start);
    out.resize(out.len() + missing, b' ');
    match align {
        Align::Left => {}
        Align::Right => out[start..].rotate_right(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AccessRecord {
        AccessRecord {
            at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_007),
            app: Some("api".parse().expect("valid")),
            worker: Some((2, 4711)),
            client: "::ffff:10.0.0.9".parse().expect("valid"),
            host: Some(http::HeaderValue::from_static("api.test")),
            method: Method::GET,
            uri: Uri::from_static("https://api.test/a?b=%22c"),
            version: Version::HTTP_2,
            status: StatusCode::OK,
            bytes_in: 0,
            bytes_out: 512,
            duration: Duration::from_micros(12_345),
            queued: Duration::ZERO,
            upstream: Some(Duration::from_micros(11_002)),
            retries: 0,
            tls: Some("TLSv1.3"),
            request_id: 0xabc,
            error: None,
        }
    }

    fn line(record: &AccessRecord, shape: Shape) -> String {
        let mut out = Vec::new();
        record.write(shape, &mut Stamp::default(), &mut out);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_line_of_json_holds_every_promised_field() {
        assert_eq!(
            line(&record(), Shape::Json),
            "{\"ts\":\"2026-01-01T00:00:00.007Z\",\"app\":\"api\",\"worker\":2,\"pid\":4711,\
             \"client\":\"10.0.0.9\",\"host\":\"api.test\",\"method\":\"GET\",\"path\":\"/a?b=%22c\",\
             \"proto\":\"HTTP/2\",\"status\":200,\"bytes_in\":0,\"bytes_out\":512,\"duration_ms\":12.345,\
             \"queue_ms\":0.000,\"upstream_ms\":11.002,\"retries\":0,\"tls\":\"TLSv1.3\",\
             \"request_id\":\"0000000000000abc\"}\n"
        );
    }

    #[test]
    fn what_is_unknown_is_null() {
        let unknown = AccessRecord {
            app: None,
            worker: None,
            host: None,
            upstream: None,
            tls: None,
            error: Some("no app is called \"x\"".to_owned()),
            ..record()
        };
        let value: serde_json::Value = serde_json::from_str(&line(&unknown, Shape::Json)).expect("JSON");
        for key in ["app", "worker", "pid", "host", "upstream_ms", "tls"] {
            assert_eq!(value[key], serde_json::Value::Null, "{key}");
        }
        assert_eq!(value["error"], "no app is called \"x\"");
    }

    #[test]
    fn bytes_of_the_client_stay_inside_their_field() {
        let hostile = AccessRecord {
            host: Some(http::HeaderValue::from_bytes(b"a\"\xff\xfe").expect("valid")),
            method: Method::from_bytes(b"X'Y").expect("a token"),
            uri: format!("/{}", "a".repeat(5000)).parse().expect("valid"),
            ..record()
        };
        let printed = line(&hostile, Shape::Json);
        let value: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        assert_eq!(value["host"], "a\"\u{fffd}\u{fffd}");
        assert!(printed.len() < 2000);
    }

    #[test]
    fn text_is_aligned_and_says_what_went_wrong() {
        assert_eq!(
            line(&record(), Shape::Text { colour: false }),
            "00:00:00.007Z 200 GET         12.345ms  api/2[4711]    10.0.0.9 HTTP/2 https://api.test/a?b=%22c  in 0 out 512\n"
        );
        let failed = AccessRecord {
            status: StatusCode::BAD_GATEWAY,
            queued: Duration::from_millis(3),
            retries: 1,
            tls: None,
            error: Some("worker api/2 closed the connection".to_owned()),
            ..record()
        };
        assert_eq!(
            line(&failed, Shape::Text { colour: false }),
            "00:00:00.007Z 502 GET         12.345ms  api/2[4711]    10.0.0.9 HTTP/2 http://api.test/a?b=%22c  \
             in 0 out 512 queue 3.000ms retries 1  error: worker api/2 closed the connection (request 0000000000000abc)\n"
        );
    }

    #[test]
    fn only_the_target_of_a_request_is_a_path() {
        for (uri, path) in
            [("*", "*"), ("host.test:443", "host.test:443"), ("/", "/"), ("http://a.test", "/")]
        {
            let record = AccessRecord { uri: uri.parse().expect(uri), ..record() };
            assert_eq!(record.path(), path);
        }
    }
}
