//! Generations of read models: each build of a projection has its own tables and its own checkpoint. Queries read the
//! live generation.

use std::collections::BTreeMap;

use event_store::db::{Db, Tx};
use event_store::error::Error as StoreError;
use event_store::event::RecordedEvent;
use event_store::now_us;
use event_store::store::Store;
use event_store::table::Value;
use kernel::stream::StreamId;
use serde::Serialize;

use crate::change::Rows;
use crate::error::Error;
use crate::group_fold::Batch;
use crate::projection::AnyProjection;
use crate::registry::{CORE, Group, Registry, projection_role, rebuild_role};

// States of a generation, as stored in the database.

/// The generation that queries read; it follows the log.
pub(crate) const LIVE: &str = "live";
/// A generation that a rebuild fills.
pub(crate) const BUILDING: &str = "building";
/// A former live generation that is kept for a rollback.
pub(crate) const OLD: &str = "old";
/// A former live generation that a rollback updates, so that it can be live again.
pub(crate) const RETURNING: &str = "returning";
/// Version of an outdated generation. No release can update it; a live one stays live until another generation is
/// built.
pub(crate) const OUTDATED: i64 = 0;

/// The checkpoint of a generation.
#[derive(Debug, Clone, sqlx_macros::FromRow)]
pub(crate) struct Checkpoint {
    pub(crate) projection: String,
    pub(crate) group_name: String,
    pub(crate) generation: i64,
    pub(crate) version: i64,
    pub(crate) state: String,
    pub(crate) position: i64,
    /// Counter that increases when rows change but the position does not.
    pub(crate) revision: i64,
    pub(crate) last_error: Option<String>,
    event: Option<String>,
}

pub(crate) const CHECKPOINTS: &str = "select projection, group_name, generation, version, state, position, revision,
                                             last_error, event
                                      from checkpoints order by projection, generation";

/// Returns an event's position and id as text, in the format in which a checkpoint stores its last event.
fn event_key(event: &RecordedEvent) -> String {
    format!("{} {}", event.position, event.id())
}

impl Checkpoint {
    /// Checks that the generation was filled from this log, whose last position is `head`.
    ///
    /// # Errors
    /// [`Error::Ahead`], [`Error::OtherLog`], or the database is unavailable.
    pub(crate) async fn check_belongs_to(&self, store: &Store, head: i64) -> Result<(), Error> {
        let position = self.position;
        if position > head {
            return Err(Error::Ahead { position, head });
        }
        let own = format!("{position} ");
        let Some(event) = self.event.as_ref().filter(|event| event.starts_with(&own)) else { return Ok(()) };
        let there = store.read_stored(position - 1, 1).await?;
        match there.first().map(event_key).as_ref() == Some(event) {
            true => Ok(()),
            false => Err(Error::OtherLog { position }),
        }
    }
}

pub(crate) async fn checkpoints(tx: &mut Tx) -> Result<Vec<Checkpoint>, StoreError> {
    tx.fetch_all(CHECKPOINTS, vec![]).await
}

/// The live generation of a projection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Serving {
    /// Number of the generation.
    pub generation: i64,
    /// Position of the last event in the generation.
    pub position: i64,
}

/// Returns the live generation of each projection, by projection name, as the transaction sees them.
///
/// # Errors
/// The database is unavailable.
pub async fn serving(tx: &mut Tx) -> Result<BTreeMap<String, Serving>, StoreError> {
    Ok(live(checkpoints(tx).await?))
}

/// Returns the current live generation of each projection, by projection name.
///
/// # Errors
/// The database is unavailable.
pub async fn live_generations(db: &Db) -> Result<BTreeMap<String, Serving>, StoreError> {
    Ok(live(db.fetch_all(CHECKPOINTS, vec![]).await?))
}

fn live(rows: Vec<Checkpoint>) -> BTreeMap<String, Serving> {
    let live = rows.into_iter().filter(|row| row.state == LIVE);
    live.map(|row| (row.projection, Serving { generation: row.generation, position: row.position })).collect()
}

/// A generation of a projection of this program.
#[derive(Clone, Copy)]
pub(crate) struct Generation {
    pub(crate) projection: &'static dyn AnyProjection,
    pub(crate) number: i64,
}

