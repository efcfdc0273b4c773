//! Reading without a buffer for each connection: what is read lands in the thread's own, and leaves as slices of it.

use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Room for a read: what a first message usually fits in, and what one TLS record takes.
pub const READ_SIZE: usize = 16 * 1024;
/// Room for a read once one came back full.
pub const BULK_READ_SIZE: usize = 64 * 1024;

/// Small reads share an allocation of this size. A slice that somebody slow holds keeps all of it.
const SHARED_BUFFER: usize = 2 * READ_SIZE;

thread_local! {
    /// Where everybody on this thread reads into.
    static BUFFER: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Takes `count` bytes off the front of what was read. Used up, it keeps no buffer, which an empty slice would.
pub fn pass(input: &mut Bytes, count: usize) {
    if count == input.len() {
        *input = Bytes::new();
    } else {
        input.advance(count);
    }
}

/// Reads at most `size` bytes; none is the end.
///
/// A read that does not fill its room tells the runtime that the socket is empty, so the next one waits without asking the
/// system: the reason to offer more room than is expected to be used.
pub fn poll_read_bytes<S: AsyncRead + Unpin>(
    mut stream: Pin<&mut S>,
    cx: &mut Context<'_>,
    size: usize,
) -> Poll<io::Result<Bytes>> {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.capacity() - buffer.len() < size {
            buffer.reserve(size.max(SHARED_BUFFER));
        }
        let mut room = (&mut *buffer).limit(size);
        let count = ready!(pin!(stream.read_buf(&mut room)).poll(cx))?;
        debug_assert_eq!(count, buffer.len(), "the buffer is left empty after each read");
        Poll::Ready(Ok(buffer.split().freeze()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_keeps_no_buffer() {
        let read = Bytes::from(vec![1, 2, 3]);
        let mut input = read.clone();
        pass(&mut input, 2);
        assert!(input[..] == [3] && !read.is_unique());
        pass(&mut input, 1);
        assert!(input.is_empty() && read.is_unique());
    }
}
