//! Appends to SQLite: one transaction reads the state that the batch depends on, decides which appends win, and writes
//! them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use kernel::stream::StreamId;
use sqlx::sqlite::SqliteConnection;

use super::{Log, Row, UNKNOWN, failed, insert, save_snapshot};
use crate::append::{Append, Appended};
use crate::error::{Error, is_data_error};
use crate::plan::{BacklogRow, Committed, Lineages, LockedState, Plan, answered_version, plan, unchanged_position};

impl Log {
    pub(crate) async fn append(&self, batch: &[&Append], lineages: &Lineages) -> Result<Committed, Error> {
        let outcome = self.append_batch(batch, lineages).await;
        self.failing.store(matches!(outcome, Err(Error::Storage(_))), Ordering::Relaxed);
        outcome
    }

    async fn append_batch(&self, batch: &[&Append], lineages: &Lineages) -> Result<Committed, Error> {
        let guess = self.head.swap(UNKNOWN, Ordering::Relaxed);
        let optimistic = match guess != UNKNOWN && batch.iter().all(|append| only_creates_streams(append)) {
            true => self.append_optimistically(batch, lineages, guess).await.map_err(failed)?,
            false => None,
        };
        let committed = match optimistic {
            Some(committed) => committed,
            None => self.append_with_reads(batch, lineages).await.map_err(failed)?,
        };
        self.head.store(committed.head, Ordering::Relaxed);
        Ok(committed)
    }

    /// Writes the optimistic plan without reading the state first. Returns `None`, with nothing written, if the log
    /// differs from the plan's assumptions: the head is compared, and primary keys refuse used idempotency keys and
    /// existing streams.
    async fn append_optimistically(
        &self,
        batch: &[&Append],
        lineages: &Lineages,
        head: i64,
    ) -> Result<Option<Committed>, sqlx::Error> {
        let state = LockedState::optimistic(batch);
        let plan = plan(batch, &state, lineages);
        if !plan.has_winners() {
            return Ok(Some(plan.after(head)));
        }
        let mut tx = self.write.begin_with("begin immediate").await?;
        match write(&mut tx, batch, &state, &plan, head).await {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) if is_data_error(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        self.write_snapshots(&mut tx).await?;
        tx.commit().await?;
        Ok(Some(plan.after(head)))
    }

    /// Reads the state that the batch depends on, decides which appends win, and writes them.
    async fn append_with_reads(&self, batch: &[&Append], lineages: &Lineages) -> Result<Committed, sqlx::Error> {
        let mut tx = self.write.begin_with("begin immediate").await?;
        let (head,): (i64,) = sqlx::query_as("select position from log_head").fetch_one(&mut *tx).await?;
        let mut state = LockedState::optimistic(batch);
        read_state(&mut tx, &mut state).await?;
        let plan = plan(batch, &state, lineages);
        if !plan.has_winners() {
            tx.rollback().await?;
            return Ok(plan.after(head));
        }
        if !write(&mut tx, batch, &state, &plan, head).await? {
            return Err(sqlx::Error::Protocol("the log changed while this process held its lock".into()));
        }
        self.write_snapshots(&mut tx).await?;
        tx.commit().await?;
        Ok(plan.after(head))
    }

    /// Writes the waiting snapshots. A snapshot that SQLite refuses is skipped.
    async fn write_snapshots(&self, tx: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        for snapshot in self.snapshots.take() {
            match save_snapshot(tx, &snapshot).await {
                Err(error) if is_data_error(&error) => {
                    tracing::warn!(%error, aggregate.id = &*snapshot.stream.aggregate_id, "Could not save the snapshot.");
                }
                saved => saved?,
            }
        }
        Ok(())
    }
}

/// Returns whether primary keys can check all conditions of the append, because it only creates streams. For other
/// appends, reading the state first costs no more than checking the conditions while writing.
fn only_creates_streams(append: &Append) -> bool {
    let begins = |append: &Append| append.writes.iter().all(|write| write.expected_version == 0);
    !append.writes.is_empty() && append.checks.is_empty() && append.reaction.is_none() && begins(append)
}

/// Replaces the assumed state with the state in the database.
async fn read_state(tx: &mut SqliteConnection, state: &mut LockedState<'_>) -> Result<(), sqlx::Error> {
    read_versions(tx, &mut state.streams).await?;
    for (idempotency, is_taken) in &mut state.keys {
        let taken: Option<(i64,)> = sqlx::query_as("select 1 from idempotency where scope = $1 and key = $2")
            .bind(&idempotency.scope)
            .bind(&idempotency.key)
            .fetch_optional(&mut *tx)
            .await?;
        *is_taken = taken.is_some();
    }
    for checkpoint in &mut state.checkpoints {
        let sql = "select position, fence from reactor_checkpoints where reactor = $1 and partition = $2";
        let found = sqlx::query_as(sql).bind(checkpoint.reactor).bind(checkpoint.partition);
        checkpoint.at = found.fetch_optional(&mut *tx).await?;
    }
    for (row, is_there) in &mut state.backlog {
        let sql = "select 1 from reactor_backlog where reactor = $1 and partition = $2 and key = $3 and position = $4";
        let BacklogRow { reactor, partition, key, position } = *row;
        let found = sqlx::query_as(sql).bind(reactor).bind(partition).bind(key).bind(position);
        let found: Option<(i64,)> = found.fetch_optional(&mut *tx).await?;
        *is_there = found.is_some();
    }
    Ok(())
}

/// Reads the version of each stream, with one statement for each aggregate type.
async fn read_versions(tx: &mut SqliteConnection, streams: &mut [(&StreamId, i64)]) -> Result<(), sqlx::Error> {
    let mut by_type: HashMap<&str, Vec<usize>> = HashMap::new();
    for (place, (stream, _)) in streams.iter().enumerate() {
        by_type.entry(&stream.aggregate_type).or_default().push(place);
    }
    for (aggregate_type, places) in by_type {
        let ids: Vec<&str> = places.iter().map(|place| &*streams[*place].0.aggregate_id).collect();
        // The subquery costs one index seek for each aggregate. With a join the planner might scan the whole log.
        let found: Vec<(i64, i64)> = sqlx::query_as(
            "select w.key, coalesce(
                 (select sequence from events where aggregate_type = $1 and aggregate_id = w.value
                  order by sequence desc limit 1), 0)
             from json_each($2) w",
        )
        .bind(aggregate_type)
        .bind(serde_json::to_string(&ids).unwrap_or_default())
        .fetch_all(&mut *tx)
        .await?;
        for (nth, version) in found {
            streams[places[nth as usize]].1 = version;
        }
    }
    Ok(())
}

