//! Obtains certificates: the seam, and its real implementation over ACME (RFC 8555).

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::cert::account::Accounts;
use crate::cert::bundle::CertBundle;
use crate::cert::ca_client::CaClient;
use crate::cert::challenge::{Challenges, Published};
use crate::cert::failure::{Call, Class, Failure, short};
use crate::cert::store::AccountStore;
use crate::cert::trouble::{POLL_LIMIT, Trouble, patient};
use crate::clock::Clock;
use crate::config::model::{Acme, KeyType};
use crate::name::HostPattern;
use crate::report::Report;
use crate::scope::Scope;

/// How long an order that was already finalized may go on when edge stops.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// The end of an attempt without a certificate.
#[derive(Debug)]
pub enum NotObtained {
    /// It failed.
    Failed(Failure),
    /// Edge stops; the CA was not asked to issue, so nothing was lost.
    Cancelled,
}

/// Obtains one certificate for a name. May run for several names at once; dropping the future is safe at any time, but may
/// waste a certificate the CA has issued. The result is checked: it names `name`, fits its key and is valid.
pub trait Issuer {
    /// One attempt. Ends early when `scope` drains.
    fn obtain<'a>(
        &'a self,
        name: &'a HostPattern,
        scope: &'a Scope,
    ) -> Pin<Box<dyn Future<Output = Result<CertBundle, NotObtained>> + 'a>>;
}

/// A CA that speaks ACME; HTTP-01 only.
pub struct AcmeIssuer {
    settings: Acme,
    ca: String,
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn Clock>,
    challenges: Arc<Challenges>,
    accounts: Accounts,
    client: OnceLock<CaClient>,
}

impl AcmeIssuer {
    /// Contacts nobody and reads nothing until the first order: start-up never depends on a CA.
    pub fn new(
        settings: Acme,
        provider: Arc<CryptoProvider>,
        clock: Arc<dyn Clock>,
        challenges: Arc<Challenges>,
        store: Arc<dyn AccountStore>,
    ) -> Self {
        let accounts = Accounts::new(settings.directory.clone(), settings.email.clone(), store);
        let ca = spoken_name(&settings.directory);
        Self { settings, ca, provider, clock, challenges, accounts, client: OnceLock::new() }
    }

    async fn attempt(&self, name: &HostPattern, scope: &Scope) -> Result<CertBundle, NotObtained> {
        let prepared = tokio::select! {
            prepared = self.prepare(name) => prepared,
            () = scope.drained() => return Err(NotObtained::Cancelled),
        };
        let finished = match prepared {
            Ok((order, guards)) => {
                let late = async {
                    scope.drained().await;
                    tokio::time::sleep(FINISH_LIMIT).await;
                };
                tokio::select! {
                    finished = self.finish(order, name) => { drop(guards); finished }
                    () = late => return Err(NotObtained::Cancelled),
                }
            }
            Err(trouble) => Err(trouble),
        };
        finished.map_err(|trouble| NotObtained::Failed(trouble.into_failure(&self.ca, &name.to_string())))
    }

    /// Everything up to an order that is ready to be finalized. The answers stay published until the order is over.
    async fn prepare(&self, name: &HostPattern) -> Result<(Order, Vec<Published>), Trouble> {
        let identifier = identifier(name)?;
        let client = self.client()?;
        let account = self.accounts.account(&client).await?;
        match self.authorize(&account, &identifier, name).await {
            Err(trouble) if trouble.is_unknown_account() => {
                tracing::warn!(ca = self.ca, "the CA does not know our account; registering its key again");
                let account = self.accounts.register_again(&client).await?;
                self.authorize(&account, &identifier, name).await
            }
            other => other,
        }
    }

