//! What a CA offers, as its directory says (RFC 8555 §7.1.1): the parts the ACME library keeps to itself or does not check.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::cert::ca_client::CaClient;
use crate::cert::failure::{Call, Class, Failure};
use crate::cert::trouble::Trouble;

/// Where a CA's parts are and what it can do.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Directory {
    /// Where a nonce is had.
    pub new_nonce: String,
    /// Where accounts are registered.
    pub new_account: String,
    /// Where it says when certificates should be renewed (RFC 9773).
    pub renewal_info: Option<String>,
    /// The rest.
    pub meta: Meta,
}

/// What it says of itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Kinds of certificate, by name.
    pub profiles: BTreeMap<String, serde_json::Value>,
    /// Whether accounts must be bound to one that was made elsewhere.
    pub external_account_required: bool,
}

impl Directory {
    /// Reads it. `ca` is its name in messages.
    pub async fn read(client: &CaClient, url: &str, ca: &str) -> Result<Self, Trouble> {
        let fetched = client.fetch(url).await.map_err(|error| Trouble::Ca(Call::Directory, error))?;
        let directory: Self = serde_json::from_slice(&fetched.body).unwrap_or_default();
        if directory.new_account.is_empty() || directory.new_nonce.is_empty() {
            let message =
                format!("{ca} answered with something that is no ACME directory. Is `acme.ca` right?");
            return Err(Failure::new(Class::Transient, message).into());
        }
        Ok(directory)
    }
}
