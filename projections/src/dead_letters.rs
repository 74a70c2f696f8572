//! Events that no projector can apply. The order is parked at such an event, the others flow; an operator mends what is
//! wrong and asks for a retry, or discards the event.

use std::collections::HashMap;

use event_store::db::{Db, Tx};
use event_store::error::Error;
use event_store::event::RecordedEvent;
use event_store::now_us;
use event_store::store::Store;
use serde::Serialize;

use crate::order::{FoldError, OrderState, rfc3339};

/// What the folding leaves out.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeftOut {
    /// Orders, each from a position on.
    pub(crate) parked: HashMap<String, i64>,
    /// Single events.
    pub(crate) discarded: Discarded,
}

/// Events that operators have decided to do without, by position, with their ids where those are known.
#[derive(Debug, Clone, Default)]
pub struct Discarded(HashMap<i64, Option<String>>);

impl Discarded {
    /// Whether this event is one of them.
    pub fn holds(&self, event: &RecordedEvent) -> bool {
        self.0.get(&event.position).is_some_and(|id| id.as_ref().is_none_or(|id| *id == event.id()))
    }

    pub(crate) fn insert(&mut self, position: i64, id: Option<String>) {
        self.0.insert(position, id);
    }
}

impl LeftOut {
    /// Whether the event waits for an operator, or for one before it in its order.
    pub(crate) fn parks(&self, event: &RecordedEvent) -> bool {
        self.parked.get(&*event.aggregate_id).is_some_and(|from| event.position >= *from)
    }

    /// Whether an operator has decided to do without it.
    pub(crate) fn discards(&self, event: &RecordedEvent) -> bool {
        self.discarded.holds(event)
    }
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub(crate) struct Row {
    pub(crate) position: i64,
    pub(crate) aggregate_id: String,
    sequence: i64,
    event_type: String,
    reason: String,
    attempts: i64,
    parked_at: i64,
    pub(crate) state: String,
    pub(crate) event: Option<String>,
}

impl Row {
    /// The same event, failing again.
    pub(crate) fn failed(&self, reason: String) -> FoldError {
        FoldError {
            position: self.position,
            event_type: self.event_type.clone(),
            order_id: self.aggregate_id.clone(),
            sequence: self.sequence,
            event_id: self.event.clone().unwrap_or_default(),
            reason,
        }
    }
}

const ROWS: &str = "select position, aggregate_id, sequence, event_type, reason, attempts, parked_at, state, event
                    from dead_letters order by position";

/// What is left out, and the rows that ask for something.
pub(crate) fn sort_out(rows: Vec<Row>) -> (LeftOut, Vec<Row>) {
    let mut left_out = LeftOut::default();
    for row in &rows {
        match row.state.as_str() {
            "discarded" => left_out.discarded.insert(row.position, row.event.clone()),
            _ => drop(left_out.parked.insert(row.aggregate_id.clone(), row.position)),
        }
    }
    (left_out, rows.into_iter().filter(|row| row.state == "retry" || row.state == "discard").collect())
}

pub(crate) async fn rows(tx: &mut Tx) -> Result<Vec<Row>, Error> {
    tx.fetch_all(ROWS, vec![]).await
}

/// Forgets what is about events that this log has not: it was restored or replaced. The rest.
pub(crate) async fn of_this_log(tx: &mut Tx, store: &Store) -> Result<Vec<Row>, Error> {
    let mut own = Vec::new();
    for row in rows(tx).await? {
        let there = store.read_stored(row.position - 1, 1).await?;
        let there = there.first().filter(|event| event.position == row.position).map(RecordedEvent::id);
        if there.is_some() && (row.event.is_none() || row.event == there) {
            own.push(row);
            continue;
        }
        let (position, order_id) = (row.position, row.aggregate_id);
        tracing::warn!(position, order_id, "a dead letter of another log is forgotten");
        tx.execute("delete from dead_letters where position = $1", vec![position.into()]).await?;
    }
    Ok(own)
}

/// Parks an order at an event.
pub(crate) async fn park(tx: &mut Tx, failed: &FoldError, attempts: i64) -> Result<(), Error> {
    let sql = "insert into dead_letters
                   (position, aggregate_id, sequence, event_type, reason, attempts, parked_at, state, event)
               values ($1, $2, $3, $4, $5, $6, $7, 'parked', $8)
               on conflict (group_name, position) do update
               set reason = excluded.reason, attempts = dead_letters.attempts + 1, state = 'parked'";
    let values = vec![
        failed.position.into(),
        failed.order_id.clone().into(),
        failed.sequence.into(),
        failed.event_type.clone().into(),
        failed.reason.replace('\0', "\\0").into(),
        attempts.into(),
        now_us().into(),
        Some(failed.event_id.clone()).filter(|id| !id.is_empty()).into(),
    ];
    tx.execute(sql, values).await.map(drop)
}

/// The operator's wish was carried out.
pub(crate) async fn settle(tx: &mut Tx, row: &Row) -> Result<(), Error> {
    let sql = match row.state.as_str() {
        "discard" => "update dead_letters set state = 'discarded' where position = $1",
        _ => "delete from dead_letters where position = $1",
    };
    tx.execute(sql, vec![row.position.into()]).await.map(drop)
}

/// A dead letter, as operators see it.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct DeadLetter {
    /// Position of the event; its name in commands.
    pub position: i64,
    /// The order that is parked there.
    pub order_id: String,
    /// The event's place in the order's stream.
    pub sequence: i64,
    /// The event's name.
    pub event_type: String,
    /// Why it could not be applied.
    pub reason: String,
    /// How often it was tried.
    pub attempts: i64,
    /// When the order was parked, RFC 3339.
    pub parked_at: String,
    /// For how long, in seconds.
    pub age_seconds: f64,
    /// `parked`; `retry` or `discard` until the projector has seen the wish; `discarded`.
    pub state: String,
}

