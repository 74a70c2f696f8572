//! Dead letters: events that could not be projected. The stream is parked at such an event; other streams are not
//! affected. An operator fixes the cause and requests a retry, or discards the event.
//!
//! There are two kinds of dead letters. An event that its aggregate cannot decode or apply is parked for every
//! checkpoint group, and its row names no group. When the database rejects the rows of a stream, or the fold of a
//! projection panics, the stream is parked in one group only. A decision about a dead letter of the first kind is
//! copied into one row per group, because each group updates its own rows.

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

/// `group_name` of the dead letters that apply to every group.
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

    /// Returns an error about the event of this row, with a new reason.
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

/// Returns the events that a group excludes, and the rows with decisions that the group's projector must carry out.
pub(crate) fn partition(rows: &[Row], group: &str) -> (Exclusions, Vec<Row>) {
    let mut exclusions = Exclusions::default();
    let concerns = |row: &&Row| row.group_name == EVERY_GROUP || row.group_name == group;
    for row in rows.iter().filter(concerns) {
        match row.state.as_str() {
            "discarded" => exclusions.discarded.insert(row.position, row.event.clone()),
            // The rows are ordered by position, so the first row of a stream counts.
            _ => drop(exclusions.parked.entry(row.stream()).or_insert(row.position)),
        }
    }
    let asks = |row: &&Row| row.group_name == group && (row.state == "retry" || row.state == "discard");
    (exclusions, rows.iter().filter(asks).cloned().collect())
}

pub(crate) async fn rows(tx: &mut Tx) -> Result<Vec<Row>, Error> {
    tx.fetch_all(ROWS, vec![]).await
}

/// Removes dead letters of events that this log does not contain, because the log was restored or replaced. Returns the
/// remaining rows.
pub(crate) async fn remove_foreign(tx: &mut Tx, store: &Store) -> Result<Vec<Row>, Error> {
    let mut own = Vec::new();
    for row in rows(tx).await? {
        let there = store.read_stored(row.position - 1, 1).await?;
        let there = there.first().filter(|event| event.position == row.position).map(RecordedEvent::id);
        if there.is_some() && (row.event.is_none() || row.event == there) {
            own.push(row);
            continue;
        }
        tracing::warn!(row.position, stream = %row.stream(), "Removed a dead letter of an event that this log does not contain.");
        let sql = "delete from dead_letters where group_name = $1 and position = $2";
        tx.execute(sql, vec![row.group_name.into(), row.position.into()]).await?;
    }
    Ok(own)
}

/// The groups for which a stream is parked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scope<'a> {
    /// Every group: the event cannot be decoded or applied.
    EveryGroup,
    /// One group: the database rejects the stream's rows, or a fold of the group panics.
    Group(&'a str),
}

/// Parks a stream at an event. If the stream is already parked there, updates the reason and counts another attempt.
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

/// Parks a stream at an event that `group` cannot decode or apply. The stream is parked for every group, unless another
/// group may already have the event in its rows. Then it is parked for `group` only: parked for the other group too, a
/// later decision would write the event into that group's rows a second time.
pub(crate) async fn park_undecodable(
    tx: &mut Tx,
    registry: &Registry,
    group: &str,
    failed: &FoldError,
    attempts: i64,
) -> Result<(), Error> {
    tx.lock_checkpoints().await?;
    // Another group has already parked the stream for every group, and its checkpoint may be past the event by now.
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

/// Records that a decision was carried out in the row's group. The row is deleted; a discarded event keeps its row
/// unless a row for every group exists.
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

/// Removes the row of a decision whose event failed again. The caller then parks the event again, for every group if
/// possible.
pub(crate) async fn remove_decision(tx: &mut Tx, row: &Row) -> Result<(), Error> {
    let sql = "delete from dead_letters where group_name = $1 and position = $2";
    tx.execute(sql, vec![row.group_name.clone().into(), row.position.into()]).await.map(drop)
}

/// A dead letter, as shown to operators.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct DeadLetter {
    /// Position of the event in the log; commands identify the dead letter by it.
    pub position: i64,
    /// Name of the checkpoint group in which the stream is parked; null when the event cannot be decoded or applied, so
    /// that the stream is parked in every group.
    pub group: Option<String>,
    /// Type of the aggregate.
    pub aggregate_type: String,
    /// Id of the aggregate whose stream is parked.
    pub aggregate_id: String,
    /// Sequence of the event in its stream.
    pub sequence: i64,
    /// Name of the event.
    pub event_type: String,
    /// Why the event could not be projected.
    pub reason: String,
    /// Number of attempts to project the event.
    pub attempts: i64,
    /// Time at which the stream was parked, in RFC 3339.
    pub parked_at: String,
    /// Time since the stream was parked, in seconds.
    pub age_seconds: f64,
    /// State of the dead letter: `parked`; `retry` or `discard` until the projector has carried out the decision;
    /// `discarded`.
    pub state: String,
}

