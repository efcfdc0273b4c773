//! The driver's side of an order, from its start to its end, and of the question when a certificate should be renewed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::cert::advice::{Advice, NoAdvice};
use crate::cert::bundle::CertBundle;
use crate::cert::driver::{Driver, Event, open_internal};
use crate::cert::failure::{Class, Failure, Reach};
use crate::cert::issuer::{NotObtained, Wanted};
use crate::cert::names::{Name, NameId, Source};
use crate::cert::schedule::Input;
use crate::cert::seconds::rfc3339;
use crate::name::HostPattern;
use crate::report::Report;

/// Edge's own CA costs nothing: where the disk is full, or closed, the name is served soon after that has ended.
const ASK_OWN_CA_AGAIN: Duration = Duration::from_secs(5);
/// For so long one look at the disk is enough for all names: less than any of them waits, so that who has waited looks anew.
const OWN_CA_LOOKED_AT: Duration = Duration::from_secs(4);

/// That the driver is told how an attempt ended, also where it panics: it would hold its name and its place at the gate for ever.
struct Promised {
    id: NameId,
    events: mpsc::UnboundedSender<Event>,
    kept: bool,
}

impl Promised {
    fn keep(mut self, end: Result<CertBundle, NotObtained>) {
        self.kept = true;
        // The driver outlives every order, unless everything is aborted.
        drop(self.events.send(Event::Ended(self.id, end)));
    }
}

impl Drop for Promised {
    fn drop(&mut self) {
        if !self.kept {
            let failure = Failure::new(Class::Transient, "edge itself failed in the middle of the attempt");
            drop(self.events.send(Event::Ended(self.id, Err(NotObtained::Failed(failure)))));
        }
    }
}

impl Driver {
    pub(in crate::cert) fn renew(
        &mut self,
        name: &str,
        reply: oneshot::Sender<Result<(), String>>,
        now: SystemTime,
    ) {
        match self.force(name, now) {
            Ok(id) => self.waiting.push((id, reply)),
            // Whoever asked may have gone.
            Err(reason) => drop(reply.send(Err(reason))),
        }
    }

    fn force(&mut self, name: &str, now: SystemTime) -> Result<NameId, String> {
        if !self.owner {
            return Err("another edge orders certificates into this storage; ask that one".to_owned());
        }
        let (index, id) = {
            let names = self.names.borrow();
            let written = name.to_ascii_lowercase();
            let found = names.iter().enumerate().find(|(_, name)| name.pattern.to_string() == written);
            let (index, name) = found.ok_or_else(|| format!("no app has the domain {name}"))?;
            match name.source {
                Source::Acme(_) | Source::Internal => {}
                Source::Files(..) => return Err(format!("the certificate of {written} is a file of yours")),
                Source::Off => return Err(format!("{written} is served without TLS")),
            }
            if let Some(until) = name.machine.limited_until(now) {
                let error = name.machine.history().last_error.clone().unwrap_or_default();
                return Err(format!("the CA wants edge to wait until {} ({error})", rfc3339(until)));
            }
            (index, name.id)
        };
        self.feed(index, Input::Force, now);
        Ok(id)
    }

    pub(in crate::cert) fn tell(&mut self, id: NameId, end: &Result<(), String>) {
        let (told, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|(of, _)| *of == id);
        self.waiting = waiting;
        for (_, reply) in told {
            // Whoever asked may have gone.
            drop(reply.send(end.clone()));
        }
    }

    fn tell_failure(&mut self, index: usize, message: &str) {
        let id = self.names.borrow().at(index).map(|name| name.id);
        if let Some(id) = id {
            self.tell(id, &Err(message.to_owned()));
        }
    }

