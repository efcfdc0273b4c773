//! One order at one CA: taken up where an earlier attempt left it, or made anew; authorized, finalized, downloaded. Its URL and
//! key are on the disk before the CA is told anything that counts.

use std::sync::Arc;

use instant_acme::{Account, CertificateIdentifier, Error, Identifier, NewOrder, Order, OrderStatus};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::cert::account::off_thread;
use crate::cert::authorize::{Authorizer, Standing};
use crate::cert::bundle::CertBundle;
use crate::cert::ca::Ca;
use crate::cert::ca_client::CaClient;
use crate::cert::directory::Directory;
use crate::cert::failure::{Call, Class, Failure};
use crate::cert::pending::PendingOrder;
use crate::cert::store::OrderStore;
use crate::cert::trouble::{Trouble, patient, poll_policy};
use crate::config::model::{Acme, KeyType};
use crate::name::HostPattern;
use crate::report::Report;

/// RFC 5280 gives it no more (appendix A).
const LONGEST_COMMON_NAME: usize = 64;

/// What one attempt works with.
pub(in crate::cert) struct Attempt<'a> {
    pub(in crate::cert) ca: &'a Ca,
    pub(in crate::cert) settings: &'a Acme,
    pub(in crate::cert) provider: &'a Arc<CryptoProvider>,
    pub(in crate::cert) orders: &'a Arc<dyn OrderStore>,
    pub(in crate::cert) authorizer: Authorizer<'a>,
    pub(in crate::cert) name: &'a HostPattern,
    /// What the new certificate takes the place of, if this CA issued it.
    pub(in crate::cert) replaces: Option<&'a CertBundle>,
    /// Whether to go on where the order cannot be written down.
    pub(in crate::cert) regardless: bool,
}

/// An order that is ready to be finalized, with the key of its certificate. The answers stay published until it is over.
pub(in crate::cert) struct Ready {
    order: Order,
    key: PrivatePkcs8KeyDer<'static>,
    profile: Option<String>,
    guards: Vec<Standing>,
}