    fn client(&self) -> Result<CaClient, Failure> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let root = self.settings.ca_root.as_deref();
        let client = CaClient::new(root, &self.provider, Arc::clone(&self.clock))
            .map_err(|error| Failure::new(Class::Action, Report(&error).to_string()))?;
        Ok(self.client.get_or_init(|| client).clone())
    }

    async fn authorize(
        &self,
        account: &Account,
        identifier: &Identifier,
        name: &HostPattern,
    ) -> Result<(Order, Vec<Published>), Trouble> {
        let identifiers = [identifier.clone()];
        let mut order = patient(async || account.new_order(&NewOrder::new(&identifiers)).await)
            .await
            .map_err(|error| Trouble::Ca(Call::NewOrder, error))?;
        let guards = match self.answer_challenges(&mut order, name).await {
            Ok(guards) => guards,
            Err(trouble) => return Err(self.explained(&mut order, name, trouble).await),
        };
        // An order over authorizations that are still valid is ready from the start; polling one that is past `ready`
        // would wait for nothing.
        if order.state().status == OrderStatus::Pending {
            let polled = patient(async || order.poll_ready(&poll_policy()).await).await;
            match polled {
                Ok(OrderStatus::Ready) => {}
                Ok(_) => {
                    let message = format!("{} declared the order for {name} invalid", self.ca);
                    let trouble = Failure::new(Class::Order, message).into();
                    return Err(self.explained(&mut order, name, trouble).await);
                }
                Err(error) => {
                    let trouble = Trouble::Ca(Call::Authorization, error);
                    return Err(self.explained(&mut order, name, trouble).await);
                }
            }
        }
        Ok((order, guards))
    }

    async fn answer_challenges(
        &self,
        order: &mut Order,
        name: &HostPattern,
    ) -> Result<Vec<Published>, Trouble> {
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
                let Some(mut challenge) = authorization.challenge(ChallengeType::Http01) else {
                    unusable = Some(format!("{} offers no HTTP-01 challenge for {name}", self.ca));
                    return Ok(());
                };
                let answer = challenge.key_authorization();
                match self.challenges.publish_http01(&challenge.token, answer.as_str()) {
                    Ok(guard) => guards.push(guard),
                    Err(error) => {
                        unusable = Some(error.to_string());
                        return Ok(());
                    }
                }
                challenge.set_ready().await?;
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

    /// Only the challenge inside its authorization says what the CA saw (RFC 8555 §8.2); the order says "invalid".
    async fn explained(&self, order: &mut Order, name: &HostPattern, trouble: Trouble) -> Trouble {
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
            tracing::debug!(cert = %name, %error, "the failed authorization could not be read");
        }
        match seen {
            Some(problem) => Failure::challenge(
                &self.ca,
                &name.to_string(),
                problem.r#type.as_deref().map(short),
                problem.detail.as_deref(),
            )
            .into(),
            None => trouble,
        }
    }

    async fn finish(&self, mut order: Order, name: &HostPattern) -> Result<CertBundle, Trouble> {
        let (key, csr) = self.request(name).await?;
        if order.state().status == OrderStatus::Ready {
            patient(async || order.finalize_csr(&csr).await)
                .await
                .map_err(|error| Trouble::Ca(Call::Finalize, error))?;
        }
        let pem = patient(async || order.poll_certificate(&poll_policy()).await)
            .await
            .map_err(|error| Trouble::Ca(Call::Download, error))?;
        let unusable = |reason: String| {
            Failure::new(
                Class::Order,
                format!("{} sent an unusable certificate for {name}: {reason}", self.ca),
            )
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        let bundle = CertBundle::assemble(&self.provider, chain, key)
            .map_err(|error| unusable(Report(&error).to_string()))?;
        bundle.check_issued(name, self.clock.now()).map_err(|error| unusable(error.to_string()))?;
        Ok(bundle)
    }

    /// A fresh key and the request signed with it.
    async fn request(&self, name: &HostPattern) -> Result<(PrivateKeyDer<'static>, Vec<u8>), Trouble> {
        let algorithm = match self.settings.key_type {
            KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyType::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyType::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        };
        let name = name.to_string();
        let made = tokio::task::spawn_blocking(move || {
            // RSA takes a noticeable part of a second, so none of them is made on the control thread.
            let key = KeyPair::generate_for(algorithm)?;
            let mut params = CertificateParams::new(vec![name])?;
            params.distinguished_name = DistinguishedName::new();
            let csr = params.serialize_request(&key)?.der().to_vec();
            Ok::<_, rcgen::Error>((PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())), csr))
        })
        .await;
        match made {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(error)) => {
                Err(Failure::new(Class::Permanent, format!("no certificate request could be made: {error}"))
                    .into())
            }
            Err(error) => {
                Err(Failure::new(Class::Transient, format!("no key could be made: {error}")).into())
            }
        }
    }
}

impl Issuer for AcmeIssuer {
    fn obtain<'a>(
        &'a self,
        name: &'a HostPattern,
        scope: &'a Scope,
    ) -> Pin<Box<dyn Future<Output = Result<CertBundle, NotObtained>> + 'a>> {
        Box::pin(self.attempt(name, scope))
    }
}

fn poll_policy() -> RetryPolicy {
    // Growing slowly: a CA that needs ten seconds is noticed within three more.
    RetryPolicy::new().initial_delay(Duration::from_millis(100)).backoff(1.3).timeout(POLL_LIMIT)
}

fn identifier(name: &HostPattern) -> Result<Identifier, Failure> {
    match name {
        HostPattern::Exact(host) => Ok(match host.ip() {
            Some(address) => Identifier::Ip(address),
            None => Identifier::Dns(host.to_string()),
        }),
        HostPattern::Wildcard(_) => Err(Failure::new(
            Class::Permanent,
            format!(
                "a CA issues {name} only over DNS-01, which edge does not speak. List the names, or give `tls` files"
            ),
        )),
    }
}

fn spoken_name(directory: &str) -> String {
    match directory {
        "https://acme-v02.api.letsencrypt.org/directory" => "Let's Encrypt".to_owned(),
        "https://acme-staging-v02.api.letsencrypt.org/directory" => "Let's Encrypt (staging)".to_owned(),
        other => {
            let bare = other.split_once("://").map_or(other, |(_, rest)| rest);
            format!("the CA {}", bare.split('/').next().unwrap_or(bare))
        }
    }
}
