//! Obtains certificates: the seam, and its real implementation over ACME (RFC 8555).

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::CertificateIdentifier;
use rustls::crypto::CryptoProvider;

use crate::cert::advice::{Advice, NoAdvice};
use crate::cert::authorize::Authorizer;
use crate::cert::bundle::CertBundle;
use crate::cert::ca::Ca;
use crate::cert::challenge::Challenges;
use crate::cert::dns_proof::DnsProofs;
use crate::cert::failure::{Call, Class, Failure};
use crate::cert::order::Attempt;
use crate::cert::self_check::{SelfCheck, Verdict};
use crate::cert::store::{AccountStore, OrderStore, RecordStore};
use crate::cert::trouble::Trouble;
use crate::clock::Clock;
use crate::config::model::{Acme, ChallengeKind};
use crate::name::HostPattern;
use crate::scope::Scope;

/// How long an order that was already finalized may go on when edge stops.
const FINISH_LIMIT: Duration = Duration::from_secs(10);

/// One certificate that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// For this name.
    pub name: HostPattern,
    /// From this CA: 0 is the first of the configuration.
    pub ca: usize,
    /// How often the CA has found the name wanting: another kind of challenge may do.
    pub turn: u32,
    /// What it takes the place of, where the same CA issued that.
    pub replaces: Option<Arc<CertBundle>>,
    /// Whether to go on where the order cannot be written down.
    pub regardless: bool,
    /// Whether to look first if the name leads here.
    pub check: bool,
}

/// The end of an attempt without a certificate.
#[derive(Debug)]
pub enum NotObtained {
    /// It failed.
    Failed(Failure),
    /// Edge stops; what the CA was asked for is on record.
    Cancelled,
    /// The name does not lead here, for this reason; the CA was not asked.
    Unready(String),
}

/// Obtains one certificate for a name. May run for several names at once; dropping the future is safe at any time: the next
/// attempt goes on with the order. The result is checked: it names `name`, fits its key and is valid.
pub trait Issuer {
    /// One attempt. Ends early when `scope` drains.
    fn obtain<'a>(
        &'a self,
        wanted: &'a Wanted,
        scope: &'a Scope,
    ) -> Pin<Box<dyn Future<Output = Result<CertBundle, NotObtained>> + 'a>>;

    /// The issuer under other settings for the same CAs; `None` where they are no others. Attempts that run go on under those
    /// they began with.
    fn under(&self, _settings: &Acme) -> Option<Rc<dyn Issuer>> {
        None
    }

    /// Removes what attempts, also those of an edge that was killed, have left behind in DNS. Returns at once; the rest goes on
    /// in `scope`.
    fn tidy(&self, _scope: &Scope) {}

    /// What the last attempt for `name` found out of a TXT record that would prove it for good, told once: the one to create, or
    /// that none is lacking.
    fn record(&self, _name: &HostPattern) -> Option<Option<String>> {
        None
    }

    /// When the CA at this position, which issued `bundle`, wants it renewed.
    fn advice<'a>(
        &'a self,
        ca: usize,
        bundle: &'a CertBundle,
    ) -> Pin<Box<dyn Future<Output = Result<Advice, NoAdvice>> + 'a>>;
}

/// CAs that speak ACME.
pub struct AcmeIssuer {
    settings: Acme,
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn Clock>,
    challenges: Arc<Challenges>,
    orders: Arc<dyn OrderStore>,
    accounts: Arc<dyn AccountStore>,
    cas: Vec<Ca>,
    self_check: Option<SelfCheck>,
    dns: Rc<DnsProofs>,
}