impl Attempt<'_> {
    /// Everything up to an order that is ready to be finalized.
    pub(in crate::cert) async fn prepare(&self, client: &CaClient) -> Result<Ready, Trouble> {
        let identifier = identifier(self.name);
        let directory = self.ca.directory(client).await?;
        let account = self.ca.accounts.account(client, &directory).await?;
        match self.open(&account, &directory, &identifier).await {
            Err(trouble) if trouble.is_unknown_account() => {
                tracing::warn!(
                    ca = self.ca.spoken,
                    "the CA does not know our account; registering its key again"
                );
                let account = self.ca.accounts.register_again(client, &directory).await?;
                self.open(&account, &directory, &identifier).await
            }
            other => other,
        }
    }

    async fn open(
        &self,
        account: &Account,
        directory: &Directory,
        identifier: &Identifier,
    ) -> Result<Ready, Trouble> {
        let profile = self.profile(directory);
        let (mut order, key, profile) = match self.resume(account, profile.as_deref()).await? {
            Some((order, key)) => (order, key, profile),
            None => self.begin(account, directory, identifier, profile).await?,
        };
        let guards = self.authorizer.authorize(&mut order, account.id()).await?;
        Ok(Ready { order, key, profile, guards })
    }

    /// The order of an earlier attempt, unless nothing can come of it any more.
    async fn resume(
        &self,
        account: &Account,
        profile: Option<&str>,
    ) -> Result<Option<(Order, PrivatePkcs8KeyDer<'static>)>, Trouble> {
        let (store, ca, name) = (Arc::clone(self.orders), self.ca.id.clone(), self.name.clone());
        let pending = match off_thread(move || store.load_order(&ca, &name)).await {
            Ok(pending) => pending,
            Err(trouble) => {
                let reason = trouble.into_failure(&self.ca.spoken, "").message;
                tracing::warn!(cert = %self.name, reason, "an order of an earlier attempt cannot be read; making a new one");
                None
            }
        };
        let usable =
            |pending: &PendingOrder| pending.account == account.id() && pending.profile.as_deref() == profile;
        let Some(pending) = pending.filter(usable) else { return Ok(None) };
        let Some(key) = pending.key() else { return Ok(None) };
        match patient(async || account.order(pending.url.clone()).await).await {
            Ok(mut order) => {
                let alive = order.state().status != OrderStatus::Invalid;
                if alive {
                    tracing::info!(cert = %self.name, "going on with the order of an earlier attempt");
                }
                Ok(alive.then_some((order, key)))
            }
            Err(error) => {
                let trouble = Trouble::Ca(Call::Resume, error);
                if trouble.is_unknown_account() {
                    return Err(trouble);
                }
                let failure = trouble.into_failure(&self.ca.spoken, &self.name.to_string());
                match failure.class {
                    // The order may still be there.
                    Class::Transient | Class::Limited => Err(failure.into()),
                    Class::Validation
                    | Class::Caa
                    | Class::Dns
                    | Class::Order
                    | Class::Account
                    | Class::Permanent
                    | Class::Action
                    | Class::Store => Ok(None),
                }
            }
        }
    }

    async fn begin(
        &self,
        account: &Account,
        directory: &Directory,
        identifier: &Identifier,
        profile: Option<String>,
    ) -> Result<(Order, PrivatePkcs8KeyDer<'static>, Option<String>), Trouble> {
        let key = self.new_key().await?;
        let (order, profile) = self.new_order(account, directory, identifier, profile).await?;
        let pending = PendingOrder::new(order.url(), account.id(), profile.clone(), key.secret_pkcs8_der());
        let (store, ca, name) = (Arc::clone(self.orders), self.ca.id.clone(), self.name.clone());
        match off_thread(move || store.save_order(&ca, &name, &pending)).await {
            Err(trouble) if !self.regardless => Err(trouble),
            Ok(()) | Err(_) => Ok((order, key, profile)),
        }
    }

    /// A CA that dislikes what the order says besides its name gets it once more without that.
    async fn new_order(
        &self,
        account: &Account,
        directory: &Directory,
        identifier: &Identifier,
        mut profile: Option<String>,
    ) -> Result<(Order, Option<String>), Trouble> {
        let mut replaces = self.replaces(directory);
        let identifiers = std::slice::from_ref(identifier);
        loop {
            let mut wanted = NewOrder::new(identifiers);
            if let Some(replaced) = &replaces {
                wanted = wanted.replaces(replaced.clone());
            }
            if let Some(profile) = &profile {
                wanted = wanted.profile(profile);
            }
            let error = match patient(async || account.new_order(&wanted).await).await {
                Ok(order) => return Ok((order, profile)),
                Err(error) => error,
            };
            if let Error::Other(other) = &error
                && other.to_string().starts_with("replaces field mismatch")
            {
                self.ca.ignores_replaces.set(true);
                tracing::warn!(cert = %self.name, "the CA does not confirm what is replaced; ordering without saying it");
                replaces = None;
                continue;
            }
            let trouble = Trouble::Ca(Call::NewOrder, error);
            if replaces.is_some() && trouble.is_about_replaces() {
                tracing::warn!(
                    cert = %self.name,
                    reason = trouble.into_failure(&self.ca.spoken, &self.name.to_string()).message,
                    "the CA refuses to replace the certificate; ordering without saying it"
                );
                replaces = None;
                continue;
            }
            if profile.is_some() && trouble.is_about_profile() {
                tracing::warn!(cert = %self.name, profile, "the CA refuses the profile; ordering its default");
                profile = None;
                continue;
            }
            return Err(trouble);
        }
    }

    fn profile(&self, directory: &Directory) -> Option<String> {
        let wanted = self.settings.profile.as_ref()?;
        if directory.meta.profiles.contains_key(wanted) {
            return Some(wanted.clone());
        }
        let offered: Vec<_> = directory.meta.profiles.keys().map(String::as_str).collect();
        tracing::warn!(
            cert = %self.name,
            profile = wanted,
            offered = offered.join(", "),
            "the CA does not offer the profile of `acme.profile`; ordering its default"
        );
        None
    }

    fn replaces(&self, directory: &Directory) -> Option<CertificateIdentifier<'static>> {
        if directory.renewal_info.is_none() || self.ca.ignores_replaces.get() {
            return None;
        }
        let leaf = self.replaces?.certified().cert.first()?.clone();
        CertificateIdentifier::try_from(&leaf).ok().map(CertificateIdentifier::into_owned)
    }

    /// Has the CA issue, and checks what it sends.
    pub(in crate::cert) async fn finish(&self, ready: Ready) -> Result<CertBundle, Trouble> {
        let Ready { mut order, key, profile, guards } = ready;
        if order.state().status == OrderStatus::Ready {
            let request = request(self.name, &key, self.ca.wants_common_name())?;
            match patient(async || order.finalize_csr(&request).await).await {
                Ok(()) => {}
                Err(error) => {
                    let trouble = Trouble::Ca(Call::Finalize, error);
                    // What the CA has begun goes on behind such an answer (RFC 8555 §7.4); the order says how.
                    if !trouble.is_not_ready() {
                        return Err(trouble);
                    }
                }
            }
        }
        let pem = patient(async || {
            // Two nonces in a row that must both be taken are too much to ask of a CA that refuses most of them: once the order
            // is seen to be valid, only the download is repeated.
            if order.state().status == OrderStatus::Valid {
                return order.certificate().await?.ok_or(Error::Str("the order has no certificate"));
            }
            order.poll_certificate(&poll_policy()).await
        })
        .await
        .map_err(|error| Trouble::Ca(Call::Download, error))?;
        drop(guards);
        if !pem.contains("-----BEGIN CERTIFICATE-----") {
            // Something between the CA and here; the certificate is still there.
            let message =
                format!("{} sent something that is no certificate for {}", self.ca.spoken, self.name);
            return Err(Failure::new(Class::Transient, message).into());
        }
        let unusable = |reason: String| {
            let message =
                format!("{} sent an unusable certificate for {}: {reason}", self.ca.spoken, self.name);
            Failure::new(Class::Order, message)
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        let bundle = CertBundle::assemble(self.provider, chain, PrivateKeyDer::Pkcs8(key))
            .map_err(|error| unusable(Report(&error).to_string()))?;
        // By its own clock: where this machine's is some hours off, each order would lead to a certificate that counts against
        // the CA's limits and is thrown away.
        let now = self.authorizer.client.their_time();
        bundle.check_issued(self.name, now).map_err(|error| unusable(error.to_string()))?;
        Ok(bundle.of_profile(profile))
    }

    /// What became of an attempt that failed so is known: whether its order may still lead somewhere.
    pub(in crate::cert) async fn settle(&self, failure: &Failure) {
        match failure.class {
            Class::Transient | Class::Limited | Class::Dns | Class::Store => return,
            Class::Validation
            | Class::Caa
            | Class::Order
            | Class::Account
            | Class::Permanent
            | Class::Action => {}
        }
        let (store, ca, name) = (Arc::clone(self.orders), self.ca.id.clone(), self.name.clone());
        if let Err(trouble) = off_thread(move || store.drop_order(&ca, &name)).await {
            // It will be found spent by the next attempt.
            let reason = trouble.into_failure(&self.ca.spoken, "").message;
            tracing::debug!(cert = %self.name, reason, "a spent order could not be removed");
        }
    }

    /// A fresh key.
    async fn new_key(&self) -> Result<PrivatePkcs8KeyDer<'static>, Trouble> {
        let algorithm = match self.settings.key_type {
            KeyType::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyType::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyType::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        };
        // RSA takes a noticeable part of a second, so none of them is made on the control thread.
        let made = tokio::task::spawn_blocking(move || KeyPair::generate_for(algorithm)).await;
        let failed = |why: String| Failure::new(Class::Transient, format!("no key could be made: {why}"));
        let key =
            made.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
        Ok(PrivatePkcs8KeyDer::from(key.serialize_der()))
    }
}

