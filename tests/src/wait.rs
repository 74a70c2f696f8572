//! Waits for conditions that have no event to wait for, by asking again and again.

use std::time::{Duration, Instant};

use crate::process::POLL;

/// Time limit of a wait that has no shorter limit of its own.
const DEADLINE: Duration = Duration::from_secs(60);

/// Calls `probe` until it returns a value, and returns that.
///
/// # Panics
/// After a minute. `what` says what was expected.
pub async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, probe).await
}

/// Calls `probe` until it returns a value within `deadline`, and returns that.
///
/// # Panics
/// After `deadline`. `what` says what was expected.
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
/// After a minute. `what` says what was expected.
pub async fn until_true(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    until(what, async || holds().await.then_some(())).await;
}
