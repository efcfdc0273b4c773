//! The subject of a client's certificate as one line, in the form of RFC 4514: what a worker decides by must have one reading.

use std::fmt::Write as _;

use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate};

/// Longest line that is passed on: a subject beyond it is nobody's name.
const LONGEST: usize = 4096;

/// The subject of `certificate`, the most specific name first, in printable ASCII; `None` where it cannot be read or is too long
/// to be passed on.
pub fn subject(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut line = String::new();
    let names: Vec<_> = certificate.subject().iter_rdn().collect();
    for (position, name) in names.into_iter().rev().enumerate() {
        for (at, attribute) in name.iter().enumerate() {
            match (position, at) {
                (0, 0) => {}
                (_, 0) => line.push(','),
                _ => line.push('+'),
            }
            write_attribute(&mut line, attribute);
        }
        if line.len() > LONGEST {
            return None;
        }
    }
    Some(line)
}

fn write_attribute(line: &mut String, attribute: &AttributeTypeAndValue<'_>) {
    let value = attribute.attr_value();
    let oid = attribute.attr_type().to_id_string();
    let known = short_name(&oid);
    line.push_str(known.unwrap_or(&oid));
    line.push('=');
    let text = match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => std::str::from_utf8(value.data).ok(),
        _ => None,
    };
    match text.filter(|_| known.is_some()) {
        Some(text) => write_escaped(line, text.as_bytes()),
        None => write_encoded(line, value.tag(), value.data),
    }
}

/// RFC 4514 §3, and the names that everybody writes besides those.
fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        _ => return None,
    })
}

/// RFC 4514 §2.4; bytes beyond ASCII as hexadecimal pairs, because a header field is ASCII.
fn write_escaped(line: &mut String, text: &[u8]) {
    for (at, byte) in text.iter().enumerate() {
        let outside = (at == 0 && matches!(byte, b' ' | b'#')) || (at + 1 == text.len() && *byte == b' ');
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => {
                line.push('\\');
                line.push(char::from(*byte));
            }
            _ if outside => {
                line.push('\\');
                line.push(char::from(*byte));
            }
            b' '..=b'~' => line.push(char::from(*byte)),
            // Writing to a String cannot fail.
            byte => {
                let _ = write!(line, "\\{byte:02X}");
            }
        }
    }
}

/// What has no text of its own: `#` and its encoding.
fn write_encoded(line: &mut String, tag: Tag, content: &[u8]) {
    line.push('#');
    let mut encoding = vec![u8::try_from(tag.0 & 0x1f).unwrap_or(0)];
    match content.len() {
        short @ 0..128 => encoding.extend(u8::try_from(short)),
        long => {
            let length = long.to_be_bytes();
            let length = length.iter().skip_while(|byte| **byte == 0).copied().collect::<Vec<_>>();
            encoding.push(0x80 | u8::try_from(length.len()).unwrap_or(0));
            encoding.extend(length);
        }
    }
    for byte in encoding.iter().chain(content) {
        // Writing to a String cannot fail.
        let _ = write!(line, "{byte:02X}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    use super::*;

    fn of(parts: &[(DnType, DnValue)]) -> Option<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let key = KeyPair::generate().expect("a key");
        subject(params.self_signed(&key).expect("a certificate").der())
    }

    fn text(text: &str) -> DnValue {
        DnValue::Utf8String(text.to_owned())
    }

    #[test]
    fn a_subject_reads_as_openssl_prints_it() {
        for (parts, line) in [
            (vec![(DnType::CountryName, text("SE")), (DnType::CommonName, text("ada"))], "CN=ada,C=SE"),
            (vec![(DnType::CommonName, text("x,O=admin"))], "CN=x\\,O=admin"),
            (vec![(DnType::CommonName, text("a+CN=b\\\";<>"))], "CN=a\\+CN=b\\\\\\\"\\;\\<\\>"),
            (vec![(DnType::CommonName, text(" #x "))], "CN=\\ #x\\ "),
            (vec![(DnType::CommonName, text("#x"))], "CN=\\#x"),
            (vec![(DnType::CommonName, text("å\r\nX-Admin: 1"))], "CN=\\C3\\A5\\0D\\0AX-Admin: 1"),
            (vec![(DnType::OrganizationName, text("")), (DnType::CommonName, text(" "))], "CN=\\ ,O="),
            (vec![(DnType::CustomDnType(vec![1, 2, 3]), text("hi"))], "1.2.3=#0C026869"),
            (vec![], ""),
        ] {
            assert_eq!(of(&parts).as_deref(), Some(line), "{parts:?}");
        }
        assert_eq!(of(&[(DnType::CommonName, text(&"x".repeat(5000)))]), None, "too long");
        assert_eq!(subject(b"no certificate"), None);
    }

    /// What RFC 4514 reads back of a value.
    fn read(escaped: &str) -> Vec<u8> {
        let bytes = escaped.as_bytes();
        let (mut at, mut value) = (0, Vec::new());
        while let Some(byte) = bytes.get(at) {
            let hex = bytes.get(at + 1..at + 3).filter(|pair| pair.iter().all(u8::is_ascii_hexdigit));
            match (byte, hex) {
                (b'\\', Some(pair)) => {
                    let pair = std::str::from_utf8(pair).expect("digits");
                    value.push(u8::from_str_radix(pair, 16).expect("digits"));
                    at += 3;
                }
                (b'\\', None) => {
                    value.push(bytes[at + 1]);
                    at += 2;
                }
                (plain, _) => {
                    assert!(!b",+\";<>".contains(plain), "{escaped}");
                    value.push(*plain);
                    at += 1;
                }
            }
        }
        value
    }

    proptest! {
        #[test]
        fn a_value_reads_back_as_itself_and_is_printable(value in "\\PC{0,20}|[\\x00-\\x7f]{0,20}") {
            let mut line = String::new();
            write_escaped(&mut line, value.as_bytes());
            prop_assert!(line.bytes().all(|b| (b' '..=b'~').contains(&b)), "{line}");
            prop_assert_eq!(read(&line), value.into_bytes());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = subject(&bytes);
        }
    }
}
