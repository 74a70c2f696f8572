//! What can go wrong below the domain: never a business reason.

use std::time::Duration;

use kernel::stream::StreamId;

/// A failure of the store or of the stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database refused, is away, or took too long. Asking again may succeed.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The database said nothing for so long; what was asked of it may happen yet.
    #[error("the database did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The schema could not be brought up to date.
    #[error("migration: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// NATS refused, is away, or took too long.
    #[error("nats: {0}")]
    Nats(String),
    /// The settings cannot work; the text says what to change.
    #[error("{0}")]
    Settings(String),
    /// Another process has the store open for writing.
    #[error("{0} is in use by another docket process: stop it first")]
    InUse(String),
    /// The disk is nearly full, full, or cannot be written. Nothing was written; it passes when there is room.
    #[error("{0}")]
    Storage(String),
    /// What must go is needed by what operators have made.
    #[error(
        "{object} cannot be removed, because other objects need it: {dependents}. Drop them, repeat this, and create them again"
    )]
    Dependents {
        /// The view or table.
        object: String,
        /// What needs it, as PostgreSQL says it.
        dependents: String,
    },
    /// The database cannot hold a value that it was given. Another try fails the same way.
    #[error("the database cannot hold a value: {0}")]
    Unstorable(String),
    /// What was given contradicts what is stored, or a rule that somebody gave the tables. Another try fails the same way.
    #[error("the database refused the events: {0}")]
    Refused(String),
    /// A stored stream or snapshot does not read.
    #[error("stored data: {0}")]
    Stored(String),
    /// The caller asked for something that cannot be done: a programming error.
    #[error("malformed append: {0}")]
    Malformed(&'static str),
    /// More waits than can be written in time; ask again later.
    #[error("more commands wait than can be written in time")]
    Overloaded,
    /// The store is shutting down.
    #[error("the store is closing")]
    Closing,
}

impl Error {
    /// Whether the database refused what it was given, so that another try would fail the same way.
    pub fn is_about_the_data(&self) -> bool {
        matches!(self, Self::Database(error) if is_about_the_data(error))
    }

    /// The same for one append of a failed batch: what its sender needs to know of it.
    pub(crate) fn of_each(&self) -> Self {
        match self {
            Self::Silent(waited) => Self::Silent(*waited),
            Self::Storage(reason) => Self::Storage(reason.clone()),
            Self::Database(error) if is_about_the_data(error) && is_about_a_value(error) => {
                Self::Unstorable(error.to_string())
            }
            Self::Database(error) if is_about_the_data(error) => Self::Refused(error.to_string()),
            Self::Database(error) => Self::Database(sqlx::Error::Protocol(error.to_string())),
            other => Self::Stored(other.to_string()),
        }
    }

    /// Whether the database was away, busy, or about to start or stop: another try may find it well.
    pub fn may_pass(&self) -> bool {
        use sqlx::Error::{Database, Io, PoolTimedOut, Protocol, WorkerCrashed};
        match self {
            Self::Silent(_) | Self::Database(Io(_) | PoolTimedOut | Protocol(_) | WorkerCrashed) => true,
            Self::Database(Database(error)) => {
                error.code().is_some_and(|code| match (code.len(), code.parse::<u32>()) {
                    // Classes of PostgreSQL: connection, resources, operator intervention, rollback; and a lock not got in time.
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

/// Data exceptions (SQLSTATE class 22) and integrity violations (class 23); in SQLite `SQLITE_CONSTRAINT` (19) and
/// `SQLITE_MISMATCH` (20), whose extended codes carry more in the higher bytes.
pub(crate) fn is_about_the_data(error: &sqlx::Error) -> bool {
    let Some(code) = error.as_database_error().and_then(|error| error.code()) else { return false };
    match (code.len(), code.parse::<u32>()) {
        (5, _) => code.starts_with("22") || code.starts_with("23"),
        (_, Ok(code)) => matches!(code & 0xff, 19 | 20),
        _ => false,
    }
}

/// Of the errors about the data, those about a value by itself: SQLSTATE class 22, `SQLITE_MISMATCH`.
fn is_about_a_value(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code.starts_with("22") || code == "20")
}

/// Whether the transaction lost to another one (serialization failure or deadlock) and may be tried again as it is.
pub(crate) fn is_rollback(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == "40001" || code == "40P01")
}

/// Whether the role lacks a privilege.
pub(crate) fn is_denied(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42501"))
}

/// Why an append did not happen. Nothing of it was written, unless the store answered [`Error::Database`] at commit:
/// then the outcome is unknown, and only an idempotency key makes asking again safe.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// A stream is at another version than the append expected.
    #[error("expected version {expected} of {stream}, it is at {actual}")]
    Conflict {
        /// The first such stream, in the order of the writes and then of the checks.
        stream: StreamId,
        /// What the append rests on.
        expected: i64,
        /// What the log holds.
        actual: i64,
    },
    /// The idempotency key was used before: read what was answered then.
    #[error("the idempotency key was used before")]
    KeyUsed,
    /// The write that this one was decided on did not commit: decide again on committed state.
    #[error("the write before this one did not commit")]
    Predecessor,
    /// The reactor's checkpoint is not where the reaction left it, its fence was raised, or what it settles is settled.
    #[error("the reactor's checkpoint is elsewhere")]
    Fenced,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] Error),
}
