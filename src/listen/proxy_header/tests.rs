use proptest::prelude::*;

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn relayed(client: &str, local: &str) -> Said {
    Said::Relayed { client: address(client), local: address(local) }
}

/// A header of version 2.
fn binary(command: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
    [&SIGNATURE[..], &[command, kind], &length, rest].concat()
}

fn extension(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("short").to_be_bytes();
    [&[kind], &length[..], value].concat()
}

fn block(client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let ports = [client.port().to_be_bytes(), local.port().to_be_bytes()].concat();
    [octets(client.ip()), octets(local.ip()), ports].concat()
}

fn kind(client: SocketAddr) -> u8 {
    if client.is_ipv4() { 0x11 } else { 0x21 }
}

/// The same header with a right checksum, put between its addresses and `more`.
fn with_checksum(client: SocketAddr, local: SocketAddr, more: &[u8]) -> Vec<u8> {
    let block = block(client, local);
    let at = FIXED + block.len() + 3;
    let mut header = binary(0x21, kind(client), &[&block, &extension(CRC32C, &[0; 4])[..], more].concat());
    let checksum = crc32c(&header).to_be_bytes();
    header[at..at + 4].copy_from_slice(&checksum);
    header
}

#[test]
fn the_checksum_is_the_one_of_castagnoli() {
    // RFC 3720 §B.4.
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}

#[test]
fn a_line_names_client_and_address() {
    for (line, said) in [
        ("PROXY TCP4 203.0.113.7 192.0.2.1 4711 443", relayed("203.0.113.7:4711", "192.0.2.1:443")),
        ("PROXY TCP6 2001:db8::7 2001:db8::1 1 65535", relayed("[2001:db8::7]:1", "[2001:db8::1]:65535")),
        ("PROXY TCP4 0.0.0.0 255.255.255.255 0 0", relayed("0.0.0.0:0", "255.255.255.255:0")),
        ("PROXY UNKNOWN", Said::Own),
        ("PROXY UNKNOWN ffff::1 what ever 1 2 3", Said::Own),
    ] {
        let text = format!("{line}\r\nGET / HTTP/1.1\r\n");
        assert_eq!(parse(text.as_bytes()), Ok(Parsed::Whole(said, line.len() + 2)), "{line}");
        for length in 0..line.len() + 2 {
            assert_eq!(parse(&text.as_bytes()[..length]), Ok(Parsed::Partial), "{line} {length}");
        }
    }
    for line in [
        "PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\n",
        "PROXY  TCP4 203.0.113.7 192.0.2.1 4711 443\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 4711\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 4711 443 \r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 4711 443 1\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 04711 443\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 +4711 443\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 65536 443\r\n",
        "PROXY TCP4 203.0.113.07 192.0.2.1 4711 443\r\n",
        "PROXY TCP4 ::1 ::1 4711 443\r\n",
        "PROXY TCP6 192.0.2.1 192.0.2.1 4711 443\r\n",
        "PROXY TCP5 203.0.113.7 192.0.2.1 4711 443\r\n",
        "PROXY tcp4 203.0.113.7 192.0.2.1 4711 443\r\n",
        "PROXY \r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\r\n",
        "PROXY TCP4 203.0.113.7\u{a0}192.0.2.1 4711 443\r\n",
    ] {
        assert_eq!(parse(line.as_bytes()), Err(HeaderError::Malformed), "{line}");
    }
    let long = format!("PROXY UNKNOWN{}", " x".repeat(100));
    assert_eq!(
        parse(long.as_bytes()),
        Err(HeaderError::Malformed),
        "a line has {LONGEST_LINE} bytes at the most"
    );
}

#[test]
fn what_is_no_header_is_never_taken_for_one() {
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PROX",
        b"PROXX ",
        b"proxy TCP4 ",
        b"\x16\x03\x01\x02\x00\x01",
        b"\r\n\r\n\0\r\nQUIT\r",
        b" PROXY TCP4 ",
        b"\0",
    ] {
        let expected = if bytes == b"PROX" { Ok(Parsed::Partial) } else { Err(HeaderError::Absent) };
        assert_eq!(parse(bytes), expected, "{bytes:?}");
    }
}

