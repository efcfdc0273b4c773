//! The header that a load balancer puts before everything else on a connection, to name the client at its other side: the PROXY
//! protocol, versions 1 (a line of text) and 2 (binary). Nothing here guesses: what is not such a header is an error.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest header that is taken; more than the extensions that are known need.
pub const LONGEST: usize = 4096;

/// Longest line of version 1, its end included.
const LONGEST_LINE: usize = 107;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length.
const FIXED: usize = 16;

/// Extensions with a meaning here: a checksum of the whole header.
const CRC32C: u8 = 3;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// The connection is the balancer's own, as for a health check, or of a kind that has no addresses.
    Own,
    /// A client connected to an address of the balancer.
    Relayed {
        /// The client.
        client: SocketAddr,
        /// Where it connected to.
        local: SocketAddr,
    },
}

/// A header as far as it is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// All of it: what it says, and its length.
    Whole(Said, usize),
    /// It is not over yet.
    Partial,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum HeaderError {
    #[error("it does not begin with a PROXY header")]
    Absent,
    #[error("its PROXY header is malformed")]
    Malformed,
    #[error("its PROXY header is longer than {LONGEST} bytes")]
    TooLong,
    #[error("the checksum in its PROXY header is wrong")]
    Checksum,
}

/// Reads a header at the beginning of `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    const BEGINNING: &[u8] = b"PROXY ";
    let begins_like = |start: &[u8]| bytes.iter().zip(start).all(|(one, other)| one == other);
    if begins_like(SIGNATURE) {
        if bytes.len() < FIXED { Ok(Parsed::Partial) } else { version_2(bytes) }
    } else if begins_like(BEGINNING) {
        if bytes.len() < BEGINNING.len() { Ok(Parsed::Partial) } else { version_1(bytes) }
    } else {
        Err(HeaderError::Absent)
    }
}

fn version_1(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let seen = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = memchr::memchr(b'\n', seen) else {
        return if bytes.len() < LONGEST_LINE { Ok(Parsed::Partial) } else { Err(HeaderError::Malformed) };
    };
    let line = std::str::from_utf8(&bytes[..end]).ok().and_then(|line| line.strip_suffix('\r'));
    let said = line.and_then(said_by_line).ok_or(HeaderError::Malformed)?;
    Ok(Parsed::Whole(said, end + 1))
}

fn said_by_line(line: &str) -> Option<Said> {
    let mut words = line.split(' ').skip(1);
    let family = words.next()?;
    if family == "UNKNOWN" {
        // Whatever follows is to be ignored.
        return Some(Said::Own);
    }
    let (client, local, client_port, local_port) =
        (words.next()?, words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let ip: fn(&str) -> Option<IpAddr> = match family {
        "TCP4" => |text| Ipv4Addr::from_str(text).ok().map(IpAddr::V4),
        "TCP6" => |text| Ipv6Addr::from_str(text).ok().map(IpAddr::V6),
        _ => return None,
    };
    Some(Said::Relayed {
        client: SocketAddr::new(ip(client)?, port(client_port)?),
        local: SocketAddr::new(ip(local)?, port(local_port)?),
    })
}

fn port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
    digits.parse().ok().filter(|_| plain)
}

/// `bytes` holds the fixed part at least.
fn version_2(bytes: &[u8]) -> Result<Parsed, HeaderError> {
    let (command, kind) = (bytes[12], bytes[13]);
    let length = FIXED + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let own = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(HeaderError::Malformed),
    };
    let (family, transport) = (kind >> 4, kind & 15);
    if family > 3 || transport > 2 {
        return Err(HeaderError::Malformed);
    }
    if length > LONGEST {
        return Err(HeaderError::TooLong);
    }
    let Some(header) = bytes.get(..length) else { return Ok(Parsed::Partial) };
    if own {
        // Whatever family it names means nothing, so where its extensions would begin is not known either.
        return Ok(Parsed::Whole(Said::Own, length));
    }
    let addresses = match family {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    let (block, extensions) = header[FIXED..].split_at_checked(addresses).ok_or(HeaderError::Malformed)?;
    check_extensions(header, length - extensions.len())?;
    // A stream: edge takes nothing else, so whatever else is announced is not this connection.
    let said = if transport == 1 { said_by_block(block) } else { Some(Said::Own) };
    Ok(Parsed::Whole(said.ok_or(HeaderError::Malformed)?, length))
}

/// Two addresses and two ports; anything else is of a family without addresses of the network.
fn said_by_block(block: &[u8]) -> Option<Said> {
    fn split<const N: usize>(block: &[u8]) -> Option<([u8; N], [u8; N], &[u8])> {
        let (client, rest) = block.split_first_chunk()?;
        let (local, ports) = rest.split_first_chunk()?;
        Some((*client, *local, ports))
    }
    let (client, local, ports) = match block.len() {
        12 => split::<4>(block).map(|(client, local, ports)| (client.into(), local.into(), ports))?,
        36 => split::<16>(block).map(|(client, local, ports)| (client.into(), local.into(), ports))?,
        _ => return Some(Said::Own),
    };
    let port = |at: usize| Some(u16::from_be_bytes([*ports.get(at)?, *ports.get(at + 1)?]));
    Some(Said::Relayed { client: SocketAddr::new(client, port(0)?), local: SocketAddr::new(local, port(2)?) })
}

/// Walks the extensions that begin at `at`; of those, only the checksum is looked at.
fn check_extensions(header: &[u8], mut at: usize) -> Result<(), HeaderError> {
    while let Some((&[kind, high, low], rest)) = header[at..].split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let value = rest.get(..length).ok_or(HeaderError::Malformed)?;
        if kind == CRC32C {
            let told = u32::from_be_bytes(value.try_into().map_err(|_| HeaderError::Malformed)?);
            // It was computed with zeros in its own place.
            let mut zeroed = header.to_vec();
            zeroed[at + 3..at + 7].fill(0);
            if crc32c(&zeroed) != told {
                return Err(HeaderError::Checksum);
            }
        }
        at += 3 + length;
    }
    if at == header.len() { Ok(()) } else { Err(HeaderError::Malformed) }
}

/// The checksum of Castagnoli (RFC 3720 §12.1), bit by bit: it is seldom asked for, and of a few bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests;
