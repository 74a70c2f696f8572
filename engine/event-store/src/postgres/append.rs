//! Appends to PostgreSQL. A database function locks the head, checks the conditions of the batch and writes it, all in
//! one round trip (`migrations/postgres/log/0007_append_function.sql`).

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use kernel::stream::StreamId;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::{Arguments, Connection, Encode, Postgres, Type};

use super::primary::Reserved;
use crate::append::{Append, BacklogEntry};
use crate::event::NewEvent;
use crate::plan::{
    BacklogRow, Checkpoint, Committed, Lineages, LockedState, Plan, answered_version, plan, unchanged_position,
};

/// Number of the function's parameters: without those for reactions, and in total.
const PARAMETERS: usize = 22;
const PARAMETERS_WITH_REACTIONS: usize = 41;
/// Maximum number of calls under one lock. The second call already uses everything that the first has found; it can
/// fail only if an operator raises a fence between the two.
const LOCKED_CALLS_MAX: usize = 4;

static APPEND: LazyLock<String> = LazyLock::new(|| call_of(PARAMETERS));
static APPEND_WITH_REACTIONS: LazyLock<String> = LazyLock::new(|| call_of(PARAMETERS_WITH_REACTIONS));

fn call_of(parameters: usize) -> String {
    let parameters: Vec<_> = (1..=parameters).map(|number| format!("${number}")).collect();
    format!("select * from docket_append({})", parameters.join(", "))
}

/// Time for which all streams are looked up after a stream that an append was to create already existed.
const LOOKUP_ALL_FOR: Duration = Duration::from_secs(10);
/// SQLSTATE `unique_violation`.
const NOT_UNIQUE: &str = "23505";

/// The appender's connection.
pub(super) struct Writer {
    pub(super) reserved: Reserved,
    pub(super) used: Instant,
    /// Until this time the streams that appends create are looked up, too.
    lookup_all_until: Option<Instant>,
}

/// The function's result. Indexes count from 1 and refer to the arrays that were passed to the function.
#[derive(sqlx_macros::FromRow)]
struct Answer {
    is_written: bool,
    head: i64,
    other_streams: Option<Vec<i64>>,
    other_versions: Option<Vec<i64>>,
    taken_keys: Option<Vec<i64>>,
    other_reactors: Option<Vec<i64>>,
    other_positions: Option<Vec<Option<i64>>>,
    other_fences: Option<Vec<Option<i64>>>,
    missing_backlog: Option<Vec<i64>>,
}

impl Writer {
    pub(super) fn new(reserved: Reserved) -> Self {
        Self { reserved, used: Instant::now(), lookup_all_until: None }
    }

    /// Writes a batch. The first call assumes that all conditions hold. If the log differs, the batch is
    /// planned again on the state that the function has returned, and the winners are sent again under the lock, so
    /// that other processes cannot change the log in between.
    pub(super) async fn append(&mut self, batch: &[&Append], lineages: &Lineages) -> Result<Committed, sqlx::Error> {
        let mut state = LockedState::optimistic(batch);
        let optimistic_plan = plan(batch, &state, lineages);
        if !optimistic_plan.has_winners() {
            return Ok(optimistic_plan.after(0));
        }
        let lookups = match self.lookup_all_until.is_some_and(|until| Instant::now() < until) {
            true => Lookups::AllStreams,
            false => Lookups::ExistingStreams,
        };
        match call(&mut self.reserved.connection, batch, &mut state, &optimistic_plan, lookups).await {
            Ok(Some(head)) => return Ok(optimistic_plan.after(head)),
            Ok(None) => {}
            Err(error) if lookups == Lookups::ExistingStreams && is_not_unique(&error) => {
                self.lookup_all_until = Some(Instant::now() + LOOKUP_ALL_FOR);
            }
            Err(error) => return Err(error),
        }
        let second_plan = plan(batch, &state, lineages);
        if !second_plan.has_winners() {
            return Ok(second_plan.after(0));
        }
        let mut tx = self.reserved.connection.begin().await?;
        for _ in 0..LOCKED_CALLS_MAX {
            let plan = plan(batch, &state, lineages);
            if !plan.has_winners() {
                tx.rollback().await?;
                return Ok(plan.after(0));
            }
            if let Some(head) = call(&mut tx, batch, &mut state, &plan, Lookups::AllStreams).await? {
                tx.commit().await?;
                return Ok(plan.after(head));
            }
        }
        Err(sqlx::Error::Protocol("the log changed while this process held its lock".into()))
    }
}