/// Moves the head and writes the winners. Returns false, with nothing written, if the head has moved. After an error
/// the transaction must be rolled back, because `insert or fail` keeps the rows before the one that failed.
async fn write(
    tx: &mut SqliteConnection,
    batch: &[&Append],
    state: &LockedState<'_>,
    plan: &Plan<'_>,
    head: i64,
) -> Result<bool, sqlx::Error> {
    if plan.events > 0 {
        let moved = sqlx::query("update log_head set position = $1 where position = $2")
            .bind(head + plan.events)
            .bind(head)
            .execute(&mut *tx);
        if moved.await?.rows_affected() != 1 {
            return Ok(false);
        }
    }
    let mut rows = Vec::with_capacity(plan.events as usize);
    for (append, appended) in plan.winners(batch) {
        for write in &append.writes {
            rows.extend(write.events.iter().zip(write.expected_version + 1..).map(|(event, sequence)| Row {
                aggregate_type: &write.stream.aggregate_type,
                aggregate_id: &write.stream.aggregate_id,
                sequence,
                event_type: event.event_type,
                event_version: event.event_version,
                payload: &event.payload,
                metadata: &event.metadata,
                position: 0,
                recorded_at: plan.recorded_at,
            }));
        }
        write_key(tx, append, appended, plan, head).await?;
    }
    for (row, position) in rows.iter_mut().zip(head + 1..) {
        row.position = position;
    }
    insert(tx, &rows).await?;
    write_reactions(tx, state, plan).await?;
    Ok(true)
}

async fn write_key(
    tx: &mut SqliteConnection,
    append: &Append,
    appended: &Appended,
    plan: &Plan<'_>,
    head: i64,
) -> Result<(), sqlx::Error> {
    let Some(idempotency) = &append.idempotency else { return Ok(()) };
    sqlx::query(
        "insert into idempotency (scope, key, request_hash, status, aggregate_type, aggregate_id, version, position,
                                  created_at, answer)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(&idempotency.scope)
    .bind(&idempotency.key)
    .bind(&idempotency.request_hash)
    .bind(i64::from(idempotency.status))
    .bind(&*idempotency.stream.aggregate_type)
    .bind(&*idempotency.stream.aggregate_id)
    .bind(answered_version(append, appended, idempotency))
    .bind(unchanged_position(append, idempotency).unwrap_or(head + appended.position))
    .bind(plan.recorded_at)
    .bind(&idempotency.answer)
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// Writes the checkpoints, the backlog and the deadlines of the plan.
async fn write_reactions(
    tx: &mut SqliteConnection,
    state: &LockedState<'_>,
    plan: &Plan<'_>,
) -> Result<(), sqlx::Error> {
    let moved = state.checkpoints.iter().zip(&plan.checkpoints).filter(|(before, after)| before.at != after.at);
    for (_, after) in moved {
        let sql = "update reactor_checkpoints set position = $1, updated_at = $2 where reactor = $3 and partition = $4";
        let position = after.at.map(|(position, _)| position);
        let update = sqlx::query(sql).bind(position).bind(plan.recorded_at).bind(after.reactor).bind(after.partition);
        update.execute(&mut *tx).await?;
    }
    for (BacklogRow { reactor, partition, key, position }, entry) in &plan.backlog {
        let sql = match entry {
            Some(_) => {
                "insert into reactor_backlog (reactor, partition, key, position, attempts, due_at, reason)
                 values ($1, $2, $3, $4, $5, $6, $7)
                 on conflict (reactor, partition, key, position) do update
                 set attempts = excluded.attempts, due_at = excluded.due_at, reason = excluded.reason"
            }
            None => "delete from reactor_backlog where reactor = $1 and partition = $2 and key = $3 and position = $4",
        };
        let mut query = sqlx::query(sql).bind(reactor).bind(partition).bind(key).bind(position);
        if let Some(entry) = entry {
            query = query.bind(entry.attempts).bind(entry.due_at).bind(&entry.reason);
        }
        query.execute(&mut *tx).await?;
    }
    for ((process, id, name), due_at) in &plan.deadlines {
        let sql = match due_at {
            Some(_) => {
                "insert into process_deadlines (process, id, name, due_at) values ($1, $2, $3, $4)
                 on conflict (process, id, name) do update set due_at = excluded.due_at"
            }
            None => "delete from process_deadlines where process = $1 and id = $2 and name = $3",
        };
        let mut query = sqlx::query(sql).bind(process).bind(id).bind(name);
        if let Some(due_at) = due_at {
            query = query.bind(due_at);
        }
        query.execute(&mut *tx).await?;
    }
    Ok(())
}
