//! Proofs by records in DNS: published, seen by the zone's own servers before the CA is told, and removed whatever happens.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use hickory_proto::rr::Name;
use tokio::sync::{Mutex, Notify};

use crate::cert::account::off_thread;
use crate::cert::dns_hook;
use crate::cert::dns_message::{Change, name, spoken};
use crate::cert::dns_persist::Standing;
use crate::cert::dns_record::{DnsRecord, challenge_at};
use crate::cert::dns_update::update;
use crate::cert::dns_watch::{self, View};
use crate::cert::dns_zone::{NameServer, Resolvers};
use crate::cert::failure::{Class, Failure};
use crate::cert::store::RecordStore;
use crate::cert::trouble::Trouble;
use crate::clock::Clock;
use crate::config::model::{Dns, Publish};
use crate::name::HostPattern;
use crate::scope::Scope;

/// When a record that could not be removed is tried again; after that, at the next order and the next start.
const AGAIN: [Duration; 3] = [Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];

/// Publishes and removes records.
pub(in crate::cert) struct DnsProofs {
    settings: Dns,
    records: Arc<dyn RecordStore>,
    clock: Arc<dyn Clock>,
    resolvers: Resolvers,
    /// Held while a record is changed: many a DNS API replaces all records of a name, and two at once lose one.
    turn: Mutex<()>,
    /// Texts of the records that an attempt needs.
    needed: RefCell<HashSet<String>>,
    /// Whether records are being removed: one tidying at a time, or each attempt would add one that tries what cannot be done.
    tidying: Cell<bool>,
    /// Texts of records that could not be removed: tried again in their own time, or once they were published again.
    stuck: RefCell<HashSet<String>>,
    /// That there may be more to remove since the tidying under way has looked.
    again: Notify,
    /// Which record each name lacks that would prove it for good, as its last attempt found out.
    lacking: RefCell<HashMap<HostPattern, Option<String>>>,
}

/// The only tidying.
struct Tidying(Rc<DnsProofs>);

impl Drop for Tidying {
    fn drop(&mut self) {
        self.0.tidying.set(false);
    }
}

/// A published record; once this is dropped, [`DnsProofs::tidy_later`] removes it.
pub(in crate::cert) struct Presented {
    proofs: Rc<DnsProofs>,
    value: String,
}

impl Drop for Presented {
    fn drop(&mut self) {
        self.proofs.needed.borrow_mut().remove(&self.value);
    }
}

impl DnsProofs {
    pub(in crate::cert) fn new(
        settings: Dns,
        records: Arc<dyn RecordStore>,
        clock: Arc<dyn Clock>,
    ) -> Rc<Self> {
        let resolvers = Resolvers::new(&settings.resolvers);
        Rc::new(Self {
            settings,
            records,
            clock,
            resolvers,
            turn: Mutex::new(()),
            needed: RefCell::default(),
            tidying: Cell::new(false),
            stuck: RefCell::default(),
            again: Notify::new(),
            lacking: RefCell::default(),
        })
    }