/// Asks for `name`, with it as the common name as well if that is wanted and not too long for one.
fn request(
    name: &HostPattern,
    key: &PrivatePkcs8KeyDer<'static>,
    common_name: bool,
) -> Result<Vec<u8>, Failure> {
    let name = name.to_string();
    let made = || {
        let key = KeyPair::try_from(key)?;
        let mut params = CertificateParams::new(vec![name.clone()])?;
        params.distinguished_name = DistinguishedName::new();
        if common_name && name.len() <= LONGEST_COMMON_NAME {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        Ok::<_, rcgen::Error>(params.serialize_request(&key)?.der().to_vec())
    };
    made().map_err(|error| {
        Failure::new(Class::Permanent, format!("no certificate request could be made: {error}"))
    })
}

fn identifier(name: &HostPattern) -> Identifier {
    match name {
        HostPattern::Exact(host) => match host.ip() {
            Some(address) => Identifier::Ip(address),
            None => Identifier::Dns(host.to_string()),
        },
        HostPattern::Wildcard(_) => Identifier::Dns(name.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    use super::*;

    #[test]
    fn a_request_has_no_common_name_unless_it_is_wanted_and_fits() {
        let key = PrivatePkcs8KeyDer::from(KeyPair::generate().expect("made").serialize_der());
        let long = format!("{}.example.com", "a".repeat(60));
        for (name, wanted, has) in
            [("a.example.com", false, false), ("a.example.com", true, true), (&long, true, false)]
        {
            let der = request(&name.parse().expect("a name"), &key, wanted).expect("made");
            let (_, read) = X509CertificationRequest::from_der(&der).expect("readable");
            let names = read.certification_request_info.subject.iter_common_name();
            let names: Vec<_> = names.filter_map(|name| name.as_str().ok()).collect();
            assert_eq!(names, Vec::from_iter(has.then_some(name)), "{name}");
            assert!(
                read.requested_extensions().is_some_and(|mut all| all.next().is_some()),
                "its name is in the request"
            );
        }
    }
}