/// Rows for tables, each with the number of the generation whose table they belong to.
pub(crate) type GenerationRows = Vec<(i64, Rows)>;

/// A generation set: generations of one checkpoint group that are at the same position and advance together.
#[derive(Clone)]
pub(crate) struct GenerationSet {
    pub(crate) position: i64,
    pub(crate) generations: Vec<Generation>,
}

impl GenerationSet {
    /// Returns the rows that a batch writes: all rows, or with `only` the rows of one stream.
    ///
    /// # Errors
    /// [`Error::Panicked`].
    pub(crate) fn rows(&self, batch: &Batch, only: Option<&StreamId>) -> Result<GenerationRows, Error> {
        let mut all = Vec::new();
        for Generation { projection, number } in &self.generations {
            let rows = if batch.is_empty() { Vec::new() } else { batch.rows(*projection, only)? };
            all.extend(rows.into_iter().map(|rows| (*number, rows)));
        }
        Ok(all)
    }

    /// Writes the rows and advances the checkpoints to `last`, in one transaction.
    pub(crate) async fn commit(
        &self,
        store: &Store,
        fence: i64,
        rows: GenerationRows,
        last: &RecordedEvent,
    ) -> Result<(), Error> {
        let mut tx = store.db().begin().await?;
        self.write(&mut tx, fence, rows, Some(last)).await?;
        Ok(tx.commit().await?)
    }

    /// Writes the rows and advances the checkpoints to `last`, if there is one.
    ///
    /// # Errors
    /// [`Error::Fenced`] when a checkpoint has another position than this set, or another fence.
    pub(crate) async fn write(
        &self,
        tx: &mut Tx,
        fence: i64,
        rows: GenerationRows,
        last: Option<&RecordedEvent>,
    ) -> Result<(), Error> {
        let position = last.map_or(self.position, |last| last.position);
        let event: Option<String> = last.map(event_key);
        let mut values: Vec<Value> =
            vec![position.into(), now_us().into(), fence.into(), self.position.into(), event.into()];
        let own = self.condition(&mut values);
        let sql = format!(
            "update checkpoints set position = $1, updated_at = $2, last_error = null, event = coalesce($5, event)
             where epoch = $3 and position = $4 and ({own})"
        );
        if tx.execute(&sql, values).await? as usize != self.generations.len() {
            return Err(Error::Fenced);
        }
        for (generation, (table, rows)) in rows {
            tx.write(table, generation, rows).await?;
        }
        Ok(())
    }

    /// Increases the revision of the checkpoints: rows have changed but the position has not, so caches keyed by
    /// position must read the rows again.
    pub(crate) async fn raise_revision(&self, tx: &mut Tx) -> Result<(), StoreError> {
        let mut values = Vec::new();
        let own = self.condition(&mut values);
        let sql = format!("update checkpoints set revision = revision + 1 where {own}");
        tx.execute(&sql, values).await.map(drop)
    }

    /// Returns an SQL condition that selects the checkpoints of this set, and appends its parameters to `values`.
    fn condition(&self, values: &mut Vec<Value>) -> String {
        let mut each = Vec::new();
        for generation in &self.generations {
            values.push(generation.projection.name().into());
            values.push(generation.number.into());
            each.push(format!("(projection = ${} and generation = ${})", values.len() - 1, values.len()));
        }
        each.join(" or ")
    }
}

/// Groups generations by position, lowest position first.
pub(crate) fn by_position(generations: impl IntoIterator<Item = (Generation, i64)>) -> Vec<GenerationSet> {
    let mut sets: Vec<GenerationSet> = Vec::new();
    for (generation, position) in generations {
        match sets.iter_mut().find(|set| set.position == position) {
            Some(set) => set.generations.push(generation),
            None => sets.push(GenerationSet { position, generations: vec![generation] }),
        }
    }
    sets.sort_by_key(|set| set.position);
    sets
}

/// Creates the first generation of every projection that has no live one. The generation is empty and live, so that
/// queries find their tables.
///
/// # Errors
/// The database is unavailable.
pub async fn prepare(store: &Store, registry: &Registry) -> Result<(), StoreError> {
    for group in registry.groups() {
        prepare_group(store, group).await?;
    }
    Ok(())
}