/// The streams of a batch whose versions the function looks up before it writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lookups {
    /// All streams.
    AllStreams,
    /// All streams except those that the batch creates: if such a stream exists, the primary key of the events refuses
    /// the insert.
    ExistingStreams,
}

fn is_not_unique(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some(NOT_UNIQUE))
}

/// Calls the function. Returns the head before the batch if the batch was written. Returns `None` if a condition does
/// not hold and nothing was written; then `state` has the values that the function has found.
async fn call<'a>(
    connection: &mut PgConnection,
    batch: &[&'a Append],
    state: &mut LockedState<'a>,
    plan: &Plan<'a>,
    lookups: Lookups,
) -> Result<Option<i64>, sqlx::Error> {
    let mut arguments = PgArguments::default();
    add(&mut arguments, plan.recorded_at)?;
    let streams_to_look_up = streams_to_look_up(batch, state, plan, lookups);
    add_streams(&mut arguments, state, &streams_to_look_up)?;
    add_events(&mut arguments, batch, plan)?;
    add_keys(&mut arguments, batch, plan)?;
    let backlog = backlog_rows(state, plan);
    let sql = match state.checkpoints.is_empty() {
        true => &*APPEND,
        false => {
            add_checkpoints(&mut arguments, state, plan)?;
            add_backlog(&mut arguments, &backlog)?;
            add_deadlines(&mut arguments, plan)?;
            &*APPEND_WITH_REACTIONS
        }
    };
    let answer: Answer = sqlx::query_as_with(sql, arguments).fetch_one(connection).await?;
    if answer.is_written {
        return Ok(Some(answer.head));
    }
    let missing: Vec<_> = places(&answer.missing_backlog).map(|place| backlog[place].row).collect();
    apply_answer(state, &answer, &streams_to_look_up, &missing);
    Ok(None)
}

/// Replaces assumed values with those that the function has found.
fn apply_answer<'a>(
    state: &mut LockedState<'a>,
    answer: &Answer,
    streams_to_look_up: &[usize],
    missing: &[BacklogRow<'a>],
) {
    for (place, version) in places(&answer.other_streams).zip(answer.other_versions.iter().flatten()) {
        state.streams[streams_to_look_up[place]].1 = *version;
    }
    for place in places(&answer.taken_keys) {
        state.keys[place].1 = true;
    }
    let found = answer.other_positions.iter().flatten().zip(answer.other_fences.iter().flatten());
    let sent: Vec<_> = sent_checkpoints(state).map(|(place, _)| place).collect();
    for (place, (position, fence)) in places(&answer.other_reactors).zip(found) {
        state.checkpoints[sent[place]].at = position.zip(*fence);
    }
    for row in missing {
        state.backlog.insert(*row, false);
    }
}

/// Converts the function's indexes to indexes that count from 0.
fn places(of: &Option<Vec<i64>>) -> impl Iterator<Item = usize> {
    of.iter().flatten().map(|place| *place as usize - 1)
}

fn add<'q, T: Encode<'q, Postgres> + Type<Postgres> + 'q>(to: &mut PgArguments, value: T) -> Result<(), sqlx::Error> {
    to.add(value).map_err(sqlx::Error::Encode)
}

