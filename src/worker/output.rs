//! A worker's stdout and stderr as log lines, and the last of them kept for the report of its death.
//!
//! Must not do: let a worker wait. The pipes are read as fast as they fill; what is too long is cut.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write;
use std::rc::Rc;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::name::AppName;
use crate::worker::journal::Journal;
use crate::worker::last_words::is_frame;

/// Longest line; what is longer becomes several.
const LINE: usize = 16 * 1024;
/// Lines kept.
const KEPT_LINES: usize = 50;
/// Lines in the report of a failure to start.
pub const REPORTED: usize = 20;
/// Lines kept of a backtrace that comes after its message: the next ones would push that out.
const KEPT_FRAMES: usize = 5;
/// Bytes kept.
const KEPT_BYTES: usize = 64 * 1024;

/// The last lines a worker wrote. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tail(Rc<RefCell<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines of a backtrace in a row until now.
    frames: usize,
}

impl Tail {
    /// The lines, oldest first.
    pub fn lines(&self) -> Vec<String> {
        self.0.borrow().lines.iter().cloned().collect()
    }

    /// At most that many of the last lines, oldest first.
    pub fn last(&self, count: usize) -> Vec<String> {
        let kept = self.0.borrow();
        kept.lines.iter().skip(kept.lines.len().saturating_sub(count)).cloned().collect()
    }

    fn push(&self, line: String) {
        let mut kept = self.0.borrow_mut();
        kept.frames = if is_frame(&line) { kept.frames + 1 } else { 0 };
        if kept.frames > KEPT_FRAMES {
            return;
        }
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.lines.len() > KEPT_LINES || kept.bytes > KEPT_BYTES {
            let gone = kept.lines.pop_front().map_or(0, |line| line.len());
            kept.bytes -= gone;
        }
    }
}

/// Whose output it is.
#[derive(Debug, Clone)]
pub struct Source {
    /// The app.
    pub app: AppName,
    /// Its slot; none for what is run before the first worker.
    pub worker: Option<u32>,
    /// The process.
    pub pid: u32,
    /// `stdout` or `stderr`.
    pub stream: &'static str,
    /// Where the app's lines are kept.
    pub journal: Rc<Journal>,
}

/// Logs what comes out of `pipe` line by line until its end. Cancel-safe but for a line not yet ended.
pub async fn follow(mut pipe: pipe::Receiver, source: Source, tail: Tail) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; 8 * 1024];
    let (app, worker, pid, stream) = (source.app.as_str(), source.worker, source.pid, source.stream);
    let log = |line: String| {
        tracing::info!(target: "worker", app, worker, pid, stream, "{line}");
        source.journal.push(worker, &line);
        tail.push(line);
    };
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => lines.feed(&buffer[..count], &log),
            Err(error) => {
                tracing::warn!(app, worker, pid, stream, %error, "cannot read a worker's output");
                break;
            }
        }
    }
    lines.finish(&log);
}

/// Bytes to lines.
#[derive(Debug, Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8], line: &impl Fn(String)) {
        while !bytes.is_empty() {
            let room = LINE - self.rest.len();
            let window = &bytes[..bytes.len().min(room)];
            match memchr::memchr(b'\n', window) {
                Some(end) => {
                    self.rest.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    self.emit(line);
                }
                None => {
                    self.rest.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.rest.len() == LINE {
                        self.emit(line);
                    }
                }
            }
        }
    }

    fn finish(&mut self, line: &impl Fn(String)) {
        if !self.rest.is_empty() {
            self.emit(line);
        }
    }

    fn emit(&mut self, line: &impl Fn(String)) {
        let text = self.rest.strip_suffix(b"\r").unwrap_or(&self.rest);
        let text = printable(&String::from_utf8_lossy(text));
        self.rest.clear();
        line(text);
    }
}

/// Control characters would let a worker, or who writes into its log, move the operator's cursor. Colours, and what else is
/// said to a terminal in that form, hold no text and are left out.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(behind) = after_control_sequence(rest) {
            rest = behind;
            continue;
        }
        if c.is_control() && c != '\t' {
            // Writing to a String does not fail.
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// What stands behind the control sequence (ECMA-48 §5.4) with which `text` begins, if it begins with a whole one.
fn after_control_sequence(text: &str) -> Option<&str> {
    let parameters = text.strip_prefix("\x1b[")?;
    let intermediate = parameters.trim_start_matches(|c| matches!(c, '0'..='?'));
    let end = intermediate.trim_start_matches(|c| matches!(c, ' '..='/'));
    end.strip_prefix(|c| matches!(c, '@'..='~'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::last_words::telling;

    fn lines(chunks: &[&[u8]]) -> Vec<String> {
        let seen = RefCell::new(Vec::new());
        let mut lines = Lines::default();
        let note = |line| seen.borrow_mut().push(line);
        for chunk in chunks {
            lines.feed(chunk, &note);
        }
        lines.finish(&note);
        seen.into_inner()
    }

    #[test]
    fn chunks_become_lines_without_control_characters() {
        assert_eq!(lines(&[b"a", b"b\nc\r\n\nd"]), ["ab", "c", "", "d"]);
        assert_eq!(
            lines(&[b"red\x07\tx\x1b7\x1b]0;title\x07\n"]),
            ["red\\u{7}\tx\\u{1b}7\\u{1b}]0;title\\u{7}"]
        );
        assert_eq!(lines(&[b"\xff\n"]), ["\u{fffd}"]);
    }

    #[test]
    fn colours_are_left_out_and_hide_nothing() {
        let said = b"\x1b[32m[Nest] 1 - \x1b[39m\x1b[38;5;3m[App]\x1b[0m \x1b[2K\x1b[?25hready\x1b[m\n";
        assert_eq!(lines(&[said]), ["[Nest] 1 - [App] ready"]);
        assert_eq!(
            lines(&[b"cut off \x1b[38;5\n", b"\x1b[3\xc3\xa4\n"]),
            ["cut off \\u{1b}[38;5", "\\u{1b}[3\u{e4}"]
        );
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let long = vec![b'x'; 40 * 1024];
        let sizes: Vec<usize> = lines(&[&long]).iter().map(String::len).collect();
        assert_eq!(sizes, [LINE, LINE, 8 * 1024]);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let tail = Tail::default();
        (0..60).for_each(|n| tail.push(n.to_string()));
        assert_eq!((tail.lines().len(), tail.lines()[0].as_str()), (50, "10"));
        (0..9).for_each(|_| tail.push("x".repeat(LINE)));
        assert_eq!(tail.lines().len(), 4);
    }

    #[test]
    fn the_message_above_a_backtrace_is_kept_and_tells_most() {
        let tail = Tail::default();
        tail.push("app.rb:3:in 'connect': no database url (RuntimeError)".to_owned());
        (0..80).for_each(|n| tail.push(format!("\tfrom app.rb:{n}:in 'call'")));
        let lines = tail.last(REPORTED);
        assert_eq!((lines.len(), lines[1].as_str()), (6, "\tfrom app.rb:0:in 'call'"));
        assert_eq!(telling(&lines), Some(&lines[0]));
        tail.push("the end".to_owned());
        tail.push("\tfrom app.rb:1:in 'call'".to_owned());
        assert_eq!(telling(&tail.last(REPORTED)).map(String::as_str), Some("the end"));
        assert_eq!(telling(&lines[1..]), lines.last(), "where there is nothing else");
        assert_eq!(telling(&[]), None);
    }
}
