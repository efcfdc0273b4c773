//! Proves to a CA that a name is ours: picks a challenge of each authorization, publishes its answer, and finds out
//! afterwards what the CA saw.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    AuthorizationStatus, Challenge, ChallengeStatus, ChallengeType, KeyAuthorization, Order, OrderStatus,
};
use rustls::crypto::CryptoProvider;

use crate::cert::ca_client::CaClient;
use crate::cert::challenge::{Challenges, Published};
use crate::cert::dns_persist;
use crate::cert::dns_proof::{DnsProofs, Presented};
use crate::cert::dns_record::{challenge_at, standing_at};
use crate::cert::failure::{Call, Class, Failure, short};
use crate::cert::tls_alpn;
use crate::cert::trouble::{Trouble, is_broken, patient, poll_policy};
use crate::clock::Clock;
use crate::config::model::ChallengeKind;
use crate::name::{HostName, HostPattern};
use crate::report::Report;

/// Between two times a CA is told of one answer.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// How the authorizations of an order are obtained.
pub(in crate::cert) struct Authorizer<'a> {
    /// The CA's name in messages.
    pub(in crate::cert) ca: &'a str,
    /// Whose certificate it is.
    pub(in crate::cert) name: &'a HostPattern,
    /// Kinds of challenge, the preferred first.
    pub(in crate::cert) kinds: &'a [ChallengeKind],
    pub(in crate::cert) challenges: &'a Arc<Challenges>,
    /// Which the CA's answers come by.
    pub(in crate::cert) client: &'a CaClient,
    /// Publishes records.
    pub(in crate::cert) dns: &'a Rc<DnsProofs>,
    pub(in crate::cert) provider: &'a Arc<CryptoProvider>,
    pub(in crate::cert) clock: &'a Arc<dyn Clock>,
}

/// An answer that stands as long as this.
pub(in crate::cert) enum Standing {
    /// Over HTTP or in handshakes.
    Answer { _published: Published },
    /// In DNS.
    Record { _presented: Presented },
    /// Made by the operator, for good.
    Nothing,
}

