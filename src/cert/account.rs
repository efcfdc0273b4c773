//! The account at a CA: made at the first order, kept for ever. Its key is saved before it is registered, so that no crash
//! leaves an account behind that nobody can use.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use instant_acme::{Account, Key};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::cert::binding::{self, Binding};
use crate::cert::ca_client::CaClient;
use crate::cert::ca_id::CaId;
use crate::cert::directory::Directory;
use crate::cert::failure::{Call, Class, Failure};
use crate::cert::store::AccountStore;
use crate::cert::store_error::StoreError;
use crate::cert::trouble::{Trouble, patient};
use crate::config::model::Eab;
use crate::report::Report;

/// The library keeps the CA's directory as long as an account; a CA may move its parts.
const DIRECTORY_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Who registers.
#[derive(Debug, Clone, Default)]
pub struct Registration {
    /// Contact address.
    pub email: Option<String>,
    /// What binds the account to one that was made elsewhere.
    pub eab: Option<Eab>,
}

/// The one account used at a CA.
pub struct Accounts {
    directory: String,
    registration: Registration,
    ca: CaId,
    store: Arc<dyn AccountStore>,
    // Held over the registration, so that four first orders make one account.
    open: Mutex<Option<Open>>,
}

struct Open {
    account: Account,
    since: Instant,
}

#[derive(Serialize, Deserialize)]
struct Record {
    key_pkcs8: String,
    #[serde(default)]
    url: Option<String>,
    #[serde(default)]
    contact: Option<String>,
}

/// The record of an account that was made elsewhere: its key and its URL. `None` where they cannot be used.
pub fn record(key_pkcs8: &[u8], url: &str) -> Option<Vec<u8>> {
    Key::from_pkcs8_der(PrivatePkcs8KeyDer::from(key_pkcs8)).ok()?;
    url.parse::<http::Uri>().ok().filter(|url| url.scheme_str() == Some("https"))?;
    let key_pkcs8 = BASE64_URL_SAFE_NO_PAD.encode(key_pkcs8);
    serde_json::to_vec_pretty(&Record { key_pkcs8, url: Some(url.to_owned()), contact: None }).ok()
}

/// Whether `record` is one that edge can use.
pub fn is_usable(record_text: &[u8]) -> bool {
    let Ok(Record { key_pkcs8, url: Some(url), .. }) = serde_json::from_slice(record_text) else {
        return false;
    };
    BASE64_URL_SAFE_NO_PAD.decode(key_pkcs8).is_ok_and(|key| record(&key, &url).is_some())
}

impl Accounts {
    /// The account at the CA with this directory URL.
    pub fn new(directory: String, registration: Registration, store: Arc<dyn AccountStore>) -> Self {
        let ca = CaId::of(&directory);
        Self { directory, registration, ca, store, open: Mutex::new(None) }
    }

    /// The account: opened, loaded or registered.
    pub async fn account(&self, client: &CaClient, offers: &Directory) -> Result<Account, Trouble> {
        let mut open = self.open.lock().await;
        if let Some(known) = &*open
            && known.since.elapsed() < DIRECTORY_LIFE
        {
            return Ok(known.account.clone());
        }
        let account = self.load_or_register(client, offers, false).await?;
        *open = Some(Open { account: account.clone(), since: Instant::now() });
        Ok(account)
    }

    /// The CA says that it does not know the account: registers the same key again.
    pub async fn register_again(&self, client: &CaClient, offers: &Directory) -> Result<Account, Trouble> {
        let mut open = self.open.lock().await;
        *open = None;
        let account = self.load_or_register(client, offers, true).await?;
        *open = Some(Open { account: account.clone(), since: Instant::now() });
        Ok(account)
    }

    async fn load_or_register(
        &self,
        client: &CaClient,
        offers: &Directory,
        unknown: bool,
    ) -> Result<Account, Trouble> {
        let mut record = match self.load().await? {
            Some(record) => record,
            None => {
                let (_, key) = Key::generate_pkcs8().map_err(|error| Trouble::Ca(Call::Account, error))?;
                let key_pkcs8 = BASE64_URL_SAFE_NO_PAD.encode(key.secret_pkcs8_der());
                let record = Record { key_pkcs8, url: None, contact: None };
                self.save(&record).await?;
                record
            }
        };
        if unknown {
            record.url = None;
        }
        let der = BASE64_URL_SAFE_NO_PAD.decode(&record.key_pkcs8).map_err(|_| self.damaged())?;
        let account = match &record.url {
            Some(url) => self.open(client, url, &der).await?,
            None => {
                let account = match &self.registration.eab {
                    Some(eab) if offers.meta.external_account_required => {
                        self.bind(client, offers, &der, eab).await?
                    }
                    // Some want it without saying so in their directory.
                    Some(eab) => match self.register(client, &der).await {
                        Err(trouble) if trouble.is_about_binding() => {
                            self.bind(client, offers, &der, eab).await?
                        }
                        other => other?,
                    },
                    None => self.register(client, &der).await?,
                };
                tracing::info!(
                    account = account.id(),
                    thumbprint = account.key_thumbprint(),
                    "registered at the CA"
                );
                record.url = Some(account.id().to_owned());
                record.contact = None;
                self.save(&record).await?;
                account
            }
        };
        if record.contact != self.registration.email {
            self.tell_contact(&account, &mut record).await?;
        }
        Ok(account)
    }

