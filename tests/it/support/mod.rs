//! What every test stands on: `edge` itself, clients, an upstream server under the test's control, and a CA.

pub(crate) mod caddy;
pub(crate) mod client;
pub(crate) mod edge;
pub(crate) mod h2;
pub(crate) mod load;
pub(crate) mod origin;
pub(crate) mod processes;
pub(crate) mod python;
pub(crate) mod recorder;
pub(crate) mod service;
pub(crate) mod stalls;

use std::future::Future;
use std::time::Duration;

/// Awaits `future`, which must not take longer than `limit`.
pub(crate) async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {limit:?}"),
    }
}

/// Looks again and again, for at most `limit`, until `look` finds something.
pub(crate) async fn until<T>(limit: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(limit, what, looking).await
}

/// Whether the load tests run at the length of the promise.
pub(crate) fn full_length() -> bool {
    std::env::var_os("EDGE_TEST_FULL").is_some_and(|value| value == "1")
}
