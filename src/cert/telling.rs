//! What is told of the names: to handshakes, on the page for one that is pending, and in the status.

use std::sync::Arc;
use std::time::SystemTime;

use crate::cert::failure::Class;
use crate::cert::names::{Name, Names, Source};
use crate::cert::resolver::{Entry, EntryState};
use crate::cert::seconds::{is_plausible, rfc3339};
use crate::telemetry::status::{CertificateState, CertificateStatus};

impl Names {
    /// What handshakes and the page for pending names read.
    pub fn entries(&self, now: SystemTime) -> Vec<Entry> {
        let state = |name: &Name| match (&name.source, &name.served) {
            (Source::Off, _) => EntryState::Plain,
            (_, Some(served)) => EntryState::Served(Arc::clone(served)),
            (_, None) => EntryState::Pending(name.why_pending(now).into()),
        };
        let entry =
            |name: &Name| Entry { name: name.pattern.clone(), default: name.default, state: state(name) };
        self.list.iter().map(entry).collect()
    }

    /// What `edge status` shows.
    pub fn status(&self, now: SystemTime) -> Vec<CertificateStatus> {
        let shown = |name: &&Name| match name.source {
            Source::Off => false,
            Source::Acme(_) | Source::Internal | Source::Files(..) => true,
        };
        self.list.iter().filter(shown).map(|name| name.status(now)).collect()
    }
}

impl Name {
    /// For the person who waits.
    fn why_pending(&self, now: SystemTime) -> String {
        let history = self.machine.history();
        if !is_plausible(now) {
            return format!(
                "this server's clock is wrong ({}), so no certificate can be obtained",
                rfc3339(now)
            );
        }
        match (&history.last_error, self.machine.next_attempt(now)) {
            (Some(error), Some(next)) => format!("{error}. Next try at {}.", rfc3339(next)),
            (Some(error), None) => format!("{error}."),
            (None, _) => format!("A certificate for {} is being obtained.", self.pattern),
        }
    }

    fn status(&self, now: SystemTime) -> CertificateStatus {
        let history = self.machine.history();
        let refused = self.refused(now);
        let parked = match history.last_class {
            Some(Class::Permanent | Class::Action) => true,
            Some(
                Class::Transient
                | Class::Limited
                | Class::Validation
                | Class::Caa
                | Class::Dns
                | Class::Order
                | Class::Account
                | Class::Store,
            )
            | None => false,
        };
        // Unless it has expired, its time will come.
        let early = self.file_error.is_none() && refused.is_some();
        let last_error = self.file_error.clone().or(refused).or_else(|| history.last_error.clone());
        // Not what is wrong with the one that is served.
        let told = last_error.clone().or_else(|| self.early());
        let expired = self.bundle.as_ref().is_some_and(|bundle| bundle.validity().not_after <= now);
        let state = match &self.bundle {
            _ if expired => CertificateState::Expired,
            _ if early => CertificateState::Pending,
            _ if last_error.is_some() && parked => CertificateState::Parked,
            _ if last_error.is_some() => CertificateState::Retrying,
            // What is issued is stored before it is served.
            Some(_) if self.served.is_some() => CertificateState::Valid,
            Some(_) | None => CertificateState::Pending,
        };
        let renewal = self.bundle.as_ref().and(history.renew_at);
        let validity = self.bundle.as_ref().map(|bundle| bundle.validity());
        CertificateStatus {
            name: self.pattern.to_string(),
            state,
            issuer: self.bundle.as_ref().map(|bundle| bundle.issuer().to_owned()).unwrap_or_default(),
            profile: self.bundle.as_ref().and_then(|bundle| bundle.profile()).map(str::to_owned),
            not_before: validity.map(|validity| rfc3339(validity.not_before)),
            not_after: validity.map(|validity| rfc3339(validity.not_after)),
            renew_at: renewal.map(rfc3339),
            renew_because: renewal.map(|_| history.renew_because),
            last_error: told,
            last_failure: history.failed_at.map(rfc3339),
            next_attempt: self.machine.next_attempt(now).map(rfc3339),
            dns_record: history.dns_record.clone(),
            orders: self.orders,
        }
    }
}
