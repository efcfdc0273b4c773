//! A command that waits for the running edge, and what it says when its operator does not want to wait any more.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::daemon::progress::Said;

/// What a shell adds to the number of the signal that ended a command.
const BY_SIGNAL: u8 = 128;

/// Whether the operation waits for its turn, as far as the running edge has said.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting(Arc<AtomicBool>);

impl Waiting {
    /// Takes in what was said.
    pub(super) fn hear(&self, said: &Said) {
        self.0.store(said.is_waiting(), Ordering::Relaxed);
    }

    /// What becomes of the operation if the command ends now.
    fn outlook(&self, config: &Path) -> String {
        if self.0.load(Ordering::Relaxed) {
            return "interrupted before its turn came: it is given up and has changed nothing".to_owned();
        }
        format!(
            "interrupted; the running edge goes on with it: look with `edge --config {} status`, how it ends is in the log",
            config.display()
        )
    }
}

/// The outcome of `work`, which blocks; or, where SIGINT or SIGTERM comes first, the exit status that goes with that, after the
/// operator was told what the running edge of this configuration file does.
pub(super) fn unless_interrupted<T: Send + 'static>(
    waiting: &Waiting,
    config: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Result<T, u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let number = async {
            tokio::select! {
                () = came(&mut interrupt) => SignalKind::interrupt(),
                () = came(&mut terminate) => SignalKind::terminate(),
            }
        };
        tokio::select! {
            done = tokio::task::spawn_blocking(work) => match done {
                Ok(outcome) => Ok(Ok(outcome)),
                Err(bug) => Err(io::Error::other(bug)),
            },
            kind = number => {
                // Where this cannot be printed, the exit status has to do.
                let _ = writeln!(io::stderr(), "edge: {}", waiting.outlook(config));
                let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
                Ok(Err(BY_SIGNAL.saturating_add(number)))
            }
        }
    });
    // Does not wait for work that nobody wants any more.
    runtime.shutdown_background();
    outcome
}

async fn came(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending().await
    }
}
