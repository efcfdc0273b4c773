//! The CAs that tests order from: Pebble, which this project does not control, and a stub for what Pebble cannot do. The tests
//! inside the crate and those of the real process share them; they know nothing of the code that is tested.

pub(crate) mod https;
pub(crate) mod pebble;
pub(crate) mod stub;

use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// A TCP port of loopback nobody listens on, outside the range the system hands out by itself, so that it stays free for its
/// user. No port is given twice: tests run side by side, and one may ask for several before it uses any.
pub(crate) fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    loop {
        let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 22_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
