//! A process by descriptor.
#![expect(unsafe_code, reason = "registering a descriptor promises that it stays the same one")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process by descriptor: unlike its id, it never comes to mean another process.
#[derive(Debug)]
pub struct Handle(AsyncFd<OwnedFd>);

impl Handle {
    /// The process that has this id now.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let descriptor = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        // SAFETY: the descriptor is owned by the registration, which this type neither gives away nor lets change.
        Ok(Self(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?))
    }

    /// Completes once the process has ended, its status taken or not. Cancel-safe.
    pub async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
