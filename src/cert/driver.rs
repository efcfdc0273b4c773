//! Performs what `schedule` and `gate` decide: orders, installs, stores, remembers; one task for all names.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use rustls::crypto::CryptoProvider;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::cert::advice::{Advice, NoAdvice};
use crate::cert::bundle::CertBundle;
use crate::cert::ca_id::CaId;
use crate::cert::change::Prepared;
use crate::cert::disk::{Job, What};
use crate::cert::failure::Class;
use crate::cert::file_watch::Looked;
use crate::cert::gate::Gate;
use crate::cert::import::Kept;
use crate::cert::internal::InternalCa;
use crate::cert::issuer::{Issuer, NotObtained};
use crate::cert::names::{Name, NameId, Names, Source};
use crate::cert::offer::Offer;
use crate::cert::resolver::Certificates;
use crate::cert::schedule::{Action, Input};
use crate::cert::seconds::{is_plausible, rfc3339};
use crate::cert::store::{CertStore, load_best};
use crate::cert::store_error::StoreError;
use crate::clock::Clock;
use crate::complaint::Reason;
use crate::config::model::Config;
use crate::report::Report;
use crate::scope::Scope;

/// How often the operator's files are looked at, and the longest sleep: wall clocks jump, machines are suspended.
const LOOK: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Clocks are steered by less than this all the time.
const JUMP: Duration = Duration::from_secs(10);
/// How often it is looked whether an impossible clock was set: soon after a boot, and names without a certificate wait for it.
const UNSET: Duration = Duration::from_secs(3);
/// How often a second process tries to become the one that orders.
const FOLLOW: Duration = Duration::from_secs(3);

/// What the manager works with; fakes in tests.
pub struct Seams {
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Where certificates are kept.
    pub store: Arc<dyn CertStore>,
    /// Who issues for `tls: auto`.
    pub issuer: Rc<dyn Issuer>,
    /// Directory of edge's own CA.
    pub internal: PathBuf,
    /// Cryptography.
    pub provider: Arc<CryptoProvider>,
}

/// Edge's own CA, or what stands against it and may pass.
pub(in crate::cert) fn open_internal(seams: &Seams, now: SystemTime) -> Result<InternalCa, StoreError> {
    InternalCa::open(&seams.internal, Arc::clone(&seams.provider), now)
}

/// The same before any name has asked for it: what stands against it is logged.
pub(in crate::cert) fn look_at_internal(seams: &Seams, now: SystemTime) -> Option<InternalCa> {
    let told = |error: &StoreError| {
        tracing::error!(error = %Report(error), "edge's own CA cannot be used; it is tried again when a name needs it");
    };
    open_internal(seams, now).inspect_err(told).ok()
}

/// What tasks of the driver report to it.
pub(in crate::cert) enum Event {
    Ended(NameId, Result<CertBundle, NotObtained>),
    /// Of the certificate with this serial number.
    Advised(NameId, String, Result<Advice, NoAdvice>),
    Written(NameId, Result<(), String>),
    Stored(NameId, Result<(), String>),
    /// Another configuration is to be prepared.
    Prepare(Arc<Config>, oneshot::Sender<Result<Prepared, StoreError>>),
    /// The operator wants a new certificate for the name; told how that ended.
    Renew(String, oneshot::Sender<Result<(), String>>),
    /// A certificate that another program obtained; told at once whether it is taken, and then how storing it ended.
    Import(
        Box<Offer>,
        oneshot::Sender<Result<Result<(), Kept>, String>>,
        oneshot::Sender<Result<(), String>>,
    ),
    /// The operator's files may have changed; told once they were looked at.
    Look(oneshot::Sender<Looked>),
    /// What was prepared takes effect; told once it is published.
    Adopt(Prepared, oneshot::Sender<()>),
}

