//! The running state for people: aligned, worst first, one screen. Plain data in, text out.

use time::OffsetDateTime;

use crate::daemon::render_certificates::certificates;
use crate::daemon::render_past::{ended_by_itself, failed_deploy, last_exit, restarts, was_asked};
use crate::daemon::table::{Align, Cell, Table};
use crate::daemon::words::{dash, safe, size, span};
use crate::telemetry::line::Palette;
use crate::telemetry::status::{AppState, AppStatus, ScaleStatus, Status, WorkerState, WorkerStatus};

/// Workers beyond this number in all: of those that are well, and were well for the last hour, as many are listed as fit into it.
const ROOMY: usize = 24;

/// The answer of `edge status`; with `all`, every worker is listed, however many there are.
pub fn status(status: &Status, now: OffsetDateTime, colour: bool, all: bool) -> String {
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
        out.push_str(&apps(status, now, palette, all));
    }
    if !status.certificates.is_empty() {
        out.push('\n');
        out.push_str(&certificates(&status.certificates, now, colour));
    }
    out
}

fn apps(status: &Status, now: OffsetDateTime, palette: Palette, all: bool) -> String {
    let mut apps: Vec<_> = status.apps.iter().collect();
    apps.sort_by_key(|(_, app)| app_rank(app.state));
    let is_news = |worker: &&WorkerStatus| worker_rank(worker, now) < WELL;
    let everybody = all || apps.iter().map(|(_, app)| app.workers.len()).sum::<usize>() <= ROOMY;
    let news: usize = apps.iter().map(|(_, app)| app.workers.iter().filter(is_news).count()).sum();
    let mut room = ROOMY.saturating_sub(news);
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
        table.row(app_row(name, app, now, palette));
        if let Some(failed) = failed_deploy(app, now) {
            table.note(failed, palette.warn);
        }
        let mut workers: Vec<_> = app.workers.iter().collect();
        workers.sort_by_key(|worker| (worker_rank(worker, now), worker.slot));
        let mut hidden = 0;
        for worker in workers {
            if !everybody && !is_news(&worker) {
                if room == 0 {
                    hidden += 1;
                    continue;
                }
                room -= 1;
            }
            table.row(worker_row(worker, now, palette));
            if let Some(trouble) = &worker.trouble {
                table.note(safe(trouble), palette.warn);
            }
            let (exit, line) = (last_exit(worker, now), worker.past.last_line.as_deref().map(safe));
            match (exit, line) {
                (Some(exit), line) if worker.state != WorkerState::Ready => {
                    table.note(exit, palette.warn);
                    if let Some(line) = line {
                        table.note(format!("its last line: {line}"), palette.warn);
                    }
                }
                (Some(_), Some(line)) if ended_by_itself(&worker.past) => {
                    table.note(format!("what that one printed last: {line}"), palette.warn);
                }
                (Some(_) | None, Some(_) | None) => {}
            }
        }
        if hidden > 0 {
            let are = if hidden == 1 { "is" } else { "are" };
            table.note(
                format!("{hidden} more {are} ready: `edge status --all` lists every worker"),
                palette.faint,
            );
        }
    }
    table.print()
}

fn app_row(name: &str, app: &AppStatus, now: OffsetDateTime, palette: Palette) -> Vec<Cell> {
    let sum = |of: fn(&WorkerStatus) -> u64| app.workers.iter().map(of).sum::<u64>();
    let mut remark = readiness(app);
    let unwell = app.workers.iter().filter(|worker| is_unwell(worker)).count();
    if unwell > 0 {
        remark.push_str(&format!(", {unwell} with a failed health check"));
    }
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
        Cell::plain(restarts(app.workers.iter().map(|worker| &worker.past), now)),
        Cell::plain(remark),
    ]
}

