//! Where a worker listens really, for the message when that is not where it should, or not only there.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::worker::family::Process;

/// TCP addresses on which one of the processes that `family` finds listens. All there are are looked through, and the kernel's
/// tables are long where many connections are open: that is done where the event loop does not wait for it.
pub async fn addresses(family: impl FnOnce() -> Vec<Process> + Send + 'static) -> Vec<SocketAddr> {
    tokio::task::spawn_blocking(move || read(&family())).await.unwrap_or_default()
}

/// Those of [`addresses`] that other machines may reach, in text.
pub async fn beyond_this_machine(family: impl FnOnce() -> Vec<Process> + Send + 'static) -> Vec<String> {
    let found = addresses(family).await;
    found.iter().filter(|address| !address.ip().is_loopback()).map(ToString::to_string).collect()
}

fn read(family: &[Process]) -> Vec<SocketAddr> {
    let sockets: HashSet<u64> = family.iter().flat_map(|one| sockets(one.pid)).collect();
    let mut found = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        found.extend(text.lines().filter_map(listener).filter(|(_, inode)| sockets.contains(inode)));
    }
    let mut addresses: Vec<SocketAddr> = found.into_iter().map(|(address, _)| address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn sockets(pid: u32) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let inode = |target: std::path::PathBuf| {
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    entries.flatten().filter_map(|entry| inode(fs::read_link(entry.path()).ok()?)).collect()
}

/// One line of `/proc/net/tcp[6]`: address and inode, if the socket listens.
fn listener(line: &str) -> Option<(SocketAddr, u64)> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?.parse().ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (state == LISTEN).then_some((SocketAddr::new(ip(address)?, port), inode))
}

/// The kernel prints each 32-bit word of an address as a number of the machine's own byte order.
fn ip(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (n, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(n * 8)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::family;

    #[tokio::test]
    async fn a_listener_of_this_process_is_found() {
        let me = family::process(std::process::id()).expect("we exist");
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(bind) else { continue };
            let address = listener.local_addr().expect("bound");
            assert!(addresses(move || vec![me]).await.contains(&address), "{address}");
            drop(listener);
        }
    }
}