/// Every dead letter, the first in the log first.
pub async fn list(db: &Db) -> Result<Vec<DeadLetter>, Error> {
    let rows: Vec<Row> = db.fetch_all(ROWS, vec![]).await?;
    let letter = |row: Row| DeadLetter {
        position: row.position,
        order_id: row.aggregate_id,
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

/// The events that operators have discarded.
///
/// # Errors
/// The database is away.
pub async fn discarded(db: &Db) -> Result<Discarded, Error> {
    Ok(sort_out(db.fetch_all(ROWS, vec![]).await?).0.discarded)
}

/// What an operator decides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Try again: what was wrong is mended.
    Retry,
    /// Do without this event for good; the order goes on after it.
    Discard,
}

/// What became of a decision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decided {
    /// The projector was asked for it.
    Asked,
    /// No order is parked there, but the event cannot be read: it is discarded for every rebuild from now on.
    Done,
    /// No order is parked there.
    NoSuch,
}

/// Asks the projector for it. An event that cannot be read may be discarded though no order is parked at it: it was
/// projected when it still could be.
///
/// # Errors
/// The database is away.
pub async fn decide(store: &Store, position: i64, decision: Decision) -> Result<Decided, Error> {
    let state = match decision {
        Decision::Retry => "retry",
        Decision::Discard => "discard",
    };
    let mut tx = store.db().begin_durably().await?;
    let sql = "update dead_letters set state = $1 where position = $2 and state <> 'discarded'";
    let asked = tx.execute(sql, vec![state.into(), position.into()]).await?;
    if asked == 1 {
        tx.commit().await?;
        return Ok(Decided::Asked);
    }
    let known = rows(&mut tx).await?.iter().any(|row| row.position == position);
    let event = store.read(position - 1, 1).await?.into_iter().find(|event| event.position == position);
    let unreadable = |event: &RecordedEvent| OrderState::unreadable(event).map(|reason| FoldError::new(event, reason));
    match event.as_ref().filter(|_| decision == Decision::Discard && !known).and_then(unreadable) {
        Some(failed) => {
            park(&mut tx, &failed, 0).await?;
            let sql = "update dead_letters set state = 'discarded' where position = $1";
            tx.execute(sql, vec![position.into()]).await?;
            tx.commit().await?;
            Ok(Decided::Done)
        }
        None => Ok(Decided::NoSuch),
    }
}
