//! Generations: each build of a projection has tables of its own and a checkpoint; one of them serves.

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
use crate::registry::{CORE, Group, Registry, projecting, rebuilding};

// States of a generation, as the database has them.

/// Serves queries and follows the log.
pub(crate) const LIVE: &str = "live";
/// Is filled by a rebuild.
pub(crate) const BUILDING: &str = "building";
/// Served before; kept for a rollback.
pub(crate) const OLD: &str = "old";
/// Served before, and is brought up to date to serve again.
pub(crate) const RETURNING: &str = "returning";
/// Version of a generation that cannot be brought on, by any release: it serves until another one is built.
pub(crate) const OUTDATED: i64 = 0;

/// How far a generation has come.
#[derive(Debug, Clone, sqlx_macros::FromRow)]
pub(crate) struct Checkpoint {
    pub(crate) projection: String,
    pub(crate) group_name: String,
    pub(crate) generation: i64,
    pub(crate) version: i64,
    pub(crate) state: String,
    pub(crate) position: i64,
    /// Raised when rows change though the position does not.
    pub(crate) revision: i64,
    pub(crate) last_error: Option<String>,
    event: Option<String>,
}

pub(crate) const CHECKPOINTS: &str = "select projection, group_name, generation, version, state, position, revision,
                                             last_error, event
                                      from checkpoints order by projection, generation";

/// An event as a checkpoint knows it.
fn known(event: &RecordedEvent) -> String {
    format!("{} {}", event.position, event.id())
}

impl Checkpoint {
    /// Makes sure that the generation was filled from this log.
    ///
    /// # Errors
    /// [`Error::Ahead`], [`Error::OtherLog`], or the database is away.
    pub(crate) async fn check_belongs_to(&self, store: &Store, head: i64) -> Result<(), Error> {
        let position = self.position;
        if position > head {
            return Err(Error::Ahead { position, head });
        }
        let own = format!("{position} ");
        let Some(event) = self.event.as_ref().filter(|event| event.starts_with(&own)) else { return Ok(()) };
        let there = store.read_stored(position - 1, 1).await?;
        match there.first().map(known).as_ref() == Some(event) {
            true => Ok(()),
            false => Err(Error::OtherLog { position }),
        }
    }
}

pub(crate) async fn checkpoints(tx: &mut Tx) -> Result<Vec<Checkpoint>, StoreError> {
    tx.fetch_all(CHECKPOINTS, vec![]).await
}

/// The generation that serves, a projection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Serving {
    /// Its number.
    pub generation: i64,
    /// Position of the last event in it.
    pub position: i64,
}

/// What serves, as a transaction sees it.
///
/// # Errors
/// When the database is away.
pub async fn serving(tx: &mut Tx) -> Result<BTreeMap<String, Serving>, StoreError> {
    Ok(live(checkpoints(tx).await?))
}

/// What serves now.
///
/// # Errors
/// When the database is away.
pub async fn serving_now(db: &Db) -> Result<BTreeMap<String, Serving>, StoreError> {
    Ok(live(db.fetch_all(CHECKPOINTS, vec![]).await?))
}

fn live(rows: Vec<Checkpoint>) -> BTreeMap<String, Serving> {
    let live = rows.into_iter().filter(|row| row.state == LIVE);
    live.map(|row| (row.projection, Serving { generation: row.generation, position: row.position })).collect()
}

/// A generation of a projection.
#[derive(Clone, Copy)]
pub(crate) struct Generation {
    pub(crate) projection: &'static dyn AnyProjection,
    pub(crate) number: i64,
}

/// Rows for the tables of each generation.
pub(crate) type GenerationRows = Vec<(i64, Rows)>;

/// Generations that are at the same position and move together.
#[derive(Clone)]
pub(crate) struct CheckpointGroup {
    pub(crate) position: i64,
    pub(crate) generations: Vec<Generation>,
}

impl CheckpointGroup {
    /// The rows that a batch leads to: all of them, or those of one stream.
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

    /// Rows and checkpoints, in one transaction.
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

