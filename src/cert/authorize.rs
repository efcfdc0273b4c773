//! Proves to a CA that a name is ours: picks a challenge of each authorization, publishes its answer, and finds out
//! afterwards what the CA saw.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{AuthorizationStatus, ChallengeStatus, ChallengeType, Order, OrderStatus};
use rustls::crypto::CryptoProvider;

use crate::cert::challenge::{Challenges, Published};
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
    pub(in crate::cert) provider: &'a Arc<CryptoProvider>,
    pub(in crate::cert) clock: &'a Arc<dyn Clock>,
}

impl Authorizer<'_> {
    /// Sees `order` through to the point where it can be finalized. The answers stay published as long as the guards.
    pub(in crate::cert) async fn authorize(&self, order: &mut Order) -> Result<Vec<Published>, Trouble> {
        // An order over authorizations that are still valid is ready from the start; polling one that is past `ready` would
        // wait for nothing.
        if order.state().status != OrderStatus::Pending {
            return Ok(Vec::new());
        }
        let guards = match self.answer(order).await {
            Ok(guards) => guards,
            Err(trouble) => return Err(self.explained(order, trouble).await),
        };
        if order.state().status == OrderStatus::Pending {
            let trouble = match patient(async || order.poll_ready(&poll_policy()).await).await {
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

    async fn answer(&self, order: &mut Order) -> Result<Vec<Published>, Trouble> {
        let mut guards = Vec::new();
        // Each turn starts from the first authorization again; those that were told are left alone.
        let mut told = HashSet::new();
        let mut unusable = None;
        patient(async || {
            let mut authorizations = order.authorizations();
            while let Some(authorization) = authorizations.next().await {
                let mut authorization = authorization?;
                if authorization.status != AuthorizationStatus::Pending || told.contains(authorization.url())
                {
                    continue;
                }
                let url = authorization.url().to_owned();
                let offered: Vec<ChallengeType> =
                    authorization.challenges.iter().map(|challenge| challenge.r#type.clone()).collect();
                let Some(kind) = self.kinds.iter().copied().find(|kind| offered.contains(&acme(*kind)))
                else {
                    unusable = Some(self.nothing_in_common(&offered));
                    return Ok(());
                };
                let Some(mut challenge) = authorization.challenge(acme(kind)) else { continue };
                let key = challenge.key_authorization();
                match self.publish(kind, &challenge.token, key.as_str(), key.digest().as_ref()) {
                    Ok(guard) => guards.push(guard),
                    Err(message) => {
                        unusable = Some(message);
                        return Ok(());
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
            Some(message) => Err(Failure::new(Class::Permanent, message).into()),
            None => Ok(guards),
        }
    }

    fn publish(
        &self,
        kind: ChallengeKind,
        token: &str,
        key_authorization: &str,
        digest: &[u8],
    ) -> Result<Published, String> {
        match kind {
            ChallengeKind::Http01 => self
                .challenges
                .publish_http01(self.host(), token, key_authorization)
                .map_err(|error| error.to_string()),
            ChallengeKind::TlsAlpn01 => {
                let host = self.host().ok_or_else(|| format!("{} is no host name", self.name))?;
                let config = tls_alpn::answer(self.provider, host, digest, self.clock.now())
                    .map_err(|error| Report(&error).to_string())?;
                Ok(self.challenges.publish_tls_alpn01(&tls_alpn::server_name(host), config))
            }
        }
    }

    fn host(&self) -> Option<&HostName> {
        match self.name {
            HostPattern::Exact(host) => Some(host),
            HostPattern::Wildcard(_) => None,
        }
    }

    fn nothing_in_common(&self, offered: &[ChallengeType]) -> String {
        let offered: Vec<String> = offered
            .iter()
            .map(|kind| match kind {
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
                if let Some(error) = state.challenges.iter().find_map(|challenge| challenge.error.clone()) {
                    seen = Some(error);
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
            Some(problem) => Failure::challenge(
                self.ca,
                &self.name.to_string(),
                problem.r#type.as_deref().map(short),
                problem.detail.as_deref(),
            )
            .into(),
            None => trouble,
        }
    }
}

fn acme(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
    }
}
