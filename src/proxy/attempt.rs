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

/// Whether a worker got the request and ended without an answer, or after no more than its head: the request itself may be what
/// killed it.
pub fn is_fatal(error: &SendError) -> bool {
    matches!(error, SendError::Closed { sent: true, .. } | SendError::Bodiless { .. })
}

/// Decides after `made` attempts, the last of which failed with `error`; in `fatal` of them, this one included,
/// [`is_fatal`] holds. `replayable` says that nothing of the request's body was read, or that there is none.
pub fn verdict(error: &SendError, method: &Method, replayable: bool, made: usize, fatal: usize) -> Verdict {
    let safe_to_repeat = match error {
        SendError::Connect(_) | SendError::Refused | SendError::Closed { sent: false, .. } => true,
        // The worker may have acted on what it got; and a request that kills must not go from worker to worker.
        SendError::Closed { sent: true, .. } => method.is_idempotent() && fatal <= 1,
        // The worker has acted on it: a DELETE that succeeded would be told as one of what is not there.
        SendError::Bodiless { .. } => method.is_safe() && fatal <= 1,
        // What blocked one worker would block the next. What a worker left unread comes as `Closed`, or earlier as this:
        // it may read the request yet, after all.
        SendError::Hung => false,
        SendError::Unread => method.is_safe(),
        // It answered, or may be working still: asking again would double the load of a struggling app.
        SendError::BadResponse(_) | SendError::Reset(_) | SendError::TimedOut => false,
        SendError::Unwritable(_) | SendError::NoWebSockets | SendError::RequestBody(_) => false,
    };
    if safe_to_repeat && replayable && made < ATTEMPTS { Verdict::Retry } else { Verdict::GiveUp }
}

/// Whether the worker asked after `made` attempts, the last of which failed with `failed`, may be left for another because it
/// leaves the request unread: once, or it would go from worker to worker; and not at the last attempt, or it would end unanswered.
pub fn may_leave(made: usize, failed: Option<&SendError>) -> bool {
    made + 1 < ATTEMPTS && !matches!(failed, Some(SendError::Unread))
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
            (closed(true), &Method::PUT, true, 1, Retry),
            (closed(true), &Method::PUT, false, 1, GiveUp),
            (closed(true), &post, true, 1, GiveUp),
            (closed(true), &Method::PATCH, true, 1, GiveUp),
            (connect(), &get, true, 2, Retry),
            (connect(), &get, true, 3, GiveUp),
            (SendError::Bodiless { cause: None }, &get, true, 1, Retry),
            (SendError::Bodiless { cause: None }, &Method::DELETE, true, 1, GiveUp),
            (SendError::Bodiless { cause: None }, &post, true, 1, GiveUp),
            (SendError::Hung, &get, true, 1, GiveUp),
            (SendError::Refused, &post, true, 1, Retry),
            (SendError::Refused, &post, false, 1, GiveUp),
            (SendError::Reset(h2::Reason::INTERNAL_ERROR), &get, true, 1, GiveUp),
            (SendError::Unread, &get, true, 1, Retry),
            (SendError::Unread, &Method::PUT, true, 1, GiveUp),
            (SendError::Unread, &post, true, 1, GiveUp),
            (SendError::TimedOut, &get, true, 1, GiveUp),
            (SendError::BadResponse("x"), &get, true, 1, GiveUp),
            (RequestBodyError::TooSlow.into(), &get, true, 1, GiveUp),
        ] {
            let fatal = usize::from(is_fatal(&error));
            assert_eq!(
                verdict(&error, method, replayable, made, fatal),
                expected,
                "{error:?} {method} {made}"
            );
        }
    }

    #[test]
    fn a_request_that_kills_meets_two_workers_at_most() {
        assert_eq!(
            verdict(&closed(true), &Method::GET, true, 2, 1),
            Verdict::Retry,
            "the first could not be reached"
        );
        assert_eq!(verdict(&closed(true), &Method::GET, true, 2, 2), Verdict::GiveUp);
    }

    #[test]
    fn what_is_left_unread_is_left_once_and_not_at_the_last_attempt() {
        assert!(may_leave(0, None));
        assert!(may_leave(1, Some(&connect())));
        assert!(!may_leave(1, Some(&SendError::Unread)));
        assert!(!may_leave(2, Some(&connect())));
    }

    proptest! {
        #[test]
        fn a_post_of_which_a_byte_left_is_never_repeated(replayable: bool, made in 1usize..10) {
            prop_assert_eq!(verdict(&closed(true), &Method::POST, replayable, made, 1), Verdict::GiveUp);
        }
    }
}
