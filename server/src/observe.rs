//! What is measured by looking.

use std::time::{Duration, Instant};

use command_engine::reactions::reactor::Reactor;
use command_engine::reactions::status::{self, NextCount};
use event_store::error::Error;
use event_store::store::Store;
use projection_engine::progress::Progress;
use tokio_util::sync::CancellationToken;

use crate::module::Measure;
use crate::settings::Roles;

/// How often positions and lag are measured, and how often modules measure.
const OBSERVE_EVERY: Duration = Duration::from_secs(2);
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// How long a module may measure.
const MEASURE_WITHIN: Duration = Duration::from_secs(60);

/// Measures, now and then, what nobody else measures by the way.
pub async fn observe(
    store: Store,
    progress: Progress,
    reactors: Vec<&'static dyn Reactor>,
    roles: Roles,
    stop: CancellationToken,
) {
    let mut next_count = NextCount::default();
    loop {
        let outcome = async {
            store.observe().await?;
            if roles.project {
                progress.observe(&store).await?;
            }
            if roles.react {
                status::observe(&store, &reactors, &mut next_count).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = outcome.await {
            tracing::debug!(%error, "not measured");
        }
        tokio::select! {
            () = tokio::time::sleep(OBSERVE_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Lets a module measure, now and then. What fails or panics in it stops nobody else's measuring.
pub async fn measure(store: Store, measure: Measure, stop: CancellationToken) {
    loop {
        let started = Instant::now();
        let store = store.clone();
        let work = tokio::spawn(async move { measure(store).await });
        match tokio::time::timeout(MEASURE_WITHIN, work).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::debug!(%error, "a module did not measure"),
            Ok(Err(error)) => tracing::error!(%error, "a module failed to measure"),
            Err(_) => tracing::warn!("a module has measured for a minute"),
        }
        // However much there is to count, it takes a hundredth of the time.
        tokio::select! {
            () = tokio::time::sleep((started.elapsed() * 100).max(MEASURE_EVERY)) => {}
            () = stop.cancelled() => return,
        }
    }
}
