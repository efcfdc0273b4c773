//! Closing without losing the last answer: a socket closed with unread input is reset, and the reset may overtake what was
//! just sent. So the sending half is ended first and what still comes is read for a short while.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::deadline::Deadline;

/// For how long at most, while an answer may be on its way.
pub const LONGEST: Duration = Duration::from_secs(2);

/// For how long at most while none is: a request that crosses the end is lost, but finds an end and no reset.
pub const CROSSING: Duration = Duration::from_millis(250);

/// Sends `last`, ends the sending half, and waits for the client to close for `longest` at most, reading at most `most` bytes. What
/// fails here has nobody to be told: the client is gone.
pub async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    last: &[u8],
    most: usize,
    longest: Duration,
    deadline: &Deadline,
) {
    deadline.set(longest);
    let farewell = async {
        stream.write_all(last).await?;
        stream.shutdown().await?;
        let mut scratch = [0; 2048];
        let mut read = 0;
        while read < most {
            match stream.read(&mut scratch).await? {
                0 => break,
                more => read += more,
            }
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        _gone = farewell => {}
        () = deadline.passed() => {}
    }
}
