//! The operator's files read again: what is served of them, and from when.

use std::sync::Arc;
use std::time::SystemTime;

use crate::cert::bundle::CertBundle;
use crate::cert::client_policy::ClientPolicy;
use crate::cert::names::{Name, Names, Source};
use crate::report::Report;

/// What a look at the operator's certificate files, and at those of CAs of clients, found.
#[derive(Debug, Default)]
pub struct Looked {
    /// Others are served since.
    pub changed: bool,
    /// Why files cannot be used, each once: what was read before is served on.
    pub unusable: Vec<String>,
    /// Of which files something is served that they held before, until what they hold now is valid, each once.
    pub early: Vec<String>,
}

impl Names {
    /// Looks at the operator's files again: returns whether others are served. A new content that cannot be used, or whose time
    /// has not come, leaves the old one in place.
    pub fn reload_files(&mut self, now: SystemTime) -> bool {
        let mut changed = self.reload_client_policies();
        let mut fresh = Vec::new();
        for (index, name) in self.list.iter_mut().enumerate() {
            let Source::Files(pair, known) = &mut name.source else { continue };
            let stamp = pair.stamp();
            // What could not be used is read each time: whoever sets its permissions right leaves the file as it is.
            if stamp != *known || name.file_error.is_some() {
                *known = stamp;
                match pair.load(&self.provider) {
                    Ok(bundle) => {
                        pair.tell_unfit(&name.pattern, &bundle);
                        name.file_error = None;
                        name.early = Some(Arc::new(bundle));
                    }
                    Err(error) => {
                        let error = Report(&error).to_string();
                        if name.file_error.as_ref() != Some(&error) {
                            tracing::error!(cert = %name.pattern, error, "changed certificate files cannot be used; keeping the old ones");
                        }
                        name.file_error = Some(error);
                    }
                }
            }
            let present = name.bundle.as_deref();
            let due =
                name.early.take_if(|coming| present.is_none_or(|now_served| !waits(coming, now_served, now)));
            fresh.extend(due.map(|bundle| (index, bundle)));
        }
        for (index, bundle) in fresh {
            match self.install(index, bundle) {
                Ok(()) => changed = true,
                Err(error) => {
                    tracing::error!(error = %Report(&error), "changed certificate files cannot be used")
                }
            }
        }
        changed
    }

    /// What the look found, besides what has changed.
    pub fn looked(&self, changed: bool) -> Looked {
        let once = |all: Vec<String>| {
            let mut all = all;
            all.sort();
            all.dedup();
            all
        };
        let of_clients = self.clients.values().filter_map(ClientPolicy::unusable).map(str::to_owned);
        let of_names = self.list.iter().filter_map(|name| name.file_error.clone());
        let unusable = once(of_names.chain(of_clients).collect());
        let early = once(self.list.iter().filter_map(Name::early).collect());
        Looked { changed, unusable, early }
    }

    /// Tells of the operator's certificates that clients refuse because of their time, or would, each once.
    pub fn tell_refused(&mut self, now: SystemTime) {
        let told = std::mem::take(&mut self.refused);
        for name in &self.list {
            let Some(error) = name.refused(now).or_else(|| name.early()) else { continue };
            let refused = (name.app.clone(), error);
            if !told.contains(&refused) && !self.refused.contains(&refused) {
                tracing::warn!(app = %refused.0, error = refused.1, "the certificate of an app is not valid now");
            }
            self.refused.insert(refused);
        }
    }
}

impl Name {
    /// Why clients refuse the certificate the operator keeps for it.
    pub(in crate::cert) fn refused(&self, now: SystemTime) -> Option<String> {
        match &self.source {
            Source::Files(pair, _) => pair.refused(self.bundle.as_ref()?.validity(), now),
            Source::Acme(_) | Source::Internal | Source::Off => None,
        }
    }

    /// Why the operator's files hold another certificate than the one that is served.
    pub(in crate::cert) fn early(&self) -> Option<String> {
        match &self.source {
            Source::Files(pair, _) => Some(pair.early(self.early.as_ref()?.validity())),
            Source::Acme(_) | Source::Internal | Source::Off => None,
        }
    }

    /// Serves what was served for the same name `before` until the operator's certificate is valid.
    pub(in crate::cert) fn wait_for_validity(&mut self, before: &Self, now: SystemTime) {
        if matches!(self.source, Source::Files(..))
            && let (Some(coming), Some(present)) = (&self.bundle, &before.bundle)
            && before.served.is_some()
            && waits(coming, present, now)
        {
            self.early = self.bundle.replace(Arc::clone(present));
        }
    }
}

/// Whether clients would refuse `coming` and accept what is served now.
fn waits(coming: &CertBundle, present: &CertBundle, now: SystemTime) -> bool {
    let (coming, present) = (coming.validity(), present.validity());
    coming.not_before > now && present.not_before <= now && now < present.not_after
}
