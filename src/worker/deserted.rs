//! Whether anybody listens still where a worker that serves did: its socket may have been removed, or be closed while it lives on.
//!
//! Nobody of those that serve is asked as long as requests get through.

use std::io;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

use crate::config::model::Address;
use crate::worker::slot::{Slot, is_nobody_there};

/// Between two looks whether a request did not get through.
const LOOK: Duration = Duration::from_secs(1);
/// How long nobody may listen: a server that starts anew by itself is back by then.
const ABSENCE: Duration = Duration::from_secs(5);
/// Between two attempts to find somebody, and how long one is waited for that is made alone.
const PAUSE: Duration = Duration::from_millis(250);

/// Completes once nobody has listened where `slot` says for a while. Cancel-safe.
pub(super) async fn found(slot: &Slot) {
    loop {
        tokio::time::sleep(LOOK).await;
        if slot.take_missed() && tokio::time::timeout(ABSENCE, somebody(&slot.address)).await.is_err() {
            return;
        }
    }
}

/// Completes once somebody listens. Cancel-safe.
async fn somebody(address: &Address) {
    while connect(address).await.is_err_and(|error| is_nobody_there(&error)) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether `address` can be connected to at this moment.
pub(super) async fn is_attended(address: &Address) -> bool {
    tokio::time::timeout(PAUSE, connect(address)).await.is_ok_and(|connected| connected.is_ok())
}

async fn connect(address: &Address) -> io::Result<()> {
    match address {
        Address::Unix(path) => UnixStream::connect(path).await.map(drop),
        Address::Tcp(to) => TcpStream::connect(to).await.map(drop),
        // Workers have addresses, not names.
        Address::Name(..) => Ok(()),
    }
}
