//! Whether the files that a process is started from answer at all. Those of a file server that is gone keep whoever asks for them
//! in the kernel, and that must not be the thread which starts the workers of all apps.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::config::model::WorkerSpec;
use crate::worker::adapter::Plan;
use crate::worker::launch::LaunchError;
use crate::worker::runnable;

/// After this long it is told what is waited for.
const SLOW: Duration = Duration::from_secs(5);

/// Who looks at the files of one spec: one at a time, however often and long that is waited for in vain.
#[derive(Debug)]
pub(super) struct Look {
    turn: Arc<Semaphore>,
    /// The working directory has answered whoever looks.
    entered: Arc<AtomicBool>,
}

impl Default for Look {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), entered: Arc::default() }
    }
}

impl Look {
    /// Completes once the files by which `plan` is started have answered, good or bad: what is wrong with them is the launch's to
    /// say. `told` hears what has not, after a while. Cancel-safe.
    pub(super) async fn answered(
        &self,
        spec: &WorkerSpec,
        plan: &Plan,
        patience: Duration,
        told: impl FnOnce(&str),
    ) -> Result<(), LaunchError> {
        let (spec, plan) = (spec.clone(), plan.clone());
        let silent = {
            let (dir, program) = (spec.working_dir.clone(), plan.argv.first().cloned().unwrap_or_default());
            move || match self.entered.load(Ordering::Relaxed) {
                false => format!("the working directory {}", dir.display()),
                true => format!("the program `{program}`"),
            }
        };
        let looked = async {
            let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return };
            let entered = Arc::clone(&self.entered);
            let look = move || {
                let _turn = turn;
                entered.store(false, Ordering::Relaxed);
                // Opened: what is remembered of a directory would answer for a while. Not waited for if it is a pipe.
                let flags = nix::libc::O_DIRECTORY | nix::libc::O_NONBLOCK;
                let _told_at_launch =
                    OpenOptions::new().read(true).custom_flags(flags).open(&spec.working_dir);
                entered.store(true, Ordering::Relaxed);
                runnable::obstacle(&spec, &plan)
            };
            let _told_at_launch = tokio::task::spawn_blocking(look).await;
        };
        tokio::pin!(looked);
        let slow = SLOW.min(patience / 2);
        if tokio::time::timeout(slow, looked.as_mut()).await.is_ok() {
            return Ok(());
        }
        told(&silent());
        let rest = tokio::time::timeout(patience.saturating_sub(slow), looked).await;
        rest.map_err(|_| LaunchError::Silent { what: silent(), seconds: patience.as_secs_f64() })
    }
}