/// How many workers are ready of those that are wanted. There may be more than that, while some take over from others: then what
/// each is at.
fn readiness(app: &AppStatus) -> String {
    let are = |state| app.workers.iter().filter(|worker| worker.state == state).count();
    let (ready, wanted) =
        (are(WorkerState::Ready), app.scale.map_or(app.workers.len(), |scale| scale.target as usize));
    if app.state != AppState::Deploying && app.workers.len() <= wanted {
        return format!("{ready} of {wanted} ready");
    }
    let others = [
        (WorkerState::Suspect, "suspect"),
        (WorkerState::Starting, "starting"),
        (WorkerState::Backoff, "in backoff"),
        (WorkerState::Draining, "draining"),
        (WorkerState::Stopping, "stopping"),
    ];
    let others = others.map(|(state, word)| (are(state), word)).into_iter().filter(|(count, _)| *count > 0);
    let words = others.map(|(count, word)| format!(", {count} {word}"));
    format!("{ready} ready{}", words.collect::<String>())
}

fn worker_row(worker: &WorkerStatus, now: OffsetDateTime, palette: Palette) -> Vec<Cell> {
    let well = worker.state == WorkerState::Ready;
    let remark = match last_exit(worker, now) {
        Some(exit) if well => {
            format!("last {} {exit}", if was_asked(&worker.past) { "failure" } else { "exit" })
        }
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
        Cell::plain(restarts([&worker.past].into_iter(), now)),
        Cell::coloured(remark, palette.faint),
    ]
}

