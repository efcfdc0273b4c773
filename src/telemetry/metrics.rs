//! The running state as Prometheus reads it (text format 0.0.4). Every value of a label is a name of the configuration or of a closed
//! list: clients cannot make series.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::telemetry::status::{
    AppState, AppStatus, CertificateState, CertificateStatus, Status, WorkerState, WorkerStatus,
};
use crate::telemetry::tally::{BOUNDS, CLASSES, Counted};

/// What the text says.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is shown.
#[derive(Debug)]
pub struct Measured {
    /// The running state.
    pub status: Status,
    /// Requests of each app by name; those for no app have none.
    pub requests: Vec<(String, Counted)>,
    /// Client connections.
    pub connections: Connections,
    /// When edge was started, in seconds since 1970.
    pub started: u64,
}

/// Client connections, of all listeners.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connections {
    /// Open now.
    pub open: u64,
    /// Taken since the start.
    pub accepted: u64,
    /// Refused because of `limits.connections`.
    pub over_total: u64,
    /// Refused because of `limits.connections_per_client`.
    pub over_client: u64,
}

const APP_STATES: [(AppState, &str); 7] = [
    (AppState::Starting, "starting"),
    (AppState::Up, "up"),
    (AppState::Degraded, "degraded"),
    (AppState::Down, "down"),
    (AppState::Failed, "failed"),
    (AppState::Deploying, "deploying"),
    (AppState::Maintenance, "maintenance"),
];

const WORKER_STATES: [(WorkerState, &str); 6] = [
    (WorkerState::Starting, "starting"),
    (WorkerState::Ready, "ready"),
    (WorkerState::Suspect, "suspect"),
    (WorkerState::Draining, "draining"),
    (WorkerState::Stopping, "stopping"),
    (WorkerState::Backoff, "backoff"),
];

const CERTIFICATE_STATES: [(CertificateState, &str); 5] = [
    (CertificateState::Valid, "valid"),
    (CertificateState::Pending, "pending"),
    (CertificateState::Retrying, "retrying"),
    (CertificateState::Parked, "parked"),
    (CertificateState::Expired, "expired"),
];

/// The whole text.
pub fn text(measured: &Measured) -> String {
    let mut page = Page(String::with_capacity(16 << 10));
    page.edge(measured);
    page.requests(&measured.requests);
    let apps: Vec<(&str, &AppStatus)> =
        measured.status.apps.iter().map(|(name, app)| (name.as_str(), app)).collect();
    page.apps(&apps);
    page.workers(&apps);
    page.certificates(&measured.status.certificates);
    page.0
}

/// A worker's place as series have it: one, whoever is in it.
struct Place<'a> {
    /// Who takes its requests; where nobody does, the newest.
    worker: &'a WorkerStatus,
    /// Of all that are in it: one that leaves finishes its requests.
    in_flight: u64,
}

/// The places of an app's workers, in which a worker and its successor stand beside each other while one replaces the other.
fn places(workers: &[WorkerStatus]) -> Vec<Place<'_>> {
    let mut places: BTreeMap<u32, Place<'_>> = BTreeMap::new();
    let rank = |one: &WorkerStatus| (one.state == WorkerState::Ready, one.past.after_first);
    for one in workers {
        let place = places.entry(one.slot).or_insert(Place { worker: one, in_flight: 0 });
        place.in_flight += one.in_flight;
        if rank(one) > rank(place.worker) {
            place.worker = one;
        }
    }
    places.into_values().collect()
}

struct Page(String);

type Labels<'a> = &'a [(&'static str, &'a str)];

impl Page {
    fn edge(&mut self, measured: &Measured) {
        self.head("build_info", "gauge", "The running version; always 1.");
        self.line("build_info", &[("version", &measured.status.version)], 1);
        self.head("start_timestamp_seconds", "gauge", "When edge was started.");
        self.line("start_timestamp_seconds", &[], measured.started);
        let Connections { open, accepted, over_total, over_client } = measured.connections;
        self.head("connections", "gauge", "Client connections open now.");
        self.line("connections", &[], open);
        self.head("connections_accepted_total", "counter", "Client connections taken.");
        self.line("connections_accepted_total", &[], accepted);
        self.head(
            "connections_refused_total",
            "counter",
            "Client connections refused, by the limit that was met.",
        );
        for (reason, count) in [("connections", over_total), ("connections_per_client", over_client)] {
            self.line("connections_refused_total", &[("reason", reason)], count);
        }
    }

