//! Events that could not be projected. The stream is parked at such an event, the others flow; an operator mends what is
//! wrong and asks for a retry, or discards the event.
//!
//! There are two kinds. An event that its aggregate cannot decode or apply is parked for every group, and its row names no
//! group. A row that the database refuses, or a fold that panics, parks the stream in one group only. A decision about the
//! first kind becomes one row for each group, because each group brings its own rows up to date.

use event_store::db::{Db, Tx};
use event_store::error::Error;
use event_store::event::RecordedEvent;
use event_store::now_us;
use event_store::store::Store;
use kernel::stream::StreamId;
use serde::Serialize;

use crate::exclusions::{Discarded, Exclusions};
use crate::registry::Registry;
use crate::state::{FoldError, rfc3339};

/// Name in the database for every group.
const EVERY_GROUP: &str = "";

#[derive(Debug, Clone, sqlx_macros::FromRow)]
pub(crate) struct Row {
    group_name: String,
    pub(crate) position: i64,
    aggregate_type: String,
    aggregate_id: String,
    pub(crate) sequence: i64,
    event_type: String,
    reason: String,
    pub(crate) attempts: i64,
    parked_at: i64,
    pub(crate) state: String,
    pub(crate) event: Option<String>,
}

impl Row {
    pub(crate) fn stream(&self) -> StreamId {
        StreamId::new(&self.aggregate_type, &self.aggregate_id)
    }

    /// The same event, failing again.
    pub(crate) fn failed(&self, reason: String) -> FoldError {
        FoldError {
            position: self.position,
            event_type: self.event_type.as_str().into(),
            stream: self.stream(),
            sequence: self.sequence,
            event_id: self.event.as_deref().unwrap_or_default().into(),
            reason: reason.into(),
        }
    }
}

const ROWS: &str = "select group_name, position, aggregate_type, aggregate_id, sequence, event_type, reason, attempts,
                           parked_at, state, event
                    from dead_letters order by position, group_name";

/// What a group leaves out, and its rows that ask for something.
pub(crate) fn partition(rows: &[Row], group: &str) -> (Exclusions, Vec<Row>) {
    let mut exclusions = Exclusions::default();
    let concerns = |row: &&Row| row.group_name == EVERY_GROUP || row.group_name == group;
    for row in rows.iter().filter(concerns) {
        match row.state.as_str() {
            "discarded" => exclusions.discarded.insert(row.position, row.event.clone()),
            // The first one of a stream: the rows are in order.
            _ => drop(exclusions.parked.entry(row.stream()).or_insert(row.position)),
        }
    }
    let asks = |row: &&Row| row.group_name == group && (row.state == "retry" || row.state == "discard");
    (exclusions, rows.iter().filter(asks).cloned().collect())
}

pub(crate) async fn rows(tx: &mut Tx) -> Result<Vec<Row>, Error> {
    tx.fetch_all(ROWS, vec![]).await
}

/// Removes rows about events that this log does not hold: it was restored or replaced. Gives the rest.
pub(crate) async fn of_this_log(tx: &mut Tx, store: &Store) -> Result<Vec<Row>, Error> {
    let mut own = Vec::new();
    for row in rows(tx).await? {
        let there = store.read_stored(row.position - 1, 1).await?;
        let there = there.first().filter(|event| event.position == row.position).map(RecordedEvent::id);
        if there.is_some() && (row.event.is_none() || row.event == there) {
            own.push(row);
            continue;
        }
        tracing::warn!(row.position, stream = %row.stream(), "a dead letter of another log is removed");
        let sql = "delete from dead_letters where group_name = $1 and position = $2";
        tx.execute(sql, vec![row.group_name.into(), row.position.into()]).await?;
    }
    Ok(own)
}

/// Who a stream is parked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scope<'a> {
    /// Every group: the event cannot be decoded or applied.
    EveryGroup,
    /// One group: its rows are refused.
    Group(&'a str),
}

/// Parks a stream at an event.
pub(crate) async fn park(tx: &mut Tx, scope: Scope<'_>, failed: &FoldError, attempts: i64) -> Result<(), Error> {
    let group = match scope {
        Scope::EveryGroup => EVERY_GROUP,
        Scope::Group(group) => group,
    };
    let sql = "insert into dead_letters
                   (group_name, position, aggregate_type, aggregate_id, sequence, event_type, reason, attempts, parked_at,
                    state, event)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'parked', $10)
               on conflict (group_name, position) do update
               set reason = excluded.reason, attempts = dead_letters.attempts + 1, state = 'parked'";
    let values = vec![
        group.into(),
        failed.position.into(),
        failed.stream.aggregate_type.to_string().into(),
        failed.stream.aggregate_id.to_string().into(),
        failed.sequence.into(),
        (&*failed.event_type).into(),
        failed.reason.replace('\0', "\\0").into(),
        attempts.into(),
        now_us().into(),
        Some(failed.event_id.to_string()).filter(|id| !id.is_empty()).into(),
    ];
    tx.execute(sql, values).await.map(drop)
}

