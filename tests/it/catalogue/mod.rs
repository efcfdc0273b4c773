//! The catalogue of bad inputs: what clients, workers and the machine may do to edge, and what must happen then. A row is kept
//! by cases of its own, which run here against the real binary, or by tests that stand elsewhere and are named.
//!
//! A id is a group's letter and a number: A framing of HTTP/1, B targets and hosts, C fields, D slowness and floods, E TLS,
//! F HTTP/2, G upgrades, H workers, I the machine, state and logs.

mod answers;
mod fields;
mod framing;
mod handshake;
mod house;
mod http2;
mod oracle;
mod patience;
mod promises;
mod siege;
mod targets;
mod upgrade;

use std::collections::BTreeSet;
use std::fs;

use crate::support::client::raw;
use crate::support::edge::{Edge, Setup};
use crate::support::h2::{End, H2, get, headers};
use crate::support::python::root;
use crate::support::recorder::{Recorded, Recorder};

/// One row.
pub(crate) struct Row {
    pub(crate) id: &'static str,
    /// What comes.
    pub(crate) input: &'static str,
    /// What must happen.
    pub(crate) outcome: &'static str,
    /// Tests that keep it, besides cases with its id: `FILE::FUNCTION`.
    pub(crate) tests: &'static [&'static str],
    /// Where edge does otherwise than others might, and why.
    pub(crate) deviation: Option<&'static str>,
}

impl Row {
    const fn new(
        id: &'static str,
        input: &'static str,
        outcome: &'static str,
        tests: &'static [&'static str],
    ) -> Self {
        Self { id, input, outcome, tests, deviation: None }
    }

    const fn deviating(self, deviation: &'static str) -> Self {
        Self { deviation: Some(deviation), ..self }
    }
}

/// How many rows each group has.
const GROUPS: [(&str, usize, &[Row]); 9] = [
    ("A", 20, framing::ROWS),
    ("B", 15, targets::ROWS),
    ("C", 10, fields::ROWS),
    ("D", 11, patience::ROWS),
    ("E", 10, handshake::ROWS),
    ("F", 13, http2::ROWS),
    ("G", 4, upgrade::ROWS),
    ("H", 14, answers::ROWS),
    ("I", 15, house::ROWS),
];

/// The ids of every case that a group runs itself.
fn cases() -> BTreeSet<&'static str> {
    let http1 = [framing::cases(), targets::cases(), fields::cases(), upgrade::cases()];
    let http1 = http1.into_iter().flatten().map(|case| case.id);
    let http2 = [targets::http2(), fields::http2(), http2::cases()];
    let http2 = http2.into_iter().flatten().map(|case| case.id);
    http1.chain(http2).chain(answers::cases().into_iter().map(|case| case.id)).collect()
}

#[test]
fn every_row_is_kept_by_a_case_or_by_a_test_that_exists() {
    let cases = cases();
    let (mut kept, mut wrong) = (Vec::new(), Vec::new());
    for (group, count, rows) in GROUPS {
        for number in 1..=count {
            let id = if group == "G" { format!("G{number}u") } else { format!("{group}{number:02}") };
            let Some(row) = rows.iter().find(|row| row.id == id) else {
                wrong.push(format!("{id} has no row"));
                continue;
            };
            let gone: Vec<_> = row.tests.iter().filter(|test| !exists(test)).collect();
            let has_case = cases.iter().any(|case| case.split(' ').next() == Some(row.id));
            if !gone.is_empty() {
                wrong.push(format!("{id} ({} → {}): there is no {gone:?}", row.input, row.outcome));
            } else if row.tests.is_empty() && !has_case {
                wrong.push(format!("{id} ({} → {}): nothing keeps it", row.input, row.outcome));
            } else {
                kept.push(format!("{id}{}", if row.deviation.is_some() { "*" } else { "" }));
            }
        }
        assert_eq!(rows.len(), count, "a row of {group} stands twice, or is none of the catalogue's");
    }
    let all: usize = GROUPS.iter().map(|(_, count, _)| count).sum();
    println!("figure: catalogue {} of {all} rows (* decided otherwise): {}", kept.len(), kept.join(" "));
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Whether `FILE::FUNCTION` is a test.
fn exists(test: &str) -> bool {
    let Some((file, function)) = test.split_once("::") else { return false };
    let Ok(text) = fs::read_to_string(root().join(file)) else { return false };
    let Some(at) = text.find(&format!("fn {function}(")) else { return false };
    let line = text[..at].rfind('\n').unwrap_or(0);
    let above = text[..line].lines().rev().map(str::trim);
    above.take_while(|line| line.starts_with("#[") || line.starts_with("//")).any(|line| {
        let attribute = line.trim_start_matches("#[");
        line.starts_with("#[") && (attribute.starts_with("test]") || attribute.starts_with("tokio::test"))
    })
}

/// Bytes of a client on a connection of HTTP/1.1.
pub(crate) struct Case {
    /// Its row, and what is special about it.
    pub(crate) id: &'static str,
    pub(crate) sent: Vec<u8>,
    pub(crate) then: Then,
}

/// What must come of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Then {
    /// One answer of this status, then the end of the connection. No worker hears of it.
    Refused(u16),
    /// The same, but the connection goes on.
    Answered(u16),
    /// The end of the connection without a word.
    Dropped,
    /// So many requests reach the worker, whose texts hold these and none of those.
    Passed(usize, &'static [&'static str], &'static [&'static str]),
}