impl AcmeIssuer {
    /// Contacts nobody and reads nothing until the first order: start-up never depends on a CA.
    pub fn new(
        settings: Acme,
        provider: Arc<CryptoProvider>,
        clock: Arc<dyn Clock>,
        challenges: Arc<Challenges>,
        accounts: Arc<dyn AccountStore>,
        orders: Arc<dyn OrderStore>,
        records: Arc<dyn RecordStore>,
    ) -> Self {
        let cas = cas(&settings, &accounts);
        let self_check = settings.self_check.then(|| SelfCheck::new(Arc::clone(&challenges)));
        let dns = DnsProofs::new(settings.dns.clone(), records, Arc::clone(&clock));
        Self { settings, provider, clock, challenges, orders, accounts, cas, self_check, dns }
    }

    /// Looks at names in another way than over the system's resolver and port 80.
    pub fn looking(self, self_check: SelfCheck) -> Self {
        Self { self_check: Some(self_check), ..self }
    }

    async fn leads_here(&self, wanted: &Wanted, kinds: &[ChallengeKind]) -> Result<(), String> {
        let (Some(self_check), HostPattern::Exact(host)) = (&self.self_check, &wanted.name) else {
            return Ok(());
        };
        match self_check.check(host, kinds.first() == Some(&ChallengeKind::Http01)).await {
            Verdict::Ready => Ok(()),
            Verdict::Unsure(message) => {
                tracing::info!(cert = %host, "{message}; asking the CA all the same");
                Ok(())
            }
            Verdict::Unready(message) => Err(message),
        }
    }

    async fn attempt(&self, wanted: &Wanted, scope: &Scope) -> Result<CertBundle, NotObtained> {
        let failed = |failure| NotObtained::Failed(failure);
        let Some(ca) = self.cas.get(wanted.ca) else {
            return Err(failed(Failure::new(Class::Permanent, "no such CA is configured")));
        };
        let mut kinds = self.kinds(wanted).map_err(failed)?;
        let over_dns = kinds.first().copied().is_some_and(ChallengeKind::is_dns);
        if wanted.check && !over_dns {
            let looked = tokio::select! {
                looked = self.leads_here(wanted, &kinds) => looked,
                () = scope.drained() => return Err(NotObtained::Cancelled),
            };
            match (looked, kinds.iter().position(|kind| kind.is_dns())) {
                (Ok(()), _) => {}
                // A machine that nobody outside reaches can still prove its names.
                (Err(message), Some(first)) => {
                    tracing::info!(cert = %wanted.name, "{message}; proving it by DNS");
                    kinds.rotate_left(first);
                }
                (Err(message), None) => return Err(NotObtained::Unready(message)),
            }
        }
        let client = ca.client(&self.settings, &self.provider, &self.clock).map_err(failed)?;
        let attempt = Attempt {
            ca,
            settings: &self.settings,
            provider: &self.provider,
            orders: &self.orders,
            authorizer: Authorizer {
                ca: &ca.spoken,
                name: &wanted.name,
                kinds: &kinds,
                challenges: &self.challenges,
                client: &client,
                dns: &self.dns,
                provider: &self.provider,
                clock: &self.clock,
            },
            name: &wanted.name,
            replaces: wanted.replaces.as_deref(),
            regardless: wanted.regardless,
        };
        let prepared = tokio::select! {
            prepared = attempt.prepare(&client) => prepared,
            () = scope.drained() => return Err(NotObtained::Cancelled),
        };
        let finished = match prepared {
            Ok(ready) => {
                let late = async {
                    scope.drained().await;
                    tokio::time::sleep(FINISH_LIMIT).await;
                };
                tokio::select! {
                    finished = attempt.finish(ready) => finished,
                    () = late => return Err(NotObtained::Cancelled),
                }
            }
            Err(trouble) => Err(trouble),
        };
        match finished {
            Ok(bundle) => Ok(bundle),
            Err(trouble) => {
                let failure = trouble.into_failure(&ca.spoken, &wanted.name.to_string());
                attempt.settle(&failure).await;
                Err(NotObtained::Failed(failure))
            }
        }
    }