/// The running state; lives in its task.
pub(in crate::cert) struct Driver {
    pub(in crate::cert) names: Rc<RefCell<Names>>,
    pub(in crate::cert) certificates: Arc<Certificates>,
    pub(in crate::cert) gate: Gate,
    pub(in crate::cert) rng: Rng,
    pub(in crate::cert) owner: bool,
    pub(in crate::cert) internal: Option<InternalCa>,
    /// When edge's own CA could not be opened last, and why.
    pub(in crate::cert) not_opened: Option<(Instant, String)>,
    /// Why edge's own CA did not issue.
    pub(in crate::cert) not_issued: Reason,
    pub(in crate::cert) jobs: mpsc::UnboundedSender<Job>,
    pub(in crate::cert) seams: Seams,
    pub(in crate::cert) events: mpsc::UnboundedSender<Event>,
    /// Jobs whose end was not reported yet.
    pub(in crate::cert) writing: usize,
    /// When it was last said that the clock is wrong.
    pub(in crate::cert) clock_told: Option<Instant>,
    /// Who waits for the end of an attempt.
    pub(in crate::cert) waiting: Vec<(NameId, oneshot::Sender<Result<(), String>>)>,
    /// How many questions about renewals may run at once.
    pub(in crate::cert) asking: Rc<Semaphore>,
    pub(in crate::cert) scope: Scope,
}