/// Does the work of [`prepare`] for one checkpoint group. When other projections of the group are already past position
/// 0, a new first generation is marked as outdated, so that a rebuild fills it and the others do not wait until it has
/// caught up.
pub(crate) async fn prepare_group(store: &Store, group: &Group) -> Result<(), StoreError> {
    let serves = |known: &[Checkpoint], projection: &dyn AnyProjection| {
        known.iter().any(|row| row.projection == projection.name() && row.state == LIVE)
    };
    let is_elsewhere = |row: &Checkpoint| row.group_name != group.name && group.find(&row.projection).is_some();
    let known: Vec<Checkpoint> = store.db().fetch_all(CHECKPOINTS, vec![]).await?;
    if group.projections.iter().all(|projection| serves(&known, *projection)) && !known.iter().any(is_elsewhere) {
        return Ok(());
    }
    let mut tx = store.db().begin().await?;
    tx.lock_checkpoints().await?;
    // An earlier release had the projection in another checkpoint group.
    for row in checkpoints(&mut tx).await?.iter().filter(|row| is_elsewhere(row)) {
        let sql = "update checkpoints set group_name = $1 where projection = $2 and generation = $3";
        tx.execute(sql, vec![group.name.into(), row.projection.clone().into(), row.generation.into()]).await?;
    }
    let known = checkpoints(&mut tx).await?;
    let others = known.iter().any(|row| row.group_name == group.name && row.state == LIVE && row.position > 0);
    for projection in &group.projections {
        if serves(&known, *projection) {
            continue;
        }
        let generation = create(&mut tx, group, *projection, &known).await?;
        if others {
            let sql = "update checkpoints set version = $1 where projection = $2 and generation = $3";
            tx.execute(sql, vec![OUTDATED.into(), projection.name().into(), generation.into()]).await?;
        }
        for table in projection.tables() {
            tx.index(table, generation).await?;
            tx.serve(table, generation).await?;
        }
        set_state(&mut tx, projection.name(), generation, LIVE).await?;
    }
    tx.commit().await
}

/// Creates the tables of a new generation and its checkpoint at position 0; returns the number of the generation.
pub(crate) async fn create(
    tx: &mut Tx,
    group: &Group,
    projection: &dyn AnyProjection,
    known: &[Checkpoint],
) -> Result<i64, StoreError> {
    let own = known.iter().filter(|row| row.projection == projection.name());
    let generation = own.map(|row| row.generation).max().unwrap_or(0) + 1;
    for table in projection.tables() {
        tx.create(table, generation).await?;
    }
    let sql = "insert into checkpoints
                   (projection, group_name, generation, version, state, position, epoch, updated_at)
               values ($1, $2, $3, $4, $5, 0, 0, $6)";
    let values = vec![
        projection.name().into(),
        group.name.into(),
        generation.into(),
        projection.version().into(),
        BUILDING.into(),
        now_us().into(),
    ];
    tx.execute(sql, values).await?;
    Ok(generation)
}

/// Removes the tables and the checkpoint of a generation.
pub(crate) async fn remove(tx: &mut Tx, projection: &dyn AnyProjection, generation: i64) -> Result<(), StoreError> {
    for table in projection.tables() {
        tx.remove(table, generation).await?;
    }
    let sql = "delete from checkpoints where projection = $1 and generation = $2";
    tx.execute(sql, vec![projection.name().into(), generation.into()]).await.map(drop)
}

/// A generation of a checkpoint group that this program does not have: its module was removed, or belongs to another
/// program.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Unclaimed {
    /// Name of the checkpoint group, which is the name of its module.
    pub group: String,
    /// Name of the projection.
    pub projection: String,
    /// Number of the generation.
    pub generation: i64,
    /// State of the generation: `live`, `building`, `old` or `returning`.
    pub state: String,
    /// Position of the last event in the generation.
    pub position: i64,
}