    /// The kinds of challenge that are possible for the name. Each failure puts another one first.
    fn kinds(&self, wanted: &Wanted) -> Result<Vec<ChallengeKind>, Failure> {
        let mut kinds = self.settings.challenges_for(&wanted.name);
        if kinds.is_empty() {
            let message = format!("`acme.challenges` lists nothing that can prove {}", wanted.name);
            return Err(Failure::new(Class::Permanent, message));
        }
        let first = wanted.turn as usize % kinds.len();
        kinds.rotate_left(first);
        Ok(kinds)
    }

    async fn ask(&self, ca: usize, bundle: &CertBundle) -> Result<Advice, NoAdvice> {
        let ca = self.cas.get(ca).ok_or(NoAdvice::NotOffered)?;
        let later = |failure: Failure| NoAdvice::Later(failure.message);
        let client = ca.client(&self.settings, &self.provider, &self.clock).map_err(later)?;
        let spoken = |trouble: Trouble| trouble.into_failure(&ca.spoken, "the certificate");
        let directory = ca.directory(&client).await.map_err(|trouble| later(spoken(trouble)))?;
        let url = directory.renewal_info.as_ref().ok_or(NoAdvice::NotOffered)?;
        let leaf = bundle.certified().cert.first().ok_or(NoAdvice::NotOffered)?;
        // A certificate without the identifier of its issuer's key cannot be asked about.
        let id = CertificateIdentifier::try_from(leaf).map_err(NoAdvice::Useless)?;
        match client.fetch(&format!("{url}/{id}")).await {
            Ok(fetched) => Advice::parse(&fetched.body, fetched.retry_after),
            Err(error) => {
                let failure = spoken(Trouble::Ca(Call::Directory, error));
                match failure.class {
                    Class::Transient | Class::Limited => Err(NoAdvice::Later(failure.message)),
                    Class::Validation
                    | Class::Caa
                    | Class::Dns
                    | Class::Order
                    | Class::Account
                    | Class::Permanent
                    | Class::Action
                    | Class::Store => Err(NoAdvice::Useless(failure.message)),
                }
            }
        }
    }
}

fn cas(settings: &Acme, accounts: &Arc<dyn AccountStore>) -> Vec<Ca> {
    settings.directories().map(|url| Ca::new(url, settings, Arc::clone(accounts))).collect()
}

impl Issuer for AcmeIssuer {
    fn under(&self, settings: &Acme) -> Option<Rc<dyn Issuer>> {
        if *settings == self.settings {
            return None;
        }
        let self_check = match settings.self_check == self.settings.self_check {
            true => self.self_check.clone(),
            false => settings.self_check.then(|| SelfCheck::new(Arc::clone(&self.challenges))),
        };
        Some(Rc::new(Self {
            settings: settings.clone(),
            provider: Arc::clone(&self.provider),
            clock: Arc::clone(&self.clock),
            challenges: Arc::clone(&self.challenges),
            orders: Arc::clone(&self.orders),
            accounts: Arc::clone(&self.accounts),
            cas: cas(settings, &self.accounts),
            self_check,
            dns: Rc::clone(&self.dns),
        }))
    }

    fn obtain<'a>(
        &'a self,
        wanted: &'a Wanted,
        scope: &'a Scope,
    ) -> Pin<Box<dyn Future<Output = Result<CertBundle, NotObtained>> + 'a>> {
        Box::pin(async move {
            let end = self.attempt(wanted, scope).await;
            // Nobody waits for it: the certificate is there, or the failure known.
            self.tidy(scope);
            end
        })
    }

    fn record(&self, name: &HostPattern) -> Option<Option<String>> {
        self.dns.take_note(name)
    }

    fn tidy(&self, scope: &Scope) {
        self.dns.tidy_later(scope);
    }

    fn advice<'a>(
        &'a self,
        ca: usize,
        bundle: &'a CertBundle,
    ) -> Pin<Box<dyn Future<Output = Result<Advice, NoAdvice>> + 'a>> {
        Box::pin(self.ask(ca, bundle))
    }
}