/// Returns the indexes of the streams to look up. Streams of refused appends are included, because a second plan needs
/// their versions.
fn streams_to_look_up(batch: &[&Append], state: &LockedState<'_>, plan: &Plan<'_>, lookups: Lookups) -> Vec<usize> {
    let places = 0..state.streams.len();
    if lookups == Lookups::AllStreams {
        return places.collect();
    }
    let writes = plan.winners(batch).flat_map(|(append, _)| &append.writes);
    let begun: HashSet<_> = writes.filter(|write| write.expected_version == 0).map(|write| &write.stream).collect();
    places.filter(|place| !begun.contains(state.streams[*place].0)).collect()
}

fn add_streams(arguments: &mut PgArguments, state: &LockedState<'_>, places: &[usize]) -> Result<(), sqlx::Error> {
    let streams = || places.iter().map(|place| &state.streams[*place]);
    add(arguments, streams().map(|(stream, _)| &*stream.aggregate_type).collect::<Vec<_>>())?;
    add(arguments, streams().map(|(stream, _)| &*stream.aggregate_id).collect::<Vec<_>>())?;
    add(arguments, streams().map(|(_, version)| *version).collect::<Vec<_>>())
}

/// Adds the events of the winners, in the order of their positions.
fn add_events(arguments: &mut PgArguments, batch: &[&Append], plan: &Plan<'_>) -> Result<(), sqlx::Error> {
    let mut events: Vec<(&StreamId, i64, &NewEvent)> = Vec::with_capacity(plan.events as usize);
    for write in plan.winners(batch).flat_map(|(append, _)| &append.writes) {
        let sequences = write.expected_version + 1..;
        events.extend(write.events.iter().zip(sequences).map(|(event, sequence)| (&write.stream, sequence, event)));
    }
    add(arguments, events.iter().map(|(stream, _, _)| &*stream.aggregate_type).collect::<Vec<_>>())?;
    add(arguments, events.iter().map(|(stream, _, _)| &*stream.aggregate_id).collect::<Vec<_>>())?;
    add(arguments, events.iter().map(|(_, sequence, _)| *sequence).collect::<Vec<_>>())?;
    add(arguments, events.iter().map(|(_, _, event)| event.event_type).collect::<Vec<_>>())?;
    add(arguments, events.iter().map(|(_, _, event)| event.event_version).collect::<Vec<_>>())?;
    add(arguments, events.iter().map(|(_, _, event)| &*event.payload).collect::<Vec<_>>())?;
    add(arguments, events.iter().map(|(_, _, event)| &*event.metadata).collect::<Vec<_>>())
}

/// Adds every idempotency key of the batch, in the order of [`LockedState::keys`]. Only those of winners are recorded.
fn add_keys(arguments: &mut PgArguments, batch: &[&Append], plan: &Plan<'_>) -> Result<(), sqlx::Error> {
    let outcomes = batch.iter().zip(&plan.outcomes);
    let keys: Vec<_> = outcomes
        .filter_map(|(append, outcome)| {
            let idempotency = append.idempotency.as_ref()?;
            let version = outcome.as_ref().ok().map(|appended| answered_version(append, appended, idempotency));
            let position = unchanged_position(append, idempotency);
            let offset = outcome.as_ref().ok().map(|appended| appended.position).filter(|_| position.is_none());
            Some((idempotency, version, offset, position))
        })
        .collect();
    add(arguments, keys.iter().map(|(key, ..)| &*key.scope).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(key, ..)| &*key.key).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(_, version, ..)| version.is_some()).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(key, ..)| &*key.request_hash).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(key, ..)| i64::from(key.status)).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(key, ..)| &*key.stream.aggregate_type).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(key, ..)| &*key.stream.aggregate_id).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(_, version, ..)| *version).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(_, _, offset, _)| *offset).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(.., position)| *position).collect::<Vec<_>>())?;
    add(arguments, keys.iter().map(|(key, ..)| key.answer.as_deref()).collect::<Vec<_>>())
}

/// Returns the known checkpoints and their indexes. A reactor without a checkpoint has none to check or to move.
fn sent_checkpoints<'s>(state: &'s LockedState<'_>) -> impl Iterator<Item = (usize, (&'s Checkpoint<'s>, (i64, i64)))> {
    let checkpoints = state.checkpoints.iter().enumerate();
    checkpoints.filter_map(|(place, checkpoint)| Some((place, (checkpoint, checkpoint.at?))))
}

