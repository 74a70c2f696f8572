//! Why a read model was not brought on.

use event_store::error::Error as StoreError;

use crate::order::FoldError;

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
        "the read models are at position {position}, the log ends at {head}: it was restored or replaced. Run `docket replay --all`"
    )]
    Ahead {
        /// The furthest checkpoint.
        position: i64,
        /// Position of the last event.
        head: i64,
    },
    /// One rebuild runs at a time.
    #[error("another rebuild is running: wait for it, its progress is in /v1/projections")]
    Busy,
    /// A rebuild must know every event.
    #[error(
        "order {order_id} is parked at event {position}: run `docket dead-letters retry {position}` or `discard` first"
    )]
    Parked {
        /// The order.
        order_id: String,
        /// Position of the event that cannot be applied.
        position: i64,
    },
    /// There is nothing to go back to.
    #[error("{0} has no older generation: nothing was rebuilt since the last `docket replay --prune`")]
    NoOlder(String),
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
