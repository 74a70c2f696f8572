//! Events that no projector can apply. The order is parked at such an event, the others flow; an operator mends what is
//! wrong and asks for a retry, or discards the event.

use std::collections::{HashMap, HashSet};

use event_store::db::{Db, Tx};
use event_store::error::Error;
use event_store::event::RecordedEvent;
use event_store::now_us;
use serde::Serialize;

use crate::order::{FoldError, rfc3339};

/// What the folding leaves out.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeftOut {
    /// Orders, each from a position on.
    pub(crate) parked: HashMap<String, i64>,
    /// Single events.
    pub(crate) discarded: HashSet<i64>,
}

impl LeftOut {
    /// Whether the event waits for an operator, or for one before it in its order.
    pub(crate) fn parks(&self, event: &RecordedEvent) -> bool {
        self.parked.get(&*event.aggregate_id).is_some_and(|from| event.position >= *from)
    }

    /// Whether an operator has decided to do without it.
    pub(crate) fn discards(&self, event: &RecordedEvent) -> bool {
        self.discarded.contains(&event.position)
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
}

impl Row {
    /// The same event, failing again.
    pub(crate) fn failed(&self, reason: String) -> FoldError {
        FoldError {
            position: self.position,
            event_type: self.event_type.clone(),
            order_id: self.aggregate_id.clone(),
            sequence: self.sequence,
            reason,
        }
    }
}

const ROWS: &str = "select position, aggregate_id, sequence, event_type, reason, attempts, parked_at, state
                    from dead_letters order by position";

/// What is left out, and the rows that ask for something.
pub(crate) fn sort_out(rows: Vec<Row>) -> (LeftOut, Vec<Row>) {
    let mut left_out = LeftOut::default();
    for row in &rows {
        match row.state.as_str() {
            "discarded" => drop(left_out.discarded.insert(row.position)),
            _ => drop(left_out.parked.insert(row.aggregate_id.clone(), row.position)),
        }
    }
    (left_out, rows.into_iter().filter(|row| row.state == "retry" || row.state == "discard").collect())
}

pub(crate) async fn rows(tx: &mut Tx) -> Result<Vec<Row>, Error> {
    tx.fetch_all(ROWS, vec![]).await
}

/// Parks an order at an event.
pub(crate) async fn park(tx: &mut Tx, failed: &FoldError, attempts: i64) -> Result<(), Error> {
    let sql = "insert into dead_letters
                   (position, aggregate_id, sequence, event_type, reason, attempts, parked_at, state)
               values ($1, $2, $3, $4, $5, $6, $7, 'parked')
               on conflict (position) do update set reason = excluded.reason, attempts = dead_letters.attempts + 1,
                                                    state = 'parked'";
    let values = vec![
        failed.position.into(),
        failed.order_id.clone().into(),
        failed.sequence.into(),
        failed.event_type.clone().into(),
        failed.reason.replace('\0', "\\0").into(),
        attempts.into(),
        now_us().into(),
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

/// Positions of the events that operators have discarded.
///
/// # Errors
/// The database is away.
pub async fn discarded(db: &Db) -> Result<HashSet<i64>, Error> {
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

/// Asks the projector for it. False where no order is parked at this position.
pub async fn decide(db: &Db, position: i64, decision: Decision) -> Result<bool, Error> {
    let state = match decision {
        Decision::Retry => "retry",
        Decision::Discard => "discard",
    };
    let mut tx = db.begin().await?;
    let sql = "update dead_letters set state = $1 where position = $2 and state <> 'discarded'";
    let asked = tx.execute(sql, vec![state.into(), position.into()]).await?;
    tx.commit().await?;
    Ok(asked == 1)
}
