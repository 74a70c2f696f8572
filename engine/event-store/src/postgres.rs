//! The log in PostgreSQL.

mod append;
pub(crate) mod locks;
pub(crate) mod primary;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use sqlx::Connection;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgPool;
use tokio::sync::Mutex;

use crate::append::Append;
use crate::db::Db;
use crate::error::{Error, is_data_error, is_denied, is_rollback};
use crate::event::RecordedEvent;
use crate::idempotency::{IDEMPOTENCY_RECORD, IdempotencyRecord};
use crate::migrations::Migrations;
use crate::plan::{Committed, Lineages};
use crate::postgres::append::Writer;
use crate::postgres::locks::Locks;
use crate::postgres::primary::{Primary, Purpose};
use crate::snapshots::Snapshot;

const EVENT: &str = "select position, aggregate_type, aggregate_id, sequence, event_type, event_version, \
                     payload::text, metadata::text, coalesce(recorded_at, 0) from events";

/// Selects the log's head. During a long snapshot the row has many dead versions; the index leads directly to the
/// newest.
const HEAD: &str = "select position, incarnation from log_head order by position desc limit 1";

/// Maximum time of an append. Then its connection is closed, because a server that vanished never answers.
const APPEND_WITHIN: Duration = Duration::from_secs(14);
/// Maximum time for which a probe may use the appender's connection.
const PROBE_WITHIN: Duration = Duration::from_millis(1_500);
/// Key of the row that a probe writes before it rolls back. Each process has its own key, so that probes of different
/// processes do not wait for each other.
static PROBE_KEY: LazyLock<String> = LazyLock::new(|| format!("readiness probe {}", uuid::Uuid::new_v4()));
/// Idle time after which a connection is tested before its next use.
const IDLE_BEFORE_TEST: Duration = Duration::from_secs(1);

/// Number of connections that write read models: for the projector, a rebuild, and short writes of queries and
/// operators.
const VIEW_WRITERS: u32 = 4;
/// Number of retries of a batch whose transaction was rolled back because of a deadlock or a serialization failure.
const APPEND_RETRIES: u32 = 5;

/// Returns the maximum number of connections of one process: two pools for queries, the writers of read models, the
/// appender, the check of the server, and the leader locks.
pub(crate) fn connections(connections_max: u32) -> u32 {
    2 * connections_max + VIEW_WRITERS + 3
}

#[derive(Clone)]
pub(crate) struct Log {
    /// Connections for reading the log and loading aggregates.
    pub(crate) pool: PgPool,
    pub(crate) primary: Primary,
    /// The appender's own connection, opened on first use, so that an append never waits behind a query.
    writer: Arc<Mutex<Option<Writer>>>,
    /// The leader locks of this process.
    pub(crate) locks: Locks,
}

impl Log {
    pub(crate) async fn open(url: &str, connections_max: u32) -> Result<(Self, Db), Error> {
        let primary = Primary::find(url).await?;
        let log = Self {
            pool: primary.pool(Purpose::Log, connections_max),
            primary: primary.clone(),
            writer: Arc::default(),
            locks: Locks::default(),
        };
        let db = Db::Postgres {
            read: primary.pool(Purpose::Views, connections_max),
            write: primary.reserved_pool(Purpose::Project, VIEW_WRITERS),
            primary,
        };
        Ok((log, db))
    }

