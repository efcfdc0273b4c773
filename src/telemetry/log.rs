//! Events as lines: what `tracing` macros say, through the same sink as access lines, so that no two lines mix and a reader
//! who stalls stops nobody.

use std::fmt;
use std::io::IsTerminal;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::clock::{Clock, SystemClock};
use crate::config::model::{LogFormat, LogLevel};
use crate::report::Report;
use crate::telemetry::line::{
    Palette, Shape, Stamp, last_part, put_json, put_text, put_whole_json, put_whole_text,
};
use crate::telemetry::sink::Sink;

/// Target of the events that carry a line of a worker's output in `message`; with `app`, `worker`, `pid`, `stream`.
pub const WORKER_OUTPUT: &str = "worker";

/// The field with what a worker or command printed last. Where it is too long its beginning is left out: the cause of an end
/// stands last.
const LAST_LINES: &str = "last_lines";

/// Another subscriber was installed before.
#[derive(Debug, thiserror::Error)]
#[error("cannot install the log")]
pub struct InstallError(#[source] tracing::subscriber::SetGlobalDefaultError);

/// Sends every event of this process to `sink`, from now to its end.
pub fn install(level: LogLevel, sink: Sink) -> Result<(), InstallError> {
    let subscriber = tracing_subscriber::registry().with(Lines { sink }.with_filter(filter(level)));
    tracing::subscriber::set_global_default(subscriber).map_err(InstallError)
}

/// The shape of lines on standard output.
pub fn stdout_shape(format: LogFormat) -> Shape {
    let terminal = std::io::stdout().is_terminal();
    shape(format, terminal, wants_colour(terminal))
}

/// The shape of lines in a file.
pub fn file_shape(format: LogFormat) -> Shape {
    shape(format, false, false)
}

/// Whether output to a terminal, or to something else, may be coloured: see <https://no-color.org>.
pub fn wants_colour(terminal: bool) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    terminal && !no_color && !dumb
}

fn shape(format: LogFormat, terminal: bool, colour: bool) -> Shape {
    match format {
        LogFormat::Text => Shape::Text { colour },
        LogFormat::Json => Shape::Json,
        LogFormat::Auto if terminal => Shape::Text { colour },
        LogFormat::Auto => Shape::Json,
    }
}

/// Edge's own events from `level` up, those of libraries from warn up. What workers print is theirs, and has no level.
fn filter(level: LogLevel) -> Targets {
    let own = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new()
        .with_default(own.min(LevelFilter::WARN))
        // Of what a client floods a connection with edge tells itself, once a second.
        .with_target("h2", own.min(LevelFilter::ERROR))
        .with_target("edge", own)
        // No finer than they are: what is finer is then passed over at once, wherever a library says it.
        .with_target(WORKER_OUTPUT, LevelFilter::INFO)
}

struct Lines {
    sink: Sink,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let output = event.metadata().target() == WORKER_OUTPUT;
        let mut line = Vec::with_capacity(256);
        match self.sink.shape() {
            Shape::Json => fields.write_json(*event.metadata().level(), output, &mut line),
            Shape::Text { colour } if output => fields.write_output(Palette::new(colour), &mut line),
            Shape::Text { colour } => {
                fields.write_text(*event.metadata().level(), Palette::new(colour), &mut line);
            }
        }
        self.sink.send(line, 1);
    }
}

/// The fields of one event in their order.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

enum Value {
    Text(String),
    /// A number or a boolean, which look alike in JSON and in text.
    Bare(String),
}

