//! Status and certificates for people: aligned, worst first, one screen. Plain data in, text out.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::daemon::table::{Align, Cell, Table};
use crate::telemetry::line::{Palette, put_text};
use crate::telemetry::status::{
    AppState, AppStatus, CertificateState, CertificateStatus, RenewBecause, ScaleStatus, Status, WorkerState,
    WorkerStatus,
};

/// Workers beyond this number in all: those that are well are counted, not listed.
const ROOMY: usize = 24;

/// The answer of `edge status`.
pub fn status(status: &Status, now: OffsetDateTime, colour: bool) -> String {
    let palette = Palette::new(colour);
    let mut out = format!(
        "{}edge {}{}  up {}  pid {}\n",
        palette.strong,
        safe(&status.version),
        palette.reset,
        span(status.uptime_s),
        status.pid
    );
    let listeners: Vec<_> = status
        .listeners
        .iter()
        .map(|listener| safe(&format!("{} {}", listener.kind, listener.address)))
        .collect();
    if !listeners.is_empty() {
        out.push_str(&listeners.join("  "));
        out.push('\n');
    }
    if !status.apps.is_empty() {
        out.push('\n');
        out.push_str(&apps(status, palette));
    }
    if !status.certificates.is_empty() {
        out.push('\n');
        out.push_str(&certificates(&status.certificates, now, colour));
    }
    out
}

/// The answer of `edge certs`.
pub fn certificates(certificates: &[CertificateStatus], now: OffsetDateTime, colour: bool) -> String {
    let palette = Palette::new(colour);
    if certificates.is_empty() {
        return "no app needs a certificate\n".to_owned();
    }
    let mut sorted: Vec<_> = certificates.iter().collect();
    sorted.sort_by_key(|certificate| certificate_rank(certificate.state));
    let mut table = Table::new(
        &[
            ("CERTIFICATE", Align::Left),
            ("STATE", Align::Left),
            ("EXPIRES", Align::Right),
            ("NEXT", Align::Left),
            ("ISSUER", Align::Left),
        ],
        palette,
    );
    for certificate in sorted {
        table.row(vec![
            Cell::plain(safe(&certificate.name)),
            certificate_cell(certificate.state, palette),
            Cell::plain(expiry(certificate, now)),
            Cell::plain(next(certificate, now)),
            Cell::plain(match (&certificate.profile, certificate.issuer.as_str()) {
                (_, "") => dash(),
                (Some(profile), issuer) => safe(&format!("{issuer}, {profile}")),
                (None, issuer) => safe(issuer),
            }),
        ]);
        if let Some(error) = &certificate.last_error {
            table.note(safe(error), palette.warn);
        }
        let told =
            |record: &&String| certificate.last_error.as_ref().is_none_or(|error| !error.contains(*record));
        if let Some(record) = certificate.dns_record.as_ref().filter(told) {
            table.note(format!("to prove it by DNS for good, create: {}", safe(record)), palette.faint);
        }
    }
    table.print()
}

fn apps(status: &Status, palette: Palette) -> String {
    let mut apps: Vec<_> = status.apps.iter().collect();
    apps.sort_by_key(|(_, app)| app_rank(app.state));
    let everybody = apps.iter().map(|(_, app)| app.workers.len()).sum::<usize>() <= ROOMY;
    let mut table = Table::new(
        &[
            ("APP", Align::Left),
            ("STATE", Align::Left),
            ("PID", Align::Right),
            ("AGE", Align::Right),
            ("IN FLIGHT", Align::Right),
            ("REQUESTS", Align::Right),
            ("MEMORY", Align::Right),
            ("RESTARTS", Align::Right),
            ("", Align::Left),
        ],
        palette,
    );
    for (name, app) in apps {
        table.row(app_row(name, app, palette));
        let mut workers: Vec<_> = app.workers.iter().collect();
        workers.sort_by_key(|worker| (worker_rank(worker.state), worker.slot));
        for worker in workers.into_iter().filter(|worker| everybody || worker.state != WorkerState::Ready) {
            table.row(worker_row(worker, palette));
            if let Some(reason) = worker.last_exit.as_ref().filter(|_| worker.state != WorkerState::Ready) {
                table.note(safe(reason), palette.warn);
            }
        }
    }
    table.print()
}