impl Authorizer<'_> {
    /// Sees `order` through to the point where it can be finalized. The answers stay published as long as the guards.
    pub(in crate::cert) async fn authorize(
        &self,
        order: &mut Order,
        account: &str,
    ) -> Result<Vec<Standing>, Trouble> {
        // An order over authorizations that are still valid is ready from the start; polling one that is past `ready` would
        // wait for nothing.
        if order.state().status != OrderStatus::Pending {
            return Ok(Vec::new());
        }
        let (guards, unseen) = match self.answer(order, account).await {
            Ok(answered) => answered,
            Err(trouble) => return Err(self.explained(order, trouble).await),
        };
        if order.state().status == OrderStatus::Pending {
            // The CA looks meanwhile: what is only to be told costs the order no time of its own.
            let polled = patient(async || order.poll_ready(&poll_policy()).await);
            let (polled, ()) = futures_util::future::join(polled, self.note_standing(unseen)).await;
            let trouble = match polled {
                Ok(OrderStatus::Ready) => return Ok(guards),
                Ok(_) => {
                    let message = format!("{} declared the order for {} invalid", self.ca, self.name);
                    Failure::new(Class::Order, message).into()
                }
                Err(error) => Trouble::Ca(Call::Authorization, error),
            };
            return Err(self.explained(order, trouble).await);
        }
        Ok(guards)
    }

    /// Publishes the answers and tells the CA of them. With them comes the record that would have proven the name for good, where
    /// nobody looked for it.
    async fn answer(
        &self,
        order: &mut Order,
        account: &str,
    ) -> Result<(Vec<Standing>, Option<dns_persist::Standing>), Trouble> {
        // Each turn starts from the first authorization again; those that were told are left alone.
        let (mut standing, mut told) = (HashMap::new(), HashSet::new());
        let (mut unusable, mut unseen) = (None, None);
        patient(async || {
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                let mut authorization = authorization?;
                if authorization.status != AuthorizationStatus::Pending || told.contains(authorization.url())
                {
                    continue;
                }
                let url = authorization.url().to_owned();
                let kind = match self.pick(&authorization.challenges, account).await {
                    Ok((kind, record)) => {
                        unseen = record;
                        kind
                    }
                    Err(failure) => {
                        unusable = Some(failure);
                        return Ok(());
                    }
                };
                let Some(mut challenge) = authorization.challenge(acme(kind)) else { continue };
                if !standing.contains_key(&url) {
                    match self.publish(kind, &challenge.token, &challenge.key_authorization()).await {
                        Ok(stands) => drop(standing.insert(url.clone(), stands)),
                        Err(failure) => {
                            unusable = Some(failure);
                            return Ok(());
                        }
                    }
                }
                // One that an earlier attempt has told is being validated already.
                if challenge.status == ChallengeStatus::Pending {
                    match challenge.set_ready().await {
                        // The CA may be looking already: the answer must stay, and saying it twice does no harm.
                        Err(error) if is_broken(&error) => {
                            tokio::time::sleep(TELL_AGAIN).await;
                            challenge.set_ready().await?;
                        }
                        other => other?,
                    }
                }
                told.insert(url);
            }
            Ok(())
        })
        .await
        .map_err(|error| Trouble::Ca(Call::Authorization, error))?;
        match unusable {
            Some(failure) => Err(failure.into()),
            None => Ok((standing.into_values().collect(), unseen)),
        }
    }

    /// The first kind that both sides can do. For a record that the operator makes, that is found out by looking, which takes its
    /// time: one that a kind before it made needless is handed back.
    async fn pick(
        &self,
        offered: &[Challenge],
        account: &str,
    ) -> Result<(ChallengeKind, Option<dns_persist::Standing>), Failure> {
        let of_kind = |kind| offered.iter().find(|challenge| challenge.r#type == acme(kind));
        let standing = of_kind(ChallengeKind::DnsPersist01)
            .filter(|_| self.kinds.contains(&ChallengeKind::DnsPersist01))
            .map(|challenge| {
                dns_persist::Standing::new(self.name, self.client.issuers(&challenge.url), account)
            });
        if standing.is_none() {
            self.dns.note(self.name, None);
        }
        let mut lacking = None;
        for kind in self.kinds.iter().copied().filter(|kind| of_kind(*kind).is_some()) {
            match (kind, &standing) {
                (ChallengeKind::Http01 | ChallengeKind::TlsAlpn01 | ChallengeKind::Dns01, _) => {
                    return Ok((kind, standing.filter(|_| lacking.is_none())));
                }
                (ChallengeKind::DnsPersist01, Some(record)) => match self.stands(record).await {
                    Ok(()) => return Ok((kind, None)),
                    Err(failure) => lacking = Some(failure),
                },
                (ChallengeKind::DnsPersist01, None) => {}
            }
        }
        Err(lacking.unwrap_or_else(|| Failure::new(Class::Permanent, self.nothing_in_common(offered))))
    }

    /// Whether the record that proves the name for good is there; also noted for whoever asks.
    async fn stands(&self, record: &dns_persist::Standing) -> Result<(), Failure> {
        let Some(text) = record.text() else {
            self.dns.note(self.name, None);
            let message = format!(
                "{} offers dns-persist-01 for {} without the name it wants to see",
                self.ca, self.name
            );
            return Err(Failure::new(Class::Permanent, message));
        };
        let Err(why) = self.dns.stands(record).await else {
            self.dns.note(self.name, None);
            return Ok(());
        };
        let record = format!("{}. TXT \"{text}\"", record.name);
        let message = format!(
            "{} is proven to {} by one TXT record that stays. Create it: {record} ({why})",
            self.name, self.ca
        );
        self.dns.note(self.name, Some(record));
        Err(Failure::new(Class::Dns, message))
    }

    async fn note_standing(&self, unseen: Option<dns_persist::Standing>) {
        if let Some(record) = unseen {
            // Whether it stands or not, it is noted, and nothing depends on it.
            let _noted = self.stands(&record).await;
        }
    }

    async fn publish(
        &self,
        kind: ChallengeKind,
        token: &str,
        key: &KeyAuthorization,
    ) -> Result<Standing, Failure> {
        let unusable = |message: String| Failure::new(Class::Permanent, message);
        match kind {
            ChallengeKind::Http01 => {
                let published = self.challenges.publish_http01(self.host(), token, key.as_str());
                Ok(Standing::Answer { _published: published.map_err(|error| unusable(error.to_string()))? })
            }
            ChallengeKind::TlsAlpn01 => {
                let host = self.host().ok_or_else(|| unusable(format!("{} is no host name", self.name)))?;
                let config = tls_alpn::answer(self.provider, host, key.digest().as_ref(), self.clock.now())
                    .map_err(|error| unusable(Report(&error).to_string()))?;
                let published = self.challenges.publish_tls_alpn01(&tls_alpn::server_name(host), config);
                Ok(Standing::Answer { _published: published })
            }
            ChallengeKind::Dns01 => {
                let presented = self.dns.present(self.domain(), &key.dns_value()).await?;
                Ok(Standing::Record { _presented: presented })
            }
            ChallengeKind::DnsPersist01 => Ok(Standing::Nothing),
        }
    }

    /// What stands in DNS: the name without the `*` of a wildcard.
    fn domain(&self) -> &str {
        match self.name {
            HostPattern::Exact(host) | HostPattern::Wildcard(host) => host.as_str(),
        }
    }

    fn host(&self) -> Option<&HostName> {
        match self.name {
            HostPattern::Exact(host) => Some(host),
            HostPattern::Wildcard(_) => None,
        }
    }

    fn nothing_in_common(&self, offered: &[Challenge]) -> String {
        let offered: Vec<String> = offered
            .iter()
            .map(|challenge| match &challenge.r#type {
                ChallengeType::Http01 => "http-01".to_owned(),
                ChallengeType::TlsAlpn01 => "tls-alpn-01".to_owned(),
                ChallengeType::Dns01 => "dns-01".to_owned(),
                ChallengeType::Unknown(other) => other.chars().filter(|c| !c.is_control()).take(40).collect(),
                other => format!("{other:?}"),
            })
            .collect();
        format!(
            "{} offers {} for {}, and `acme.challenges` has none of these",
            self.ca,
            offered.join(", "),
            self.name
        )
    }

    /// Only the challenge inside its authorization says what the CA saw (RFC 8555 §8.2); the order says "invalid".
    async fn explained(&self, order: &mut Order, trouble: Trouble) -> Trouble {
        let mut seen = None;
        let looked = patient(async || {
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                let mut authorization = authorization?;
                let state = authorization.refresh().await?;
                let failed =
                    |challenge: &Challenge| Some((challenge.r#type.clone(), challenge.error.clone()?));
                seen = state.challenges.iter().find_map(failed);
                if seen.is_some() {
                    return Ok(());
                }
            }
            Ok(())
        })
        .await;
        if let Err(error) = looked {
            tracing::debug!(cert = %self.name, %error, "the failed authorization could not be read");
        }
        match seen {
            Some((kind, problem)) => {
                let (why, detail) = (problem.r#type.as_deref().map(short), problem.detail.as_deref());
                let failure = match self.kinds.iter().find(|known| acme(**known) == kind) {
                    Some(ChallengeKind::Dns01) => {
                        Failure::record(self.ca, &challenge_at(self.domain()), why, detail)
                    }
                    Some(ChallengeKind::DnsPersist01) => {
                        Failure::record(self.ca, &standing_at(self.domain()), why, detail)
                    }
                    Some(ChallengeKind::Http01 | ChallengeKind::TlsAlpn01) | None => {
                        Failure::challenge(self.ca, &self.name.to_string(), why, detail)
                    }
                };
                failure.into()
            }
            None => trouble,
        }
    }
}

fn acme(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
        ChallengeKind::Dns01 => ChallengeType::Dns01,
        ChallengeKind::DnsPersist01 => ChallengeType::Unknown("dns-persist-01".to_owned()),
    }
}
