//! Whether every configured name could be proven to a CA and leads to this machine: the look at one name that precedes an order, for
//! all of them and on demand.

use crate::cert::dns_proof::survey;
use crate::cert::dns_record::{challenge_at, standing_at};
use crate::cert::look_tls;
use crate::cert::self_check::{Found, Mark, SelfCheck, Verdict};
use crate::config::model::{ChallengeKind, Config, Tls};
use crate::name::{HostName, HostPattern};

/// Names that are looked at together.
const AT_ONCE: usize = 8;

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// Which.
    pub name: HostPattern,
    /// What was found.
    pub outcome: Outcome,
}

/// What was found of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its addresses were looked at.
    Looked(Found),
    /// It is proven by DNS alone: how, or what stands against it.
    Dns(Result<String, String>),
    /// No CA is asked for it.
    Private,
}

impl Reach {
    /// Whether a CA, or visitors, would not come through.
    pub fn fails(&self) -> bool {
        match &self.outcome {
            Outcome::Looked(Found { verdict: Verdict::Unready(_), .. }) | Outcome::Dns(Err(_)) => true,
            Outcome::Looked(Found { verdict: Verdict::Ready | Verdict::Unsure(_), .. })
            | Outcome::Dns(Ok(_))
            | Outcome::Private => false,
        }
    }
}

/// Looks at every name of `config`; over HTTP where somebody answers with `mark`.
pub async fn look(config: &Config, self_check: &SelfCheck, mark: Option<&Mark>) -> Vec<Reach> {
    let names: Vec<(&HostPattern, Tls)> =
        config.apps.iter().flat_map(|app| app.domains.iter().map(|name| (name, app.tls_for(name)))).collect();
    let mut found = Vec::new();
    for some in names.chunks(AT_ONCE) {
        let looks = some.iter().map(|(name, tls)| async {
            Reach { name: (*name).clone(), outcome: one(config, name, tls, self_check, mark).await }
        });
        found.extend(futures_util::future::join_all(looks).await);
    }
    found
}

/// The hosts of `config` that handshakes are looked at for.
pub fn hosts(config: &Config) -> Vec<HostName> {
    let names = config.apps.iter().flat_map(|app| app.domains.iter().map(|name| (name, app.tls_for(name))));
    let looked_at = |(name, tls): (&HostPattern, Tls)| match name {
        HostPattern::Exact(host) if tls != Tls::Off && !name.is_internal() => Some(host.clone()),
        HostPattern::Exact(_) | HostPattern::Wildcard(_) => None,
    };
    names.filter_map(looked_at).collect()
}

async fn one(
    config: &Config,
    name: &HostPattern,
    tls: &Tls,
    self_check: &SelfCheck,
    mark: Option<&Mark>,
) -> Outcome {
    match (name, tls) {
        (_, Tls::Internal) => Outcome::Private,
        (_, Tls::Acme | Tls::Off | Tls::Files { .. }) if name.is_internal() => Outcome::Private,
        (HostPattern::Exact(domain) | HostPattern::Wildcard(domain), Tls::Acme)
            if config.acme.challenges_for(name).iter().all(|kind| kind.is_dns()) =>
        {
            let record = match config.acme.challenges_for(name).first() {
                Some(ChallengeKind::DnsPersist01) => standing_at(domain.as_str()),
                Some(ChallengeKind::Dns01 | ChallengeKind::Http01 | ChallengeKind::TlsAlpn01) | None => {
                    challenge_at(domain.as_str())
                }
            };
            Outcome::Dns(survey(&config.acme.dns, &record).await)
        }
        // Whoever it is served to comes by names below it, which only they know.
        (HostPattern::Wildcard(_), Tls::Acme | Tls::Off | Tls::Files { .. }) => Outcome::Private,
        (HostPattern::Exact(host), Tls::Acme | Tls::Off | Tls::Files { .. }) => {
            let over_http = mark.filter(|_| !config.listen.http.is_empty());
            let found = self_check.look(host, over_http).await;
            let by_handshake = mark.filter(|_| *tls != Tls::Off && !config.listen.https.is_empty());
            Outcome::Looked(match by_handshake {
                Some(mark) => {
                    let kinds = config.acme.challenges_for(name);
                    let needed = *tls == Tls::Acme && !kinds.contains(&ChallengeKind::Http01);
                    look_tls::look(self_check, host, mark, needed, found).await
                }
                None => found,
            })
        }
    }
}
