//! What can go wrong below the domain: never a business reason.

/// A failure of the store or of the stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database refused, is away, or took too long. Asking again may succeed.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("migration: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// NATS refused, is away, or took too long.
    #[error("nats: {0}")]
    Nats(String),
    /// The settings cannot work; the text says what to change.
    #[error("{0}")]
    Settings(String),
    /// A stored stream or snapshot does not read.
    #[error("stored data: {0}")]
    Stored(String),
    /// More waits to be written than the queue may hold; ask again later.
    #[error("the append queue is full")]
    Overloaded,
    /// The store is shutting down.
    #[error("the store is closing")]
    Closing,
}

/// Why an append did not happen. Nothing of it was written, unless the store answered [`Error::Database`] at commit:
/// then the outcome is unknown, and only an idempotency key makes asking again safe.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The aggregate is at another version than the command expected.
    #[error("expected version {expected}, the stream is at {actual}")]
    Conflict {
        /// What the command was decided on.
        expected: i64,
        /// What the log holds.
        actual: i64,
    },
    /// The idempotency key was used before: read what was answered then.
    #[error("the idempotency key was used before")]
    KeyUsed,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}