    fn requests(&mut self, requests: &[(String, Counted)]) {
        self.head(
            "http_requests_total",
            "counter",
            "Requests that ended, by class of status; those for no app have none.",
        );
        for (app, counted) in requests {
            for (class, count) in CLASSES.iter().zip(counted.classes) {
                self.line("http_requests_total", &[("app", app), ("class", class)], count);
            }
        }
        self.head(
            "http_retries_total",
            "counter",
            "Requests that were asked of another worker, once for each.",
        );
        for (app, counted) in requests {
            self.line("http_retries_total", &[("app", app)], counted.retries);
        }
        let name = "http_request_duration_seconds";
        self.head(
            name,
            "histogram",
            "From a request's head to the last byte of its answer; without WebSockets.",
        );
        for (app, counted) in requests {
            let mut sum = 0;
            for (bound, count) in BOUNDS.iter().zip(counted.durations) {
                sum += count;
                let bound = seconds(*bound);
                self.line("http_request_duration_seconds_bucket", &[("app", app), ("le", &bound)], sum);
            }
            sum += counted.durations[BOUNDS.len()];
            self.line("http_request_duration_seconds_bucket", &[("app", app), ("le", "+Inf")], sum);
            self.line("http_request_duration_seconds_sum", &[("app", app)], seconds(counted.microseconds));
            self.line("http_request_duration_seconds_count", &[("app", app)], sum);
        }
    }

    fn apps(&mut self, apps: &[(&str, &AppStatus)]) {
        self.head("app_state", "gauge", "1 for the state that the app is in.");
        for (app, status) in apps {
            for (state, word) in APP_STATES {
                self.line("app_state", &[("app", app), ("state", word)], u8::from(status.state == state));
            }
        }
        self.head("queue_length", "gauge", "Requests that wait for a worker.");
        for (app, status) in apps {
            self.line("queue_length", &[("app", app)], status.queue);
        }
        self.head("workers", "gauge", "Workers by state.");
        for (app, status) in apps {
            for (state, word) in WORKER_STATES {
                let count = status.workers.iter().filter(|worker| worker.state == state).count();
                self.line("workers", &[("app", app), ("state", word)], count);
            }
        }
        self.head("workers_desired", "gauge", "Workers there shall be.");
        for (app, scale) in apps.iter().filter_map(|(app, status)| Some((app, status.scale?))) {
            self.line("workers_desired", &[("app", app)], scale.target);
        }
        self.head("worker_exits_total", "counter", "Workers that ended or could not be started, by reason.");
        for (app, status) in apps {
            for (reason, count) in &status.worker_exits {
                self.line("worker_exits_total", &[("app", app), ("reason", reason)], count);
            }
        }
    }

    fn workers(&mut self, apps: &[(&str, &AppStatus)]) {
        let all: Vec<_> = apps
            .iter()
            .flat_map(|(app, status)| places(&status.workers).into_iter().map(|place| (*app, place)))
            .map(|(app, place)| (app, place.worker.slot.to_string(), place))
            .collect();
        let shown = || all.iter().map(|(app, slot, place)| (*app, slot.as_str(), place.worker));
        self.head("worker_ready", "gauge", "Whether a worker in this place takes requests.");
        for (app, slot, one) in shown() {
            let is_ready = u8::from(one.state == WorkerState::Ready);
            self.line("worker_ready", &[("app", app), ("worker", slot)], is_ready);
        }
        self.head("worker_in_flight", "gauge", "Requests in flight.");
        for (app, slot, place) in &all {
            self.line("worker_in_flight", &[("app", app), ("worker", slot)], place.in_flight);
        }
        self.head(
            "worker_requests_total",
            "counter",
            "Requests that the worker has taken; a new worker begins at 0.",
        );
        for (app, slot, one) in shown() {
            self.line("worker_requests_total", &[("app", app), ("worker", slot)], one.requests);
        }
        self.head(
            "worker_restarts_total",
            "counter",
            "Workers after the first in this place, whatever for: a failure, a deploy, recycling.",
        );
        for (app, slot, one) in shown() {
            self.line("worker_restarts_total", &[("app", app), ("worker", slot)], one.past.after_first);
        }
        self.head(
            "worker_failures_total",
            "counter",
            "Workers of this place that failed and were followed by another: RESTARTS of `edge status`.",
        );
        for (app, slot, one) in shown() {
            self.line("worker_failures_total", &[("app", app), ("worker", slot)], one.past.restarts);
        }
        self.head("worker_memory_bytes", "gauge", "Memory of the worker and all it started.");
        for (app, slot, one) in shown().filter(|(_, _, one)| one.pid.is_some()) {
            self.line("worker_memory_bytes", &[("app", app), ("worker", slot)], one.memory_bytes);
        }
        self.head("worker_start_timestamp_seconds", "gauge", "When the worker was started.");
        for (app, slot, at) in shown().filter_map(|(app, slot, one)| Some((app, slot, one.started?))) {
            self.line("worker_start_timestamp_seconds", &[("app", app), ("worker", slot)], at);
        }
    }