fn app_row(name: &str, app: &AppStatus, palette: Palette) -> Vec<Cell> {
    let sum = |of: fn(&WorkerStatus) -> u64| app.workers.iter().map(of).sum::<u64>();
    let ready = app.workers.iter().filter(|worker| worker.state == WorkerState::Ready).count();
    let mut remark = format!("{ready} of {} ready", app.workers.len());
    if app.queue > 0 {
        remark.push_str(&format!(", {} waiting", app.queue));
    }
    match app.scale {
        Some(ScaleStatus { target, held: true, .. }) => {
            remark.push_str(&format!(", held at {target} by `edge scale`"));
        }
        Some(ScaleStatus { min, max, target, held: false }) if min < max => {
            remark.push_str(&format!(", {target} wanted of {min} to {max} by the load"));
        }
        Some(_) | None => {}
    }
    vec![
        Cell::coloured(safe(name), palette.strong),
        app_cell(app.state, palette),
        Cell::plain(String::new()),
        Cell::plain(String::new()),
        Cell::plain(sum(|worker| worker.in_flight).to_string()),
        Cell::plain(sum(|worker| worker.requests).to_string()),
        Cell::plain(size(sum(|worker| worker.memory_bytes))),
        Cell::plain(sum(|worker| worker.restarts).to_string()),
        Cell::plain(remark),
    ]
}

fn worker_row(worker: &WorkerStatus, palette: Palette) -> Vec<Cell> {
    let well = worker.state == WorkerState::Ready;
    let remark = match &worker.last_exit {
        Some(reason) if well => format!("last exit: {}", safe(reason)),
        Some(_) | None => safe(&worker.address),
    };
    vec![
        Cell::plain(format!("  {}", worker.slot)),
        worker_cell(worker.state, palette),
        Cell::plain(worker.pid.map_or_else(dash, |pid| pid.to_string())),
        Cell::plain(if worker.pid.is_some() { span(worker.age_s) } else { dash() }),
        Cell::plain(worker.in_flight.to_string()),
        Cell::plain(worker.requests.to_string()),
        Cell::plain(memory(worker)),
        Cell::plain(worker.restarts.to_string()),
        Cell::coloured(remark, palette.faint),
    ]
}

fn next(certificate: &CertificateStatus, now: OffsetDateTime) -> String {
    match (&certificate.next_attempt, &certificate.renew_at) {
        (Some(at), _) => format!("tries in {}", until(at, now)),
        (None, Some(at)) => format!("renews in {}{}", until(at, now), because(certificate)),
        (None, None) => dash(),
    }
}

fn because(certificate: &CertificateStatus) -> &'static str {
    match certificate.renew_because {
        Some(RenewBecause::CaWindow) => ", in the CA's window",
        Some(RenewBecause::Asked) => ", as asked",
        Some(RenewBecause::Lifetime) if life(certificate) < Some(time::Duration::days(10)) => {
            ", half of its life"
        }
        Some(RenewBecause::Lifetime) => ", two thirds of its life",
        None => "",
    }
}

fn life(certificate: &CertificateStatus) -> Option<time::Duration> {
    let time = |at: &Option<String>| OffsetDateTime::parse(at.as_deref()?, &Rfc3339).ok();
    Some(time(&certificate.not_after)? - time(&certificate.not_before)?)
}

/// What is left, of how much.
fn expiry(certificate: &CertificateStatus, now: OffsetDateTime) -> String {
    let Some(at) = certificate.not_after.as_deref() else { return dash() };
    match life(certificate) {
        Some(life) => format!("{} of {}", until(at, now), span(life.whole_seconds().unsigned_abs())),
        None => until(at, now),
    }
}

