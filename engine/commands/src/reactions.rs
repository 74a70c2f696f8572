//! Reactions: events of the log lead to commands, exactly once inside the log.
//!
//! The events of a reaction, the checkpoint, the backlog and the deadlines change in one transaction. An input that
//! fails goes to the backlog and is retried from there. Later events of its key wait behind it; events of other keys
//! continue. Reactors never run for a rebuild, a verification or an import of history.
//!
//! - [`reactor`]: the trait [`reactor::Reactor`].
//! - [`process`]: runs a [`kernel::process::Process`] as a reactor.
//! - [`scope`]: the data that a reaction may read.
//! - [`status`]: the state of reactors, for metrics and health checks.
//! - `batch`: decides a batch of inputs; `leader`: reads inputs and appends their effects.

mod batch;
mod leader;
pub mod process;
pub mod reactor;
pub mod scope;
pub mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use event_store::reactions::Reactions;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::decider::Decider;
use crate::reactions::leader::Leader;
pub use crate::reactions::leader::{Clock, reacting};
use crate::reactions::reactor::Reactor;

/// How often the checkpoints are polled for changes by operators.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Runs registered reactors until `stop`. Each reactor has its own task, so a reactor that hangs does not delay another
/// one.
pub async fn run(decider: Arc<Decider>, reactors: Vec<&'static dyn Reactor>, clock: Clock, stop: CancellationToken) {
    if reactors.is_empty() {
        return;
    }
    let (seen, fences) = watch::channel(Arc::default());
    let watching = tokio::spawn(watch_fences(decider.store().reactions(), seen, stop.clone()));
    let leaders = reactors.into_iter().map(|reactor| {
        let leader = Leader { reactor, decider: decider.clone(), clock: clock.clone(), fences: fences.clone() };
        tokio::spawn(leader.run(stop.clone()))
    });
    futures::future::join_all(leaders.chain([watching])).await;
}

/// Polls the checkpoints once for all leaders of the process.
async fn watch_fences(rows: Reactions, seen: watch::Sender<Arc<BTreeMap<String, i64>>>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match rows.checkpoints().await {
            Ok(all) => {
                let fences = all.into_iter().map(|checkpoint| (checkpoint.reactor, checkpoint.fence)).collect();
                seen.send_replace(Arc::new(fences));
            }
            Err(error) => tracing::debug!(%error, "Could not read the checkpoints of reactors."),
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Returns the system clock.
pub fn system_clock() -> Clock {
    Arc::new(event_store::now_us)
}