impl Driver {
    pub(in crate::cert) async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        let scope = self.scope.clone();
        let mut looked = Instant::now();
        let mut clocks = (Instant::now(), self.seams.clock.now());
        while !scope.is_draining() {
            let sleep = self.until_next();
            let event = tokio::select! {
                () = scope.drained() => break,
                Some(event) = events.recv() => Some(event),
                () = tokio::time::sleep(sleep) => None,
            };
            // Before anything is counted by the new time.
            self.compare(&mut clocks);
            if let Some(event) = event {
                self.take(event);
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.look_at_files();
            }
            if !self.owner {
                self.follow().await;
            }
            self.advance();
            self.publish();
        }
        // What a CA has issued is stored before the end; orders end by themselves when the scope drains.
        while self.gate.in_flight() > 0 || self.writing > 0 {
            tokio::select! {
                () = scope.aborted() => return,
                Some(event) = events.recv() => self.take(event),
            }
        }
    }

    /// Whether the wall clock went another way than monotonic time: was set, or the machine slept.
    fn compare(&mut self, clocks: &mut (Instant, SystemTime)) {
        let seen = (Instant::now(), self.seams.clock.now());
        let expected = clocks.1 + (seen.0 - clocks.0);
        *clocks = seen;
        let (by, forward) = match seen.1.duration_since(expected) {
            Ok(ahead) => (ahead, true),
            Err(behind) => (behind.duration(), false),
        };
        if by < JUMP {
            return;
        }
        tracing::warn!(
            seconds = by.as_secs(),
            forward,
            "the clock of this machine was set; waits keep their length, renewals follow the clock"
        );
        let count = self.names.borrow().len();
        for index in 0..count {
            self.feed(index, Input::ClockJump { by, forward }, seen.1);
        }
    }

    /// Ticks every machine and lets through what may start.
    pub(in crate::cert) fn advance(&mut self) {
        let now = self.seams.clock.now();
        if !is_plausible(now) {
            if self.clock_told.is_none_or(|at| at.elapsed() >= HOUR) {
                self.clock_told = Some(Instant::now());
                tracing::error!(
                    clock = rfc3339(now),
                    "the clock of this machine is wrong; no certificate is ordered. Fix NTP"
                );
            }
            return;
        }
        self.clock_told = None;
        let count = self.names.borrow().len();
        for index in 0..count {
            self.feed(index, Input::Tick, now);
        }
        let internal: Vec<usize> = self.due(|source| matches!(source, Source::Internal));
        for index in internal {
            self.feed(index, Input::Admitted, now);
        }
        if !self.owner {
            return;
        }
        let acme = self.hold_new(self.due(|source| matches!(source, Source::Acme(_))), now);
        let waiting: Vec<_> = {
            let names = self.names.borrow();
            acme.into_iter()
                .map(|index| (index, names.at(index).and_then(|name| name.machine.installed())))
                .collect()
        };
        for index in self.gate.admit(&waiting, now) {
            self.feed(index, Input::Admitted, now);
        }
    }

    fn due(&self, of: impl Fn(&Source) -> bool) -> Vec<usize> {
        let names = self.names.borrow();
        let due =
            |(index, name): (usize, &Name)| (name.machine.is_due() && of(&name.source)).then_some(index);
        names.iter().enumerate().filter_map(due).collect()
    }

    pub(in crate::cert) fn feed(&mut self, index: usize, input: Input, now: SystemTime) {
        let actions = match self.names.borrow_mut().at_mut(index) {
            Some(name) => match name.source {
                Source::Acme(_) | Source::Internal => name.machine.step(input, now, &mut self.rng),
                Source::Files(..) | Source::Off => return,
            },
            None => return,
        };
        for action in actions {
            match action {
                Action::Order { regardless, ca, check } => self.order(index, regardless, ca, check, now),
                Action::Ask => self.ask(index, now),
                Action::Store => self.store(index),
                Action::Remember => self.remember(index),
                Action::Install => {
                    self.names.borrow_mut().serve(index);
                    self.publish();
                }
            }
        }
    }

    fn take(&mut self, event: Event) {
        let now = self.seams.clock.now();
        match event {
            Event::Ended(id, end) => {
                let cost = match &end {
                    Ok(_) => true,
                    Err(NotObtained::Failed(failure)) => failure.class.may_cost_an_order(),
                    Err(NotObtained::Cancelled | NotObtained::Unready(_)) => false,
                };
                self.gate.release(cost, now);
                match self.index(id) {
                    Some(index) => self.ended(index, end, now),
                    None => tracing::info!("an order ended for a name that is not configured any more"),
                }
            }
            Event::Advised(id, serial, answer) => {
                let present =
                    |name: &Name| name.bundle.as_ref().is_some_and(|bundle| bundle.serial() == serial);
                let index =
                    self.index(id).filter(|index| self.names.borrow().at(*index).is_some_and(present));
                // One that was replaced meanwhile has its window, and the next one another.
                if let Some(index) = index {
                    self.advised(index, answer, now);
                }
            }
            Event::Written(id, written) => {
                self.writing -= 1;
                if let (Err(error), Some(index)) = (written, self.index(id)) {
                    tracing::warn!(
                        cert = self.label(index),
                        error,
                        "the history of a certificate could not be saved"
                    );
                }
            }
            Event::Stored(id, stored) => {
                self.writing -= 1;
                let Some(index) = self.index(id) else { return };
                match stored {
                    Ok(()) => {
                        self.feed(index, Input::Stored, now);
                        self.tell(id, &Ok(()));
                    }
                    Err(message) => {
                        self.tell(id, &Err(message.clone()));
                        tracing::error!(
                            cert = self.label(index),
                            error = message,
                            "a certificate is served but could not be saved; it will be tried again"
                        );
                        self.feed(index, Input::StoreFailed { message }, now);
                    }
                }
            }
            Event::Prepare(config, reply) => {
                // Whoever asked may have gone, and needs nothing then.
                drop(reply.send(self.prepare(&config, now)));
            }
            Event::Renew(name, reply) => self.renew(&name, reply, now),
            Event::Import(offer, reply, stored) => self.import(*offer, reply, stored, now),
            Event::Look(reply) => {
                let _nobody_waits = reply.send(self.look_at_files());
            }
            Event::Adopt(prepared, reply) => {
                self.adopt(prepared);
                let _nobody_waits = reply.send(());
            }
        }
    }

    fn store(&mut self, index: usize) {
        let bundle = self.names.borrow().at(index).and_then(|name| name.bundle.clone());
        let Some(bundle) = bundle else { return };
        if let Some(done) = self.write(index, What::Bundle(bundle)) {
            self.report(index, done, Event::Stored);
        }
    }

    fn remember(&mut self, index: usize) {
        // Edge's own CA is asked again after a restart, however often it failed: that it did is written once.
        let again = |name: &Name| name.is_of_own_ca() && name.machine.history().count(Class::Store) > 1;
        if self.names.borrow().at(index).is_some_and(again) {
            return;
        }
        if let Some(done) = self.write_history(index) {
            self.report(index, done, Event::Written);
        }
    }

    pub(in crate::cert) fn write_history(
        &self,
        index: usize,
    ) -> Option<oneshot::Receiver<Result<(), String>>> {
        let history = self.names.borrow().at(index)?.machine.history().clone();
        self.write(index, What::History(Box::new(history)))
    }

    fn write(&self, index: usize, what: What) -> Option<oneshot::Receiver<Result<(), String>>> {
        let names = self.names.borrow();
        let name = names.at(index)?;
        let ca = match (&name.source, &what) {
            (Source::Acme(cas), What::Bundle(_)) => cas.ids.get(name.issued_by)?.clone(),
            (Source::Acme(cas), What::History(_)) => cas.ids.first()?.clone(),
            (Source::Internal, _) => CaId::internal(),
            (Source::Files(..) | Source::Off, _) => return None,
        };
        let (done, reply) = oneshot::channel();
        let sent = !self.owner || self.jobs.send(Job { ca, name: name.pattern.clone(), what, done }).is_ok();
        // A follower writes nothing, and its machine need not know.
        sent.then_some(reply)
    }

    fn report(
        &mut self,
        index: usize,
        done: oneshot::Receiver<Result<(), String>>,
        event: fn(NameId, Result<(), String>) -> Event,
    ) {
        let Some(id) = self.names.borrow().at(index).map(|name| name.id) else { return };
        self.writing += 1;
        let (events, owner) = (self.events.clone(), self.owner);
        self.scope.spawn(async move {
            let told = match done.await {
                Ok(told) => told,
                Err(_) if !owner => Ok(()),
                Err(_) => Err("storage has stopped".to_owned()),
            };
            drop(events.send(event(id, told)));
        });
    }

    /// As a second process on one storage: takes over if the first is gone, and its certificates in any case.
    async fn follow(&mut self) {
        let wanted: Vec<_> = {
            let names = self.names.borrow();
            let of_acme = |(index, name): (usize, &Name)| match &name.source {
                Source::Acme(cas) => Some((index, Arc::clone(cas), name.pattern.clone())),
                Source::Internal | Source::Files(..) | Source::Off => None,
            };
            names.iter().enumerate().filter_map(of_acme).collect()
        };
        let (store, now) = (Arc::clone(&self.seams.store), self.seams.clock.now());
        let read = tokio::task::spawn_blocking(move || {
            // Locked before reading, so that what the first process wrote last is seen.
            let owner = store.try_own().unwrap_or_else(|error| {
                tracing::warn!(error = %Report(&error), "the storage cannot be locked; ordering nothing");
                false
            });
            let found: Vec<_> = wanted
                .into_iter()
                .map(|(index, cas, name)| (index, load_best(&*store, &cas.ids, &name, now)))
                .collect();
            (owner, found)
        });
        let Ok((owner, found)) = read.await else { return };
        for (index, (mut stored, from)) in found {
            if !owner {
                // The attempt under way is the other's and has not failed.
                stored.history.begun = None;
            }
            if self.names.borrow_mut().refresh(index, stored, from, &mut self.rng) {
                tracing::info!(cert = self.label(index), "serving a certificate another edge obtained");
            }
        }
        if owner {
            tracing::info!("the other edge is gone; ordering certificates from now on");
            self.owner = true;
            self.seams.issuer.tidy(&self.scope);
        }
    }

    fn until_next(&self) -> Duration {
        let now = self.seams.clock.now();
        let longest = if self.owner { LOOK } else { FOLLOW };
        if !is_plausible(now) {
            return UNSET;
        }
        let names = self.names.borrow();
        let wake = names
            .iter()
            .filter(|name| match name.source {
                Source::Acme(_) => self.owner,
                Source::Internal => true,
                Source::Files(..) | Source::Off => false,
            })
            .filter_map(|name| name.machine.wake_at(now));
        // Also where the gate has opened since it was asked: nothing else would wake those who wait for it.
        let waits =
            |name: &Name| self.owner && name.machine.is_due() && matches!(name.source, Source::Acme(_));
        let opens = names.iter().any(waits).then(|| self.gate.opens_at(now)).flatten();
        let next = wake.chain(opens).min();
        let sleep = next.map_or(longest, |at| at.duration_since(now).unwrap_or_default());
        // Never a spin, should a wake-up ever not lead to a change.
        sleep.clamp(Duration::from_millis(10), longest)
    }

    pub(in crate::cert) fn publish(&self) {
        self.certificates.publish(&self.names.borrow().entries(self.seams.clock.now()));
    }

    pub(in crate::cert) fn label(&self, index: usize) -> String {
        self.names.borrow().at(index).map(|name| name.pattern.to_string()).unwrap_or_default()
    }
}