/// Parks a stream at an event that a group cannot decode or apply: for every group, unless one of them may have the event
/// in its rows already. Such a group goes on, because a decision would write the event into its rows a second time.
pub(crate) async fn park_undecodable(
    tx: &mut Tx,
    registry: &Registry,
    group: &str,
    failed: &FoldError,
    attempts: i64,
) -> Result<(), Error> {
    tx.lock_checkpoints().await?;
    // Another group came first: it has parked the stream for every group, and gone on.
    let sql = "select position from dead_letters where group_name = $1 and position = $2";
    let known: Vec<(i64,)> = tx.fetch_all(sql, vec![EVERY_GROUP.into(), failed.position.into()]).await?;
    if !known.is_empty() {
        return Ok(());
    }
    let sql =
        "select distinct group_name from checkpoints where state = 'live' and position >= $1 and group_name <> $2";
    let beyond: Vec<(String,)> = tx.fetch_all(sql, vec![failed.position.into(), group.into()]).await?;
    let has_it = beyond.iter().any(|(other,)| registry.may_fold(other, &failed.stream.aggregate_type));
    park(tx, if has_it { Scope::Group(group) } else { Scope::EveryGroup }, failed, attempts).await
}

/// The decision was carried out in the row's group.
pub(crate) async fn settle(tx: &mut Tx, row: &Row) -> Result<(), Error> {
    let of_every_group = "select position from dead_letters where group_name = '' and position = $1";
    let known: Vec<(i64,)> = tx.fetch_all(of_every_group, vec![row.position.into()]).await?;
    let sql = match row.state.as_str() {
        "discard" if known.is_empty() => {
            "update dead_letters set state = 'discarded' where group_name = $1 and position = $2"
        }
        _ => "delete from dead_letters where group_name = $1 and position = $2",
    };
    tx.execute(sql, vec![row.group_name.clone().into(), row.position.into()]).await.map(drop)
}

/// Removes the row of a decision whose event has failed again, for every group.
pub(crate) async fn give_up(tx: &mut Tx, row: &Row) -> Result<(), Error> {
    let sql = "delete from dead_letters where group_name = $1 and position = $2";
    tx.execute(sql, vec![row.group_name.clone().into(), row.position.into()]).await.map(drop)
}

/// A dead letter, as operators see it.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct DeadLetter {
    /// Position of the event; its name in commands.
    pub position: i64,
    /// The group of read models that it is parked in; null where the event cannot be decoded or applied, so that it is
    /// parked in every group.
    pub group: Option<String>,
    /// Type of the aggregate.
    pub aggregate_type: String,
    /// The aggregate that is parked.
    pub aggregate_id: String,
    /// The event's place in the aggregate's stream.
    pub sequence: i64,
    /// The event's name.
    pub event_type: String,
    /// Why it could not be projected.
    pub reason: String,
    /// How often it was tried.
    pub attempts: i64,
    /// When the stream was parked, RFC 3339.
    pub parked_at: String,
    /// For how long, in seconds.
    pub age_seconds: f64,
    /// `parked`; `retry` or `discard` until the projector has carried the decision out; `discarded`.
    pub state: String,
}

/// Every dead letter, the first in the log first.
pub async fn list(db: &Db) -> Result<Vec<DeadLetter>, Error> {
    let rows: Vec<Row> = db.fetch_all(ROWS, vec![]).await?;
    let letter = |row: Row| DeadLetter {
        position: row.position,
        group: Some(row.group_name).filter(|name| name != EVERY_GROUP),
        aggregate_type: row.aggregate_type,
        aggregate_id: row.aggregate_id,
        sequence: row.sequence,
        event_type: row.event_type,
        reason: row.reason,
        attempts: row.attempts,
        age_seconds: (now_us() - row.parked_at).max(0) as f64 / 1e6,
        parked_at: rfc3339(row.parked_at),
        state: row.state,
    };
    Ok(rows.into_iter().map(letter).collect())
}

/// The events that operators have discarded, as a group sees it.
///
/// # Errors
/// The database is away.
pub async fn discarded(db: &Db, group: &str) -> Result<Discarded, Error> {
    let rows: Vec<Row> = db.fetch_all(ROWS, vec![]).await?;
    Ok(partition(&rows, group).0.discarded)
}

