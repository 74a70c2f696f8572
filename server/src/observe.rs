//! What is measured by looking.

use std::time::{Duration, Instant};

use event_store::store::Store;
use projection_engine::progress::Progress;

use crate::module::Measure;
use crate::settings::Roles;

/// How often positions and lag are measured, and how often modules measure.
const OBSERVE_EVERY: Duration = Duration::from_secs(2);
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Measures, now and then, what nobody else measures by the way.
pub async fn observe(
    store: Store,
    progress: Progress,
    roles: Roles,
    measures: Vec<Measure>,
    stop: tokio_util::sync::CancellationToken,
) {
    let mut measured_at = Instant::now();
    loop {
        let outcome = async {
            store.observe().await?;
            if roles.project {
                progress.observe(&store).await?;
                if measured_at <= Instant::now() {
                    let started = Instant::now();
                    for measure in &measures {
                        measure(store.clone()).await?;
                    }
                    // However much there is to count, it takes a hundredth of the time.
                    measured_at = Instant::now() + (started.elapsed() * 100).max(MEASURE_EVERY);
                }
            }
            Ok::<_, event_store::error::Error>(())
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
