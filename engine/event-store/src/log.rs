//! The log: one signature over the two databases. Each statement stands in the database's own file.

use kernel::upcast::Upcasters;

use crate::append::Append;
use crate::db::Db;
use crate::error::Error;
use crate::event::RecordedEvent;
use crate::idempotency::IdempotencyRecord;
use crate::migrations::Migrations;
use crate::plan::{Committed, Lineages};
use crate::settings::Settings;
use crate::snapshots::Snapshot;
use crate::upcast::upcast;
use crate::{postgres, sqlite};

/// The log, each event read in its newest version.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) database: Database,
    pub(crate) upcasters: Upcasters,
}

/// Where the log lies.
#[derive(Clone)]
pub(crate) enum Database {
    Sqlite(sqlite::Log),
    Postgres(postgres::Log),
}

macro_rules! each {
    ($self:ident, $log:ident => $call:expr) => {
        match &$self.database {
            Database::Sqlite($log) => $call.await,
            Database::Postgres($log) => $call.await,
        }
    };
}

/// The same for what is only asked: PostgreSQL is not waited for once its connections are given up.
macro_rules! ask_each {
    ($self:ident, $log:ident => $call:expr) => {
        match &$self.database {
            Database::Sqlite($log) => $call.await,
            Database::Postgres($log) => $log.primary.answered($call).await,
        }
    };
}

impl Log {
    /// Opens the log and the read models' database; the scheme of the URL decides which.
    pub(crate) async fn open(
        settings: &Settings,
        upcasters: Upcasters,
        access: sqlite::Access,
    ) -> Result<(Self, Db), Error> {
        let url = &settings.database_url;
        let (database, db) = if let Some(path) = url.strip_prefix("sqlite:") {
            let (log, db) = sqlite::Log::open(path.trim_start_matches("//"), settings, access).await?;
            (Database::Sqlite(log), db)
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let (log, db) = postgres::Log::open(url, settings.connections_max).await?;
            (Database::Postgres(log), db)
        } else {
            return Err(Error::Settings("database_url must start with `sqlite:` (a file) or `postgres://`".into()));
        };
        Ok((Self { database, upcasters }, db))
    }

    /// The log's database, for statements that both databases understand; `db` is that of the read models.
    pub(crate) fn db(&self, db: &Db) -> Db {
        match &self.database {
            Database::Sqlite(log) => log.db(),
            Database::Postgres(_) => db.clone(),
        }
    }

    /// Brings the schema up to date; what is there stays.
    pub(crate) async fn migrate(&self, db: &Db, migrations: Migrations) -> Result<(), Error> {
        each!(self, log => log.migrate(db, migrations))
    }

    /// The same for a process that is no server. SQLite without a server is brought up to date; who shares PostgreSQL
    /// with others leaves that to `docket migrate`.
    pub(crate) async fn ensure_schema(&self, db: &Db, migrations: Migrations) -> Result<(), Error> {
        match &self.database {
            Database::Sqlite(log) => log.migrate(db, migrations).await,
            Database::Postgres(log) => log.is_migrated(migrations).await,
        }
    }

    /// One transaction: lock the head, check all that the appends rest on, write what the winners ask for, commit.
    pub(crate) async fn append(&self, batch: &[&Append], lineages: &Lineages) -> Result<Committed, Error> {
        each!(self, log => log.append(batch, lineages))
    }

    /// Whether an append would be written now.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        each!(self, log => log.probe())
    }

    /// Writes events with their positions, which must follow the head.
    pub(crate) async fn restore(&self, events: &[RecordedEvent]) -> Result<(), sqlx::Error> {
        ask_each!(self, log => log.restore(events))
    }

    /// Position of the last event and the log's incarnation.
    pub(crate) async fn head(&self) -> Result<(i64, String), sqlx::Error> {
        ask_each!(self, log => log.head())
    }

    /// Gives the log another incarnation.
    pub(crate) async fn rename(&self, incarnation: &str) -> Result<(), sqlx::Error> {
        ask_each!(self, log => log.rename(incarnation))
    }

    /// Events after `after`, in order, at most `limit`.
    pub(crate) async fn read(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        self.read_stored(after, limit).await.map(|events| self.upcast(events))
    }

    /// The same, as they are stored.
    pub(crate) async fn read_stored(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        ask_each!(self, log => log.read(after, limit))
    }

    /// Events at these positions, in order.
    pub(crate) async fn read_positions(&self, positions: &[i64]) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        ask_each!(self, log => log.read_positions(positions)).map(|events| self.upcast(events))
    }

    /// Events in their newest versions.
    pub(crate) fn upcast(&self, events: Vec<RecordedEvent>) -> Vec<RecordedEvent> {
        events.into_iter().map(|event| upcast(&self.upcasters, event)).collect()
    }

    /// One aggregate's events with `after < sequence <= to`, in order, at most `limit`.
    pub(crate) async fn read_stream(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        after: i64,
        to: i64,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        let events = ask_each!(self, log => log.read_stream(aggregate_type, aggregate_id, after, to, limit))?;
        Ok(self.upcast(events))
    }

    /// All events of several aggregates before a position, stream by stream.
    pub(crate) async fn read_streams(
        &self,
        aggregate_type: &str,
        aggregate_ids: &[String],
        before: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        let events = ask_each!(self, log => log.read_streams(aggregate_type, aggregate_ids, before))?;
        Ok(self.upcast(events))
    }

    /// What was answered under an idempotency key.
    pub(crate) async fn idempotency_record(
        &self,
        scope: &str,
        key: &str,
    ) -> Result<Option<IdempotencyRecord>, sqlx::Error> {
        ask_each!(self, log => log.idempotency_record(scope, key))
    }

    /// Removes records of idempotency keys from before a time in microseconds since 1970; at most some thousand a call.
    pub(crate) async fn purge_idempotency_before(&self, created_at: i64) -> Result<u64, sqlx::Error> {
        ask_each!(self, log => log.purge_idempotency_before(created_at))
    }

    /// The snapshot of an aggregate, where its state is of this shape: the state and the version that it is of.
    pub(crate) async fn snapshot(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        state_version: i64,
    ) -> Result<Option<(String, i64)>, sqlx::Error> {
        ask_each!(self, log => log.snapshot(aggregate_type, aggregate_id, state_version))
    }

    /// Saves the newest snapshot of an aggregate; in SQLite together with the next append.
    pub(crate) async fn save_snapshot(&self, snapshot: Snapshot) -> Result<(), sqlx::Error> {
        match &self.database {
            Database::Sqlite(log) => {
                log.snapshots.put(snapshot);
                Ok(())
            }
            Database::Postgres(log) => log.primary.answered(log.save_snapshot(&snapshot)).await,
        }
    }
}