/// Ready, and its last health check failed.
fn is_unwell(worker: &WorkerStatus) -> bool {
    worker.state == WorkerState::Ready && worker.trouble.is_some()
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

/// A worker of which there is nothing to say comes last …
const WELL: u8 = 7;

/// … and the worst first.
fn worker_rank(worker: &WorkerStatus, now: OffsetDateTime) -> u8 {
    match worker.state {
        WorkerState::Suspect => 0,
        WorkerState::Backoff => 1,
        WorkerState::Stopping => 2,
        WorkerState::Draining => 3,
        WorkerState::Starting => 4,
        WorkerState::Ready if is_unwell(worker) => 5,
        WorkerState::Ready if last_exit(worker, now).is_some() => 6,
        WorkerState::Ready => WELL,
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

fn memory(worker: &WorkerStatus) -> String {
    match worker.memory_limit_bytes {
        Some(limit) => format!("{}/{}", size(worker.memory_bytes), size(limit)),
        None => size(worker.memory_bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use time::format_description::well_known::Rfc3339;
    use time::macros::datetime;

    use super::*;
    use crate::telemetry::status::{ListenerStatus, PastStatus};

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    fn worker(slot: u32, state: WorkerState) -> WorkerStatus {
        WorkerStatus {
            slot,
            pid: Some(4711 + slot),
            state,
            in_flight: 1,
            requests: 1200,
            memory_bytes: 64 << 20,
            memory_limit_bytes: None,
            age_s: 7300,
            started: None,
            address: format!("unix:/run/edge/api.{slot}.sock"),
            trouble: None,
            past: PastStatus::default(),
        }
    }

    fn app(state: AppState, workers: Vec<WorkerStatus>) -> AppStatus {
        let all = u32::try_from(workers.len()).expect("a few");
        let scale = Some(ScaleStatus { min: all, max: all, target: all, held: false });
        AppStatus {
            state,
            generation: 1,
            queue: 0,
            scale,
            workers,
            worker_exits: BTreeMap::new(),
            failed_deploy: None,
            failed_deploy_at: None,
        }
    }

    fn failed(restarts: u64, seconds_ago: i64, how: &str) -> PastStatus {
        let at = (NOW - time::Duration::seconds(seconds_ago)).format(&Rfc3339).ok();
        PastStatus {
            after_first: restarts + 2,
            restarts,
            replacements: 2,
            last_failure: at.clone(),
            last_failure_text: Some(how.to_owned()),
            last_exit: Some(how.to_owned()),
            last_exit_at: at,
            last_exit_reason: Some(if how.starts_with("SIG") { "signal" } else { "exit" }.to_owned()),
            last_line: Some("ModuleNotFoundError: no module named \"shop\"".to_owned()),
        }
    }

    fn example() -> Status {
        let broken = WorkerStatus {
            pid: None,
            requests: 0,
            in_flight: 0,
            memory_bytes: 0,
            memory_limit_bytes: None,
            past: failed(7, 12, "exit status 1 before it was ready"),
            ..worker(1, WorkerState::Backoff)
        };
        let again = WorkerStatus {
            memory_limit_bytes: Some(512 << 20),
            past: failed(1, 300, "SIGKILL while it served"),
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
            config_file: "/etc/edge/edge.yaml".to_owned(),
            uptime_s: 1_051_200,
            listeners: vec![
                ListenerStatus { kind: "http".to_owned(), address: "[::]:80".to_owned() },
                ListenerStatus { kind: "https".to_owned(), address: "[::]:443".to_owned() },
            ],
            apps: [("api".to_owned(), api), ("shop".to_owned(), shop)].into(),
            certificates: vec![],
        }
    }

    #[test]
    fn status_is_aligned_and_worst_first_with_reasons() {
        let expected = "\
edge 0.1.0  up 12d  pid 34021
http [::]:80  https [::]:443

APP   STATE      PID  AGE  IN FLIGHT  REQUESTS    MEMORY     RESTARTS
shop  degraded                     1      1200       64M  8 (12s ago)  1 of 2 ready, 2 waiting, held at 2 by `edge scale`
  1   backoff      -    -          0         0         -  7 (12s ago)  unix:/run/edge/api.1.sock
    ! 12s ago: exit status 1 before it was ready
    ! its last line: ModuleNotFoundError: no module named \"shop\"
  0   ready     4711   2h          1      1200  64M/512M   1 (5m ago)  last exit 5m ago: SIGKILL while it served
api   up                           1      1200       64M            0  1 of 1 ready, 1 wanted of 1 to 4 by the load
  0   ready     4711   2h          1      1200       64M            0  unix:/run/edge/api.0.sock
";
        assert_eq!(status(&example(), NOW, false, false), expected);
    }

    #[test]
    fn a_failure_is_told_while_it_is_news_also_after_a_deploy_and_what_was_asked_for_never_is() {
        let ready = |past| last_exit(&WorkerStatus { past, ..worker(0, WorkerState::Ready) }, NOW);
        assert_eq!(ready(failed(1, 3599, "SIGKILL")).as_deref(), Some("59m ago: SIGKILL"));
        assert_eq!(ready(failed(1, 3600, "SIGKILL")), None);
        let asked = |past| PastStatus {
            last_exit: Some("exit status 0 after it was asked to stop".to_owned()),
            last_exit_at: NOW.format(&Rfc3339).ok(),
            last_exit_reason: Some("asked".to_owned()),
            ..past
        };
        assert_eq!(ready(asked(PastStatus::default())), None);
        assert_eq!(ready(asked(failed(9, 25, "SIGKILL"))).as_deref(), Some("25s ago: SIGKILL"));
        assert_eq!(ready(asked(failed(9, 3600, "SIGKILL"))), None);
        let started = |past| last_exit(&WorkerStatus { past, ..worker(0, WorkerState::Starting) }, NOW);
        assert_eq!(started(asked(failed(9, 3600, "SIGKILL"))), None, "it starts for another reason");
        let deployed =
            WorkerStatus { past: asked(failed(9, 25, "SIGKILL")), ..worker(0, WorkerState::Ready) };
        let one = app(AppState::Up, vec![deployed]);
        let text = status(&Status { apps: [("api".to_owned(), one)].into(), ..example() }, NOW, false, false);
        assert!(text.contains("  last failure 25s ago: SIGKILL\n"), "{text}");
        let past = failed(1, 7200, "SIGKILL");
        let waiting = WorkerStatus { past: past.clone(), ..worker(0, WorkerState::Backoff) };
        assert_eq!(last_exit(&waiting, NOW).as_deref(), Some("2h ago: SIGKILL"), "there is nothing newer");
        assert_eq!(restarts([&past].into_iter(), NOW), "1 (2h ago)");
        assert_eq!(restarts([&PastStatus { restarts: 0, ..past }].into_iter(), NOW), "0");
    }

    #[test]
    fn why_the_one_before_ended_stands_below_a_worker_that_serves() {
        let text = |past| {
            let one = app(AppState::Up, vec![WorkerStatus { past, ..worker(0, WorkerState::Ready) }]);
            status(&Status { apps: [("api".to_owned(), one)].into(), ..example() }, NOW, false, false)
        };
        let crashed = text(failed(1, 60, "exit status 1 while it served"));
        let wanted = "last exit 60s ago: exit status 1 while it served\n    ! what that one printed last: ModuleNotFoundError";
        assert!(crashed.contains(wanted), "{crashed}");
        for (seconds, how) in [(3600, "exit status 1 while it served"), (60, "SIGKILL while it served")] {
            let text = text(failed(1, seconds, how));
            assert!(!text.contains("printed last"), "{text}");
        }
    }

    #[test]
    fn what_is_the_matter_stands_below_whom_it_concerns() {
        let unwell = WorkerStatus {
            trouble: Some("failed its last 2 health checks: GET /health answered 503".to_owned()),
            ..worker(1, WorkerState::Ready)
        };
        let one = AppStatus {
            failed_deploy: Some("exit status 3 before it was ready; its last line: no such table".to_owned()),
            failed_deploy_at: (NOW - time::Duration::seconds(40)).format(&Rfc3339).ok(),
            ..app(AppState::Up, vec![worker(0, WorkerState::Ready), unwell])
        };
        let shown =
            |one| status(&Status { apps: [("api".to_owned(), one)].into(), ..example() }, NOW, false, false);
        let text = shown(one.clone());
        let rows: Vec<&str> = text.lines().skip(4).collect();
        assert!(rows[0].contains("2 of 2 ready, 1 with a failed health check"), "{text}");
        let failed = "    ! 40s ago new workers did not take over: exit status 3 before it was ready; its last line: no such table";
        assert_eq!(rows[1], failed);
        assert!(rows[2].starts_with("  1  ready"), "{text}");
        assert_eq!(rows[3], "    ! failed its last 2 health checks: GET /health answered 503");
        assert!(rows[4].starts_with("  0  ready"), "{text}");
        let at = (NOW - time::Duration::hours(2)).format(&Rfc3339).ok();
        assert!(!shown(AppStatus { failed_deploy_at: at, ..one }).contains("take over"), "no news any more");
    }

    #[test]
    fn colours_change_nothing_but_colour() {
        let mut plain = status(&example(), NOW, true, false);
        for colour in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
            assert!(plain.contains(colour));
            plain = plain.replace(colour, "");
        }
        assert_eq!(plain, status(&example(), NOW, false, false));
    }

    #[test]
    fn of_many_workers_those_that_matter_come_first_and_the_rest_is_counted() {
        let mut workers: Vec<_> = (0..100).map(|slot| worker(slot, WorkerState::Ready)).collect();
        workers[7].state = WorkerState::Draining;
        workers[9].past = failed(1, 60, "SIGKILL while it served");
        let many =
            Status { apps: [("api".to_owned(), app(AppState::Degraded, workers))].into(), ..example() };
        let text = status(&many, NOW, false, false);
        let rows: Vec<&str> = text.lines().skip(4).collect();
        assert_eq!(rows.len(), 1 + ROOMY + 1, "{text}");
        assert!(rows[0].contains("99 of 100 ready"), "{text}");
        assert!(rows[1].starts_with("  7   draining"), "{text}");
        assert!(rows[2].starts_with("  9   ready") && rows[2].contains("SIGKILL while it served"), "{text}");
        assert!(rows[3].starts_with("  0   ready"), "{text}");
        assert_eq!(rows[25], "    ! 76 more are ready: `edge status --all` lists every worker");
        let text = status(&many, NOW, false, true);
        assert_eq!(text.lines().count(), 5 + 100, "{text}");
        assert!(!text.contains("more are ready"), "{text}");
    }
}
