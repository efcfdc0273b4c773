//! Who issues public certificates, and how names are proven to be ours.

use std::path::Path;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::config::check_dns::dns;
use crate::config::context::{secret, trusted};
use crate::config::model::{Acme, ChallengeKind, Eab, KeyType, Listen};
use crate::config::section::{Section, Value};

/// CAs that go by a name.
const KNOWN: [(&str, &str); 4] = [
    ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory"),
    ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory"),
    ("zerossl", "https://acme.zerossl.com/v2/DV90"),
    ("google", "https://dv.acme-v02.api.pki.goog/directory"),
];

/// Whether this is the directory of Let's Encrypt, for tests or not.
pub(super) fn is_lets_encrypt(directory: &str) -> bool {
    directory.ends_with(".api.letsencrypt.org/directory")
}

/// The keys below `acme`, with the top's `email`.
pub(super) fn acme(root: &Section<'_>, base: &Path, listen: &Listen) -> Acme {
    let section = root.section("acme");
    let ca_root = section.get("ca_root").and_then(|value| trusted(&value, base));
    let mut directories = directories(&section);
    let first = if directories.is_empty() { String::new() } else { directories.remove(0) };
    let dns = dns(&section.section("dns"), base);
    let self_check = section.choice("self_check", &[("true", true), ("false", false)], ca_root.is_none());
    Acme {
        email: root.get("email").and_then(|value| value.parse(email)),
        directory: first,
        fallbacks: directories,
        ca_root,
        key_type: section.choice(
            "key_type",
            &[("p256", KeyType::P256), ("p384", KeyType::P384), ("rsa2048", KeyType::Rsa2048)],
            KeyType::P256,
        ),
        challenges: challenges(&section, listen, dns.publish.is_some()),
        profile: section.get("profile").and_then(|value| value.parse(profile)),
        eab: section.get("eab").and_then(|value| eab(&value, base)),
        self_check,
        dns,
    }
}

/// Those of the CAs, in the order they are asked.
fn directories(section: &Section<'_>) -> Vec<String> {
    let Some(value) = section.get_or_default("ca") else { return Vec::new() };
    let items = value.items();
    if items.is_empty() {
        value.refuse("lists no CA");
    }
    let mut directories: Vec<String> = Vec::new();
    for item in items {
        let Some(url) = item.parse(directory_url) else { continue };
        if directories.contains(&url) {
            item.refuse(format_args!("`{}` is listed twice", item.written()));
        }
        directories.push(url);
    }
    directories
}

fn challenges(section: &Section<'_>, listen: &Listen, publishes: bool) -> Vec<ChallengeKind> {
    let words = [
        ("http-01", ChallengeKind::Http01),
        ("tls-alpn-01", ChallengeKind::TlsAlpn01),
        ("dns-01", ChallengeKind::Dns01),
        ("dns-persist-01", ChallengeKind::DnsPersist01),
    ];
    let Some(value) = section.get("challenges") else {
        // Nobody answers where nothing listens.
        let mut kinds = Vec::new();
        if !listen.http.is_empty() {
            kinds.push(ChallengeKind::Http01);
        }
        if !listen.https.is_empty() || kinds.is_empty() {
            kinds.push(ChallengeKind::TlsAlpn01);
        }
        if publishes {
            kinds.push(ChallengeKind::Dns01);
        }
        return kinds;
    };
    let mut kinds: Vec<ChallengeKind> = Vec::new();
    for item in value.items() {
        let Some(kind) = item.choice(&words) else { continue };
        if kinds.contains(&kind) {
            item.refuse(format_args!("`{}` is listed twice", item.written()));
        }
        if kind == ChallengeKind::Dns01 && !publishes {
            item.refuse_with(
                "`dns-01` needs somebody who publishes its records",
                "set `acme.dns.exec` or `acme.dns.rfc2136`",
            );
        }
        kinds.push(kind);
    }
    if kinds.is_empty() && value.is_list() && value.items().is_empty() {
        value.refuse("lists no kind of challenge");
    }
    kinds
}

fn eab(value: &Value<'_>, base: &Path) -> Option<Eab> {
    let section = Section::new(value, "acme.eab", None);
    let (kid, file) = (section.own("kid"), section.own("hmac_key_file"));
    let (Some(kid), Some(file)) = (kid, file) else {
        let keys = ["kid", "hmac_key_file"];
        section.miss(&keys, "both `kid` and `hmac_key_file` are needed, as the CA's site gives them");
        return None;
    };
    let kid = kid.parse(|text| {
        let plain = !text.is_empty() && text.len() <= 200 && text.chars().all(|c| c.is_ascii_graphic());
        if plain { Ok(text.to_owned()) } else { Err("is no key identifier") }
    });
    let hmac_key = hmac_key(&file, base);
    Some(Eab { kid: kid?, hmac_key: hmac_key? })
}

fn hmac_key(value: &Value<'_>, base: &Path) -> Option<Vec<u8>> {
    let text = secret(value, base)?;
    // CAs show it with padding and without, and some in the other alphabet.
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = text.trim().replace('+', "-").replace('/', "_");
    match GeneralPurpose::new(&alphabet::URL_SAFE, config).decode(text) {
        Ok(key) if !key.is_empty() => Some(key),
        Ok(_) | Err(_) => {
            value.refuse(format_args!("`{}` does not hold a key in base64url", value.written()));
            None
        }
    }
}

fn profile(text: &str) -> Result<String, &'static str> {
    let plain = !text.is_empty() && text.len() <= 64 && text.chars().all(|c| c.is_ascii_graphic());
    if plain { Ok(text.to_owned()) } else { Err("is no name of a profile such as `tlsserver`") }
}

fn email(text: &str) -> Result<String, &'static str> {
    let plain = !text.contains(|c: char| c.is_whitespace() || c.is_control() || ",?".contains(c));
    match text.split_once('@') {
        Some((user, host)) if plain && !user.is_empty() && !host.is_empty() && !host.contains('@') => {
            Ok(text.to_owned())
        }
        Some(_) | None => Err("is not a mail address such as `ops@example.com`"),
    }
}

fn directory_url(text: &str) -> Result<String, &'static str> {
    let url = KNOWN.iter().find(|(name, _)| *name == text).map_or(text, |(_, url)| url);
    match url.parse::<http::Uri>() {
        Ok(uri) if uri.scheme_str() == Some("https") && uri.host().is_some_and(|host| !host.is_empty()) => {
            Ok(url.to_owned())
        }
        Ok(_) | Err(_) => Err(
            "is not `letsencrypt`, `letsencrypt-staging`, `zerossl`, `google` or the https URL of an ACME directory",
        ),
    }
}