fn app_rank(state: AppState) -> u8 {
    match state {
        AppState::Down => 0,
        AppState::Failed => 1,
        AppState::Degraded => 2,
        AppState::Starting => 3,
        AppState::Deploying => 4,
        AppState::Maintenance => 5,
        AppState::Up => 6,
    }
}

fn app_cell(state: AppState, palette: Palette) -> Cell {
    let (word, colour) = match state {
        AppState::Down => ("down", palette.bad),
        AppState::Failed => ("failed", palette.bad),
        AppState::Degraded => ("degraded", palette.warn),
        AppState::Starting => ("starting", palette.warn),
        AppState::Deploying => ("deploying", palette.warn),
        AppState::Maintenance => ("maintenance", palette.warn),
        AppState::Up => ("up", palette.good),
    };
    Cell::coloured(word.to_owned(), colour)
}

fn worker_rank(state: WorkerState) -> u8 {
    match state {
        WorkerState::Suspect => 0,
        WorkerState::Backoff => 1,
        WorkerState::Stopping => 2,
        WorkerState::Draining => 3,
        WorkerState::Starting => 4,
        WorkerState::Ready => 5,
    }
}

fn worker_cell(state: WorkerState, palette: Palette) -> Cell {
    let (word, colour) = match state {
        WorkerState::Backoff => ("backoff", palette.bad),
        WorkerState::Suspect => ("suspect", palette.bad),
        WorkerState::Stopping => ("stopping", palette.warn),
        WorkerState::Draining => ("draining", palette.warn),
        WorkerState::Starting => ("starting", palette.warn),
        WorkerState::Ready => ("ready", palette.good),
    };
    Cell::coloured(word.to_owned(), colour)
}

/// Whether a monitor may sleep: the certificate is there, and it is not so close to its end that several renewals must have
/// failed.
pub fn is_well(certificate: &CertificateStatus, now: OffsetDateTime) -> bool {
    let time = |at: &Option<String>| at.as_deref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    let Some(end) = time(&certificate.not_after) else { return false };
    let spare = match time(&certificate.renew_at) {
        // A third of what follows the moment of renewal is a tenth of the life.
        Some(renewal) => (end - renewal) / 3,
        None => time::Duration::days(10),
    };
    certificate.state != CertificateState::Expired && now + spare < end
}

fn certificate_rank(state: CertificateState) -> u8 {
    match state {
        CertificateState::Expired => 0,
        CertificateState::Parked => 1,
        CertificateState::Retrying => 2,
        CertificateState::Pending => 3,
        CertificateState::Valid => 4,
    }
}

fn certificate_cell(state: CertificateState, palette: Palette) -> Cell {
    let (word, colour) = match state {
        CertificateState::Expired => ("expired", palette.bad),
        CertificateState::Parked => ("parked", palette.bad),
        CertificateState::Retrying => ("retrying", palette.warn),
        CertificateState::Pending => ("pending", palette.warn),
        CertificateState::Valid => ("valid", palette.good),
    };
    Cell::coloured(word.to_owned(), colour)
}

fn dash() -> String {
    "-".to_owned()
}

/// Texts of CAs, certificates and exits come from elsewhere.
fn safe(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    put_text(&mut out, text.as_bytes());
    String::from_utf8_lossy(&out).into_owned()
}

/// Seconds in the largest unit that leaves at least two of it.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// From now to a time in RFC 3339; the time itself where it cannot be read.
fn until(at: &str, now: OffsetDateTime) -> String {
    let Ok(time) = OffsetDateTime::parse(at, &Rfc3339) else { return safe(at) };
    let seconds = (time - now).whole_seconds();
    let text = span(seconds.unsigned_abs());
    if seconds < 0 { format!("{text} ago") } else { text }
}

fn memory(worker: &WorkerStatus) -> String {
    match worker.memory_limit_bytes {
        Some(limit) => format!("{}/{}", size(worker.memory_bytes), size(limit)),
        None => size(worker.memory_bytes),
    }
}

