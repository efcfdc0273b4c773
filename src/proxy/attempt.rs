//! Whether a failed attempt is made again on another worker. A request must never be executed twice unless it may be
//! (RFC 9110 §9.2.2).

use http::Method;

use crate::upstream::error::SendError;

/// Attempts of one request: the first worker and up to two others.
pub const ATTEMPTS: usize = 3;

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Ask another worker.
    Retry,
    /// Tell the client.
    GiveUp,
}

/// Decides after `made` attempts, the last of which failed with `error`. `replayable` says that nothing of the request's body
/// was read, or that there is none.
pub fn verdict(error: &SendError, method: &Method, replayable: bool, made: usize) -> Verdict {
    let safe_to_repeat = match error {
        SendError::Connect(_) | SendError::Closed { sent: false, .. } => true,
        // The worker may have acted on what it got.
        SendError::Closed { sent: true, .. } => method.is_idempotent(),
        // It answered, or may be working still: asking again would double the load of a struggling app.
        SendError::BadResponse(_) | SendError::TimedOut => false,
        SendError::Unwritable(_) | SendError::RequestBody(_) => false,
    };
    if safe_to_repeat && replayable && made < ATTEMPTS { Verdict::Retry } else { Verdict::GiveUp }
}

#[cfg(test)]
mod tests {
    use std::io;

    use proptest::prelude::*;

    use super::*;
    use crate::upstream::error::RequestBodyError;

    fn connect() -> SendError {
        SendError::Connect(io::ErrorKind::ConnectionRefused.into())
    }

    fn closed(sent: bool) -> SendError {
        SendError::Closed { cause: None, reused: false, sent }
    }

    #[test]
    fn h03_a_request_is_repeated_only_where_it_cannot_be_executed_twice() {
        use Verdict::{GiveUp, Retry};
        let (get, post) = (Method::GET, Method::POST);
        for (error, method, replayable, made, expected) in [
            (connect(), &get, true, 1, Retry),
            (connect(), &post, true, 1, Retry),
            (connect(), &post, false, 1, GiveUp),
            (closed(false), &post, true, 1, Retry),
            (closed(true), &get, true, 1, Retry),
            (closed(true), &Method::PUT, true, 2, Retry),
            (closed(true), &Method::PUT, false, 1, GiveUp),
            (closed(true), &post, true, 1, GiveUp),
            (closed(true), &Method::PATCH, true, 1, GiveUp),
            (closed(true), &get, true, 2, Retry),
            (closed(true), &get, true, 3, GiveUp),
            (SendError::TimedOut, &get, true, 1, GiveUp),
            (SendError::BadResponse("x"), &get, true, 1, GiveUp),
            (RequestBodyError::TooSlow.into(), &get, true, 1, GiveUp),
        ] {
            assert_eq!(verdict(&error, method, replayable, made), expected, "{error:?} {method} {made}");
        }
    }

    proptest! {
        #[test]
        fn a_post_of_which_a_byte_left_is_never_repeated(replayable: bool, made in 1usize..10) {
            prop_assert_eq!(verdict(&closed(true), &Method::POST, replayable, made), Verdict::GiveUp);
        }
    }
}
