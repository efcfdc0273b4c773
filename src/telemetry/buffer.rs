//! One thread's lines on their way to a sink, in batches: writing a line takes no lock and wakes nobody.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::telemetry::access::AccessRecord;
use crate::telemetry::line::{Shape, Stamp};
use crate::telemetry::sink::Sink;

/// A thread's lines are handed over at this size at the latest.
const BATCH: usize = 64 << 10;

/// A thread's lines are handed over after this time at the latest.
const LINGER: Duration = Duration::from_millis(150);

/// The lines of one thread on their way to a sink: written into one buffer and handed over in batches. Clones are handles to
/// the same buffer.
#[derive(Clone)]
pub struct LineBuffer(Rc<Buffered>);

struct Buffered {
    sink: Sink,
    text: RefCell<Vec<u8>>,
    lines: Cell<u64>,
    begun: Notify,
}

impl LineBuffer {
    /// An empty buffer in front of `sink`.
    pub fn new(sink: Sink) -> Self {
        Self(Rc::new(Buffered {
            sink,
            text: RefCell::new(Vec::new()),
            lines: Cell::new(0),
            begun: Notify::new(),
        }))
    }

    /// Adds one line: `put` appends it with its line feed.
    pub fn push(&self, put: impl FnOnce(&mut Vec<u8>)) {
        let mut text = self.0.text.borrow_mut();
        if text.is_empty() {
            text.reserve_exact(BATCH + BATCH / 8);
            self.0.begun.notify_one();
        }
        put(&mut text);
        let full = text.len() >= BATCH;
        drop(text);
        self.0.lines.set(self.0.lines.get() + 1);
        if full {
            self.flush();
        }
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        self.0.flush();
    }

    /// Hands lines over soon after they were added, however few; never returns. Costs nothing while there are none.
    /// Cancel-safe: dropping the last handle hands over the rest.
    pub async fn run(&self) {
        loop {
            self.0.begun.notified().await;
            tokio::time::sleep(LINGER).await;
            self.flush();
        }
    }
}

impl Buffered {
    fn flush(&self) {
        let mut text = self.text.borrow_mut();
        if text.is_empty() {
            return;
        }
        // They leave in a piece of their own size: what waits for a stalled reader holds no air, and the buffer stays this thread's.
        let batch = text.clone();
        text.clear();
        self.sink.send(batch, self.lines.replace(0));
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The access log as one thread sees it. Clones are handles to the same.
#[derive(Clone)]
pub struct AccessLog(Option<Rc<OpenLog>>);

struct OpenLog {
    shape: Shape,
    stamp: RefCell<Stamp>,
    lines: LineBuffer,
}

impl AccessLog {
    /// Writes nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Writes to `sink` in its shape. Somebody must run [`Self::run`] on the same thread.
    pub fn new(sink: Sink) -> Self {
        let shape = sink.shape();
        let lines = LineBuffer::new(sink);
        Self(Some(Rc::new(OpenLog { shape, stamp: RefCell::default(), lines })))
    }

    /// Writes one record; never waits.
    pub fn record(&self, record: &AccessRecord) {
        if let Some(log) = &self.0 {
            log.lines.push(|out| record.write(log.shape, &mut log.stamp.borrow_mut(), out));
        }
    }

    /// Hands over what there is.
    pub fn flush(&self) {
        if let Some(log) = &self.0 {
            log.lines.flush();
        }
    }

    /// Hands records over soon after they were made; never returns. Cancel-safe.
    pub async fn run(&self) {
        match &self.0 {
            Some(log) => log.lines.run().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sink(path: &Path) -> Sink {
        Sink::file(Shape::Text { colour: false }, path).expect("opens")
    }

    fn written(sink: &Sink, path: &Path) -> String {
        assert!(sink.close(Duration::from_secs(20)));
        std::fs::read_to_string(path).expect("reads")
    }

    #[test]
    fn lines_leave_whole_and_in_order_the_last_ones_with_the_buffer() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        let sink = sink(&path);
        let lines = LineBuffer::new(sink.clone());
        for number in 0..10_000 {
            lines.push(|out| out.extend_from_slice(format!("line {number}\n").as_bytes()));
        }
        drop(lines);
        let expected: String = (0..10_000).map(|number| format!("line {number}\n")).collect();
        assert_eq!(written(&sink, &path), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn few_lines_are_handed_over_soon() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        let sink = sink(&path);
        let lines = LineBuffer::new(sink.clone());
        let add = async {
            for line in ["one\n", "two\n"] {
                lines.push(|out| out.extend_from_slice(line.as_bytes()));
                tokio::time::sleep(2 * LINGER).await;
            }
        };
        tokio::select! {
            () = lines.run() => unreachable!("run never returns"),
            () = add => {}
        }
        assert_eq!(written(&sink, &path), "one\ntwo\n");
    }

    #[test]
    fn lines_that_find_a_closed_sink_are_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let sink = sink(&dir.path().join("access.log"));
        assert!(sink.close(Duration::from_secs(20)));
        let lines = LineBuffer::new(sink.clone());
        lines.push(|out| out.extend_from_slice(b"one\n"));
        lines.push(|out| out.extend_from_slice(b"two\n"));
        lines.flush();
        assert_eq!(sink.dropped(), 2);
    }
}