/// Returns all dead letters in the order of their positions.
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

/// Returns the events that operators have discarded for a checkpoint group.
///
/// # Errors
/// The database is unavailable.
pub async fn discarded(db: &Db, group: &str) -> Result<Discarded, Error> {
    let rows: Vec<Row> = db.fetch_all(ROWS, vec![]).await?;
    Ok(partition(&rows, group).0.discarded)
}

/// An operator's decision about a dead letter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Project the event again, because the cause of the failure is fixed.
    Retry,
    /// Exclude the event permanently; the stream continues with the next event.
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

/// The outcome of [`decide`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decided {
    /// The decision is recorded, and the projectors of the groups will carry it out.
    Requested,
    /// No stream is parked at the event, but the event cannot be decoded: it is discarded, and later rebuilds exclude
    /// it.
    Done,
    /// No stream is parked at the event.
    NoSuch,
}

/// Records a decision, so that the projector of each affected group carries it out. An event that cannot be decoded can
/// be discarded even if no stream is parked at it: it may have been projected while it could be decoded.
///
/// # Errors
/// The database is unavailable.
pub async fn decide(store: &Store, registry: &Registry, position: i64, decision: Decision) -> Result<Decided, Error> {
    let mut tx = store.db().begin_durably().await?;
    tx.lock_checkpoints().await?;
    let known: Vec<Row> = rows(&mut tx).await?.into_iter().filter(|row| row.position == position).collect();
    let open: Vec<_> = known.iter().filter(|row| row.state != "discarded").collect();
    for row in &open {
        match row.group_name.as_str() {
            EVERY_GROUP => copy_decision_to_groups(&mut tx, row, decision).await?,
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
    // An event that cannot be decoded is discarded for every group, including groups that have not reached it.
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

/// Copies decisions that an older release wrote into rows for every group into one row per group.
pub(crate) async fn copy_old_decisions(tx: &mut Tx) -> Result<(), Error> {
    for row in rows(tx).await?.iter().filter(|row| row.group_name == EVERY_GROUP) {
        match row.state.as_str() {
            "retry" => copy_decision_to_groups(tx, row, Decision::Retry).await?,
            "discard" => copy_decision_to_groups(tx, row, Decision::Discard).await?,
            _ => {}
        }
    }
    Ok(())
}

/// Whether an older release has written a decision into a row for every group.
pub(crate) fn has_old_decisions(rows: &[Row]) -> bool {
    rows.iter().any(|row| row.group_name == EVERY_GROUP && (row.state == "retry" || row.state == "discard"))
}

/// Returns the positions of the other events at which the stream of `one` is parked for a group.
pub(crate) fn other_positions(rows: &[Row], group: &str, one: &Row) -> Vec<i64> {
    let concerns = |row: &&Row| row.group_name == EVERY_GROUP || row.group_name == group;
    let own = rows.iter().filter(concerns).filter(|row| row.state != "discarded");
    own.filter(|row| row.stream() == one.stream() && row.position != one.position).map(|row| row.position).collect()
}

/// Copies a row for every group, with the decision, into one row for each group that has checkpoints, including groups
/// of other programs. A retry deletes the original row; a discard marks it as discarded.
async fn copy_decision_to_groups(tx: &mut Tx, row: &Row, decision: Decision) -> Result<(), Error> {
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
