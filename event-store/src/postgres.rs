//! The log in PostgreSQL.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::time::Duration;

use sqlx::Connection;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::append::{Append, Found, Plan, plan};
use crate::db::Db;
use crate::error::Error;
use crate::event::RecordedEvent;
use crate::log::{EventRow, Remembered, recorded};

static LOG_MIGRATIONS: Migrator = sqlx::migrate!("../migrations/postgres/log");
static READ_MIGRATIONS: Migrator = sqlx::migrate!("../migrations/postgres/read");

const EVENT: &str = "select position, aggregate_type, aggregate_id, sequence, event_type, event_version, \
                     payload::text, metadata::text, coalesce(recorded_at, 0) from events";

#[derive(Clone)]
pub(crate) struct Log {
    /// Reads, and loads of aggregates.
    pub(crate) pool: PgPool,
    /// The appender's own connection: it never waits behind a query.
    append: PgPool,
}

impl Log {
    pub(crate) async fn open(url: &str, connections_max: u32) -> Result<(Self, Db), Error> {
        let options = PgConnectOptions::from_str(url)?.application_name("docket");
        let pool = |max: u32| PgPoolOptions::new().max_connections(max).acquire_timeout(Duration::from_secs(5));
        // The wait for the head's lock is bounded: a foreign transaction that holds it too long costs a 503.
        let append = options.clone().options([("lock_timeout", "10s"), ("statement_timeout", "30s")]);
        let reads = options.clone().options([("statement_timeout", "30s")]);
        // Read models follow the log: a commit lost with the machine is projected again from the checkpoint lost with it.
        let views = options.options([("synchronous_commit", "off")]);
        let log =
            Self { pool: pool(connections_max).connect_with(reads).await?, append: pool(1).connect_lazy_with(append) };
        Ok((log, Db::Postgres(pool(connections_max).connect_lazy_with(views))))
    }

    pub(crate) async fn migrate(&self, _db: &Db) -> Result<(), Error> {
        let all = LOG_MIGRATIONS.iter().chain(READ_MIGRATIONS.iter()).cloned().collect();
        let migrator = Migrator { migrations: std::borrow::Cow::Owned(all), ..Migrator::DEFAULT };
        // On a connection of its own: to number the events of a large existing database may take long.
        let options = self.pool.connect_options().as_ref().clone().options([("statement_timeout", "0")]);
        let mut connection = sqlx::PgConnection::connect_with(&options).await?;
        Ok(migrator.run(&mut connection).await?)
    }

    pub(crate) async fn append(&self, batch: &[&Append]) -> Result<Plan, sqlx::Error> {
        let mut tx = self.append.begin().await?;
        let (head,): (i64,) = sqlx::query_as("select position from log_head for update").fetch_one(&mut *tx).await?;
        let types: Vec<&str> = batch.iter().map(|a| a.aggregate_type).collect();
        let ids: Vec<&str> = batch.iter().map(|a| &*a.aggregate_id).collect();
        // Under the lock: whoever inserted before has committed, and read committed shows it.
        let versions: Vec<(String, i64)> = sqlx::query_as(
            "select w.t || '/' || w.id, e.sequence
             from (select distinct * from unnest($1::text[], $2::text[]) as u (t, id)) w
             cross join lateral (
                 select sequence from events where aggregate_type = w.t and aggregate_id = w.id
                 order by sequence desc limit 1) e",
        )
        .bind(&types)
        .bind(&ids)
        .fetch_all(&mut *tx)
        .await?;
        let mut keys = HashSet::new();
        let idempotent: Vec<_> = batch.iter().filter_map(|a| a.idempotency.as_ref()).collect();
        if !idempotent.is_empty() {
            let taken: Vec<(String, String)> = sqlx::query_as(
                "select scope, key from idempotency where (scope, key) in (select * from unnest($1::text[], $2::text[]))",
            )
            .bind(idempotent.iter().map(|i| &*i.scope).collect::<Vec<_>>())
            .bind(idempotent.iter().map(|i| &*i.key).collect::<Vec<_>>())
            .fetch_all(&mut *tx)
            .await?;
            keys.extend(taken);
        }
        let plan = plan(batch, Found { head, versions: versions.into_iter().collect::<HashMap<_, _>>(), keys });
        insert(&mut tx, batch, &plan, head).await?;
        tx.commit().await?;
        Ok(plan)
    }

    pub(crate) async fn head(&self) -> Result<(i64, String), sqlx::Error> {
        sqlx::query_as("select position, incarnation from log_head").fetch_one(&self.pool).await
    }

