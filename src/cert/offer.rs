//! A certificate that another program obtained, on its way to edge: into the storage where edge does not run. `importing` has the
//! running edge's side.

use std::time::SystemTime;

use fastrand::Rng;

use crate::cert::bundle::CertBundle;
use crate::cert::ca_id::CaId;
use crate::cert::cas::Cas;
use crate::cert::import::{Kept, may_replace};
use crate::cert::schedule::{Certificate, Input};
use crate::cert::store::{CertStore, load_best};
use crate::cert::store_error::StoreError;
use crate::name::HostPattern;

/// The certificate.
pub struct Offer {
    /// The name it is for.
    pub name: HostPattern,
    /// The CA it is from, where that is known.
    pub ca: Option<CaId>,
    /// Chain and key.
    pub bundle: CertBundle,
}

/// Why one was not taken into the storage.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum NotKept {
    #[error(transparent)]
    Kept(#[from] Kept),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Puts `offer` into the storage of an edge that does not run.
pub fn keep(store: &dyn CertStore, cas: &Cas, offer: &Offer, now: SystemTime) -> Result<(), NotKept> {
    let mut rng = Rng::new();
    let (stored, _) = load_best(store, &cas.ids, &offer.name, now);
    let present = stored.bundle.as_ref().map(|bundle| (bundle.validity(), bundle.serial()));
    let (validity, serial) = (offer.bundle.validity(), offer.bundle.serial());
    may_replace(present, (validity, serial), now)?;
    let mut machine = Certificate::found(present, stored.history, &mut rng);
    // No order of edge: it does not count against what the CA lets an account order.
    let taken = Input::Obtained { validity, serial: serial.to_owned(), at: validity.not_before };
    // What it does is done below.
    let _actions = machine.step(taken, now, &mut rng);
    if let Some(ca) = cas.ids.get(position(cas, offer.ca.as_ref())) {
        store.save(ca, &offer.name, &offer.bundle)?;
    }
    if let Some(first) = cas.ids.first() {
        store.remember(first, &offer.name, machine.history())?;
    }
    Ok(())
}

/// The place of the CA among those that edge uses; the first where it is another.
pub(in crate::cert) fn position(cas: &Cas, ca: Option<&CaId>) -> usize {
    ca.and_then(|ca| cas.ids.iter().position(|known| known.is(ca))).unwrap_or(0)
}