    pub(crate) async fn migrate(&self, _db: &Db, migrations: Migrations) -> Result<(), Error> {
        // A role that does not own the tables can serve if the schema is complete.
        if self.is_migrated(migrations).await.is_ok() {
            return Ok(());
        }
        let all = migrations.postgres_log.iter().chain(migrations.postgres_read.iter()).cloned().collect();
        // A newer release only adds migrations, so this release also works with them.
        let migrations = std::borrow::Cow::Owned(all);
        let migrator = Migrator { migrations, ignore_missing: true, ..Migrator::DEFAULT };
        // Uses its own connection without time limits: numbering the events of a large existing database may take long.
        let mut reserved = self.primary.connect(Purpose::Migrate).await?;
        match migrator.run(&mut reserved.connection).await {
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) if is_denied(&error) => {
                Err(Error::Settings(format!(
                    "the schema is not up to date, and this role may not change it ({error}). As the role that owns the \
                     tables, run `docket migrate --grant-to ROLE`, where ROLE is the role of this process"
                )))
            }
            migrated => Ok(migrated?),
        }
    }

    /// Checks that the schema has all migrations of this release. It may have those of a newer release, too.
    pub(crate) async fn is_migrated(&self, migrations: Migrations) -> Result<(), Error> {
        let missing =
            |what| Err(Error::Schema(format!("the database {what}: run `docket migrate`, or correct database_url")));
        let (there,): (bool,) =
            sqlx::query_as("select to_regclass('_sqlx_migrations') is not null").fetch_one(&self.pool).await?;
        if !there {
            return missing("contains no store");
        }
        let applied: Vec<(i64, Vec<u8>)> =
            sqlx::query_as("select version, checksum from _sqlx_migrations where success")
                .fetch_all(&self.pool)
                .await?;
        let mut all = migrations.postgres_log.iter().chain(migrations.postgres_read.iter());
        match all.all(|migration| applied.contains(&(migration.version, migration.checksum.to_vec()))) {
            true => Ok(()),
            false => missing("has the schema of an older release"),
        }
    }

    pub(crate) async fn append(&self, batch: &[&Append], lineages: &Lineages) -> Result<Committed, Error> {
        let appended = self.primary.run_until_failover(async {
            let mut place = self.writer.lock().await;
            let mut writer = self.usable_writer(place.take()).await?;
            let mut retries = 0;
            let outcome = loop {
                match writer.append(batch, lineages).await {
                    Err(error) if is_rollback(&error) && retries < APPEND_RETRIES => retries += 1,
                    outcome => break outcome,
                }
            };
            // After any other error the state of the connection is unknown, so it is closed.
            if outcome.as_ref().err().is_none_or(is_data_error) {
                writer.used = Instant::now();
                *place = Some(writer);
            }
            outcome
        });
        match tokio::time::timeout(APPEND_WITHIN, appended).await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(Error::Timeout(APPEND_WITHIN)),
        }
    }

    /// Checks that an append would be written now: writes a row over the appender's own connection and rolls back.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        let probed = self.primary.run_until_failover(async {
            let mut place = self.writer.lock().await;
            let mut writer = self.usable_writer(place.take()).await?;
            let mut tx = writer.reserved.connection.begin().await?;
            sqlx::query(
                "insert into idempotency (scope, key, request_hash, status, aggregate_id, version, position, created_at)
                 values ('', $1, '', 0, '', 0, 0, 0)",
            )
            .bind(&*PROBE_KEY)
            .execute(&mut *tx)
            .await?;
            tx.rollback().await?;
            writer.used = Instant::now();
            *place = Some(writer);
            Ok(())
        });
        // If the probe is cancelled by the timeout, its connection is closed, and the next append opens another one.
        match tokio::time::timeout(PROBE_WITHIN, probed).await {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(Error::Timeout(PROBE_WITHIN)),
        }
    }

    /// Returns the appender's connection if it is usable; otherwise opens another one.
    async fn usable_writer(&self, known: Option<Writer>) -> Result<Writer, sqlx::Error> {
        if let Some(mut writer) = known
            && writer.reserved.is_current(&self.primary)
            && (writer.used.elapsed() <= IDLE_BEFORE_TEST || writer.reserved.ping().await.is_ok())
        {
            return Ok(writer);
        }
        let reserved = self.primary.connect(Purpose::Append).await?;
        Ok(Writer::new(reserved))
    }

    pub(crate) async fn restore(&self, events: &[RecordedEvent]) -> Result<(), sqlx::Error> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
        let mut tx = self.pool.begin().await?;
        let moved = sqlx::query("update log_head set position = $1 where position = $2")
            .bind(last.position)
            .bind(first.position - 1)
            .execute(&mut *tx);
        if moved.await?.rows_affected() != 1 {
            return Err(sqlx::Error::Protocol(format!("position {} does not follow the head", first.position)));
        }
        sqlx::query(
            "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
                                 position, recorded_at)
             select t, id, sequence, type, version, payload::json, metadata::json, position, recorded_at
             from unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
                         $8::bigint[], $9::bigint[])
                  as e (t, id, sequence, type, version, payload, metadata, position, recorded_at)",
        )
        .bind(events.iter().map(|e| &*e.aggregate_type).collect::<Vec<_>>())
        .bind(events.iter().map(|e| &*e.aggregate_id).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.sequence).collect::<Vec<_>>())
        .bind(events.iter().map(|e| &*e.event_type).collect::<Vec<_>>())
        .bind(events.iter().map(|e| &*e.event_version).collect::<Vec<_>>())
        .bind(events.iter().map(|e| &*e.payload).collect::<Vec<_>>())
        .bind(events.iter().map(|e| &*e.metadata).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.position).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.recorded_at).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?;
        tx.commit().await
    }

    pub(crate) async fn head(&self) -> Result<(i64, String), sqlx::Error> {
        sqlx::query_as(HEAD).fetch_one(&self.pool).await
    }

    pub(crate) async fn rename(&self, incarnation: &str) -> Result<(), sqlx::Error> {
        sqlx::query("update log_head set incarnation = $1").bind(incarnation).execute(&self.pool).await.map(drop)
    }

    pub(crate) async fn read(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        sqlx::query_as(&format!("{EVENT} where position > $1 order by position limit $2"))
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await
    }

    pub(crate) async fn read_positions(&self, positions: &[i64]) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        sqlx::query_as(&format!("{EVENT} where position = any($1) order by position"))
            .bind(positions)
            .fetch_all(&self.pool)
            .await
    }

    pub(crate) async fn read_stream(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        after: i64,
        to: i64,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        sqlx::query_as(&format!(
            "{EVENT} where aggregate_type = $1 and aggregate_id = $2 and sequence > $3 and sequence <= $4
             order by sequence limit $5"
        ))
        .bind(aggregate_type)
        .bind(aggregate_id)
        .bind(after)
        .bind(to)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
    }

    pub(crate) async fn read_streams(
        &self,
        aggregate_type: &str,
        aggregate_ids: &[String],
        before: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        sqlx::query_as(&format!(
            "{EVENT} where aggregate_type = $1 and aggregate_id = any($2) and position < $3
             order by aggregate_id, sequence"
        ))
        .bind(aggregate_type)
        .bind(aggregate_ids)
        .bind(before)
        .fetch_all(&self.pool)
        .await
    }

    pub(crate) async fn idempotency_record(
        &self,
        scope: &str,
        key: &str,
    ) -> Result<Option<IdempotencyRecord>, sqlx::Error> {
        sqlx::query_as(IDEMPOTENCY_RECORD).bind(scope).bind(key).fetch_optional(&self.pool).await
    }

    pub(crate) async fn purge_idempotency_before(&self, created_at: i64) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(
            "delete from idempotency where (scope, key) in
                 (select scope, key from idempotency where created_at < $1 limit 5000)",
        )
        .bind(created_at)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    pub(crate) async fn snapshot(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        state_version: i64,
    ) -> Result<Option<(String, i64)>, sqlx::Error> {
        sqlx::query_as(
            "select payload::text, last_sequence from snapshots
             where aggregate_type = $1 and aggregate_id = $2 and state_version = $3 and state_sequence = last_sequence",
        )
        .bind(aggregate_type)
        .bind(aggregate_id)
        .bind(state_version)
        .fetch_optional(&self.pool)
        .await
    }

    /// Writes a snapshot, unless a newer one with the same state version exists.
    pub(crate) async fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), sqlx::Error> {
        sqlx::query(
            "insert into snapshots as s (aggregate_type, aggregate_id, last_sequence, current_snapshot, payload,
                                         state_version, state_sequence)
             values ($1, $2, $3, 1, $4::json, $5, $3)
             on conflict (aggregate_type, aggregate_id) do update
             set last_sequence = excluded.last_sequence, current_snapshot = s.current_snapshot + 1,
                 payload = excluded.payload, state_version = excluded.state_version,
                 state_sequence = excluded.state_sequence
             where s.last_sequence < excluded.last_sequence or s.state_version <> excluded.state_version
                or s.state_sequence <> s.last_sequence",
        )
        .bind(&*snapshot.stream.aggregate_type)
        .bind(&*snapshot.stream.aggregate_id)
        .bind(snapshot.version)
        .bind(&snapshot.payload)
        .bind(snapshot.state_version)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
