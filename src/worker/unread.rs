//! Bytes that the other end of a socket was sent and has not read, or has not got.
#![expect(unsafe_code, reason = "an ioctl without a safe wrapper")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// Of a unix socket's peer, whether it has accepted the connection or not: the kernel charges the sender until the receiver
/// reads. Of TCP, what the other end has not confirmed, including the end of the sending half.
pub fn of_socket(stream: &impl AsFd) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed for the call, which writes one c_int where it is told to.
    let result = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(count.unsigned_abs().into()) }
}

/// Of the listener's end of a loopback TCP connection: TCP confirms bytes before they are read, so the other end's line in
/// the kernel's table is looked at. `None` if there is none.
pub(super) fn of_loopback(listener: u16, client: u16) -> Option<u64> {
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines().find_map(|line| received(line, listener, client))
    })
}

/// The receive queue of the connection between these ports, if the line is its.
fn received(line: &str, local: u16, remote: u16) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let port = |field: &str| u16::from_str_radix(field.rsplit_once(':')?.1, 16).ok();
    let is_it = port(fields.nth(1)?)? == local && port(fields.next()?)? == remote;
    let queues = fields.nth(1)?;
    is_it.then(|| u64::from_str_radix(queues.split_once(':')?.1, 16).ok())?
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn bytes_count_until_they_are_read() {
        let (mut near, mut far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        near.write_all(b"xx").expect("written");
        assert!(of_socket(&near).expect("asked") > 0);
        far.read_exact(&mut [0; 2]).expect("read");
        assert_eq!(of_socket(&near).expect("asked"), 0);

        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("bound").port();
        let mut near = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let client = near.local_addr().expect("bound").port();
        near.write_all(b"xx").expect("written");
        assert_eq!(of_loopback(port, client), Some(2));
        let (mut far, _) = listener.accept().expect("accepted");
        far.read_exact(&mut [0; 2]).expect("read");
        assert_eq!(of_loopback(port, client), Some(0));
    }
}
