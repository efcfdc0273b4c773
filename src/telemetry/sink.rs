//! Where lines go: one writer thread for each destination, so that a stalled pipe or a full disk stops that thread and
//! nothing else. Whoever has lines hands them over and goes on; what finds no room is dropped, counted, and reported in the
//! stream itself as soon as that flows again.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock::{Clock, SystemClock};
use crate::telemetry::line::{Shape, Stamp, put_number};

/// Memory that may wait for one writer.
const QUEUE_LIMIT: usize = 4 << 20;

/// A destination of lines. Clones are handles to the same one and may be sent to other threads.
#[derive(Clone, Debug)]
pub struct Sink(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    shape: Shape,
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Batch>,
    bytes: usize,
    /// Lines that found no room and were not reported yet.
    unreported: u64,
    dropped: u64,
    reopen: bool,
    closing: bool,
    writing: bool,
}

#[derive(Debug)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
}

impl Batch {
    /// Memory it occupies.
    fn size(&self) -> usize {
        size_of::<Self>() + self.text.capacity()
    }
}

/// What the writer takes in hand next.
struct Work {
    batch: Option<Batch>,
    unreported: u64,
    reopen: bool,
}

impl Sink {
    /// Standard output.
    pub fn stdout(shape: Shape) -> io::Result<Self> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Self::start(shape, Destination { file, path: None, torn: false, failing: false })
    }

    /// A file, appended to; created with mode 0640 where there is none.
    pub fn file(shape: Shape, path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let torn = ends_inside_a_line(path);
        Self::start(shape, Destination { file, path: Some(path.to_owned()), torn, failing: false })
    }

    fn start(shape: Shape, mut destination: Destination) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            shape,
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("lines".to_owned()).spawn(move || {
            while let Some(work) = writer.next() {
                destination.perform(&writer, work);
            }
        })?;
        Ok(Self(shared))
    }

    /// Shape of the lines that belong here.
    pub fn shape(&self) -> Shape {
        self.0.shape
    }

    /// Hands over `text`, which holds `lines` whole lines. Never waits for the destination.
    pub fn send(&self, text: Vec<u8>, lines: u64) {
        let mut state = self.0.lock();
        let batch = Batch { text, lines };
        if state.bytes + batch.size() > QUEUE_LIMIT || state.closing {
            state.dropped += lines;
            state.unreported += lines;
            return;
        }
        state.bytes += batch.size();
        state.batches.push_back(batch);
        drop(state);
        self.0.filled.notify_one();
    }

    /// Opens the file anew under its path, for log rotation. Lines handed over before may go to either file, none is lost.
    /// Where opening fails, the old file stays in use.
    pub fn reopen(&self) {
        self.0.lock().reopen = true;
        self.0.filled.notify_one();
    }

    /// Lines dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.0.lock().dropped
    }

    /// Takes no more lines, and waits up to `within` until those handed over are written; returns whether they are. Blocks:
    /// only for the end of the process, when nothing else runs.
    pub fn close(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut state = self.0.lock();
        state.closing = true;
        self.0.filled.notify_one();
        while state.writing || !state.batches.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.emptied.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Shared {
    /// The state holds after any single step, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do; `None` once closed and empty.
    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        state.writing = false;
        loop {
            let batch = state.batches.pop_front();
            if batch.is_some() || state.reopen {
                state.bytes -= batch.as_ref().map_or(0, Batch::size);
                state.writing = true;
                let unreported = if batch.is_some() { std::mem::take(&mut state.unreported) } else { 0 };
                return Some(Work { batch, unreported, reopen: std::mem::take(&mut state.reopen) });
            }
            self.emptied.notify_all();
            if state.closing {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lost(&self, lines: u64, unreported: u64) {
        let mut state = self.lock();
        state.dropped += lines;
        state.unreported += lines + unreported;
    }
}

/// What the writer thread owns.
struct Destination {
    file: File,
    path: Option<PathBuf>,
    /// The last write ended inside a line.
    torn: bool,
    /// The last write failed; said once until one succeeds.
    failing: bool,
}

impl Destination {
    fn perform(&mut self, shared: &Shared, work: Work) {
        if work.reopen {
            self.reopen();
        }
        let Some(batch) = work.batch else { return };
        let mut text = Vec::new();
        if self.torn {
            text.push(b'\n');
        }
        if work.unreported > 0 {
            put_summary(shared.shape, work.unreported, &mut text);
        }
        if text.is_empty() {
            text = batch.text;
        } else {
            text.extend_from_slice(&batch.text);
        }
        match self.write(&text) {
            Ok(()) => {
                self.torn = false;
                self.failing = false;
            }
            Err(error) => {
                shared.lost(batch.lines, work.unreported);
                self.complain(&error);
            }
        }
    }

    fn write(&mut self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            match self.file.write(text) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.torn = text[written - 1] != b'\n';
                    text = &text[written..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever shares the pipe made it non-blocking for all of us; this thread has time.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::park_timeout(Duration::from_millis(10));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(file) => {
                self.file = file;
                self.torn = ends_inside_a_line(path);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot reopen the access log; the old file stays in use");
            }
        }
    }

    /// Standard output has nowhere to complain to: the summary follows once it works again.
    fn complain(&mut self, error: &io::Error) {
        if let Some(path) = self.path.as_ref().filter(|_| !self.failing) {
            tracing::warn!(path = %path.display(), %error, "cannot write the access log; its lines are dropped");
        }
        self.failing = true;
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Whether who wrote there before was killed, or the disk full, within a line.
fn ends_inside_a_line(path: &Path) -> bool {
    let last = || {
        let file = File::open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, file.metadata()?.len().saturating_sub(1))?;
        io::Result::Ok(byte[0])
    };
    // To open a pipe for reading waits for its writer.
    path.is_file() && last().is_ok_and(|byte| byte != b'\n')
}

fn put_summary(shape: Shape, lines: u64, out: &mut Vec<u8>) {
    let mut stamp = Stamp::default();
    let now = SystemClock.now();
    match shape {
        Shape::Json => {
            out.extend_from_slice(b"{\"ts\":\"");
            out.extend_from_slice(stamp.full(now));
            out.extend_from_slice(b"\",\"level\":\"warn\",\"msg\":\"log lines were dropped: their destination did not take them\",\"lines\":");
            put_number(out, lines);
            out.extend_from_slice(b"}\n");
        }
        Shape::Text { .. } => {
            out.extend_from_slice(stamp.short(now));
            out.extend_from_slice(
                b"  WARN log lines were dropped: their destination did not take them  lines=",
            );
            put_number(out, lines);
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const TEXT: Shape = Shape::Text { colour: false };
    const LONG: Duration = Duration::from_secs(20);

    fn into(file: File) -> Sink {
        Sink::start(TEXT, Destination { file, path: None, torn: false, failing: false }).expect("a thread")
    }

    fn pipe() -> (File, File) {
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        (File::from(read), File::from(write))
    }

    #[test]
    fn everything_handed_over_is_written_in_order_before_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        let sink = Sink::file(TEXT, &path).expect("opens");
        for number in 0..10_000 {
            sink.send(format!("line {number}\n").into_bytes(), 1);
        }
        assert!(sink.close(LONG));
        let written = std::fs::read_to_string(&path).expect("reads");
        let expected: String = (0..10_000).map(|number| format!("line {number}\n")).collect();
        assert_eq!(written, expected);
        assert_eq!(sink.dropped(), 0);
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_no_time_and_hears_how_many() {
        let (mut read, write) = pipe();
        let sink = into(write);
        let line = vec![b'\n'; 64 << 10];
        let start = Instant::now();
        for _ in 0..200 {
            sink.send(line.clone(), line.len() as u64);
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        let dropped = sink.dropped();
        assert!(dropped > 0);
        assert!(!sink.close(Duration::from_millis(20)), "nobody reads");

        let reader = thread::spawn(move || {
            let mut text = String::new();
            read.read_to_string(&mut text).expect("reads");
            text
        });
        assert!(sink.close(LONG));
        let text = reader.join().expect("reads");
        let reported =
            text.lines().filter_map(|line| line.split_once("take them  lines=")?.1.parse::<u64>().ok());
        assert_eq!(reported.sum::<u64>(), dropped);
    }

    #[test]
    fn a_closed_reader_ends_nothing() {
        let (read, write) = pipe();
        drop(read);
        let sink = into(write);
        sink.send(b"a\n".to_vec(), 1);
        sink.send(b"b\n".to_vec(), 1);
        assert!(sink.close(LONG));
        assert_eq!(sink.dropped(), 2);
    }

    #[test]
    fn a_rotated_file_is_left_and_a_new_one_begun() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let sink = Sink::file(TEXT, &path).expect("opens");
        std::fs::rename(&path, &old).expect("renames");
        sink.reopen();
        sink.send(b"after\n".to_vec(), 1);
        assert!(sink.close(LONG));
        assert_eq!(std::fs::read(&path).expect("reads"), b"after\n");
        assert_eq!(std::fs::read(&old).expect("reads"), b"");
    }

    #[test]
    fn a_line_that_was_cut_off_in_the_file_is_not_continued() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        for (before, after) in [("", "new\n"), ("old\n", "old\nnew\n"), ("old\n{\"cut", "old\n{\"cut\nnew\n")]
        {
            std::fs::write(&path, before).expect("writes");
            let sink = Sink::file(TEXT, &path).expect("opens");
            sink.send(b"new\n".to_vec(), 1);
            assert!(sink.close(LONG));
            assert_eq!(std::fs::read_to_string(&path).expect("reads"), after);
        }
    }

    #[test]
    fn a_directory_that_is_gone_keeps_the_old_file_in_use() {
        let dir = tempfile::tempdir().expect("a directory");
        let (inner, moved) = (dir.path().join("logs"), dir.path().join("moved"));
        std::fs::create_dir(&inner).expect("creates");
        let sink = Sink::file(TEXT, &inner.join("access.log")).expect("opens");
        std::fs::rename(&inner, &moved).expect("renames");
        sink.reopen();
        sink.send(b"after\n".to_vec(), 1);
        assert!(sink.close(LONG));
        assert_eq!(std::fs::read(moved.join("access.log")).expect("reads"), b"after\n");
    }
}