fn size(bytes: u64) -> String {
    const STEP: f64 = 1024.0;
    if bytes == 0 {
        return dash();
    }
    let mut value = bytes as f64 / STEP;
    for unit in ["K", "M", "G"] {
        if value < 1000.0 {
            return if value < 10.0 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") };
        }
        value /= STEP;
    }
    format!("{value:.1}T")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use time::macros::datetime;

    use super::*;
    use crate::telemetry::status::{ListenerStatus, OrderCounts};

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn worker(slot: u32, state: WorkerState) -> WorkerStatus {
        WorkerStatus {
            slot,
            pid: Some(4711 + slot),
            state,
            in_flight: 1,
            requests: 1200,
            restarts: 0,
            memory_bytes: 64 << 20,
            memory_limit_bytes: None,
            age_s: 7300,
            started: None,
            address: format!("unix:/run/edge/api.{slot}.sock"),
            last_exit: None,
        }
    }

    fn app(state: AppState, workers: Vec<WorkerStatus>) -> AppStatus {
        let scale = Some(ScaleStatus { min: 1, max: 1, target: 1, held: false });
        AppStatus { state, generation: 1, queue: 0, scale, workers, worker_exits: BTreeMap::new() }
    }

    fn certificate(name: &str, state: CertificateState) -> CertificateStatus {
        CertificateStatus {
            name: name.to_owned(),
            state,
            issuer: "Let's Encrypt E7".to_owned(),
            profile: Some("tlsserver".to_owned()),
            not_before: Some("2025-12-28T00:00:00Z".to_owned()),
            not_after: Some("2026-02-11T00:00:00Z".to_owned()),
            renew_at: Some("2026-01-12T00:00:00Z".to_owned()),
            renew_because: Some(RenewBecause::CaWindow),
            last_error: None,
            last_failure: None,
            next_attempt: None,
            dns_record: None,
            orders: OrderCounts::default(),
        }
    }

    fn example() -> Status {
        let broken = WorkerStatus {
            pid: None,
            restarts: 7,
            requests: 0,
            in_flight: 0,
            memory_bytes: 0,
            memory_limit_bytes: None,
            last_exit: Some(
                "exit status 1 after 0.8 s: ModuleNotFoundError: No module named 'stripe'".to_owned(),
            ),
            ..worker(1, WorkerState::Backoff)
        };
        let again = WorkerStatus {
            restarts: 1,
            memory_limit_bytes: Some(512 << 20),
            last_exit: Some("signal 9".to_owned()),
            ..worker(0, WorkerState::Ready)
        };
        let scale = |min, max, target, held| Some(ScaleStatus { min, max, target, held });
        let shop = app(AppState::Degraded, vec![again, broken]);
        let shop = AppStatus { queue: 2, scale: scale(1, 1, 2, true), ..shop };
        let api = app(AppState::Up, vec![worker(0, WorkerState::Ready)]);
        let api = AppStatus { scale: scale(1, 4, 1, false), ..api };
        Status {
            version: "0.1.0".to_owned(),
            pid: 34021,
            uptime_s: 1_051_200,
            listeners: vec![
                ListenerStatus { kind: "http".to_owned(), address: "[::]:80".to_owned() },
                ListenerStatus { kind: "https".to_owned(), address: "[::]:443".to_owned() },
            ],
            apps: [("api".to_owned(), api), ("shop".to_owned(), shop)].into(),
            certificates: vec![
                certificate("api.example.com", CertificateState::Valid),
                CertificateStatus {
                    issuer: String::new(),
                    not_after: None,
                    renew_at: None,
                    last_error: Some("no A record for shop.example.com\x1b[2J".to_owned()),
                    next_attempt: Some("2026-01-01T05:00:00Z".to_owned()),
                    ..certificate("shop.example.com", CertificateState::Retrying)
                },
            ],
        }
    }

    #[test]
    fn status_is_aligned_and_worst_first_with_reasons() {
        let expected = "\
edge 0.1.0  up 12d  pid 34021
http [::]:80  https [::]:443

APP   STATE      PID  AGE  IN FLIGHT  REQUESTS    MEMORY  RESTARTS
shop  degraded                     1      1200       64M         8  1 of 2 ready, 2 waiting, held at 2 by `edge scale`
  1   backoff      -    -          0         0         -         7  unix:/run/edge/api.1.sock
    ! exit status 1 after 0.8 s: ModuleNotFoundError: No module named 'stripe'
  0   ready     4711   2h          1      1200  64M/512M         1  last exit: signal 9
api   up                           1      1200       64M         0  1 of 1 ready, 1 wanted of 1 to 4 by the load
  0   ready     4711   2h          1      1200       64M         0  unix:/run/edge/api.0.sock

CERTIFICATE       STATE        EXPIRES  NEXT                               ISSUER
shop.example.com  retrying           -  tries in 5h                        -
    ! no A record for shop.example.com\\u001b[2J
api.example.com   valid     41d of 45d  renews in 11d, in the CA's window  Let's Encrypt E7, tlsserver
";
        assert_eq!(status(&example(), NOW, false), expected);
    }

    #[test]
    fn a_monitor_wakes_for_what_is_missing_or_close_to_its_end() {
        let good = certificate("a.example.com", CertificateState::Valid);
        assert!(is_well(&good, NOW));
        assert!(is_well(&good, datetime!(2026-01-31 23:00 UTC)), "one third of the last third is left");
        assert!(!is_well(&good, datetime!(2026-02-01 01:00 UTC)));
        let retrying = CertificateStatus { state: CertificateState::Retrying, ..good.clone() };
        assert!(is_well(&retrying, NOW), "there is time to try again");
        assert!(!is_well(&CertificateStatus { not_after: None, ..retrying }, NOW));
        let by_hand = CertificateStatus { renew_at: None, ..good };
        assert!(is_well(&by_hand, NOW) && !is_well(&by_hand, datetime!(2026-02-05 00:00 UTC)));
    }

    #[test]
    fn colours_change_nothing_but_colour() {
        let mut plain = status(&example(), NOW, true);
        for colour in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            assert!(plain.contains(colour));
            plain = plain.replace(colour, "");
        }
        assert_eq!(plain, status(&example(), NOW, false));
    }

    #[test]
    fn many_workers_that_are_well_do_not_fill_the_screen() {
        let mut workers: Vec<_> = (0..100).map(|slot| worker(slot, WorkerState::Ready)).collect();
        workers[7].state = WorkerState::Draining;
        let many = Status {
            apps: [("api".to_owned(), app(AppState::Degraded, workers))].into(),
            certificates: vec![],
            ..example()
        };
        let text = status(&many, NOW, false);
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(text.contains("draining") && text.contains("99 of 100 ready"));
    }

    #[test]
    fn a_record_that_would_prove_a_name_for_good_is_printed_once() {
        let record =
            "_validation-persist.a.example. TXT \"ca.example; accounturi=https://ca.example/1\"".to_owned();
        let good = certificate("a.example", CertificateState::Valid);
        let lacking = CertificateStatus { dns_record: Some(record.clone()), ..good };
        let failed =
            CertificateStatus { last_error: Some(format!("Create it: {record} (why)")), ..lacking.clone() };
        for one in [lacking, failed] {
            assert_eq!(certificates(&[one], NOW, false).matches(&record).count(), 1);
        }
    }

    #[test]
    fn without_certificates_one_sentence_says_so() {
        assert_eq!(certificates(&[], NOW, true), "no app needs a certificate\n");
    }

    #[test]
    fn numbers_are_short() {
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")] {
            assert_eq!(span(seconds), text);
        }
        for (bytes, text) in
            [(0, "-"), (512, "0.5K"), (64 << 20, "64M"), (1_288_490_189, "1.2G"), (5 << 40, "5.0T")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(until("2025-12-31T00:00:00Z", NOW), "24h ago");
        assert_eq!(until("soon", NOW), "soon");
    }
}
