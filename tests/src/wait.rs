//! Waits for conditions by polling.

use std::time::{Duration, Instant};

use crate::process::POLL;

/// Default time limit of a wait.
const DEADLINE: Duration = Duration::from_secs(60);

/// Calls `probe` until it returns a value, and returns the value.
///
/// # Panics
/// After a minute. `what` describes the condition in the message.
pub async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, probe).await
}

/// Calls `probe` until it returns a value, and returns the value.
///
/// # Panics
/// After `deadline`. `what` describes the condition in the message.
pub async fn until_within<T>(deadline: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < deadline, "waited {deadline:?} for: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Calls `holds` until it returns true.
///
/// # Panics
/// After a minute. `what` describes the condition in the message.
pub async fn until_true(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    until(what, async || holds().await.then_some(())).await;
}
