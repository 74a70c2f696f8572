//! Errors of the store and the bus. Business refusals are not among them.

use std::time::Duration;

use kernel::stream::StreamId;

/// A failure of the store or of the connection to NATS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database refused a statement, is unavailable, or took too long. A retry may succeed.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The database did not answer in time. The operation may still complete.
    #[error("the database did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The schema could not be brought up to date.
    #[error("the database migration failed: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// NATS refused a request, is unavailable, or took too long.
    #[error("nats: {0}")]
    Nats(String),
    /// The settings, or the environment that they name, cannot be used. The text says what to change.
    #[error("{0}")]
    Settings(String),
    /// The database has no schema, or the schema of an older release. The text says what to do.
    #[error("{0}")]
    Schema(String),
    /// Another process has the store open for appending.
    #[error("the database {0} is in use by another docket process: stop that process first")]
    InUse(String),
    /// The disk is full or nearly full, or cannot be written. Nothing was written. Appends succeed again when the disk
    /// has room.
    #[error("{0}")]
    Storage(String),
    /// A view or table cannot be removed because other database objects, created by operators, depend on it.
    #[error(
        "the {object} cannot be removed because other objects depend on it: {dependents}. Drop those objects, repeat the \
         command, and create them again"
    )]
    Dependents {
        /// Kind and name of the object to be removed, for example `view order_summaries`.
        object: String,
        /// The objects that depend on it, in PostgreSQL's words.
        dependents: String,
    },
    /// The database cannot store one of the values. A retry fails in the same way.
    #[error("the database cannot store a value: {0}")]
    InvalidValue(String),
    /// The data contradicts stored data, or violates a constraint that an operator added to the tables. A retry fails
    /// in the same way.
    #[error("the database refused the events: {0}")]
    ConstraintViolated(String),
    /// A stored stream or snapshot cannot be read, or the JetStream stream contradicts the log.
    #[error("stored data is invalid: {0}")]
    CorruptData(String),
    /// The append contradicts itself: a programming error of the caller.
    #[error("the append is invalid: {0}")]
    Malformed(&'static str),
    /// More commands wait than can be written in time. Retry later.
    #[error("too many commands wait to be appended")]
    Overloaded,
    /// The store is shutting down.
    #[error("the store is shutting down")]
    Closing,
}

impl Error {
    /// Returns whether the database refused the data itself, so that a retry fails in the same way.
    pub fn is_data_error(&self) -> bool {
        matches!(self, Self::Database(error) if is_data_error(error))
    }

    /// Copies the error of a failed batch for each of its appends, reduced to the facts that the caller of an append
    /// needs.
    pub(crate) fn for_append(&self) -> Self {
        match self {
            Self::Timeout(waited) => Self::Timeout(*waited),
            Self::Storage(reason) => Self::Storage(reason.clone()),
            Self::Database(error) if is_data_error(error) && is_value_error(error) => {
                Self::InvalidValue(error.to_string())
            }
            Self::Database(error) if is_data_error(error) => Self::ConstraintViolated(error.to_string()),
            Self::Database(error) => Self::Database(sqlx::Error::Protocol(error.to_string())),
            other => Self::CorruptData(other.to_string()),
        }
    }

    /// Returns whether the failure is transient: the database was unavailable, busy, starting or stopping.
    pub fn is_transient(&self) -> bool {
        use sqlx::Error::{Database, Io, PoolTimedOut, Protocol, WorkerCrashed};
        match self {
            Self::Timeout(_) | Self::Database(Io(_) | PoolTimedOut | Protocol(_) | WorkerCrashed) => true,
            Self::Database(Database(error)) => {
                error.code().is_some_and(|code| match (code.len(), code.parse::<u32>()) {
                    // SQLSTATE classes of PostgreSQL: connection, resources, operator intervention, rollback; and
                    // `lock_not_available`.
                    (5, _) => ["08", "53", "57", "40", "55P03"].iter().any(|class| code.starts_with(class)),
                    // SQLITE_BUSY, SQLITE_LOCKED.
                    (_, Ok(code)) => matches!(code & 0xff, 5 | 6),
                    _ => false,
                })
            }
            _ => false,
        }
    }
}

/// Returns whether the error is a data exception (SQLSTATE class 22) or an integrity violation (class 23). In SQLite:
/// `SQLITE_CONSTRAINT` (19) and `SQLITE_MISMATCH` (20), whose extended codes use the higher bytes.
pub(crate) fn is_data_error(error: &sqlx::Error) -> bool {
    let Some(code) = error.as_database_error().and_then(|error| error.code()) else { return false };
    match (code.len(), code.parse::<u32>()) {
        (5, _) => code.starts_with("22") || code.starts_with("23"),
        (_, Ok(code)) => matches!(code & 0xff, 19 | 20),
        _ => false,
    }
}

/// Returns whether a single value caused a data error: SQLSTATE class 22, or `SQLITE_MISMATCH`.
fn is_value_error(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("22") || code == "20")
}

/// Returns whether the transaction was rolled back because of another one (serialization failure or deadlock), so that
/// it can be repeated unchanged.
pub(crate) fn is_rollback(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "40001" || code == "40P01")
}

/// Returns whether the database role lacks a privilege.
pub(crate) fn is_denied(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42501"))
}

/// Reason why an append failed. Nothing was written, with one exception: after an [`Error::Database`] at commit, or an
/// [`Error::Timeout`], the outcome is unknown, and only an idempotency key makes a retry safe.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// A stream is at another version than the append expects.
    #[error("the stream {stream} is at version {actual}, not at the expected version {expected}")]
    Conflict {
        /// The first stream that differs, in the order of the writes and then of the checks.
        stream: StreamId,
        /// The version that the append expects.
        expected: i64,
        /// The version in the log.
        actual: i64,
    },
    /// The idempotency key was already used. Read the recorded answer.
    #[error("the idempotency key was already used")]
    KeyUsed,
    /// The uncommitted write on which this write was decided did not commit. Load the committed state and decide again.
    #[error("the write on which this one was decided did not commit")]
    Predecessor,
    /// The reactor's checkpoint has moved, its fence was raised, or an event that the append settles is already
    /// settled.
    #[error("the reactor's checkpoint or backlog has changed")]
    Fenced,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}
