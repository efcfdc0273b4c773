//! Reads how names are proven by records in DNS.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::config::acme::{Dns, Publish, Update, UpdateAlgorithm, UpdateKey};
use crate::config::context::{reason, secret};
use crate::config::section::{Section, Value};
use crate::name::HostName;

/// Where name servers listen.
const PORT: u16 = 53;

/// The keys below `acme.dns`.
pub(super) fn dns(section: &Section<'_>, base: &Path) -> Dns {
    let addresses = |key: &str| {
        let values = section.get(key).map(|value| value.items()).unwrap_or_default();
        values.iter().filter_map(|value| value.parse(address)).collect::<Vec<_>>()
    };
    Dns {
        publish: publish(section, base),
        timeout: section.positive_duration("timeout"),
        propagation: section.duration("propagation"),
        resolvers: addresses("resolvers"),
        name_servers: addresses("name_servers"),
    }
}

fn publish(section: &Section<'_>, base: &Path) -> Option<Publish> {
    // A faulty one is no reason to miss one elsewhere.
    let stand_in = Some(Publish::Exec { program: PathBuf::new(), arguments: Vec::new() });
    match (section.get("exec"), section.get("rfc2136")) {
        (None, None) => None,
        (Some(exec), None) => program(&exec, base).or(stand_in),
        (None, Some(server)) => update(&server, base).map(Publish::Update).or(stand_in),
        (Some(_), Some(server)) => {
            server.refuse("records are published by `exec` or by `rfc2136`, not by both");
            stand_in
        }
    }
}

/// A path without arguments, or words as `command` has them.
fn program(value: &Value<'_>, base: &Path) -> Option<Publish> {
    let words = if value.is_list() {
        value.items().iter().map(|item| item.text().map(|text| text.value)).collect::<Option<Vec<_>>>()?
    } else {
        let text = value.text()?;
        shlex::split(&text.value).or_else(|| {
            value.refuse("a quote in the command is not closed");
            None
        })?
    };
    let mut words = words.into_iter();
    let Some(program) = words.next().filter(|word| !word.is_empty()) else {
        value.refuse("names no program");
        return None;
    };
    if !program.contains('/') {
        value.refuse(format_args!(
            "`{}` is not the path of a program, such as `/etc/edge/dns-hook`",
            value.written()
        ));
        return None;
    }
    let program: PathBuf = base.join(program);
    match std::fs::metadata(&program) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {}
        Ok(_) => {
            value.refuse_with(
                format_args!("`{}` cannot be run: it is no executable file", value.written()),
                "chmod +x",
            );
        }
        Err(error) => {
            value.refuse(format_args!("cannot run `{}`: {}", value.written(), reason(&error)));
        }
    }
    Some(Publish::Exec { program, arguments: words.collect() })
}

fn update(value: &Value<'_>, base: &Path) -> Option<Update> {
    let section = Section::new(value, "acme.dns.rfc2136", None);
    let server = match section.own("server") {
        Some(server) => server.parse(server_address),
        None => {
            section.miss(&["server"], "`server` is missing: which name server takes the updates?");
            None
        }
    };
    let zone = section.own("zone").and_then(|zone| zone.parse(domain));
    let algorithms = [
        ("hmac-sha256", UpdateAlgorithm::HmacSha256),
        ("hmac-sha384", UpdateAlgorithm::HmacSha384),
        ("hmac-sha512", UpdateAlgorithm::HmacSha512),
    ];
    let algorithm = section.own("algorithm").and_then(|value| value.choice(&algorithms));
    let key = match (section.own("key_name"), section.own("key_file")) {
        (None, None) => {
            if let Some(algorithm) = section.own("algorithm") {
                algorithm.refuse("without `key_name` and `key_file` nothing is signed");
            }
            None
        }
        (Some(name), Some(file)) => {
            let (name, secret) = (name.parse(domain), update_secret(&file, base));
            let algorithm = algorithm.unwrap_or(UpdateAlgorithm::HmacSha256);
            Some(UpdateKey { name: name?, algorithm, secret: secret? })
        }
        (Some(_), None) | (None, Some(_)) => {
            let keys = ["key_name", "key_file"];
            section.miss(&keys, "both `key_name` and `key_file` are needed to sign updates");
            None
        }
    };
    let (server, port) = server?;
    Some(Update { server, port, zone, key })
}

fn update_secret(value: &Value<'_>, base: &Path) -> Option<Vec<u8>> {
    let text = secret(value, base)?;
    // As `tsig-keygen` and `keymgr` print it, or the secret alone.
    let shown = text.contains(['{', ':']).then(|| text.split_once("secret")).flatten();
    let bare = match shown {
        Some((_, rest)) => rest
            .trim_start_matches(|c: char| c.is_whitespace() || c == ':' || c == '"')
            .split(|c: char| c.is_whitespace() || c == '"' || c == ';')
            .next()
            .unwrap_or_default(),
        None => text.trim(),
    };
    match BASE64_STANDARD.decode(bare) {
        Ok(secret) if secret.len() >= 16 => Some(secret),
        Ok(_) | Err(_) => {
            value.refuse(format_args!(
                "`{}` does not hold a key of 16 bytes or more in base64, as `tsig-keygen` makes it",
                value.written()
            ));
            None
        }
    }
}

fn domain(text: &str) -> Result<HostName, &'static str> {
    match HostName::parse(text) {
        Ok(name) if name.ip().is_none() => Ok(name),
        Ok(_) | Err(_) => Err("is not a domain name"),
    }
}

fn address(text: &str) -> Result<SocketAddr, &'static str> {
    let address = server_address(text).ok().and_then(|(host, port)| Some(SocketAddr::new(host.ip()?, port)));
    address.ok_or("is not the address of a name server, such as `192.0.2.53` or `[2001:db8::53]:5353`")
}

/// An address or a name, with a port or without.
fn server_address(text: &str) -> Result<(HostName, u16), &'static str> {
    const WRONG: &str =
        "is not a name server, such as `192.0.2.53`, `ns1.example.com` or `[2001:db8::53]:5353`";
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok((HostName::from_ip(ip), PORT));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| WRONG)?),
        Some(_) | None => (text, PORT),
    };
    let name = HostName::parse(host).map_err(|_| WRONG)?;
    if port == 0 { Err(WRONG) } else { Ok((name, port)) }
}