/// Shorthand for a row's case.
pub(crate) fn case(id: &'static str, sent: impl Into<Vec<u8>>, then: Then) -> Case {
    Case { id, sent: sent.into(), then }
}

/// A request to `a.test` with these lines after its `Host`.
pub(crate) fn with(line: &str, rest: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: a.test\r\n{rest}")
}

/// Frames of a client on a connection of HTTP/2, about its first stream.
pub(crate) struct Frames {
    pub(crate) id: &'static str,
    pub(crate) sent: Vec<u8>,
    pub(crate) then: Answer,
}

/// What must come of them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// This status. No worker hears of it, and the connection goes on.
    Status(u16),
    /// The stream is reset, and the connection goes on.
    Reset,
    /// The connection ends with an error.
    GoAway,
    /// It reaches the worker, whose text holds these and none of those.
    Passed(&'static [&'static str], &'static [&'static str]),
}

/// An edge before a worker that records.
pub(crate) async fn recorded(recorder: &Recorder) -> Edge {
    let yaml = format!("domains: [a.test]\nhttp: serve\nmax_body: 1MB\n{}", recorder.origin.upstream());
    Setup::new().app("a", &yaml).start().await
}

/// What follows each case, and must not be taken for a part of it, nor the other way round.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";

/// Runs cases, each on a connection of its own, and shows every one that came out otherwise.
pub(crate) async fn run(cases: Vec<Case>) {
    let recorder = Recorder::start().await;
    let edge = recorded(&recorder).await;
    let mut wrong = Vec::new();
    for Case { id, sent, then } in cases {
        let mut client = raw(&edge, "a.test").await;
        client.write([&sent[..], NEXT.as_bytes()].concat()).await;
        let heard = client.read_to_close().await;
        let seen = recorder.take();
        let asked: Vec<_> = seen.iter().map(Recorded::asked).collect();
        let answers = heard.lines().filter(|line| line.starts_with("HTTP/1.1 ")).count();
        let status = heard.get(9..12).and_then(|digits| digits.parse::<u16>().ok());
        let right = match then {
            Then::Refused(expected) => (status, answers, asked.is_empty()) == (Some(expected), 1, true),
            Then::Answered(expected) => (status, answers) == (Some(expected), 2) && asked == ["GET /next"],
            Then::Dropped => heard.is_empty() && asked.is_empty(),
            Then::Passed(count, has, lacks) => {
                asked.len() == count + 1 && asked[count] == "GET /next" && holds(&seen[..count], has, lacks)
            }
        };
        if !right {
            wrong.push(format!("{id}: not {then:?} but {asked:?} {:?}: {heard}", texts(&seen)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    edge.stop().await;
}

/// Runs cases of HTTP/2, each on a connection of its own, and shows every one that came out otherwise.
pub(crate) async fn run_http2(cases: Vec<Frames>) {
    let recorder = Recorder::start().await;
    let edge = recorded(&recorder).await;
    let mut wrong = Vec::new();
    for Frames { id, sent, then } in cases {
        let mut client = H2::open(&edge, "a.test", &[]).await;
        client.send(&sent).await;
        let end = client.end_of(1).await;
        let seen = recorder.take();
        let right = match then {
            Answer::Status(expected) => end == End::Status(expected) && seen.is_empty(),
            Answer::Reset => matches!(end, End::Reset(_)) && seen.is_empty(),
            Answer::GoAway => matches!(end, End::GoAway(_)) && seen.is_empty(),
            Answer::Passed(has, lacks) => {
                end == End::Status(200) && seen.len() == 1 && holds(&seen, has, lacks)
            }
        };
        let goes_on = match then {
            Answer::Status(_) | Answer::Reset => {
                client.send(headers(3, true, &get("a.test", "/next", &[]))).await;
                let next = client.end_of(3).await == End::Status(200);
                recorder.take();
                next
            }
            Answer::GoAway | Answer::Passed(..) => true,
        };
        if !right || !goes_on {
            wrong.push(format!("{id}: not {then:?} but {end:?} {:?}, goes on: {goes_on}", texts(&seen)));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    edge.stop().await;
}

fn texts(seen: &[Recorded]) -> Vec<String> {
    seen.iter().map(Recorded::text).collect()
}

fn holds(seen: &[Recorded], has: &[&str], lacks: &[&str]) -> bool {
    let text = texts(seen).concat();
    has.iter().all(|words| text.contains(words)) && !lacks.iter().any(|words| text.contains(words))
}