    pub(crate) async fn read(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        let rows: Vec<EventRow> = sqlx::query_as(&format!("{EVENT} where position > $1 order by position limit $2"))
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(recorded).collect())
    }

    pub(crate) async fn read_stream(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        after: i64,
        to: i64,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        let rows: Vec<EventRow> = sqlx::query_as(&format!(
            "{EVENT} where aggregate_type = $1 and aggregate_id = $2 and sequence > $3 and sequence <= $4
             order by sequence limit $5"
        ))
        .bind(aggregate_type)
        .bind(aggregate_id)
        .bind(after)
        .bind(to)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(recorded).collect())
    }

    pub(crate) async fn read_streams(
        &self,
        aggregate_type: &str,
        aggregate_ids: &[String],
        before: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        let rows: Vec<EventRow> = sqlx::query_as(&format!(
            "{EVENT} where aggregate_type = $1 and aggregate_id = any($2) and position < $3
             order by aggregate_id, sequence"
        ))
        .bind(aggregate_type)
        .bind(aggregate_ids)
        .bind(before)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(recorded).collect())
    }

    pub(crate) async fn remembered(&self, scope: &str, key: &str) -> Result<Option<Remembered>, sqlx::Error> {
        sqlx::query_as(
            "select request_hash, status, aggregate_id, version, position from idempotency where scope = $1 and key = $2",
        )
        .bind(scope)
        .bind(key)
        .fetch_optional(&self.pool)
        .await
    }

    pub(crate) async fn forget_before(&self, created_at: i64) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(
            "delete from idempotency where (scope, key) in
                 (select scope, key from idempotency where created_at < $1 limit 5000)",
        )
        .bind(created_at)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    pub(crate) async fn save_snapshot(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        version: i64,
        payload: &str,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "insert into snapshots as s (aggregate_type, aggregate_id, last_sequence, current_snapshot, payload)
             values ($1, $2, $3, 1, $4::json)
             on conflict (aggregate_type, aggregate_id) do update
             set last_sequence = excluded.last_sequence, current_snapshot = s.current_snapshot + 1,
                 payload = excluded.payload
             where s.last_sequence < excluded.last_sequence",
        )
        .bind(aggregate_type)
        .bind(aggregate_id)
        .bind(version)
        .bind(payload)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// One statement writes the winners' events and keys and moves the head.
async fn insert(tx: &mut sqlx::PgConnection, batch: &[&Append], plan: &Plan, head: i64) -> Result<(), sqlx::Error> {
    let now = plan.recorded_at;
    let winners: Vec<_> =
        batch.iter().zip(&plan.outcomes).filter_map(|(a, o)| o.as_ref().ok().map(|o| (a, o))).collect();
    let events = || {
        winners.iter().flat_map(|(append, appended)| {
            let first = appended.version - append.events.len() as i64 + 1;
            append.events.iter().enumerate().map(move |(at, event)| (append, first + at as i64, event))
        })
    };
    if plan.head > head {
        sqlx::query(
            "with head as (update log_head set position = $1)
             insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata,
                                 position, recorded_at)
             select t, id, sequence, type, version, payload::json, metadata::json, $2 + place, $3
             from unnest($4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::text[])
                  with ordinality as e (t, id, sequence, type, version, payload, metadata, place)",
        )
        .bind(plan.head)
        .bind(head)
        .bind(now)
        .bind(events().map(|(a, _, _)| a.aggregate_type).collect::<Vec<_>>())
        .bind(events().map(|(a, _, _)| &*a.aggregate_id).collect::<Vec<_>>())
        .bind(events().map(|(_, sequence, _)| sequence).collect::<Vec<_>>())
        .bind(events().map(|(_, _, e)| &*e.event_type).collect::<Vec<_>>())
        .bind(events().map(|(_, _, e)| &*e.event_version).collect::<Vec<_>>())
        .bind(events().map(|(_, _, e)| &*e.payload).collect::<Vec<_>>())
        .bind(events().map(|(_, _, e)| &*e.metadata).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?;
    }
    for (append, appended) in winners {
        let Some(idempotency) = &append.idempotency else { continue };
        sqlx::query(
            "insert into idempotency (scope, key, request_hash, status, aggregate_id, version, position, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&idempotency.scope)
        .bind(&idempotency.key)
        .bind(&idempotency.request_hash)
        .bind(i64::from(idempotency.status))
        .bind(&append.aggregate_id)
        .bind(appended.version)
        .bind(appended.position)
        .bind(now)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}