    pub(in crate::cert) fn order(
        &mut self,
        index: usize,
        regardless: bool,
        ca: usize,
        check: bool,
        now: SystemTime,
    ) {
        let wanted = match self.names.borrow_mut().at_mut(index) {
            Some(name) => {
                name.asked = ca;
                name.asked_under = match &name.source {
                    Source::Acme(cas) => Some(Arc::clone(cas)),
                    Source::Internal | Source::Files(..) | Source::Off => None,
                };
                let replaces = name.bundle.clone().filter(|_| name.issued_by == ca);
                let history = name.machine.history();
                let turn = history.count(Class::Validation).saturating_add(history.count(Class::Dns));
                (!name.is_of_own_ca())
                    .then(|| Wanted { name: name.pattern.clone(), ca, turn, replaces, regardless, check })
                    .ok_or_else(|| name.pattern.clone())
            }
            None => return,
        };
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(internal) => {
                let issued = self.issue_internal(&internal, now);
                return self.ended(index, issued, now);
            }
        };
        tracing::info!(cert = %wanted.name, "ordering a certificate");
        let record = self.write_history(index);
        let Some(id) = self.names.borrow().at(index).map(|name| name.id) else { return };
        let (issuer, scope, events) =
            (Rc::clone(&self.seams.issuer), self.scope.clone(), self.events.clone());
        let promised = Promised { id, events, kept: false };
        self.scope.spawn(async move {
            let recorded = match record {
                Some(record) => record.await.unwrap_or_else(|_| Err("storage has stopped".to_owned())),
                None => Err("the name is gone".to_owned()),
            };
            let end = match recorded {
                Err(message) if !regardless => Err(NotObtained::Failed(Failure::new(Class::Store, message))),
                Ok(()) | Err(_) => issuer.obtain(&wanted, &scope).await,
            };
            promised.keep(end);
        });
    }

    pub(in crate::cert) fn ask(&mut self, index: usize, now: SystemTime) {
        let about = self.names.borrow().at(index).and_then(|name| match name.source {
            Source::Acme(_) => Some((name.id, name.bundle.clone()?, name.issued_by)),
            Source::Internal | Source::Files(..) | Source::Off => None,
        });
        let Some((id, bundle, ca)) = about.filter(|_| self.owner) else {
            return self.feed(index, Input::Advised(Err(NoAdvice::NotOffered)), now);
        };
        let (issuer, scope, events) =
            (Rc::clone(&self.seams.issuer), self.scope.clone(), self.events.clone());
        let (turn, serial) = (Rc::clone(&self.asking), bundle.serial().to_owned());
        self.scope.spawn(async move {
            let asked = async {
                let _turn = turn.acquire().await;
                issuer.advice(ca, &bundle).await
            };
            tokio::select! {
                advice = asked => drop(events.send(Event::Advised(id, serial, advice))),
                () = scope.drained() => {}
            }
        });
    }

    pub(in crate::cert) fn advised(
        &mut self,
        index: usize,
        answer: Result<Advice, NoAdvice>,
        now: SystemTime,
    ) {
        let renewal =
            |driver: &Self| driver.names.borrow().at(index).and_then(|name| name.machine.history().renew_at);
        let before = renewal(self);
        match &answer {
            Ok(_) | Err(NoAdvice::NotOffered) => {}
            Err(NoAdvice::Later(reason) | NoAdvice::Useless(reason)) => {
                tracing::debug!(cert = self.label(index), reason, "the CA did not say when to renew");
            }
        }
        let explanation = answer.as_ref().ok().and_then(|advice| advice.explanation.clone());
        self.feed(index, Input::Advised(answer), now);
        let after = renewal(self);
        if after != before {
            tracing::info!(
                cert = self.label(index),
                renew_at = after.map(rfc3339),
                explanation,
                "the CA says when to renew the certificate"
            );
        }
    }

    fn issue_internal(&mut self, pattern: &HostPattern, now: SystemTime) -> Result<CertBundle, NotObtained> {
        let failed = |message| {
            let mut failure = Failure::new(Class::Store, message);
            failure.free_after = Some(ASK_OWN_CA_AGAIN);
            NotObtained::Failed(failure)
        };
        let ca = match &mut self.internal {
            Some(ca) => ca,
            none => {
                let lately = |(at, _): &&(Instant, String)| at.elapsed() < OWN_CA_LOOKED_AT;
                if let Some((_, reason)) = self.not_opened.as_ref().filter(lately) {
                    return Err(failed(reason.clone()));
                }
                match open_internal(&self.seams, now) {
                    Ok(opened) => none.insert(opened),
                    Err(error) => {
                        let reason = format!("edge's own CA cannot be used yet: {}", Report(&error));
                        self.not_opened = Some((Instant::now(), reason.clone()));
                        return Err(failed(reason));
                    }
                }
            }
        };
        ca.issue(pattern, now).map_err(|error| failed(Report(&error).to_string()))
    }

    pub(in crate::cert) fn ended(
        &mut self,
        index: usize,
        end: Result<CertBundle, NotObtained>,
        now: SystemTime,
    ) {
        if let Some(name) = self.names.borrow_mut().at_mut(index) {
            if let Some(record) = self.seams.issuer.record(&name.pattern) {
                name.machine.note_record(record);
            }
            match &end {
                Ok(_) => name.orders.issued += 1,
                Err(NotObtained::Failed(_)) => name.orders.failed += 1,
                Err(NotObtained::Unready(_)) => name.orders.not_asked += 1,
                Err(NotObtained::Cancelled) => {}
            }
        }
        match end {
            Ok(bundle) => self.obtained(index, bundle, now),
            Err(NotObtained::Cancelled) => self.feed(index, Input::Cancelled, now),
            Err(NotObtained::Failed(failure)) => self.failed(index, failure, now),
            Err(NotObtained::Unready(message)) => {
                tracing::warn!(cert = self.label(index), error = message, "the CA was not asked");
                self.tell_failure(index, &message);
                self.feed(index, Input::Unready { message }, now);
            }
        }
    }

    fn obtained(&mut self, index: usize, bundle: CertBundle, now: SystemTime) {
        let (validity, serial, issuer) =
            (bundle.validity(), bundle.serial().to_owned(), bundle.issuer().to_owned());
        let free = self.names.borrow().at(index).is_some_and(Name::is_of_own_ca);
        let ready = self.names.borrow_mut().hold(index, bundle);
        if let Some(name) = self.names.borrow_mut().at_mut(index) {
            name.issued_by = name.asked;
        }
        if let Err(error) = ready {
            return self.failed(index, Failure::new(Class::Order, Report(&error).to_string()), now);
        }
        if free {
            // Edge's own CA issues again at no cost: nothing is lost by serving it first.
            self.names.borrow_mut().serve(index);
            self.publish();
        }
        self.feed(index, Input::Obtained { validity, serial, at: now }, now);
        let renew_at = self.names.borrow().at(index).and_then(|name| name.machine.history().renew_at);
        tracing::info!(
            cert = self.label(index),
            issuer,
            not_after = rfc3339(validity.not_after),
            renew_at = renew_at.map(rfc3339),
            "obtained a certificate"
        );
    }

    fn failed(&mut self, index: usize, failure: Failure, now: SystemTime) {
        let (mut failure, first) =
            (failure, self.names.borrow().at(index).is_none_or(|name| name.asked == 0));
        if !first {
            // What another CA says of its account does not concern the names the first one is asked for.
            failure.reach = Reach::Name;
        }
        if self.names.borrow().at(index).is_some_and(Name::is_asked_under_others)
            && failure.class != Class::Limited
        {
            // What it failed of may be repaired.
            (failure.class, failure.reach) = (Class::Transient, Reach::Name);
        }
        let (reach, class, message) = (failure.reach, failure.class, failure.message.clone());
        self.feed(index, Input::Failed(failure), now);
        let ((until, next), ending, own_tries) = match self.names.borrow().at(index) {
            Some(name) => {
                let history = name.machine.history();
                let own_tries = name.is_of_own_ca().then(|| history.count(class));
                let next = (history.next_attempt, name.machine.next_attempt(now));
                (next, name.machine.is_ending(now), own_tries)
            }
            None => ((None, None), false, None),
        };
        let told = match own_tries {
            Some(_) => self.not_issued.told(&message, Instant::now().into_std()),
            None => message.clone(),
        };
        let (cert, next_attempt) = (self.label(index), next.map(rfc3339));
        // Of what keeps edge's own CA from issuing, each name is told once, and one of them whenever it is told whole.
        if own_tries.is_some_and(|tries| tries > 1) && told != message {
            tracing::debug!(cert, ?class, error = told, next_attempt, "no certificate was obtained");
        } else if ending {
            tracing::error!(
                cert,
                ?class,
                error = told,
                next_attempt,
                "a certificate ends soon and was not renewed"
            );
        } else {
            tracing::warn!(cert, ?class, error = told, next_attempt, "no certificate was obtained");
        }
        self.tell_failure(index, &message);
        let (Reach::Account, Some(until)) = (reach, until) else { return };
        let others: Vec<usize> = {
            let names = self.names.borrow();
            let same_ca = |(other, name): (usize, &Name)| {
                (other != index && matches!(name.source, Source::Acme(_))).then_some(other)
            };
            names.iter().enumerate().filter_map(same_ca).collect()
        };
        for other in others {
            self.hold(other, until, class, &message, now);
        }
    }

    /// Whoever waits for a name that is held hears so, unless its attempt is under way.
    fn hold(&mut self, index: usize, until: SystemTime, class: Class, message: &str, now: SystemTime) {
        self.feed(index, Input::Held { until, class, message: message.to_owned() }, now);
        if self.names.borrow().at(index).is_some_and(|name| name.machine.rests()) {
            self.tell_failure(index, message);
        }
    }

    /// Those of `due` that a limit on the account leaves: one that came after it was met, or has a record without it, must
    /// not ask the CA either.
    pub(in crate::cert) fn hold_new(&mut self, due: Vec<usize>, now: SystemTime) -> Vec<usize> {
        let limit = {
            let names = self.names.borrow();
            let limited = |name: &Name| {
                let history = name.machine.history();
                history.limits_account.then_some(history.limited_until?)
            };
            names.iter().filter_map(limited).filter(|until| *until > now).max()
        };
        let Some(until) = limit else { return due };
        let elsewhere = |driver: &Self, index: usize| {
            driver.names.borrow().at(index).is_some_and(|name| name.machine.is_for_another_ca(now))
        };
        let (others, held): (Vec<usize>, Vec<usize>) =
            due.into_iter().partition(|index| elsewhere(self, *index));
        for index in held {
            self.hold(index, until, Class::Limited, "the CA limits requests of this account", now);
        }
        others
    }
}
