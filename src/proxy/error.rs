//! Why edge answers itself instead of a worker: one variant per thing a client is told differently, one table of statuses.

use std::sync::Arc;

use http::StatusCode;

use crate::report::Report;
use crate::upstream::error::{AcquireError, RequestBodyError, SendError};

/// A request that gets an answer of edge's own making.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The request breaks a rule of HTTP.
    #[error("the request is malformed: {0}")]
    Malformed(&'static str),
    /// A method that no gateway forwards.
    #[error("the method is not forwarded")]
    MethodRefused,
    /// An extended CONNECT to something else than a WebSocket (RFC 8441 §4).
    #[error("the request asks for a protocol that is not spoken")]
    ProtocolUnsupported,
    /// A transfer coding other than `chunked`.
    #[error("the request uses a transfer coding that is not supported")]
    CodingUnsupported,
    /// An expectation other than `100-continue`.
    #[error("the request expects something that is not supported")]
    ExpectationUnsupported,
    /// A version of HTTP that is not spoken.
    #[error("the request is of an HTTP version that is not supported")]
    VersionUnsupported,
    /// The head did not come to its end in time.
    #[error("the request head did not arrive in time")]
    HeadTooSlow,
    /// The target is longer than `limits.uri_size`.
    #[error("the request target is too long")]
    UriTooLong,
    /// The head has more fields or bytes than allowed.
    #[error("the request head is too large")]
    HeadTooLarge,
    /// `Content-Length` says more than the app allows.
    #[error("the request body would be longer than {limit} bytes")]
    BodyTooLarge {
        /// The app's `max_body`.
        limit: u64,
    },
    /// A WebSocket handshake of another version than 13 (RFC 6455 §4.4).
    #[error("the WebSocket version is not supported")]
    WebSocketVersion,
    /// No app has this host.
    #[error("no app answers for this host")]
    UnknownHost,
    /// The connection's certificate or TLS policy is not the host's (RFC 9110 §15.5.20).
    #[error("the host does not belong on this connection")]
    Misdirected,
    /// No pending challenge has this token.
    #[error("no certificate challenge of this name is pending")]
    UnknownChallenge,
    /// The host's first certificate is on its way.
    #[error("the certificate of the host is not there yet: {why}")]
    CertificatePending {
        /// In words.
        why: Arc<str>,
    },
    /// The operator has taken the app out of service.
    #[error("the app is under maintenance")]
    Maintenance {
        /// What visitors are told.
        text: Arc<str>,
    },
    /// The client has as many requests at workers as it may.
    #[error("too many requests of the client are in flight")]
    Crowded,
    /// The requests that wait hold as much as they may.
    #[error("too many requests wait, and this one is too large to wait with them")]
    TooMuchHeld,
    /// No worker took the request.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// A worker was asked and gave no usable answer, or the client's body failed meanwhile.
    #[error(transparent)]
    Send(SendError),
    /// The worker switched protocols against the rules (RFC 9110 §15.2.2).
    #[error("the worker switched protocols wrongly: {0}")]
    BadUpgrade(&'static str),
}

/// Whose doing it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The client's.
    Client,
    /// Nobody's but edge's own: a limit, a missing certificate, no worker.
    Edge,
    /// The worker's.
    Worker,
}

impl ProxyError {
    /// Whose doing it was.
    pub fn side(&self) -> Side {
        self.verdict().0
    }

    /// The status the client gets.
    pub fn status(&self) -> StatusCode {
        self.verdict().1
    }

    /// The cause as the access log tells it.
    pub fn cause(&self) -> String {
        Report(self).to_string()
    }