    /// Publishes the answer to a DNS-01 challenge (RFC 8555 §8.4) for `domain`, and waits until it is seen.
    pub(in crate::cert) async fn present(
        self: &Rc<Self>,
        domain: &str,
        value: &str,
    ) -> Result<Presented, Failure> {
        let failed = |why: String| {
            let message = format!("{domain} could not be proven by DNS: {why}. Nothing was sent to the CA");
            Failure::new(Class::Dns, message)
        };
        let challenge = name(&challenge_at(domain)).map_err(|error| failed(error.to_string()))?;
        // Before anything is published: what cannot be looked for must not be left behind.
        let (at, servers) =
            self.locate(&challenge, !self.settings.propagation.is_zero()).await.map_err(failed)?;
        let record = DnsRecord { name: spoken(&at), value: value.to_owned(), domain: domain.to_owned() };
        if !record.is_sound() {
            return Err(failed(format!("`{}` is no name that a record can be published at", record.name)));
        }
        let presented = {
            let _turn = self.turn.lock().await;
            let (records, kept) = (Arc::clone(&self.records), record.clone());
            let saved = off_thread(move || records.save_record(&kept)).await;
            saved.map_err(|trouble| trouble.into_failure("", domain))?;
            self.needed.borrow_mut().insert(value.to_owned());
            let presented = Presented { proofs: Rc::clone(self), value: value.to_owned() };
            self.change(Change::Add, &record, &at).await.map_err(failed)?;
            self.stuck.borrow_mut().remove(value);
            presented
        };
        tracing::debug!(domain, record = record.name, "published a record in DNS");
        let shows = |text: &[u8]| text == value.as_bytes();
        match dns_watch::until_seen(&servers, &at, &shows, self.settings.propagation).await {
            View::Clear => {}
            View::Partial(silent) => {
                tracing::warn!(
                    domain,
                    record = record.name,
                    silent,
                    "some name servers of the zone do not answer; asking the CA all the same"
                );
            }
            View::Missing(told) => {
                let waited = self.settings.propagation.as_secs_f64();
                return Err(failed(format!("after {waited} s (`acme.dns.propagation`) {told}")));
            }
        }
        Ok(presented)
    }

    /// Where a record really is and, where it is looked for, the servers that must show it.
    async fn locate(&self, wanted: &Name, looked_for: bool) -> Result<(Name, Vec<NameServer>), String> {
        let located = async {
            let at = self.resolvers.follow(wanted).await?;
            let servers = match looked_for {
                true => servers(&self.settings, &self.resolvers, &at).await?,
                false => Vec::new(),
            };
            Ok((at, servers))
        };
        let limit = self.settings.timeout;
        tokio::time::timeout(limit, located).await.unwrap_or_else(|_| {
            Err(format!("DNS did not tell within {} s where {} belongs", limit.as_secs_f64(), spoken(wanted)))
        })
    }

    /// Whether the record that the operator makes once stands. The error says where it lacks.
    pub(in crate::cert) async fn stands(&self, wanted: &Standing) -> Result<(), String> {
        let wanted_name = name(&wanted.name).map_err(|error| error.to_string())?;
        let (at, servers) = self.locate(&wanted_name, true).await?;
        let now = self.clock.now();
        let shows = |text: &[u8]| wanted.is_met_by(text, now);
        match dns_watch::look(&servers, &at, &shows).await {
            View::Clear | View::Partial(_) => Ok(()),
            View::Missing(told) => Err(told),
        }
    }

    /// The record that `name` lacks, or none; for whoever asks next.
    pub(in crate::cert) fn note(&self, name: &HostPattern, lacks: Option<String>) {
        self.lacking.borrow_mut().insert(name.clone(), lacks);
    }

    /// What was noted of `name` since this was asked last.
    pub(in crate::cert) fn take_note(&self, name: &HostPattern) -> Option<Option<String>> {
        self.lacking.borrow_mut().remove(name)
    }

    /// Removes every record that no attempt needs, also those of an edge that was killed, but none of those that are `stuck`;
    /// adds what cannot be removed to these. Returns whether none is left.
    async fn tidy(&self) -> bool {
        let records = Arc::clone(&self.records);
        let found = match off_thread(move || records.load_records()).await {
            Ok(found) => found,
            Err(trouble) => {
                let reason = told(trouble);
                tracing::warn!(reason, "the list of records in DNS that are to be removed cannot be read");
                return false;
            }
        };
        let mut clean = true;
        for record in found {
            if self.stuck.borrow().contains(&record.value) {
                clean = false;
                continue;
            }
            let _turn = self.turn.lock().await;
            if self.needed.borrow().contains(&record.value) {
                continue;
            }
            match self.remove(&record).await {
                Ok(()) => tracing::debug!(record = record.name, "removed a record from DNS"),
                Err(reason) => {
                    clean = false;
                    tracing::warn!(
                        record = record.name,
                        text = record.value,
                        reason,
                        "a record could not be removed from DNS; it is harmless, and will be tried again"
                    );
                    self.stuck.borrow_mut().insert(record.value);
                }
            }
        }
        clean
    }

