//! From the names of one configuration to those of the next: a name that stays keeps its certificate, its history and an order
//! under way; a new one is loaded; one that is gone is forgotten, while its files stay for the day it comes back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::ProducesTickets;

use crate::cert::cas::Cas;
use crate::cert::client_policy::ClientPolicy;
use crate::cert::names::{Loading, Name, NameId, Names, Source};
use crate::cert::store_error::StoreError;
use crate::config::model::{Acme, App, Config, Tls};
use crate::name::{AppName, HostPattern};
use crate::report::Report;

/// The names of a configuration, ready to take the place of the present ones.
pub struct Prepared {
    plan: Vec<Planned>,
    cas: Arc<Cas>,
    /// How certificates are ordered from then on.
    pub(in crate::cert) acme: Box<Acme>,
    tickets: HashMap<AppName, Arc<dyn ProducesTickets>>,
    clients: HashMap<AppName, ClientPolicy>,
}

#[expect(clippy::large_enum_variant, reason = "a few, for a moment")]
enum Planned {
    /// Known already, and now this app's.
    Kept { id: NameId, pattern: HostPattern, app: AppName, default: bool },
    /// Just loaded.
    Loaded(Name),
}

impl Names {
    /// What `config` needs. Nothing changes yet.
    pub fn prepare(&self, config: &Config, from: &mut Loading<'_>) -> Result<Prepared, StoreError> {
        let cas = Cas::of(&config.acme);
        let mut errors = Vec::new();
        let clients = ClientPolicy::all(config, &self.provider, &mut errors);
        let acme = Box::new(config.acme.clone());
        let mut prepared =
            Prepared { plan: Vec::new(), cas: Arc::clone(&cas), acme, tickets: HashMap::new(), clients };
        let present: HashMap<&HostPattern, &Name> =
            self.list.iter().map(|name| (&name.pattern, name)).collect();
        for app in &config.apps {
            if !self.tickets.contains_key(&app.name)
                && let Ok(tickets) = rustls::crypto::aws_lc_rs::Ticketer::new()
            {
                prepared.tickets.insert(app.name.clone(), tickets);
            }
            for pattern in &app.domains {
                let known = present.get(pattern).copied().filter(|name| stays(name, app, &cas));
                // What a start would refuse is refused also where the name is known: its files may be others now.
                if let Some(Name { source: Source::Files(pair, stamp), file_error, .. }) = known
                    && (file_error.is_some() || pair.stamp() != *stamp)
                {
                    errors.extend(pair.load(&self.provider).err());
                }
                match known {
                    Some(Name { id, .. }) => {
                        let (id, pattern) = (*id, pattern.clone());
                        let (app, default) = (app.name.clone(), app.default);
                        prepared.plan.push(Planned::Kept { id, pattern, app, default });
                    }
                    None => match self.load_one(app, pattern, &cas, from) {
                        Ok(name) => prepared.plan.push(Planned::Loaded(name)),
                        Err(error) => errors.push(error),
                    },
                }
            }
        }
        StoreError::together(errors).map(|()| prepared)
    }

    /// Makes the prepared names the present ones.
    pub fn adopt_all(&mut self, prepared: Prepared, now: SystemTime) {
        let Prepared { plan, cas, acme: _, tickets, clients } = prepared;
        self.tickets.extend(tickets);
        let clients_before = std::mem::replace(&mut self.clients, clients);
        let mut known: HashMap<HostPattern, Name> =
            std::mem::take(&mut self.list).into_iter().map(|name| (name.pattern.clone(), name)).collect();
        for planned in plan {
            let (mut name, stale) = match planned {
                Planned::Loaded(mut name) => {
                    if let Some(before) = known.get(&name.pattern) {
                        name.wait_for_validity(before, now);
                    }
                    // Loaded before the app had ticket keys and a policy.
                    (name, true)
                }
                Planned::Kept { id, pattern, app, default } => {
                    let same = known.remove(&pattern).filter(|name| name.id == id);
                    let Some(mut name) = same else { continue };
                    let moved = name.app != app || !is_same(clients_before.get(&app), self.clients.get(&app));
                    (name.app, name.default) = (app, default);
                    if let Source::Acme(known) = &mut name.source {
                        // The same CAs; what another setting repairs is tried again.
                        *known = Arc::clone(&cas);
                        name.machine.settle(&cas.settings, cas.ids.len() - 1);
                    }
                    (name, moved)
                }
            };
            if stale {
                self.refit(&mut name);
            }
            self.list.push(name);
        }
        let apps: HashSet<AppName> = self.list.iter().map(|name| name.app.clone()).collect();
        self.tickets.retain(|app, _| apps.contains(app));
    }

    /// Looks at the CA files of client certificates again: returns whether anything changed.
    pub(in crate::cert) fn reload_client_policies(&mut self) -> bool {
        let mut renewed = HashMap::new();
        for (app, policy) in &mut self.clients {
            renewed.extend(policy.renewed(&self.provider).map(|policy| (app.clone(), policy)));
        }
        let changed = !renewed.is_empty();
        let apps: HashSet<AppName> = renewed.keys().cloned().collect();
        self.clients.extend(renewed);
        let mut list = std::mem::take(&mut self.list);
        for name in list.iter_mut().filter(|name| apps.contains(&name.app)) {
            self.refit(name);
        }
        self.list = list;
        changed
    }

    /// Serves the name as its app now wants it.
    fn refit(&self, name: &mut Name) {
        let Some(bundle) = name.bundle.clone() else { return };
        // One on its way to the disk is as stale, and this is the same certificate.
        name.coming = None;
        let before = name.served.take();
        if let Err(error) = self.fit(name, bundle) {
            // It was served with the same key a moment ago: nothing can be wrong with it.
            tracing::error!(cert = %name.pattern, error = %Report(&error), "cannot serve a known certificate anew");
            // Nobody gets past a policy by that.
            name.served =
                before.filter(|served| served.client_auth.is_none() && !self.clients.contains_key(&name.app));
        }
    }
}

fn is_same(before: Option<&ClientPolicy>, after: Option<&ClientPolicy>) -> bool {
    match (before, after) {
        (None, None) => true,
        (Some(before), Some(after)) => before.is_same(after),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Whether the name's certificate comes from where `app` says now.
fn stays(name: &Name, app: &App, cas: &Cas) -> bool {
    let pattern: &HostPattern = &name.pattern;
    match (&name.source, app.tls_for(pattern)) {
        (Source::Acme(known), Tls::Acme) => known.ids == cas.ids,
        (Source::Internal, Tls::Internal) | (Source::Off, Tls::Off) => true,
        (Source::Files(pair, _), Tls::Files { cert, key }) => {
            pair.app == app.name && pair.cert == cert && pair.key == key
        }
        (Source::Acme(_) | Source::Internal | Source::Files(..) | Source::Off, _) => false,
    }
}
