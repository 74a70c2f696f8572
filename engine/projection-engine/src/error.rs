//! Errors of the projection engine.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use event_store::error::Error as StoreError;
use futures::FutureExt;
use kernel::stream::StreamId;

use crate::state::FoldError;

/// Errors of projecting, rebuilding and verifying.
///
/// A batch that fails is not written. After [`Error::Store`] the outcome of a commit may be unknown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed or is unavailable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An event cannot be applied to its aggregate.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The fence of the checkpoints has changed: another process projects now, or a rebuild has switched generations.
    #[error("another process or a rebuild has taken over the checkpoints")]
    Fenced,
    /// A checkpoint is beyond the end of the log: the log was replaced, or restored from an older backup.
    #[error(
        "the read models are at position {position}, but the log ends at {head}: the log was restored or replaced. Run `docket replay --all`, and see \"Backup and restore\" in docs/operations.md"
    )]
    Ahead {
        /// Position of the checkpoint.
        position: i64,
        /// Position of the last event of the log.
        head: i64,
    },
    /// The log has a different event at the position of a checkpoint: the log was restored, and new events were
    /// appended to it.
    #[error(
        "the read models are at position {position} of another log: the log was restored or replaced. Run `docket replay --all`, and see \"Backup and restore\" in docs/operations.md"
    )]
    OtherLog {
        /// Position of the checkpoint.
        position: i64,
    },
    /// The code of a projection panicked: a bug of this program.
    #[error("a projection panicked: {0}")]
    Panicked(String),
    /// Another process rebuilds or projects the checkpoint group.
    #[error("another rebuild is running: wait until it ends (/v1/projections shows its progress)")]
    Busy,
    /// A stream is parked. A rebuild must apply every event, so it does not start.
    #[error(
        "stream {stream} is parked at event {position}: run `docket dead-letters retry {position}` or `docket dead-letters discard {position}` first"
    )]
    Parked {
        /// The parked stream.
        stream: StreamId,
        /// Position of the event that cannot be applied.
        position: i64,
    },
    /// A stream is parked, and no projector has carried out the operator's decision about it.
    #[error(
        "stream {stream} is parked at event {position} until a projector carries out the decision about it: start a projector (`docket dev` or `docket serve`), or wait a second and try again"
    )]
    DecisionPending {
        /// The parked stream.
        stream: StreamId,
        /// Position of the event that the decision is about.
        position: i64,
    },
    /// There is no older generation that a rollback can use.
    #[error(
        "projection {0} has no older generation that a rollback can use: no rebuild since the last `docket replay --prune` left one of this version, or a decision about a dead letter has made it outdated"
    )]
    NoOlder(String),
    /// The live generation is of an older version or outdated, so it cannot be compared with the rows that this release
    /// would write.
    #[error(
        "projection {projection} is being rebuilt by this release: wait until the rebuild ends (/v1/projections shows its progress)"
    )]
    Frozen {
        /// Name of the projection.
        projection: String,
    },
    /// The live generation was built by a newer release.
    #[error(
        "projection {projection} is at version {version}, but this program has version {known}: use the newer program"
    )]
    Newer {
        /// Name of the projection.
        projection: String,
        /// Version of the live generation in the database.
        version: i64,
        /// Version of the projection in this program.
        known: i64,
    },
}

/// Runs `work` and turns a panic into [`Error::Panicked`], so that the failure is reported and `work` is tried again.
pub(crate) async fn catch_panic<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let caught = AssertUnwindSafe(work).catch_unwind().await;
    caught.unwrap_or_else(|panic| Err(Error::Panicked(panic_text(&*panic))))
}

/// Returns the message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the panic has no message").to_owned()
}
