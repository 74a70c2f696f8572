//! Generations: each build of a projection has tables of its own and a checkpoint; one of them serves.

use std::collections::BTreeMap;

use event_store::db::{Db, Tx, Value};
use event_store::error::Error as StoreError;
use event_store::event::RecordedEvent;
use event_store::now_us;
use event_store::store::Store;

use crate::error::Error;
use crate::projection::{Change, Projection, all};

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
#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Checkpoint {
    pub(crate) projection: String,
    pub(crate) generation: i64,
    pub(crate) version: i64,
    pub(crate) state: String,
    pub(crate) position: i64,
    pub(crate) last_error: Option<String>,
    event: Option<String>,
}

pub(crate) const CHECKPOINTS: &str = "select projection, generation, version, state, position, last_error, event
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
    pub(crate) async fn is_of(&self, store: &Store, head: i64) -> Result<(), Error> {
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
pub(crate) struct Member {
    pub(crate) projection: &'static Projection,
    pub(crate) generation: i64,
}

/// Generations that are at the same position and move together.
#[derive(Clone)]
pub(crate) struct Lane {
    pub(crate) position: i64,
    pub(crate) members: Vec<Member>,
}

impl Lane {
    /// Rows and checkpoints, in one transaction.
    pub(crate) async fn commit(
        &self,
        store: &Store,
        epoch: i64,
        changes: &[Change],
        last: &RecordedEvent,
    ) -> Result<(), Error> {
        let mut tx = store.db().begin().await?;
        self.write(&mut tx, epoch, changes, Some(last)).await?;
        Ok(tx.commit().await?)
    }

    /// Writes what changes do to the tables, and the checkpoints, which must stand where this lane left them and under
    /// its epoch; they move to `last`, if there is one.
    pub(crate) async fn write(
        &self,
        tx: &mut Tx,
        epoch: i64,
        changes: &[Change],
        last: Option<&RecordedEvent>,
    ) -> Result<(), Error> {
        let position = last.map_or(self.position, |last| last.position);
        let event: Option<String> = last.map(known);
        let mut values: Vec<Value> =
            vec![position.into(), now_us().into(), epoch.into(), self.position.into(), event.into()];
        let own: Vec<_> = self
            .members
            .iter()
            .map(|member| {
                values.push(member.projection.name.into());
                values.push(member.generation.into());
                format!("(projection = ${} and generation = ${})", values.len() - 1, values.len())
            })
            .collect();
        let sql = format!(
            "update checkpoints set position = $1, updated_at = $2, last_error = null, event = coalesce($5, event)
             where epoch = $3 and position = $4 and ({})",
            own.join(" or ")
        );
        if tx.execute(&sql, values).await? as usize != self.members.len() {
            return Err(Error::Fenced);
        }
        for member in &self.members {
            for (table, rows) in (member.projection.fold)(changes) {
                tx.write(table, member.generation, rows).await?;
            }
        }
        Ok(())
    }
}

/// Lanes by position, the slowest first.
pub(crate) fn lanes(members: impl IntoIterator<Item = (Member, i64)>) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    for (member, position) in members {
        match lanes.iter_mut().find(|lane| lane.position == position) {
            Some(lane) => lane.members.push(member),
            None => lanes.push(Lane { position, members: vec![member] }),
        }
    }
    lanes.sort_by_key(|lane| lane.position);
    lanes
}

/// Makes the first generation of projections that have none, empty and serving, so that queries find their tables. Beside
/// others that are further it is outdated from the beginning: the others shall not wait until it has caught up.
///
/// # Errors
/// The database is away.
pub async fn prepare(store: &Store) -> Result<(), StoreError> {
    let serves = |known: &[Checkpoint], projection: &Projection| {
        known.iter().any(|row| row.projection == projection.name && row.state == LIVE)
    };
    let known: Vec<Checkpoint> = store.db().fetch_all(CHECKPOINTS, vec![]).await?;
    if all().iter().all(|projection| serves(&known, projection)) {
        return Ok(());
    }
    let mut tx = store.db().begin().await?;
    tx.lock_checkpoints().await?;
    let known = checkpoints(&mut tx).await?;
    for projection in all() {
        if serves(&known, projection) {
            continue;
        }
        let generation = create(&mut tx, projection, &known).await?;
        if known.iter().any(|row| row.state == LIVE && row.position > 0) {
            let sql = "update checkpoints set version = $1 where projection = $2 and generation = $3";
            tx.execute(sql, vec![OUTDATED.into(), projection.name.into(), generation.into()]).await?;
        }
        for table in projection.tables {
            tx.index(table, generation).await?;
            tx.serve(table, generation).await?;
        }
        set_state(&mut tx, projection.name, generation, LIVE).await?;
    }
    tx.commit().await
}

/// Makes the tables of a new generation, and its checkpoint at the log's beginning.
pub(crate) async fn create(tx: &mut Tx, projection: &Projection, known: &[Checkpoint]) -> Result<i64, StoreError> {
    let own = known.iter().filter(|row| row.projection == projection.name);
    let generation = own.map(|row| row.generation).max().unwrap_or(0) + 1;
    for table in projection.tables {
        tx.create(table, generation).await?;
    }
    let sql = "insert into checkpoints (projection, generation, version, state, position, epoch, updated_at)
               values ($1, $2, $3, $4, 0, 0, $5)";
    let values =
        vec![projection.name.into(), generation.into(), projection.version.into(), BUILDING.into(), now_us().into()];
    tx.execute(sql, values).await?;
    Ok(generation)
}

/// Removes a generation.
pub(crate) async fn remove(tx: &mut Tx, projection: &Projection, generation: i64) -> Result<(), StoreError> {
    for table in projection.tables {
        tx.remove(table, generation).await?;
    }
    let sql = "delete from checkpoints where projection = $1 and generation = $2";
    tx.execute(sql, vec![projection.name.into(), generation.into()]).await.map(drop)
}

pub(crate) async fn set_state(tx: &mut Tx, name: &str, generation: i64, state: &str) -> Result<(), StoreError> {
    let sql = "update checkpoints set state = $1, last_error = null where projection = $2 and generation = $3";
    tx.execute(sql, vec![state.into(), name.into(), generation.into()]).await.map(drop)
}

/// Gives the checkpoints in these states a new epoch, so that whoever moved them before writes nothing more; the epoch.
pub(crate) async fn take_over(tx: &mut Tx, states: &[&str]) -> Result<i64, StoreError> {
    for state in states {
        let sql = "update checkpoints set epoch = (select max(epoch) + 1 from checkpoints) where state = $1";
        tx.execute(sql, vec![(*state).into()]).await?;
    }
    let rows: Vec<(i64,)> = tx.fetch_all("select coalesce(max(epoch), 0) from checkpoints", vec![]).await?;
    Ok(rows.first().map_or(0, |(epoch,)| *epoch))
}

/// What an operator decided about an event changes the rows of these generations only: the others that are beyond it lack
/// the change, and can only be built anew.
pub(crate) async fn outdate_others(tx: &mut Tx, members: &[Member], position: i64) -> Result<(), StoreError> {
    let mut values: Vec<Value> = vec![OUTDATED.into(), position.into()];
    let mut sql = "update checkpoints set version = $1 where position >= $2".to_owned();
    for member in members {
        values.push(member.projection.name.into());
        values.push(member.generation.into());
        sql += &format!(" and not (projection = ${} and generation = ${})", values.len() - 1, values.len());
    }
    tx.execute(&sql, values).await.map(drop)
}