    async fn open(&self, client: &CaClient, url: &str, der: &[u8]) -> Result<Account, Trouble> {
        patient(async || {
            let key = PrivatePkcs8KeyDer::from(der);
            Account::builder_with_http(Box::new(client.clone()))
                .from_parts(url.to_owned(), key, self.directory.clone())
                .await
        })
        .await
        .map_err(|error| match error {
            instant_acme::Error::KeyRejected => self.damaged().into(),
            error => Trouble::Ca(Call::Directory, error),
        })
    }

    async fn bind(
        &self,
        client: &CaClient,
        offers: &Directory,
        der: &[u8],
        eab: &Eab,
    ) -> Result<Account, Trouble> {
        let binding = Binding { kid: &eab.kid, hmac_key: &eab.hmac_key };
        let email = self.registration.email.as_deref();
        let url = binding::register(client, offers, der, email, &binding).await?;
        self.open(client, &url, der).await
    }

    async fn register(&self, client: &CaClient, der: &[u8]) -> Result<Account, Trouble> {
        // newAccount with a key the CA knows returns that account (RFC 8555 §7.3.1): repeating this makes no second one.
        let (account, credentials) = patient(async || {
            let key = Key::from_pkcs8_der(PrivatePkcs8KeyDer::from(der))?;
            let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.to_vec()));
            Account::builder_with_http(Box::new(client.clone()))
                .create_from_key((key, der), self.directory.clone())
                .await
        })
        .await
        .map_err(|error| match error {
            instant_acme::Error::KeyRejected => self.damaged().into(),
            error => Trouble::Ca(Call::Account, error),
        })?;
        drop(credentials);
        Ok(account)
    }

    /// A contact the CA dislikes costs its expiry mails, never the certificates.
    async fn tell_contact(&self, account: &Account, record: &mut Record) -> Result<(), Trouble> {
        let contact = self.registration.email.as_ref().map(|email| format!("mailto:{email}"));
        let contacts: Vec<&str> = contact.as_deref().into_iter().collect();
        match patient(async || account.update_contacts(&contacts).await).await {
            Ok(()) => {
                record.contact.clone_from(&self.registration.email);
                self.save(record).await
            }
            Err(error) => {
                let trouble = Trouble::Ca(Call::Account, error);
                if trouble.is_unknown_account() {
                    return Err(trouble);
                }
                let reason = trouble.into_failure("the CA", "the account").message;
                tracing::warn!(%reason, "the CA did not take the contact address; going on without");
                Ok(())
            }
        }
    }

    async fn load(&self) -> Result<Option<Record>, Trouble> {
        let (store, ca) = (Arc::clone(&self.store), self.ca.clone());
        let found = off_thread(move || store.load_account(&ca)).await?;
        match found {
            Some(record) => serde_json::from_slice(&record).map(Some).map_err(|_| self.damaged().into()),
            None => Ok(None),
        }
    }

    async fn save(&self, record: &Record) -> Result<(), Trouble> {
        let record = serde_json::to_vec_pretty(record).map_err(|error| {
            Failure::new(Class::Store, format!("cannot write the account's record: {error}"))
        })?;
        let (store, ca) = (Arc::clone(&self.store), self.ca.clone());
        off_thread(move || store.save_account(&ca, &record)).await
    }

    fn damaged(&self) -> Failure {
        let message = format!(
            "the key of the account at {} is damaged. Restore account.json in the storage from a backup, or remove it to \
             register a new account",
            self.directory
        );
        Failure::new(Class::Action, message)
    }
}

/// Runs a call that blocks on the disk where it disturbs nobody.
pub(in crate::cert) async fn off_thread<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Trouble> {
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Failure::new(Class::Store, Report(&error).to_string()).into()),
        Err(error) => Err(Failure::new(Class::Store, format!("storage did not answer: {error}")).into()),
    }
}
