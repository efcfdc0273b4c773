//! What a changed configuration asks of a running edge: which apps and listeners are touched, and how much of each. What is
//! named by no change stays as it is.

use std::sync::Arc;

use crate::config::model::{App, Backend, Config, Listen, ListenAddr, WorkerCount, WorkerSpec};
use crate::name::AppName;

/// One thing to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// An app that was not there.
    Added(Arc<App>),
    /// An app that is not there any more.
    Removed(AppName),
    /// What edge does with the app's requests; its workers need not know.
    Settings(Arc<App>),
    /// How many workers it has and, with it or not, its settings.
    Scaled(Arc<App>, WorkerCount),
    /// How its workers are run: they are replaced.
    Workers(Arc<App>),
    /// Who answers: other servers than before, or workers instead of servers.
    Backend(Arc<App>),
    /// Deadlines and bounds of connections that come from now on.
    Rules,
    /// How certificates are ordered from now on.
    Issuance,
    /// Another address of the metrics, or none.
    Metrics(Option<ListenAddr>),
    /// An address that was not listened on.
    Opened(Listener),
    /// An address that is not listened on any more.
    Closed(Listener),
}

/// What is listened on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Whether TLS is spoken there.
    pub secure: bool,
    /// Where.
    pub address: ListenAddr,
}

/// A key that is read at the start only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}: changed, and a change of this key needs a restart of edge")]
pub struct NeedsRestart(pub &'static str);

/// What leads from `old` to `new`: listeners first, then rules and issuance, then apps in the order of the new file, then what is gone; or every key
/// that stands against it.
pub fn diff(old: &Config, new: &Config) -> Result<Vec<Change>, Vec<NeedsRestart>> {
    let fixed = fixed(old, new);
    if !fixed.is_empty() {
        return Err(fixed);
    }
    let (before, after) = (listeners(&old.listen), listeners(&new.listen));
    let opened = after.iter().filter(|one| !before.contains(one)).copied().map(Change::Opened);
    let closed = before.iter().filter(|one| !after.contains(one)).copied().map(Change::Closed);
    let rules = (old.rules() != new.rules()).then_some(Change::Rules);
    let issuance = (old.acme != new.acme).then_some(Change::Issuance);
    let metrics = (old.metrics != new.metrics).then_some(Change::Metrics(new.metrics));
    let apps = new.apps.iter().filter_map(|app| match find(old, &app.name) {
        Some(known) => app_change(known, app),
        None => Some(Change::Added(Arc::clone(app))),
    });
    let gone = old.apps.iter().filter(|app| find(new, &app.name).is_none());
    let removed = gone.map(|app| Change::Removed(app.name.clone()));
    Ok(opened.chain(closed).chain(rules).chain(issuance).chain(metrics).chain(apps).chain(removed).collect())
}

/// Every configured address, http first, each in the order of the file.
pub fn listeners(listen: &Listen) -> Vec<Listener> {
    let of = |addresses: &[ListenAddr], secure| {
        addresses.iter().map(|address| Listener { secure, address: *address }).collect::<Vec<_>>()
    };
    [of(&listen.http, false), of(&listen.https, true)].concat()
}

fn find<'a>(config: &'a Config, name: &AppName) -> Option<&'a Arc<App>> {
    config.apps.iter().find(|app| app.name == *name)
}

fn app_change(old: &App, new: &Arc<App>) -> Option<Change> {
    let respoken = old.protocol != new.protocol;
    match (&old.backend, &new.backend) {
        (Backend::Workers(before), Backend::Workers(after)) if before != after => {
            let resized = WorkerSpec { workers: before.workers, ..(**after).clone() };
            Some(if resized == **before && !respoken {
                Change::Scaled(Arc::clone(new), after.workers)
            } else {
                Change::Workers(Arc::clone(new))
            })
        }
        (Backend::Workers(_), Backend::Workers(_)) if respoken => Some(Change::Workers(Arc::clone(new))),
        (before, after) if before != after || respoken => Some(Change::Backend(Arc::clone(new))),
        _ if *old != **new => Some(Change::Settings(Arc::clone(new))),
        _ => None,
    }
}

