//! Metrics that are sampled periodically.

use std::time::{Duration, Instant};

use command_engine::reactions::reactor::Reactor;
use command_engine::reactions::status::{self, NextCount};
use event_store::error::Error;
use event_store::store::Store;
use projection_engine::progress::Progress;
use tokio_util::sync::CancellationToken;

use crate::module::Measure;
use crate::settings::Roles;

/// Interval between measurements of positions and lag, and least interval between measurements of a module.
const OBSERVE_EVERY: Duration = Duration::from_secs(2);
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// How long one measurement of a module may take.
const MEASURE_WITHIN: Duration = Duration::from_secs(60);

/// Periodically measures the positions of the log, the lag of read models and the state of reactors, until `stop`.
pub async fn measure_positions(
    store: Store,
    progress: Progress,
    reactors: Vec<&'static dyn Reactor>,
    roles: Roles,
    stop: CancellationToken,
) {
    let mut next_count = NextCount::default();
    loop {
        let outcome = async {
            store.record_metrics().await?;
            if roles.project {
                progress.observe(&store).await?;
            }
            if roles.react {
                status::observe(&store, &reactors, &mut next_count).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = outcome.await {
            tracing::debug!(%error, "Could not measure positions and lag.");
        }
        tokio::select! {
            () = tokio::time::sleep(OBSERVE_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Periodically runs a module's measurement, until `stop`. A failure or a panic in it does not affect other
/// measurements.
pub async fn measure(store: Store, measure: Measure, stop: CancellationToken) {
    loop {
        let started = Instant::now();
        let store = store.clone();
        let work = tokio::spawn(async move { measure(store).await });
        match tokio::time::timeout(MEASURE_WITHIN, work).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::debug!(%error, "The measurement of a module failed."),
            Ok(Err(error)) => tracing::error!(%error, "The measurement of a module panicked."),
            Err(_) => tracing::warn!("The measurement of a module did not finish within a minute."),
        }
        // The measurement takes at most a hundredth of the time, however much there is to count.
        tokio::select! {
            () = tokio::time::sleep((started.elapsed() * 100).max(MEASURE_EVERY)) => {}
            () = stop.cancelled() => return,
        }
    }
}
