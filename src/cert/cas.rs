//! The CAs of a configuration, and the settings towards them.

use std::sync::Arc;

use crate::cert::ca_id::CaId;
use crate::config::model::Acme;

/// The CAs of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cas {
    /// Their places in the storage; never empty.
    pub ids: Vec<CaId>,
    /// The settings towards them that a failure may come from, for comparison only.
    pub settings: String,
}

impl Cas {
    /// Those of `acme`.
    pub fn of(acme: &Acme) -> Arc<Self> {
        let ids = acme.directories().map(CaId::of).collect();
        // Told from another key by its digest: these settings are kept with the history of a name.
        let bound = acme.eab.as_ref().map(|eab| {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &eab.hmac_key);
            format!("{} {}", eab.kid, start_of(digest))
        });
        // Without one nothing is said of it, as ever: the records of those who have none stay good.
        let trusted = acme.ca_root.as_ref().map(|root| {
            let mut all = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
            root.certificates().for_each(|certificate| all.update(certificate));
            format!(" {}", start_of(all.finish()))
        });
        let settings = format!(
            "{} {} {:?} {} {:?} {:?}{}",
            acme.email.as_deref().unwrap_or("-"),
            acme.profile.as_deref().unwrap_or("-"),
            acme.challenges,
            bound.as_deref().unwrap_or("-"),
            acme.key_type,
            acme.dns,
            trusted.unwrap_or_default(),
        );
        Arc::new(Self { ids, settings })
    }
}

/// Enough of it to tell one from the next.
fn start_of(digest: aws_lc_rs::digest::Digest) -> String {
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
