//! Changes a record by a dynamic update (RFC 2136), signed where there is a key.

use std::net::SocketAddr;
use std::time::SystemTime;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;

use crate::cert::dns_ask::exchange;
use crate::cert::dns_message::{self, Change, name, refusal, spoken};
use crate::cert::dns_zone::Resolvers;
use crate::config::model::Update;
use crate::report::Report;

/// Has the server carry out `change` of `text` at `of`. The error says what went wrong.
pub(in crate::cert) async fn update(
    settings: &Update,
    resolvers: &Resolvers,
    change: Change,
    of: &Name,
    text: &str,
    now: SystemTime,
) -> Result<(), String> {
    let zone = match &settings.zone {
        Some(zone) => name(zone.as_str()).map_err(|error| error.to_string())?,
        None => resolvers.zone(of).await?,
    };
    let shown = format!("the name server {} (`acme.dns.rfc2136`)", settings.server);
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let key = settings.key.as_ref();
    let (asked, verifier) = dns_message::update(fastrand::u16(..), change, &zone, of, text, key, seconds)
        .map_err(|error| format!("no update can be made: {error}. Correct `acme.dns.rfc2136.zone`"))?;
    let mut told = format!("{shown} has no address");
    for address in addresses(settings).await.map_err(|error| format!("{shown} cannot be found: {error}"))? {
        let (answer, bytes) = match exchange(address, &asked).await {
            Ok(answered) => answered,
            Err(error) => {
                told = format!("{shown} took no update of {}: {}", spoken(of), Report(&error));
                continue;
            }
        };
        if answer.code != ResponseCode::NoError {
            let why = answer.key_error.unwrap_or_else(|| refusal(answer.code));
            return Err(format!(
                "{shown} refused the update of {} in the zone {}: {why}",
                spoken(of),
                spoken(&zone)
            ));
        }
        // Whoever says that all is well must prove who they are.
        return match verifier {
            Some(mut verifier) => verifier
                .verify(&bytes)
                .map(drop)
                .map_err(|error| format!("{shown} answered without the key's signature: {error}")),
            None => Ok(()),
        };
    }
    Err(told)
}

async fn addresses(settings: &Update) -> std::io::Result<Vec<SocketAddr>> {
    match settings.server.ip() {
        Some(ip) => Ok(vec![SocketAddr::new(ip, settings.port)]),
        None => Ok(tokio::net::lookup_host((settings.server.as_str(), settings.port)).await?.collect()),
    }
}