    fn certificates(&mut self, certificates: &[CertificateStatus]) {
        self.head("certificate_state", "gauge", "1 for the state that the certificate is in.");
        for one in certificates {
            for (state, word) in CERTIFICATE_STATES {
                let labels = [("certificate", one.name.as_str()), ("state", word)];
                self.line("certificate_state", &labels, u8::from(one.state == state));
            }
        }
        type Moment = fn(&CertificateStatus) -> Option<&String>;
        let moments: [(&str, &str, Moment); 5] = [
            ("not_before", "Start of the installed certificate.", |one| one.not_before.as_ref()),
            ("not_after", "End of the installed certificate.", |one| one.not_after.as_ref()),
            ("renew_at", "When it will be renewed.", |one| one.renew_at.as_ref()),
            ("next_attempt", "When an order that failed is tried again.", |one| one.next_attempt.as_ref()),
            ("last_failure", "When an order last failed.", |one| one.last_failure.as_ref()),
        ];
        for (what, help, of) in moments {
            let name = format!("certificate_{what}_timestamp_seconds");
            self.head(&name, "gauge", help);
            for (one, at) in certificates.iter().filter_map(|one| Some((one, timestamp(of(one)?)?))) {
                self.line(&name, &[("certificate", &one.name)], at);
            }
        }
        self.head("certificate_orders_total", "counter", "Orders that ended, by outcome.");
        for one in certificates {
            for (outcome, count) in [
                ("issued", one.orders.issued),
                ("failed", one.orders.failed),
                ("not_asked", one.orders.not_asked),
            ] {
                let labels = [("certificate", one.name.as_str()), ("outcome", outcome)];
                self.line("certificate_orders_total", &labels, count);
            }
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.0, "# HELP edge_{name} {help}\n# TYPE edge_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: Labels<'_>, value: impl std::fmt::Display) {
        let _ = write!(self.0, "edge_{name}");
        for (at, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            for c in value.chars() {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

/// Microseconds as seconds, exactly.
fn seconds(microseconds: u64) -> String {
    let text = format!("{}.{:06}", microseconds / 1_000_000, microseconds % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn timestamp(at: &str) -> Option<i64> {
    OffsetDateTime::parse(at, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::{OrderCounts, PastStatus, ScaleStatus};

    fn worker(slot: u32, state: WorkerState, after_first: u64) -> WorkerStatus {
        WorkerStatus {
            slot,
            pid: Some(7),
            state,
            in_flight: 1,
            requests: 3,
            memory_bytes: 1000,
            memory_limit_bytes: None,
            age_s: 5,
            started: Some(105),
            address: "unix:/x".to_owned(),
            trouble: None,
            past: PastStatus { after_first, restarts: 1, ..PastStatus::default() },
        }
    }

    #[test]
    fn every_sample_has_its_type_and_a_histogram_adds_up() {
        let mut counted = Counted::default();
        counted.classes[1] = 3;
        counted.retries = 2;
        (counted.durations[0], counted.durations[15], counted.microseconds) = (2, 1, 61_500_000);
        let app = AppStatus {
            state: AppState::Up,
            generation: 1,
            queue: 4,
            scale: Some(ScaleStatus { min: 1, max: 1, target: 1, held: false }),
            workers: vec![worker(0, WorkerState::Ready, 2)],
            worker_exits: [("hang".to_owned(), 2)].into(),
            failed_deploy: None,
            failed_deploy_at: None,
        };
        let certificate = CertificateStatus {
            name: "*.a.example".to_owned(),
            state: CertificateState::Valid,
            issuer: "\"\\\n".to_owned(),
            profile: None,
            not_before: None,
            not_after: Some("1970-01-02T00:00:00Z".to_owned()),
            renew_at: None,
            renew_because: None,
            last_error: None,
            last_failure: None,
            next_attempt: None,
            dns_record: None,
            orders: OrderCounts { issued: 1, failed: 2, not_asked: 0 },
        };
        let measured = Measured {
            status: Status {
                version: "0.1\"\\\n".to_owned(),
                pid: 1,
                config_file: String::new(),
                uptime_s: 10,
                listeners: vec![],
                apps: [("a".to_owned(), app)].into(),
                certificates: vec![certificate],
            },
            requests: vec![("a".to_owned(), counted), (String::new(), Counted::default())],
            connections: Connections { open: 1, accepted: 2, over_total: 3, over_client: 4 },
            started: 100,
        };
        let page = text(&measured);
        for line in [
            "edge_build_info{version=\"0.1\\\"\\\\\\n\"} 1",
            "edge_http_requests_total{app=\"a\",class=\"2xx\"} 3",
            "edge_http_retries_total{app=\"a\"} 2",
            "edge_http_request_duration_seconds_bucket{app=\"a\",le=\"0.005\"} 2",
            "edge_http_request_duration_seconds_bucket{app=\"a\",le=\"30\"} 2",
            "edge_http_request_duration_seconds_bucket{app=\"a\",le=\"+Inf\"} 3",
            "edge_http_request_duration_seconds_sum{app=\"a\"} 61.5",
            "edge_worker_exits_total{app=\"a\",reason=\"hang\"} 2",
            "edge_worker_restarts_total{app=\"a\",worker=\"0\"} 2",
            "edge_worker_failures_total{app=\"a\",worker=\"0\"} 1",
            "edge_worker_start_timestamp_seconds{app=\"a\",worker=\"0\"} 105",
            "edge_certificate_not_after_timestamp_seconds{certificate=\"*.a.example\"} 86400",
            "edge_certificate_orders_total{certificate=\"*.a.example\",outcome=\"failed\"} 2",
        ] {
            assert!(page.lines().any(|known| known == line), "{line}\n{page}");
        }
        let mut typed = "";
        for line in page.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => typed = rest.split(' ').next().expect("a name"),
                None if line.starts_with('#') => {}
                None => assert!(line.starts_with(typed), "{line} stands below {typed}"),
            }
        }
    }

    #[test]
    fn a_place_is_one_series_while_a_worker_replaces_another_there() {
        use WorkerState::{Backoff, Draining, Ready, Starting, Stopping};
        for (there, shown) in [
            (&[(Ready, 4), (Starting, 5)][..], (Ready, 4)),
            (&[(Draining, 4), (Ready, 5)], (Ready, 5)),
            (&[(Stopping, 3), (Draining, 4), (Starting, 5)], (Starting, 5)),
            (&[(Starting, 5), (Draining, 4)], (Starting, 5)),
            (&[(Ready, 4), (Ready, 5)], (Ready, 5)),
            (&[(Backoff, 5)], (Backoff, 5)),
        ] {
            let mut workers: Vec<_> = there.iter().map(|(state, nth)| worker(1, *state, *nth)).collect();
            workers.insert(0, worker(0, Ready, 0));
            let places = places(&workers);
            assert_eq!(places.iter().map(|place| place.worker.slot).collect::<Vec<_>>(), [0, 1]);
            let place = &places[1];
            assert_eq!((place.worker.state, place.worker.past.after_first), shown, "{there:?}");
            assert_eq!(place.in_flight, there.len() as u64, "{there:?}");
        }
    }
}