    /// Writes rows, and the checkpoints, which must be where this group left them and under its fence; they move to `last`,
    /// if there is one.
    pub(crate) async fn write(
        &self,
        tx: &mut Tx,
        fence: i64,
        rows: GenerationRows,
        last: Option<&RecordedEvent>,
    ) -> Result<(), Error> {
        let position = last.map_or(self.position, |last| last.position);
        let event: Option<String> = last.map(known);
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

    /// Says that rows changed though the position stays: whoever caches them by position reads them again.
    pub(crate) async fn raise_revision(&self, tx: &mut Tx) -> Result<(), StoreError> {
        let mut values = Vec::new();
        let own = self.condition(&mut values);
        let sql = format!("update checkpoints set revision = revision + 1 where {own}");
        tx.execute(&sql, values).await.map(drop)
    }

    /// SQL that holds for the checkpoints of this group; adds its values.
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

/// Generations by position, the slowest first.
pub(crate) fn by_position(generations: impl IntoIterator<Item = (Generation, i64)>) -> Vec<CheckpointGroup> {
    let mut groups: Vec<CheckpointGroup> = Vec::new();
    for (generation, position) in generations {
        match groups.iter_mut().find(|group| group.position == position) {
            Some(group) => group.generations.push(generation),
            None => groups.push(CheckpointGroup { position, generations: vec![generation] }),
        }
    }
    groups.sort_by_key(|group| group.position);
    groups
}

/// Makes the first generation of every projection that has none, empty and serving, so that queries find their tables.
///
/// # Errors
/// The database is away.
pub async fn prepare(store: &Store, registry: &Registry) -> Result<(), StoreError> {
    for group in registry.groups() {
        prepare_group(store, group).await?;
    }
    Ok(())
}

/// The same for one group. Beside others of the group that are further, a first generation is outdated from the beginning:
/// the others do not wait until it has caught up.
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
    // A projection that an earlier release had in another group.
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

/// Makes the tables of a new generation, and its checkpoint at the log's beginning.
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

/// Removes a generation.
pub(crate) async fn remove(tx: &mut Tx, projection: &dyn AnyProjection, generation: i64) -> Result<(), StoreError> {
    for table in projection.tables() {
        tx.remove(table, generation).await?;
    }
    let sql = "delete from checkpoints where projection = $1 and generation = $2";
    tx.execute(sql, vec![projection.name().into(), generation.into()]).await.map(drop)
}

/// A generation of a group that is not of this program: its module is gone, or belongs to another program.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Unclaimed {
    /// The group, which has the name of its module.
    pub group: String,
    /// The projection.
    pub projection: String,
    /// The generation.
    pub generation: i64,
    /// `live`, `building`, `old` or `returning`.
    pub state: String,
    /// Position of the last event in it.
    pub position: i64,
}

/// The generations of groups that this program does not have.
///
/// # Errors
/// The database is away.
pub async fn unclaimed(db: &Db, registry: &Registry) -> Result<Vec<Unclaimed>, StoreError> {
    let rows: Vec<Checkpoint> = db.fetch_all(CHECKPOINTS, vec![]).await?;
    Ok(rows.into_iter().filter_map(|row| of_nobody(row, registry)).collect())
}

fn of_nobody(row: Checkpoint, registry: &Registry) -> Option<Unclaimed> {
    let Checkpoint { group_name: group, projection, generation, state, position, .. } = row;
    // A newer release may have more read models in the core group.
    let is_unclaimed = group != CORE && registry.group(&group).is_none();
    is_unclaimed.then_some(Unclaimed { group, projection, generation, state, position })
}

/// Removes every generation, checkpoint and dead letter of a group that this program does not have; gives what it removed.
///
/// # Errors
/// [`Error::Busy`] while a process projects or rebuilds the group.
pub async fn remove_unclaimed(store: &Store, registry: &Registry, group: &str) -> Result<Vec<Unclaimed>, Error> {
    if unclaimed(store.db(), registry).await?.iter().all(|row| row.group != group) {
        return Ok(Vec::new());
    }
    let _projecting = store.try_lead(&projecting(group)).await?.ok_or(Error::Busy)?;
    let _rebuilding = store.try_lead(&rebuilding(group)).await?.ok_or(Error::Busy)?;
    let mut tx = store.db().begin().await?;
    tx.lock_checkpoints().await?;
    let (own, others): (Vec<_>, Vec<_>) =
        checkpoints(&mut tx).await?.into_iter().partition(|row| row.group_name == group);
    let own: Vec<Unclaimed> = own.into_iter().filter_map(|row| of_nobody(row, registry)).collect();
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

/// Gives the group's checkpoints in these states a new fence, so that whoever moved them before writes nothing more; the
/// fence.
pub(crate) async fn bump_fence(tx: &mut Tx, group: &str, states: &[&str]) -> Result<i64, StoreError> {
    for state in states {
        // Whoever caches rows by position reads them again: a rollback or a crash may have taken them back.
        let sql = "update checkpoints set epoch = (select max(epoch) + 1 from checkpoints), revision = revision + 1
                   where group_name = $1 and state = $2";
        tx.execute(sql, vec![group.into(), (*state).into()]).await?;
    }
    let sql = "select coalesce(max(epoch), 0) from checkpoints where group_name = $1";
    let rows: Vec<(i64,)> = tx.fetch_all(sql, vec![group.into()]).await?;
    Ok(rows.first().map_or(0, |(fence,)| *fence))
}

/// A decision about an event changes the rows of these generations only. The others of the group that are beyond it lack
/// the change: they become outdated, and can only be built again.
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
