//! Reads `timeouts` and `limits`.

use std::ops::RangeInclusive;

use crate::config::limits::{ChunkLimits, Limits, ResponseLimits, Timeouts};
use crate::config::scalar;
use crate::config::section::Section;

/// More connections than this do not fit into a machine.
const MANY: u64 = 1_000_000;
/// Connections that are allowed at once unless the file says so, however many files may be open.
const CONNECTIONS: u64 = 20_000;
/// Longest head, and whatever else is held in one piece.
const MEGABYTE: u64 = 1_000_000;
/// Fields of one head: each costs a slot of a table.
const FIELDS: u64 = 1000;
/// RFC 9113 §6.9.1: the largest window.
const WINDOW: u64 = (1 << 31) - 1;

pub(super) fn timeouts(section: &Section<'_>) -> Timeouts {
    Timeouts {
        handshake: section.positive_duration("handshake"),
        headers: section.positive_duration("headers"),
        body: section.positive_duration("body"),
        write: section.positive_duration("write"),
        keepalive: section.positive_duration("keepalive"),
        keepalive_h2: section.positive_duration("keepalive_h2"),
        connection_age: section.duration("connection_age"),
        connect: section.positive_duration("connect"),
        first_byte: section.positive_duration("first_byte"),
        upstream_idle: section.positive_duration("upstream_idle"),
        pool_idle: section.read("pool_idle", None, |text| match text {
            "auto" => Ok(None),
            text => scalar::positive_duration(text).map(Some),
        }),
        tunnel: section.positive_duration("tunnel"),
    }
}

/// `open_files` is how many descriptors the process may have.
pub(super) fn limits(section: &Section<'_>, open_files: u64) -> Limits {
    let count = |key: &str, range: RangeInclusive<u64>| {
        let count = section.read(key, 0, |text| scalar::number(text, *range.start(), *range.end()));
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let size = |key: &str, range: RangeInclusive<u64>| {
        let size = section.read(key, 0, |text| scalar::size_within(text, *range.start(), *range.end()));
        usize::try_from(size).unwrap_or(usize::MAX)
    };
    let small = |key: &str, range| u32::try_from(size(key, range)).unwrap_or(u32::MAX);
    // Each connection may need a second descriptor, for its worker.
    let connections = section.count("connections", (open_files / 2).min(CONNECTIONS), MANY);
    Limits {
        connections: u32::try_from(connections).unwrap_or(u32::MAX),
        connections_per_client: count("connections_per_client", 0..=MANY),
        in_flight_per_client: count("in_flight_per_client", 0..=MANY),
        requests_per_connection: count("requests_per_connection", 0..=u64::from(u32::MAX)),
        handshakes: count("handshakes", 1..=MANY),
        body_rate: section.read("body_rate", 0, |text| scalar::size_within(text, 0, 1_000 * MEGABYTE)),
        head_size: size("head_size", 1000..=MEGABYTE),
        header_fields: count("header_fields", 1..=FIELDS) as usize,
        uri_size: size("uri_size", 1..=MEGABYTE),
        chunks: ChunkLimits {
            extensions: small("chunk_extensions", 0..=MEGABYTE),
            trailer_size: small("trailer_size", 0..=MEGABYTE),
            trailer_fields: count("trailer_fields", 0..=FIELDS),
        },
        streams: count("streams", 1..=10_000),
        window: small("window", 1000..=WINDOW),
        // RFC 9113 §6.9.2: it begins with 65,535 and can only be made larger.
        connection_window: small("connection_window", 65_535..=WINDOW),
        response: ResponseLimits {
            head_size: size("response_head_size", 1000..=MEGABYTE),
            fields: count("response_header_fields", 1..=FIELDS) as usize,
            interim: count("interim_responses", 0..=1000),
        },
        early_response_drain: size("early_response_drain", 0..=1_000 * MEGABYTE),
    }
}

/// What holds where a file says nothing, for tests.
#[cfg(test)]
pub fn presets() -> (Timeouts, Limits) {
    use crate::config::raw::parse;
    use crate::config::section::Reader;

    let variables = std::collections::BTreeMap::new();
    let reader = Reader::new(&variables);
    let root = Section::root(&reader, &parse("{}").root.expect("an empty mapping"));
    let found = (timeouts(&root.section("timeouts")), limits(&root.section("limits"), 1 << 20));
    drop(root);
    assert!(reader.into_problems().is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_is_as_the_table_of_keys_says() {
        let (timeouts, limits) = presets();
        assert_eq!(timeouts.connection_age.as_secs(), 3600);
        assert_eq!(timeouts.pool_idle, None);
        assert_eq!((limits.connections, limits.connections_per_client), (20_000, 256));
        assert_eq!((limits.head_size, limits.header_fields, limits.uri_size), (16_000, 100, 8_000));
        assert_eq!((limits.window, limits.connection_window), (256_000, 1_000_000));
        assert_eq!((limits.response.head_size, limits.response.interim), (64_000, 10));
    }
}
