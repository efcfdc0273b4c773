//! Closing without losing the last answer: a socket closed with unread input is reset, and the reset may overtake what was
//! just sent. So the sending half is ended first and what still comes is read for a short while.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::deadline::Deadline;

/// For how long at most, while an answer may be on its way.
const LONGEST: Duration = Duration::from_secs(2);

/// For how long at most while none is: a request that crosses the end is lost, but finds an end and no reset.
const CROSSING: Duration = Duration::from_millis(250);

/// Ends the sending half and waits for the client to close, reading at most `most` bytes: for long where `has_answered`, or where
/// after a short while something is still `under_way` to the client, which a reset would take from it. What fails here has nobody to
/// be told: the client is gone.
pub async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    most: usize,
    has_answered: bool,
    under_way: impl Fn(&S) -> bool,
    deadline: &Deadline,
) {
    let mut read = 0;
    deadline.set(if has_answered { LONGEST } else { CROSSING });
    tokio::select! {
        () = part(&mut stream, most, &mut read) => return,
        () = deadline.passed() => {}
    }
    if !has_answered && under_way(&stream) {
        deadline.set(LONGEST - CROSSING);
        tokio::select! {
            () = part(&mut stream, most, &mut read) => {}
            () = deadline.passed() => {}
        }
    }
}

/// Ends the sending half and reads what still comes.
async fn part<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, most: usize, read: &mut usize) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut scratch = [0; 2048];
    while *read < most {
        match stream.read(&mut scratch).await {
            Ok(0) | Err(_) => return,
            Ok(more) => *read += more,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::io::duplex;
    use tokio::time::Instant;

    use super::*;
    use crate::deadline::Deadlines;

    async fn lasts(has_answered: bool, is_under_way: bool) -> (Duration, bool) {
        let deadlines = Deadlines::new();
        let deadline = deadlines.deadline();
        let (mut client, stream) = duplex(1000);
        let begun = Instant::now();
        let asked = Cell::new(false);
        let under_way = |_: &_| {
            asked.set(true);
            is_under_way
        };
        let closing = close(stream, 1000, has_answered, under_way, &deadline);
        let talking = async {
            client.write_all(b"crosses").await.expect("it is read");
            assert_eq!(client.read(&mut [0]).await.expect("no reset"), 0, "the end");
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = closing => {}
            () = talking => {}
            () = deadlines.run() => {}
        }
        (begun.elapsed(), asked.get())
    }

    #[tokio::test(start_paused = true)]
    async fn it_lasts_as_long_as_an_answer_may_be_torn() {
        for (has_answered, is_under_way, expected, looks) in [
            (false, false, CROSSING, true),
            (false, true, LONGEST, true),
            (true, false, LONGEST, false),
            (true, true, LONGEST, false),
        ] {
            let (took, looked) = lasts(has_answered, is_under_way).await;
            let late = took.checked_sub(expected).expect("not earlier");
            assert!(late < Duration::from_secs(1), "{has_answered} {is_under_way}: {took:?}");
            assert_eq!(looked, looks);
        }
    }
}
