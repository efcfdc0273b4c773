//! Writes certificates and histories one after the other, away from the thread that drives: what was said first is on the
//! disk first.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::cert::bundle::CertBundle;
use crate::cert::ca_id::CaId;
use crate::cert::history::History;
use crate::cert::store::CertStore;
use crate::name::HostPattern;
use crate::report::Report;
use crate::scope::Scope;

/// Something to write for one name.
pub struct Job {
    /// Of which CA.
    pub ca: CaId,
    /// Of which name.
    pub name: HostPattern,
    /// What.
    pub what: What,
    /// Told how it went, in words; may be dropped.
    pub done: oneshot::Sender<Result<(), String>>,
}

/// What is written.
pub enum What {
    /// A new generation.
    Bundle(Arc<CertBundle>),
    /// The history.
    History(Box<History>),
}

/// Starts the writer. It ends once every sender is gone and everything is written; it does not heed `scope`'s drain, since
/// what was obtained must not be lost.
pub fn start(store: Arc<dyn CertStore>, scope: &Scope) -> mpsc::UnboundedSender<Job> {
    let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
    scope.spawn(async move {
        while let Some(Job { ca, name, what, done }) = queue.recv().await {
            let store = Arc::clone(&store);
            let written = tokio::task::spawn_blocking(move || match what {
                What::Bundle(bundle) => store.save(&ca, &name, &bundle),
                What::History(history) => store.remember(&ca, &name, &history),
            })
            .await;
            let told = match written {
                Ok(written) => written.map_err(|error| Report(&error).to_string()),
                Err(error) => Err(format!("storage did not answer: {error}")),
            };
            // Nobody waits for records whose loss only costs an early retry.
            drop(done.send(told));
        }
    });
    jobs
}