    fn verdict(&self) -> (Side, StatusCode) {
        use Side::{Client, Edge, Worker};
        match self {
            Self::Malformed(_) => (Client, StatusCode::BAD_REQUEST),
            Self::MethodRefused => (Client, StatusCode::METHOD_NOT_ALLOWED),
            Self::ProtocolUnsupported | Self::CodingUnsupported => (Client, StatusCode::NOT_IMPLEMENTED),
            Self::ExpectationUnsupported => (Client, StatusCode::EXPECTATION_FAILED),
            Self::VersionUnsupported => (Client, StatusCode::HTTP_VERSION_NOT_SUPPORTED),
            Self::HeadTooSlow => (Client, StatusCode::REQUEST_TIMEOUT),
            Self::UriTooLong => (Client, StatusCode::URI_TOO_LONG),
            Self::HeadTooLarge => (Client, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            Self::BodyTooLarge { .. } => (Client, StatusCode::PAYLOAD_TOO_LARGE),
            Self::WebSocketVersion => (Client, StatusCode::UPGRADE_REQUIRED),
            Self::UnknownHost | Self::UnknownChallenge => (Client, StatusCode::NOT_FOUND),
            Self::Misdirected => (Client, StatusCode::MISDIRECTED_REQUEST),
            Self::CertificatePending { .. }
            | Self::Maintenance { .. }
            | Self::Crowded
            | Self::TooMuchHeld => (Edge, StatusCode::SERVICE_UNAVAILABLE),
            Self::Acquire(AcquireError::NoWorker { .. } | AcquireError::QueueFull { .. }) => {
                (Edge, StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::Send(
                SendError::Connect(_)
                | SendError::Closed { .. }
                | SendError::Bodiless { .. }
                | SendError::Hung
                | SendError::Reset(_)
                | SendError::BadResponse(_),
            ) => (Worker, StatusCode::BAD_GATEWAY),
            Self::Send(SendError::Refused) => (Worker, StatusCode::SERVICE_UNAVAILABLE),
            Self::Send(SendError::NoWebSockets) => (Client, StatusCode::NOT_IMPLEMENTED),
            Self::Send(SendError::Unwritable(_)) => (Client, StatusCode::BAD_REQUEST),
            Self::Send(SendError::Unread | SendError::TimedOut) => (Worker, StatusCode::GATEWAY_TIMEOUT),
            Self::Send(SendError::RequestBody(RequestBodyError::TooLarge { .. })) => {
                (Client, StatusCode::PAYLOAD_TOO_LARGE)
            }
            Self::Send(SendError::RequestBody(RequestBodyError::TooSlow)) => {
                (Client, StatusCode::REQUEST_TIMEOUT)
            }
            Self::Send(SendError::RequestBody(
                RequestBodyError::Broken(_) | RequestBodyError::TrailersTooLarge,
            )) => (Client, StatusCode::BAD_REQUEST),
            Self::BadUpgrade(_) => (Worker, StatusCode::BAD_GATEWAY),
        }
    }

    /// Whether the connection must not carry another request: its framing is in doubt, the rest of a body is not wanted, or
    /// what follows may be meant for the tunnel of a refused CONNECT.
    pub fn ends_connection(&self) -> bool {
        match self {
            Self::Malformed(_)
            | Self::CodingUnsupported
            | Self::ExpectationUnsupported
            | Self::HeadTooLarge
            | Self::UriTooLong
            | Self::VersionUnsupported
            | Self::HeadTooSlow
            | Self::BodyTooLarge { .. }
            | Self::MethodRefused
            | Self::ProtocolUnsupported
            | Self::Send(SendError::Unwritable(_) | SendError::RequestBody(_)) => true,
            Self::WebSocketVersion
            | Self::UnknownHost
            | Self::Misdirected
            | Self::UnknownChallenge
            | Self::CertificatePending { .. }
            | Self::Maintenance { .. }
            | Self::Crowded
            | Self::TooMuchHeld
            | Self::Acquire(_)
            | Self::Send(
                SendError::Connect(_)
                | SendError::Closed { .. }
                | SendError::Bodiless { .. }
                | SendError::Hung
                | SendError::Refused
                | SendError::Reset(_)
                | SendError::BadResponse(_)
                | SendError::NoWebSockets
                | SendError::Unread
                | SendError::TimedOut,
            )
            | Self::BadUpgrade(_) => false,
        }
    }

    /// Seconds after which trying again makes sense, where waiting helps.
    pub fn retry_after(&self) -> Option<u32> {
        if let Self::CertificatePending { .. } = self {
            Some(30)
        } else if let Self::Maintenance { .. } = self {
            Some(60)
        } else if let Self::Acquire(_) | Self::Crowded | Self::TooMuchHeld = self {
            Some(2)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_failure_has_one_side_and_one_status() {
        let closed = SendError::Closed { cause: None, reused: true, sent: true };
        for (error, side, status) in [
            (ProxyError::Malformed("x"), Side::Client, 400),
            (ProxyError::MethodRefused, Side::Client, 405),
            (ProxyError::BodyTooLarge { limit: 1 }, Side::Client, 413),
            (ProxyError::UnknownHost, Side::Client, 404),
            (ProxyError::Misdirected, Side::Client, 421),
            (ProxyError::CertificatePending { why: "x".into() }, Side::Edge, 503),
            (ProxyError::Maintenance { text: "x".into() }, Side::Edge, 503),
            (ProxyError::Crowded, Side::Edge, 503),
            (ProxyError::TooMuchHeld, Side::Edge, 503),
            (AcquireError::NoWorker { waited: Duration::from_secs(1), ended: None }.into(), Side::Edge, 503),
            (AcquireError::QueueFull { waiting: 100, ended: None }.into(), Side::Edge, 503),
            (ProxyError::Send(closed), Side::Worker, 502),
            (ProxyError::Send(SendError::Bodiless { cause: None }), Side::Worker, 502),
            (ProxyError::Send(SendError::BadResponse("x")), Side::Worker, 502),
            (ProxyError::Send(SendError::TimedOut), Side::Worker, 504),
            (ProxyError::Send(SendError::Unread), Side::Worker, 504),
            // A09, A11: the client's bad framing is never the worker's fault.
            (ProxyError::Send(RequestBodyError::TooSlow.into()), Side::Client, 408),
            (ProxyError::Send(RequestBodyError::TooLarge { limit: 1 }.into()), Side::Client, 413),
            (ProxyError::BadUpgrade("x"), Side::Worker, 502),
        ] {
            assert_eq!((error.side(), error.status().as_u16()), (side, status), "{error:?}");
        }
    }

    #[test]
    fn the_log_names_the_cause_and_not_the_levels_above_it() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = ProxyError::Send(SendError::Connect(refused));
        assert_eq!(error.cause(), "cannot connect to the worker: connection refused");
        assert_eq!(ProxyError::UnknownHost.cause(), "no app answers for this host");
    }
}