/// Returns the generations of checkpoint groups that this program does not have.
///
/// # Errors
/// The database is unavailable.
pub async fn unclaimed(db: &Db, registry: &Registry) -> Result<Vec<Unclaimed>, StoreError> {
    let rows: Vec<Checkpoint> = db.fetch_all(CHECKPOINTS, vec![]).await?;
    Ok(rows.into_iter().filter_map(|row| to_unclaimed(row, registry)).collect())
}

fn to_unclaimed(row: Checkpoint, registry: &Registry) -> Option<Unclaimed> {
    let Checkpoint { group_name: group, projection, generation, state, position, .. } = row;
    // The core group is never unclaimed: a newer release may have added projections to it.
    let is_unclaimed = group != CORE && registry.group(&group).is_none();
    is_unclaimed.then_some(Unclaimed { group, projection, generation, state, position })
}

/// Removes every generation, checkpoint and dead letter of a checkpoint group that this program does not have. Returns
/// the removed generations.
///
/// # Errors
/// [`Error::Busy`] while a process projects or rebuilds the group; the database is unavailable.
pub async fn remove_unclaimed(store: &Store, registry: &Registry, group: &str) -> Result<Vec<Unclaimed>, Error> {
    if unclaimed(store.db(), registry).await?.iter().all(|row| row.group != group) {
        return Ok(Vec::new());
    }
    let _projecting = store.try_lead(&projection_role(group)).await?.ok_or(Error::Busy)?;
    let _rebuilding = store.try_lead(&rebuild_role(group)).await?.ok_or(Error::Busy)?;
    let mut tx = store.db().begin().await?;
    tx.lock_checkpoints().await?;
    let (own, others): (Vec<_>, Vec<_>) =
        checkpoints(&mut tx).await?.into_iter().partition(|row| row.group_name == group);
    let own: Vec<Unclaimed> = own.into_iter().filter_map(|row| to_unclaimed(row, registry)).collect();
    let others: Vec<&str> = others.iter().map(|row| &*row.projection).collect();
    for row in &own {
        tx.remove_undeclared(&row.projection, row.generation, &others).await?;
    }
    for table in ["checkpoints", "dead_letters"] {
        tx.execute(&format!("delete from {table} where group_name = $1"), vec![group.into()]).await?;
    }
    tx.commit().await?;
    Ok(own)
}

pub(crate) async fn set_state(tx: &mut Tx, name: &str, generation: i64, state: &str) -> Result<(), StoreError> {
    let sql = "update checkpoints set state = $1, last_error = null where projection = $2 and generation = $3";
    tx.execute(sql, vec![state.into(), name.into(), generation.into()]).await.map(drop)
}

/// Raises the fence of the group's checkpoints that are in one of `states`, so that processes with the previous fence
/// can no longer write. Returns the new fence.
pub(crate) async fn bump_fence(tx: &mut Tx, group: &str, states: &[&str]) -> Result<i64, StoreError> {
    for state in states {
        // The revision increases too, so that caches keyed by position read the rows again: a rollback to an older
        // generation or a crash of the database may have reverted rows.
        let sql = "update checkpoints set epoch = (select max(epoch) + 1 from checkpoints), revision = revision + 1
                   where group_name = $1 and state = $2";
        tx.execute(sql, vec![group.into(), (*state).into()]).await?;
    }
    let sql = "select coalesce(max(epoch), 0) from checkpoints where group_name = $1";
    let rows: Vec<(i64,)> = tx.fetch_all(sql, vec![group.into()]).await?;
    Ok(rows.first().map_or(0, |(fence,)| *fence))
}

/// Marks as outdated the group's other generations that are at or past `position`. A decision about the event at
/// `position` changes the rows of `generations` only; the others lack the change and must be rebuilt.
pub(crate) async fn invalidate_others(
    tx: &mut Tx,
    group: &str,
    generations: &[Generation],
    position: i64,
) -> Result<(), StoreError> {
    let mut values: Vec<Value> = vec![OUTDATED.into(), position.into(), group.into()];
    let mut sql = "update checkpoints set version = $1 where position >= $2 and group_name = $3".to_owned();
    for generation in generations {
        values.push(generation.projection.name().into());
        values.push(generation.number.into());
        sql += &format!(" and not (projection = ${} and generation = ${})", values.len() - 1, values.len());
    }
    tx.execute(&sql, values).await.map(drop)
}