#[test]
fn a_binary_header_names_client_and_address_or_neither() {
    let v4 = block(address("203.0.113.7:4711"), address("192.0.2.1:443"));
    let v6 = block(address("[2001:db8::7]:4711"), address("[2001:db8::1]:443"));
    let noise = extension(0xe0, b"whatever");
    let with = |block: &[u8], more: &[u8]| [block, more].concat();
    let first = relayed("203.0.113.7:4711", "192.0.2.1:443");
    let second = relayed("[2001:db8::7]:4711", "[2001:db8::1]:443");
    for (what, header, said) in [
        ("IPv4", binary(0x21, 0x11, &v4), Ok(first)),
        ("IPv4 with extensions", binary(0x21, 0x11, &with(&v4, &noise)), Ok(first)),
        ("an empty extension", binary(0x21, 0x11, &with(&v4, &extension(4, b""))), Ok(first)),
        ("IPv6", binary(0x21, 0x21, &v6), Ok(second)),
        ("unix sockets", binary(0x21, 0x31, &[b'/'; 216]), Ok(Said::Own)),
        ("datagrams", binary(0x21, 0x12, &v4), Ok(Said::Own)),
        ("no family", binary(0x21, 0x00, b""), Ok(Said::Own)),
        ("no family, extensions", binary(0x21, 0x00, &noise), Ok(Said::Own)),
        ("its own", binary(0x20, 0x00, b""), Ok(Said::Own)),
        ("its own, whatever follows", binary(0x20, 0x11, b"\xff\xff\xff"), Ok(Said::Own)),
        ("no addresses", binary(0x21, 0x11, b""), Err(HeaderError::Malformed)),
        ("half an address", binary(0x21, 0x21, &v4), Err(HeaderError::Malformed)),
        ("half an extension", binary(0x21, 0x11, &with(&v4, &noise[..9])), Err(HeaderError::Malformed)),
        ("a byte too many", binary(0x21, 0x11, &with(&v4, b"\0")), Err(HeaderError::Malformed)),
        ("version 1 in binary", binary(0x11, 0x11, &v4), Err(HeaderError::Malformed)),
        ("an unknown command", binary(0x22, 0x11, &v4), Err(HeaderError::Malformed)),
        ("an unknown family", binary(0x21, 0x41, &v4), Err(HeaderError::Malformed)),
        ("an unknown transport", binary(0x21, 0x13, &v4), Err(HeaderError::Malformed)),
        (
            "a short checksum",
            binary(0x21, 0x11, &with(&v4, &extension(CRC32C, b"123"))),
            Err(HeaderError::Malformed),
        ),
        (
            "a wrong checksum",
            binary(0x21, 0x11, &with(&v4, &extension(CRC32C, b"1234"))),
            Err(HeaderError::Checksum),
        ),
        ("too long", binary(0x20, 0x00, &[0; LONGEST]), Err(HeaderError::TooLong)),
    ] {
        let length = header.len();
        assert_eq!(
            parse(&[header, b"rest".to_vec()].concat()),
            said.map(|said| Parsed::Whole(said, length)),
            "{what}"
        );
    }
    // Nobody is made to wait for a header that is refused.
    let too_long = binary(0x21, 0x11, &[0; LONGEST]);
    assert_eq!(parse(&too_long[..FIXED]), Err(HeaderError::TooLong));
}

fn ends() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
    let v4 = (any::<([u8; 4], u16)>(), any::<([u8; 4], u16)>()).prop_map(|(a, b)| (a.into(), b.into()));
    let v6 = (any::<([u8; 16], u16)>(), any::<([u8; 16], u16)>()).prop_map(|(a, b)| (a.into(), b.into()));
    prop_oneof![v4, v6]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_written_header_reads_as_itself_whenever_it_comes(
        (client, local) in ends(),
        more in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..4),
        rest in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (client.ip(), local.ip());
        let line = format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), local.port());
        let more: Vec<u8> =
            more.iter().filter(|(kind, _)| *kind != CRC32C).flat_map(|(kind, value)| extension(*kind, value)).collect();
        for header in [line.into_bytes(), with_checksum(client, local, &more)] {
            let said = Said::Relayed { client, local };
            let bytes = [&header[..], &rest].concat();
            prop_assert_eq!(parse(&bytes), Ok(Parsed::Whole(said, header.len())));
            for length in 0..header.len() {
                prop_assert_eq!(parse(&bytes[..length]), Ok(Parsed::Partial), "{} of {}", length, header.len());
            }
        }
    }

    #[test]
    fn a_changed_byte_is_noticed_by_the_checksum((client, local) in ends(), at: prop::sample::Index, flip in 1u8..) {
        let mut header = with_checksum(client, local, b"");
        let at = at.index(header.len());
        header[at] ^= flip;
        let same = Ok(Parsed::Whole(Said::Relayed { client, local }, header.len()));
        let found = parse(&header);
        // A kind of extension that is not looked at takes its checksum with it.
        let checksum_kept = header[header.len() - 7] == CRC32C;
        prop_assert!(found != same || !checksum_kept, "{at}: {found:?}");
    }

    #[test]
    fn no_bytes_panic_and_no_header_is_longer_than_it_may_be(
        start in prop_oneof![Just(SIGNATURE.to_vec()), Just(b"PROXY ".to_vec()), Just(Vec::new())],
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [start, rest].concat();
        if let Ok(Parsed::Whole(_, length)) = parse(&bytes) {
            prop_assert!(length <= bytes.len() && length <= LONGEST);
        }
    }
}
