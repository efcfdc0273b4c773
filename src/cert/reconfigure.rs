//! What the driver does when the configuration is another: `change` has what follows for the names.

use std::time::SystemTime;

use crate::cert::change::Prepared;
use crate::cert::driver::{Driver, look_at_internal};
use crate::cert::file_watch::Looked;
use crate::cert::names::{Loading, NameId, uses_internal};
use crate::cert::store_error::StoreError;
use crate::config::model::Config;

impl Driver {
    pub(in crate::cert) fn prepare(
        &mut self,
        config: &Config,
        now: SystemTime,
    ) -> Result<Prepared, StoreError> {
        if uses_internal(config) && self.internal.is_none() {
            self.internal = look_at_internal(&self.seams, now);
        }
        let names = self.names.borrow();
        let (store, internal) = (&*self.seams.store, self.internal.as_ref());
        names.prepare(config, &mut Loading { store, internal, now, rng: &mut self.rng })
    }

    pub(in crate::cert) fn adopt(&mut self, prepared: Prepared) {
        if let Some(issuer) = self.seams.issuer.under(&prepared.acme) {
            self.seams.issuer = issuer;
        }
        self.names.borrow_mut().adopt_all(prepared, self.seams.clock.now());
        let awaited = self.waiting.iter().map(|(id, _)| *id);
        let lost: Vec<NameId> = awaited.filter(|id| self.index(*id).is_none()).collect();
        for id in lost {
            let gone = "the configuration no longer has the name, or no longer a CA to ask for it";
            self.tell(id, &Err(gone.to_owned()));
        }
        // Who tells edge to look at its configuration may have changed these as well.
        self.look_at_files();
        self.advance();
        self.publish();
    }

    pub(in crate::cert) fn look_at_files(&mut self) -> Looked {
        let now = self.seams.clock.now();
        let changed = self.names.borrow_mut().reload_files(now);
        if changed {
            tracing::info!("certificate files changed; serving the new ones");
            self.publish();
        }
        self.names.borrow_mut().tell_refused(now);
        self.names.borrow().looked(changed)
    }

    pub(in crate::cert) fn index(&self, id: NameId) -> Option<usize> {
        self.names.borrow().index(id)
    }
}
