//! The log: one interface to the two databases. The SQL is in the modules `sqlite` and `postgres`.

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

/// The log. Reads return each event in its newest version, unless their names say otherwise.
#[derive(Clone)]
pub(crate) struct Log {
    pub(crate) database: Database,
    pub(crate) upcasters: Upcasters,
}

/// The database of the log.
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

/// Calls a method of the database, like `each!`. Stops waiting for PostgreSQL when the connections to a replaced server
/// are given up.
macro_rules! each_until_failover {
    ($self:ident, $log:ident => $call:expr) => {
        match &$self.database {
            Database::Sqlite($log) => $call.await,
            Database::Postgres($log) => $log.primary.run_until_failover($call).await,
        }
    };
}

impl Log {
    /// Opens the log and the read models' database. The scheme of the URL selects the database.
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
            return Err(Error::Settings("database_url must be `sqlite:PATH` or `postgres://…`".into()));
        };
        Ok((Self { database, upcasters }, db))
    }

    /// Returns the log's database, for statements that are valid in both databases. `db` is the read models' database.
    pub(crate) fn db(&self, db: &Db) -> Db {
        match &self.database {
            Database::Sqlite(log) => log.db(),
            Database::Postgres(_) => db.clone(),
        }
    }

    /// Brings the schema up to date. Stored data is kept.
    pub(crate) async fn migrate(&self, db: &Db, migrations: Migrations) -> Result<(), Error> {
        each!(self, log => log.migrate(db, migrations))
    }

    /// Prepares the schema for a CLI command. Migrates SQLite, which no server uses at that time. For PostgreSQL, which
    /// other processes may use, only checks that `docket migrate` has run.
    pub(crate) async fn ensure_schema(&self, db: &Db, migrations: Migrations) -> Result<(), Error> {
        match &self.database {
            Database::Sqlite(log) => log.migrate(db, migrations).await,
            Database::Postgres(log) => log.is_migrated(migrations).await,
        }
    }

    /// Appends a batch in one transaction: locks the head, checks the conditions of all appends, writes the appends
    /// that meet them, and commits.
    pub(crate) async fn append(&self, batch: &[&Append], lineages: &Lineages) -> Result<Committed, Error> {
        each!(self, log => log.append(batch, lineages))
    }

    /// Checks that an append would be written now.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        each!(self, log => log.probe())
    }

    /// Writes events with their positions. The first position must follow the head.
    pub(crate) async fn restore(&self, events: &[RecordedEvent]) -> Result<(), sqlx::Error> {
        each_until_failover!(self, log => log.restore(events))
    }

    /// Returns the position of the last event, and the log's incarnation.
    pub(crate) async fn head(&self) -> Result<(i64, String), sqlx::Error> {
        each_until_failover!(self, log => log.head())
    }

    /// Replaces the log's incarnation.
    pub(crate) async fn rename(&self, incarnation: &str) -> Result<(), sqlx::Error> {
        each_until_failover!(self, log => log.rename(incarnation))
    }

    /// Returns the events with `position > after`, in order, at most `limit`.
    pub(crate) async fn read(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        self.read_stored(after, limit).await.map(|events| self.upcast(events))
    }

    /// Returns the events with `position > after` in their stored versions, in order, at most `limit`.
    pub(crate) async fn read_stored(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        each_until_failover!(self, log => log.read(after, limit))
    }

    /// Returns the events at these positions, in order. Positions without an event are skipped.
    pub(crate) async fn read_positions(&self, positions: &[i64]) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        each_until_failover!(self, log => log.read_positions(positions)).map(|events| self.upcast(events))
    }

    /// Upcasts events to their newest versions.
    pub(crate) fn upcast(&self, events: Vec<RecordedEvent>) -> Vec<RecordedEvent> {
        events.into_iter().map(|event| upcast(&self.upcasters, event)).collect()
    }

    /// Returns the events of one aggregate with `after < sequence <= to`, in order, at most `limit`.
    pub(crate) async fn read_stream(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        after: i64,
        to: i64,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        let events =
            each_until_failover!(self, log => log.read_stream(aggregate_type, aggregate_id, after, to, limit))?;
        Ok(self.upcast(events))
    }

    /// Returns all events of several aggregates with `position < before`, stream by stream.
    pub(crate) async fn read_streams(
        &self,
        aggregate_type: &str,
        aggregate_ids: &[String],
        before: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        let events = each_until_failover!(self, log => log.read_streams(aggregate_type, aggregate_ids, before))?;
        Ok(self.upcast(events))
    }

    /// Returns the record of an idempotency key, if the key was used.
    pub(crate) async fn idempotency_record(
        &self,
        scope: &str,
        key: &str,
    ) -> Result<Option<IdempotencyRecord>, sqlx::Error> {
        each_until_failover!(self, log => log.idempotency_record(scope, key))
    }

    /// Removes idempotency records created before `created_at`, in microseconds since 1970; at most 5,000 in one call.
    /// Returns the number of removed records.
    pub(crate) async fn purge_idempotency_before(&self, created_at: i64) -> Result<u64, sqlx::Error> {
        each_until_failover!(self, log => log.purge_idempotency_before(created_at))
    }

    /// Returns the state and the version of an aggregate's snapshot, if the snapshot has this `state_version`.
    pub(crate) async fn snapshot(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        state_version: i64,
    ) -> Result<Option<(String, i64)>, sqlx::Error> {
        each_until_failover!(self, log => log.snapshot(aggregate_type, aggregate_id, state_version))
    }

    /// Saves a snapshot of an aggregate. SQLite writes it with the next append.
    pub(crate) async fn save_snapshot(&self, snapshot: Snapshot) -> Result<(), sqlx::Error> {
        match &self.database {
            Database::Sqlite(log) => {
                log.snapshots.put(snapshot);
                Ok(())
            }
            Database::Postgres(log) => log.primary.run_until_failover(log.save_snapshot(&snapshot)).await,
        }
    }
}