impl Fields {
    fn write_json(&self, level: Level, output: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"ts\":\"");
        out.extend_from_slice(Stamp::default().full(SystemClock.now()));
        out.extend_from_slice(b"\",\"level\":");
        put_json(out, level_name(level).as_bytes());
        out.extend_from_slice(b",\"msg\":");
        if output {
            put_whole_json(out, self.message.as_bytes());
        } else {
            put_json(out, self.message.as_bytes());
        }
        for (name, value) in &self.others {
            out.push(b',');
            put_json(out, name.as_bytes());
            out.push(b':');
            match value {
                Value::Text(text) => put_json(out, text.as_bytes()),
                Value::Bare(text) => out.extend_from_slice(text.as_bytes()),
            }
        }
        out.extend_from_slice(b"}\n");
    }

    /// `12:00:00.000Z  INFO worker is ready  app=api worker=0 pid=4711`
    fn write_text(&self, level: Level, palette: Palette, out: &mut Vec<u8>) {
        out.extend_from_slice(palette.faint.as_bytes());
        out.extend_from_slice(Stamp::default().short(SystemClock.now()));
        out.extend_from_slice(palette.reset.as_bytes());
        let (colour, name) = match level {
            Level::ERROR => (palette.bad, " ERROR "),
            Level::WARN => (palette.warn, "  WARN "),
            Level::INFO => (palette.good, "  INFO "),
            Level::DEBUG => (palette.name, " DEBUG "),
            Level::TRACE => (palette.faint, " TRACE "),
        };
        out.extend_from_slice(colour.as_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(palette.reset.as_bytes());
        put_text(out, self.message.as_bytes());
        for (index, (name, value)) in self.others.iter().enumerate() {
            out.extend_from_slice(if index == 0 { b"  " } else { b" " });
            out.extend_from_slice(palette.faint.as_bytes());
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            out.extend_from_slice(palette.reset.as_bytes());
            match value {
                Value::Text(text) if text.is_empty() || text.contains([' ', '"', '=']) => {
                    put_json(out, text.as_bytes());
                }
                Value::Text(text) | Value::Bare(text) => put_text(out, text.as_bytes()),
            }
        }
        out.push(b'\n');
    }

    /// `api/0[4711] | line`
    fn write_output(&self, palette: Palette, out: &mut Vec<u8>) {
        out.extend_from_slice(palette.name.as_bytes());
        put_text(out, self.text("app").as_bytes());
        out.push(b'/');
        put_text(out, self.text("worker").as_bytes());
        out.push(b'[');
        put_text(out, self.text("pid").as_bytes());
        out.push(b']');
        out.extend_from_slice(palette.reset.as_bytes());
        out.extend_from_slice(palette.faint.as_bytes());
        out.extend_from_slice(b" | ");
        out.extend_from_slice(palette.reset.as_bytes());
        put_whole_text(out, self.message.as_bytes());
        out.push(b'\n');
    }

    fn text(&self, name: &str) -> &str {
        let found = self.others.iter().find(|(known, _)| *known == name);
        found.map_or("-", |(_, value)| match value {
            Value::Text(text) | Value::Bare(text) => text,
        })
    }

    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::Text(text) | Value::Bare(text)) => self.message = text,
            (LAST_LINES, Value::Text(text)) => self.others.push((LAST_LINES, Value::Text(last_part(text)))),
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities.
        let value =
            if value.is_finite() { Value::Bare(value.to_string()) } else { Value::Text(value.to_string()) };
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bare(value.to_string()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(value.to_owned()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Value::Text(Report(value).to_string()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(format!("{value:?}")));
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The lines that `act` causes, each without its stamp.
    fn lines(level: LogLevel, shape: Shape, act: impl FnOnce()) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let sink = Sink::file(shape, &path).expect("opens");
        let subscriber =
            tracing_subscriber::registry().with(Lines { sink: sink.clone() }.with_filter(filter(level)));
        tracing::subscriber::with_default(subscriber, act);
        assert!(sink.close(Duration::from_secs(20)));
        let text = std::fs::read_to_string(&path).expect("reads");
        text.lines().map(str::to_owned).collect()
    }

    const TEXT: Shape = Shape::Text { colour: false };

    #[test]
    fn an_event_in_json_has_its_fields_flat() {
        let written = lines(LogLevel::Info, Shape::Json, || {
            let error = std::io::Error::other("no \"space\"");
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::warn!(
                app = "api",
                worker = 0_u32,
                pid = 4711,
                ready = true,
                error,
                "worker \x1b[0m ended"
            );
        });
        let value: serde_json::Value = serde_json::from_str(&written[0]).expect("JSON");
        assert!(value["ts"].as_str().is_some_and(|ts| ts.len() == 24 && ts.ends_with('Z')));
        let rest = &written[0][written[0].find(",\"level\"").expect("a level")..];
        assert_eq!(
            rest,
            ",\"level\":\"warn\",\"msg\":\"worker \\u001b[0m ended\",\"app\":\"api\",\"worker\":0,\"pid\":4711,\
             \"ready\":true,\"error\":\"no \\\"space\\\"\"}"
        );
    }

    #[test]
    fn an_event_in_text_is_short() {
        let written = lines(LogLevel::Info, TEXT, || {
            tracing::info!(app = "api", worker = 0_u32, reason = "exit status 1", "worker ended");
        });
        assert_eq!(&written[0][13..], "  INFO worker ended  app=api worker=0 reason=\"exit status 1\"");
    }

    #[test]
    fn of_what_a_worker_printed_last_the_end_is_kept() {
        let last_lines = format!("{}RuntimeError: no database url", "  File \"app.py\", line 1\n".repeat(60));
        let written = lines(LogLevel::Info, Shape::Json, || {
            tracing::error!(last_lines, pid = 4711, "worker ended before it was ready");
        });
        let value: serde_json::Value = serde_json::from_str(&written[0]).expect("JSON");
        let kept = value["last_lines"].as_str().unwrap_or_default();
        assert!(kept.starts_with("…  File"), "{kept}");
        assert!(kept.ends_with("line 1\nRuntimeError: no database url"), "{kept}");
        assert_eq!(value["pid"], 4711);
    }

    #[test]
    fn a_worker_s_line_is_printed_as_it_came_but_for_control_characters() {
        let long = "x".repeat(3000);
        let say = || {
            tracing::info!(target: WORKER_OUTPUT, app = "api", worker = 0_u32, pid = 4711, stream = "stderr", "a\u{7}b");
            tracing::info!(target: WORKER_OUTPUT, app = "api", worker = 0_u32, pid = 4711, stream = "stdout", "{long}");
        };
        let written = lines(LogLevel::Error, TEXT, say);
        assert_eq!(written[0], "api/0[4711] | a\\u0007b");
        assert_eq!(written[1], format!("api/0[4711] | {long}"));
        let written = lines(LogLevel::Error, Shape::Json, say);
        let value: serde_json::Value = serde_json::from_str(&written[1]).expect("JSON");
        assert_eq!(value["msg"], long);
        assert_eq!(value["stream"], "stdout");
    }

    #[test]
    fn libraries_speak_from_warn_up_and_edge_from_the_configured_level() {
        let say = || {
            tracing::debug!("own debug");
            tracing::info!("own info");
            tracing::info!(target: "hyper::proto", "their info");
            tracing::warn!(target: "hyper::proto", "their warning");
        };
        let count = |level| lines(level, TEXT, say).len();
        assert_eq!(count(LogLevel::Debug), 3);
        assert_eq!(count(LogLevel::Info), 2);
        assert_eq!(count(LogLevel::Warn), 1);
        assert_eq!(count(LogLevel::Error), 0);
    }

    #[test]
    fn auto_is_text_on_a_terminal_and_json_otherwise() {
        assert_eq!(shape(LogFormat::Auto, true, true), Shape::Text { colour: true });
        assert_eq!(shape(LogFormat::Auto, false, false), Shape::Json);
        assert_eq!(shape(LogFormat::Text, false, false), Shape::Text { colour: false });
        assert_eq!(shape(LogFormat::Json, true, true), Shape::Json);
    }
}
