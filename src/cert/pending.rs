//! An order that a CA knows of and whose certificate is not stored yet: its URL and its key, written down before the CA is
//! told to issue, so that whatever ends an attempt, the next one goes on with the same order.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};

/// The record. Its key is never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOrder {
    /// Where the order is.
    pub url: String,
    /// URL of the account that made it.
    pub account: String,
    /// The profile it was made with.
    #[serde(default)]
    pub profile: Option<String>,
    key_pkcs8: String,
}

impl PendingOrder {
    /// The order at `url` of `account`, whose certificate will have the private key `key`.
    pub fn new(url: &str, account: &str, profile: Option<String>, key: &[u8]) -> Self {
        let key_pkcs8 = BASE64_URL_SAFE_NO_PAD.encode(key);
        Self { url: url.to_owned(), account: account.to_owned(), profile, key_pkcs8 }
    }

    /// The private key; `None` where the record is damaged.
    pub fn key(&self) -> Option<PrivatePkcs8KeyDer<'static>> {
        Some(PrivatePkcs8KeyDer::from(BASE64_URL_SAFE_NO_PAD.decode(&self.key_pkcs8).ok()?))
    }
}

impl fmt::Debug for PendingOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingOrder").field("url", &self.url).finish_non_exhaustive()
    }
}
