//! Why a read model was not brought on.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use event_store::error::Error as StoreError;
use futures::FutureExt;
use kernel::stream::StreamId;

use crate::state::FoldError;

/// Nothing of the batch was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database is away.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An event does not apply.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// Another process projects now, or a rebuild has switched generations.
    #[error("the checkpoints were taken over")]
    Fenced,
    /// The read models know events that the log does not have: the log is another one, or an older copy.
    #[error(
        "the read models are at position {position}, the log ends at {head}: it was restored or replaced. Run `docket replay --all`, and see \"Backup and restore\" in docs/operations.md"
    )]
    Ahead {
        /// The furthest checkpoint.
        position: i64,
        /// Position of the last event.
        head: i64,
    },
    /// The log has another event where the read models stand: it was restored, and has grown since.
    #[error(
        "the read models are at event {position} of another log: this one was restored or replaced. Run `docket replay --all`, and see \"Backup and restore\" in docs/operations.md"
    )]
    OtherLog {
        /// The checkpoint.
        position: i64,
    },
    /// A projection's code failed: a fault of this program.
    #[error("a projection panicked: {0}")]
    Panicked(String),
    /// One rebuild runs at a time.
    #[error("another rebuild is running: wait for it, its progress is in /v1/projections")]
    Busy,
    /// A rebuild must know every event.
    #[error("{stream} is parked at event {position}: run `docket dead-letters retry {position}` or `discard` first")]
    Parked {
        /// The stream.
        stream: StreamId,
        /// Position of the event that cannot be applied.
        position: i64,
    },
    /// The same, though somebody has decided.
    #[error(
        "{stream} is parked at event {position} until a projector has carried out what was decided: start one (`docket dev` or `docket serve`), or wait a second"
    )]
    Waits {
        /// The stream.
        stream: StreamId,
        /// Position of the event.
        position: i64,
    },
    /// There is nothing to go back to.
    #[error(
        "{0} has no older generation that could be brought up to date: none was rebuilt since the last `docket replay --prune`, or a dead letter was settled meanwhile"
    )]
    NoOlder(String),
    /// What serves is not of this release, and cannot be compared with what it would write.
    #[error("{projection} is being built anew by this release: wait for it, its progress is in /v1/projections")]
    Frozen {
        /// The projection.
        projection: String,
    },
    /// A newer release has built it.
    #[error("{projection} is at version {version}, this program knows {known}: use the newer program")]
    Newer {
        /// The projection.
        projection: String,
        /// Version in the database.
        version: i64,
        /// Version of this program.
        known: i64,
    },
}

/// A panic as a failure like others: reported, and tried again.
pub(crate) async fn catch_panic<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let caught = AssertUnwindSafe(work).catch_unwind().await;
    caught.unwrap_or_else(|panic| Err(Error::Panicked(panic_text(&*panic))))
}

/// What a panic says.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it gave no reason").to_owned()
}