fn add_checkpoints(arguments: &mut PgArguments, state: &LockedState<'_>, plan: &Plan<'_>) -> Result<(), sqlx::Error> {
    let sent: Vec<_> = sent_checkpoints(state).collect();
    let target = |place: usize| plan.checkpoints[place].at.map(|(position, _)| position);
    add(arguments, sent.iter().map(|(_, (checkpoint, _))| checkpoint.reactor).collect::<Vec<_>>())?;
    add(arguments, sent.iter().map(|(_, (checkpoint, _))| checkpoint.partition).collect::<Vec<_>>())?;
    add(arguments, sent.iter().map(|(_, (_, (position, _)))| *position).collect::<Vec<_>>())?;
    add(arguments, sent.iter().map(|(_, (_, (_, fence)))| *fence).collect::<Vec<_>>())?;
    add(arguments, sent.iter().map(|(place, _)| target(*place)).collect::<Vec<_>>())
}

/// A row of the backlog: whether it must exist, and how it changes.
struct BacklogChange<'a> {
    row: BacklogRow<'a>,
    is_required: bool,
    is_deleted: bool,
    entry: Option<&'a BacklogEntry>,
}

fn backlog_rows<'a>(state: &LockedState<'a>, plan: &Plan<'a>) -> Vec<BacklogChange<'a>> {
    let change = |row: &BacklogRow<'a>, is_required| {
        let now = plan.backlog.get(row);
        let (is_deleted, entry) = (matches!(now, Some(None)), now.copied().flatten());
        BacklogChange { row: *row, is_required, is_deleted, entry }
    };
    let settled = state.backlog.iter().map(|(row, is_there)| change(row, *is_there));
    let parked = plan.backlog.keys().filter(|row| !state.backlog.contains_key(row)).map(|row| change(row, false));
    settled.chain(parked).collect()
}

fn add_backlog(arguments: &mut PgArguments, rows: &[BacklogChange<'_>]) -> Result<(), sqlx::Error> {
    let entry = |of: fn(&BacklogEntry) -> Option<i64>| rows.iter().map(move |row| row.entry.and_then(of));
    add(arguments, rows.iter().map(|change| change.row.reactor).collect::<Vec<_>>())?;
    add(arguments, rows.iter().map(|change| change.row.partition).collect::<Vec<_>>())?;
    add(arguments, rows.iter().map(|change| change.row.key).collect::<Vec<_>>())?;
    add(arguments, rows.iter().map(|change| change.row.position).collect::<Vec<_>>())?;
    add(arguments, rows.iter().map(|change| change.is_required).collect::<Vec<_>>())?;
    add(arguments, rows.iter().map(|change| change.is_deleted).collect::<Vec<_>>())?;
    add(arguments, rows.iter().map(|change| change.entry.is_some()).collect::<Vec<_>>())?;
    add(arguments, entry(|entry| Some(entry.attempts)).collect::<Vec<_>>())?;
    add(arguments, entry(|entry| entry.due_at).collect::<Vec<_>>())?;
    add(arguments, rows.iter().map(|change| change.entry?.reason.as_deref()).collect::<Vec<_>>())
}

fn add_deadlines(arguments: &mut PgArguments, plan: &Plan<'_>) -> Result<(), sqlx::Error> {
    let deadlines: Vec<_> = plan.deadlines.iter().collect();
    add(arguments, deadlines.iter().map(|((process, _, _), _)| *process).collect::<Vec<_>>())?;
    add(arguments, deadlines.iter().map(|((_, id, _), _)| *id).collect::<Vec<_>>())?;
    add(arguments, deadlines.iter().map(|((_, _, name), _)| *name).collect::<Vec<_>>())?;
    add(arguments, deadlines.iter().map(|(_, due_at)| **due_at).collect::<Vec<_>>())
}