    /// Removes beside everything else what no attempt needs, some more times if need be. While that goes on, it is only told to
    /// look again.
    pub(in crate::cert) fn tidy_later(self: &Rc<Self>, scope: &Scope) {
        if self.tidying.replace(true) {
            self.again.notify_one();
            return;
        }
        let (tidying, ends) = (Tidying(Rc::clone(self)), scope.clone());
        drop(scope.spawn(async move {
            tokio::select! {
                () = tidying.0.tidy_on(&ends) => {}
                () = ends.aborted() => {}
            }
        }));
    }

    async fn tidy_on(&self, ends: &Scope) {
        let mut pauses = AGAIN.into_iter();
        loop {
            self.stuck.borrow_mut().clear();
            let mut clean = self.tidy().await;
            let pause = pauses.next().filter(|_| !clean);
            if let Some(pause) = pause {
                let due = tokio::time::sleep(pause);
                tokio::pin!(due);
                while !clean {
                    tokio::select! {
                        biased;
                        () = self.again.notified() => clean = self.tidy().await,
                        () = &mut due => break,
                        () = ends.drained() => return,
                    }
                }
                if !clean {
                    continue;
                }
            }
            if self.again.notified().now_or_never().is_none() {
                return;
            }
            pauses = AGAIN.into_iter();
        }
    }

    async fn remove(&self, record: &DnsRecord) -> Result<(), String> {
        let at = name(&record.name).map_err(|error| error.to_string())?;
        self.change(Change::Remove, record, &at).await?;
        let (records, gone) = (Arc::clone(&self.records), record.clone());
        off_thread(move || records.drop_record(&gone)).await.map_err(told)
    }

    async fn change(&self, change: Change, record: &DnsRecord, at: &Name) -> Result<(), String> {
        match &self.settings.publish {
            None => Err("neither `acme.dns.exec` nor `acme.dns.rfc2136` is configured".to_owned()),
            Some(Publish::Exec { program, arguments }) => {
                dns_hook::run(program, arguments, change, record, self.settings.timeout).await
            }
            Some(Publish::Update(settings)) => {
                let now = self.clock.now();
                let updated = update(settings, &self.resolvers, change, at, &record.value, now);
                match tokio::time::timeout(self.settings.timeout, updated).await {
                    Ok(updated) => updated,
                    Err(_) => Err(format!(
                        "the update was not done within {} s (`acme.dns.timeout`)",
                        self.settings.timeout.as_secs_f64()
                    )),
                }
            }
        }
    }
}

/// How the record `wanted` would be looked for, in words; or what stands against it. Changes nothing.
pub(in crate::cert) async fn survey(settings: &Dns, wanted: &str) -> Result<String, String> {
    let resolvers = Resolvers::new(&settings.resolvers);
    let at = resolvers.follow(&name(wanted).map_err(|error| error.to_string())?).await?;
    let servers = servers(settings, &resolvers, &at).await?;
    match dns_watch::look(&servers, &at, &|_| true).await {
        View::Partial(silent) => Err(format!("not every name server of its zone answers: {silent}")),
        // A record that is not there yet is no fault.
        View::Clear | View::Missing(_) => {
            let names: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
            Ok(format!("its record {} would be looked for at {}", spoken(&at), names.join(", ")))
        }
    }
}

async fn servers(settings: &Dns, resolvers: &Resolvers, of: &Name) -> Result<Vec<NameServer>, String> {
    if settings.name_servers.is_empty() {
        return resolvers.servers(&resolvers.zone(of).await?).await;
    }
    let server = |address: &SocketAddr| NameServer {
        name: format!("the name server {address}"),
        addresses: vec![*address],
    };
    Ok(settings.name_servers.iter().map(server).collect())
}

fn told(trouble: Trouble) -> String {
    trouble.into_failure("the CA", "the record").message
}