/// The keys that are read once.
fn fixed(old: &Config, new: &Config) -> Vec<NeedsRestart> {
    // A new field must be named here, and thought about: either it is compared below, or a change above stands for it.
    let Config {
        file: _,
        acme,
        storage,
        runtime_dir,
        listen: _,
        before: _,
        threads,
        log,
        admin,
        metrics: _,
        drain_timeout,
        timeouts: _,
        limits: _,
        apps: _,
    } = new;
    let keys = [
        ("acme.ca", !old.acme.directories().eq(acme.directories())),
        ("acme.dns", old.acme.dns != acme.dns),
        ("storage", old.storage != *storage),
        ("runtime_dir", old.runtime_dir != *runtime_dir),
        ("threads", old.threads != *threads),
        ("log.level", old.log.level != log.level),
        ("log.format", old.log.format != log.format),
        ("log.access", old.log.access != log.access),
        ("admin", old.admin != *admin),
        ("drain_timeout", old.drain_timeout != *drain_timeout),
    ];
    keys.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| NeedsRestart(key)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::check;
    use crate::config::raw;
    use crate::config::surroundings::Surroundings;

    fn config(yaml: &str) -> Config {
        let parsed = raw::parse(&format!("storage: /tmp/s\nruntime_dir: /tmp/r\nthreads: 1\n{yaml}"));
        let root = parsed.root.expect("yaml");
        let around = Surroundings::of_this_process();
        check::check(&root, Path::new("/tmp/edge.yaml"), Path::new("/tmp"), &around).expect("no problem")
    }

    /// What is changed between two files, a word and a name each.
    fn changes(old: &str, new: &str) -> Vec<String> {
        let told = |change: Change| match change {
            Change::Added(app) => format!("added {}", app.name),
            Change::Removed(name) => format!("removed {name}"),
            Change::Settings(app) => format!("settings {}", app.name),
            Change::Scaled(app, workers) => format!("scaled {} {workers}", app.name),
            Change::Workers(app) => format!("workers {}", app.name),
            Change::Backend(app) => format!("backend {}", app.name),
            Change::Rules => "rules".to_owned(),
            Change::Issuance => "issuance".to_owned(),
            Change::Metrics(at) => format!("metrics {at:?}"),
            Change::Opened(one) => format!("opened {} {}", one.secure, one.address),
            Change::Closed(one) => format!("closed {} {}", one.secure, one.address),
        };
        match diff(&config(old), &config(new)) {
            Ok(changes) => changes.into_iter().map(told).collect(),
            Err(keys) => keys.into_iter().map(|key| format!("restart {}", key.0)).collect(),
        }
    }

    const OLD: &str = "apps:\n  a: {domains: [a.test], command: edge hello, workers: 2}\n  b: {domains: [b.test], upstream: 'unix:/x'}\n";

    #[test]
    fn each_change_touches_what_it_must_and_nothing_else() {
        for (from, to, expected) in [
            ("", "", vec![]),
            ("[a.test]", "[a.test, www.test]", vec!["settings a"]),
            ("[b.test], ", "[b.test], max_body: 1MB, ", vec!["settings b"]),
            ("workers: 2", "workers: 3", vec!["scaled a 3"]),
            ("apps:", "metrics: ':9090'\napps:", vec!["metrics Some(Any(9090))"]),
            ("workers: 2", "workers: {min: 2, max: 8}", vec!["scaled a 2 to 8"]),
            ("workers: 2", "workers: 3, environment: {A: b}", vec!["workers a"]),
            ("workers: 2", "workers: 2, start_timeout: 5s", vec!["workers a"]),
            ("unix:/x", "unix:/y", vec!["backend b"]),
            ("upstream: 'unix:/x'", "command: edge hello", vec!["backend b"]),
            ("upstream: 'unix:/x'", "upstream: 'unix:/x', protocol: h2c", vec!["backend b"]),
            ("workers: 2", "workers: 2, protocol: h2c", vec!["workers a"]),
            ("  b: {", "  c: {", vec!["added c", "removed b"]),
            ("apps:", "email: me@example.com\napps:", vec!["issuance"]),
            ("apps:", "acme: {ca: zerossl, profile: x}\napps:", vec!["restart acme.ca"]),
            (
                "apps:",
                "log: {access: false, level: warn}\napps:",
                vec!["restart log.level", "restart log.access"],
            ),
            ("apps:", "timeouts: {body: 5s}\napps:", vec!["rules"]),
            ("apps:", "limits: {streams: 5}\napps:", vec!["rules"]),
            ("apps:", "trusted_proxies: 10.0.0.0/8\napps:", vec!["rules"]),
            ("apps:", "proxy_protocol: [10.0.0.0/8]\napps:", vec!["rules"]),
            ("apps:", "listen: {http: [':80', '127.0.0.1:81']}\napps:", vec!["opened false 127.0.0.1:81"]),
            ("apps:", "listen: {https: [':444']}\napps:", vec!["opened true :444", "closed true :443"]),
        ] {
            assert_eq!(changes(OLD, &OLD.replace(from, to)), expected, "{from} → {to}");
        }
    }
}
