//! The driver's side of a certificate that another program obtained: taken over as if it had come from the CA.

use std::time::SystemTime;

use tokio::sync::oneshot;

use crate::cert::driver::Driver;
use crate::cert::import::{Kept, may_replace};
use crate::cert::names::{NameId, Source};
use crate::cert::offer::{Offer, position};
use crate::cert::schedule::Input;
use crate::cert::seconds::rfc3339;
use crate::report::Report;

impl Driver {
    pub(in crate::cert) fn import(
        &mut self,
        offer: Offer,
        reply: oneshot::Sender<Result<Result<(), Kept>, String>>,
        stored: oneshot::Sender<Result<(), String>>,
        now: SystemTime,
    ) {
        let taken = match self.take_over(offer, now) {
            Ok(Ok(id)) => {
                self.waiting.push((id, stored));
                Ok(Ok(()))
            }
            Ok(Err(kept)) => Ok(Err(kept)),
            Err(reason) => Err(reason),
        };
        // Whoever asked may have gone.
        drop(reply.send(taken));
    }

    fn take_over(&mut self, offer: Offer, now: SystemTime) -> Result<Result<NameId, Kept>, String> {
        let Offer { name, ca, bundle } = offer;
        if !self.owner {
            return Err("another edge orders certificates into this storage; import there".to_owned());
        }
        bundle.check_kept(&name, now).map_err(|error| error.to_string())?;
        let (validity, serial) = (bundle.validity(), bundle.serial().to_owned());
        let (index, id, issued_by) = {
            let names = self.names.borrow();
            let found = names.iter().enumerate().find(|(_, known)| known.pattern == name);
            let (index, known) = found.ok_or_else(|| {
                "no app of the running edge has this domain: `edge reload` first".to_owned()
            })?;
            let Source::Acme(cas) = &known.source else {
                return Err(
                    "the running edge does not obtain its certificate: `edge reload` first".to_owned()
                );
            };
            let present = known.bundle.as_ref().map(|bundle| (bundle.validity(), bundle.serial()));
            if let Err(kept) = may_replace(present, (validity, &serial), now) {
                return Ok(Err(kept));
            }
            (index, known.id, position(cas, ca.as_ref()))
        };
        self.names.borrow_mut().hold(index, bundle).map_err(|error| Report(&error).to_string())?;
        if let Some(known) = self.names.borrow_mut().at_mut(index) {
            known.issued_by = issued_by;
        }
        // No order of edge: it does not count against what the CA lets an account order.
        self.feed(index, Input::Obtained { validity, serial, at: validity.not_before }, now);
        tracing::info!(cert = %name, not_after = rfc3339(validity.not_after), "imported a certificate");
        Ok(Ok(id))
    }
}