/// What an operator decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Try again: what was wrong is mended.
    Retry,
    /// Do without this event for good; the stream goes on after it.
    Discard,
}

impl Decision {
    fn state(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }
}

/// What became of a decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decided {
    /// The projector was asked for it.
    Requested,
    /// No stream is parked there, but the event cannot be decoded: it is discarded for every rebuild from now on.
    Done,
    /// No stream is parked there.
    NoSuch,
}

/// Asks the projector of each group concerned to carry a decision out. An event that cannot be decoded may be discarded
/// though no stream is parked at it: it was projected when it still could be.
///
/// # Errors
/// The database is away.
pub async fn decide(store: &Store, registry: &Registry, position: i64, decision: Decision) -> Result<Decided, Error> {
    let mut tx = store.db().begin_durably().await?;
    tx.lock_checkpoints().await?;
    let known: Vec<Row> = rows(&mut tx).await?.into_iter().filter(|row| row.position == position).collect();
    let open: Vec<_> = known.iter().filter(|row| row.state != "discarded").collect();
    for row in &open {
        match row.group_name.as_str() {
            EVERY_GROUP => ask_every_group(&mut tx, row, decision).await?,
            group => {
                let sql = "update dead_letters set state = $1 where group_name = $2 and position = $3";
                tx.execute(sql, vec![decision.state().into(), group.into(), position.into()]).await?;
            }
        }
    }
    let event = store.read(position - 1, 1).await?.into_iter().find(|event| event.position == position);
    let undecodable = |event: &RecordedEvent| registry.undecodable(event).map(|reason| FoldError::new(event, reason));
    let is_new = known.iter().all(|row| row.group_name != EVERY_GROUP);
    let wanted =
        event.as_ref().filter(|_| decision == Decision::Discard && is_new && (open.is_empty() == known.is_empty()));
    // What nobody can decode is discarded for every group, also for those that have not come to it.
    let discarded = wanted.and_then(undecodable);
    if let Some(failed) = &discarded {
        park(&mut tx, Scope::EveryGroup, failed, 0).await?;
        let sql = "update dead_letters set state = 'discarded' where group_name = $1 and position = $2";
        tx.execute(sql, vec![EVERY_GROUP.into(), position.into()]).await?;
    }
    let decided = match (open.is_empty(), discarded.is_some()) {
        (false, _) => Decided::Requested,
        (true, true) => Decided::Done,
        (true, false) => return Ok(Decided::NoSuch),
    };
    tx.commit().await?;
    Ok(decided)
}

/// Carries over decisions that an older release has written into rows of every group.
pub(crate) async fn ask_every_group_again(tx: &mut Tx) -> Result<(), Error> {
    for row in rows(tx).await?.iter().filter(|row| row.group_name == EVERY_GROUP) {
        match row.state.as_str() {
            "retry" => ask_every_group(tx, row, Decision::Retry).await?,
            "discard" => ask_every_group(tx, row, Decision::Discard).await?,
            _ => {}
        }
    }
    Ok(())
}

/// Whether a decision of an older release waits in a row of every group.
pub(crate) fn asks_every_group(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.group_name == EVERY_GROUP && (row.state == "retry" || row.state == "discard"))
}

/// Positions of the events of a stream at which it is parked for a group, besides one row.
pub(crate) fn other_positions(rows: &[Row], group: &str, one: &Row) -> Vec<i64> {
    let concerns = |row: &&Row| row.group_name == EVERY_GROUP || row.group_name == group;
    let own = rows.iter().filter(concerns).filter(|row| row.state != "discarded");
    own.filter(|row| row.stream() == one.stream() && row.position != one.position).map(|row| row.position).collect()
}

/// Replaces a row of every group by one of each group that has checkpoints, whatever program they are of.
async fn ask_every_group(tx: &mut Tx, row: &Row, decision: Decision) -> Result<(), Error> {
    let sql = "insert into dead_letters
                   (group_name, position, aggregate_type, aggregate_id, sequence, event_type, reason, attempts, parked_at,
                    state, event)
               select distinct c.group_name, d.position, d.aggregate_type, d.aggregate_id, d.sequence, d.event_type,
                      d.reason, d.attempts, d.parked_at, $1, d.event
               from dead_letters d cross join checkpoints c
               where d.group_name = '' and d.position = $2
               on conflict (group_name, position) do update set state = excluded.state";
    tx.execute(sql, vec![decision.state().into(), row.position.into()]).await?;
    let sql = match decision {
        Decision::Retry => "delete from dead_letters where group_name = '' and position = $1",
        Decision::Discard => "update dead_letters set state = 'discarded' where group_name = '' and position = $1",
    };
    tx.execute(sql, vec![row.position.into()]).await.map(drop)
}
