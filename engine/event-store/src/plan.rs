//! Decides which appends of a batch are written. Appends are checked in order: if the conditions of one hold, it is
//! applied before the next one is checked. An append whose conditions hold is called a winner. This module makes no
//! database calls; a backend passes in the state that it has read under the lock.

use std::collections::{HashMap, HashSet};

use kernel::stream::StreamId;

use crate::append::{Append, Appended, BacklogEntry, Idempotency, Lineage, ReactionMove};
use crate::error::AppendError;
use crate::now_us;

/// Maximum number of chains whose last committed ticket is kept. If a chain is forgotten, its next write fails and the
/// aggregate is loaded again.
const LINEAGES_MAX: usize = 65_536;

/// The state on which a batch depends, each item in the order in which the batch first names it. It starts with assumed
/// values; a backend replaces them with the values that it reads under the lock.
#[derive(Debug)]
pub(crate) struct LockedState<'a> {
    /// Every stream that is written or checked, once, with its version.
    pub(crate) streams: Vec<(&'a StreamId, i64)>,
    /// Index of each stream in `streams`.
    places: HashMap<&'a StreamId, usize>,
    /// The idempotency keys, one for each append that has one, and whether each is already used.
    pub(crate) keys: Vec<(&'a Idempotency, bool)>,
    /// The checkpoints of the reactors, each once.
    pub(crate) checkpoints: Vec<Checkpoint<'a>>,
    /// Backlog rows that are to be settled, and whether each exists.
    pub(crate) backlog: HashMap<BacklogRow<'a>, bool>,
}

/// The checkpoint of a reactor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Checkpoint<'a> {
    pub(crate) reactor: &'a str,
    pub(crate) partition: i64,
    /// Position and fence; `None` when the reactor has no checkpoint.
    pub(crate) at: Option<(i64, i64)>,
}

/// Identifies a row of the backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BacklogRow<'a> {
    pub(crate) reactor: &'a str,
    pub(crate) partition: i64,
    pub(crate) key: &'a str,
    pub(crate) position: i64,
}

/// Identifies a deadline: process, id, name.
pub(crate) type DeadlineRow<'a> = (&'a str, &'a str, &'a str);

impl<'a> BacklogRow<'a> {
    fn new(reaction: &'a ReactionMove, key: &'a str, position: i64) -> Self {
        Self { reactor: &reaction.reactor, partition: reaction.partition, key, position }
    }
}

impl<'a> LockedState<'a> {
    /// Assumes the usual case: every stream is at the version on which its write was decided, no key is used, every
    /// reactor's checkpoint is where its reaction expects it, and every backlog row exists.
    pub(crate) fn optimistic(batch: &[&'a Append]) -> Self {
        let mut state = Self {
            streams: Vec::with_capacity(batch.len()),
            places: HashMap::with_capacity(batch.len()),
            keys: Vec::new(),
            checkpoints: Vec::new(),
            backlog: HashMap::new(),
        };
        for append in batch {
            for write in &append.writes {
                state.assume(&write.stream, write.expected_version);
            }
            for check in &append.checks {
                state.assume(&check.stream, check.version);
            }
            state.keys.extend(append.idempotency.as_ref().map(|idempotency| (idempotency, false)));
            if let Some(reaction) = &append.reaction {
                state.assume_reaction(reaction);
            }
        }
        state
    }

    fn assume(&mut self, stream: &'a StreamId, version: i64) {
        let streams = &mut self.streams;
        self.places.entry(stream).or_insert_with(|| {
            streams.push((stream, version));
            streams.len() - 1
        });
    }

    fn assume_reaction(&mut self, reaction: &'a ReactionMove) {
        if place_of(&self.checkpoints, reaction).is_none() {
            let (reactor, partition) = (&*reaction.reactor, reaction.partition);
            self.checkpoints.push(Checkpoint { reactor, partition, at: Some((reaction.from, reaction.fence)) });
        }
        for settled in &reaction.settle {
            self.backlog.insert(BacklogRow::new(reaction, &settled.key, settled.position), true);
        }
    }
}

fn place_of(checkpoints: &[Checkpoint<'_>], reaction: &ReactionMove) -> Option<usize> {
    let is_own = |known: &Checkpoint<'_>| known.reactor == reaction.reactor && known.partition == reaction.partition;
    checkpoints.iter().position(is_own)
}

/// The result for each append of a batch, and the rows to write for the winners.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// One result for each append, in order. Positions count from the head before the batch.
    pub(crate) outcomes: Vec<Result<Appended, AppendError>>,
    /// Number of events of the winners.
    pub(crate) events: i64,
    /// The checkpoints after the batch, in the order of [`LockedState::checkpoints`].
    pub(crate) checkpoints: Vec<Checkpoint<'a>>,
    /// Backlog rows to write; `None` means that the row is deleted.
    pub(crate) backlog: HashMap<BacklogRow<'a>, Option<&'a BacklogEntry>>,
    /// Due time of each deadline to set, in microseconds since 1970; `None` means that the deadline is deleted.
    pub(crate) deadlines: HashMap<DeadlineRow<'a>, Option<i64>>,
    /// Time of the append, in microseconds since 1970.
    pub(crate) recorded_at: i64,
}

/// The result of a committed batch.
#[derive(Debug)]
pub(crate) struct Committed {
    /// One result for each append, in order.
    pub(crate) outcomes: Vec<Result<Appended, AppendError>>,
    /// The head after the batch.
    pub(crate) head: i64,
    /// Time of the append, in microseconds since 1970.
    pub(crate) recorded_at: i64,
}

impl<'a> Plan<'a> {
    /// Returns whether any append wins.
    pub(crate) fn has_winners(&self) -> bool {
        self.outcomes.iter().any(Result::is_ok)
    }

    /// Iterates over the winners and their results.
    pub(crate) fn winners<'b>(&'b self, batch: &'b [&'a Append]) -> impl Iterator<Item = (&'a Append, &'b Appended)> {
        batch.iter().zip(&self.outcomes).filter_map(|(append, outcome)| Some((*append, outcome.as_ref().ok()?)))
    }

    /// Returns the result of writing the batch after this head.
    pub(crate) fn after(self, head: i64) -> Committed {
        let mut outcomes = self.outcomes;
        // An append without events has an absolute position, which must not be moved.
        for appended in outcomes.iter_mut().flatten().filter(|appended| !appended.versions.is_empty()) {
            appended.position += head;
        }
        Committed { outcomes, head: head + self.events, recorded_at: self.recorded_at }
    }
}

/// Returns the version that the idempotency record of an append gets.
pub(crate) fn answered_version(append: &Append, appended: &Appended, idempotency: &Idempotency) -> i64 {
    let written = append.writes.iter().zip(&appended.versions).find(|(write, _)| write.stream == idempotency.stream);
    match (written, idempotency.unchanged) {
        (Some((_, version)), _) => *version,
        (None, unchanged) => unchanged.map_or(0, |unchanged| unchanged.version),
    }
}

/// Returns the position that the idempotency record gets, if it is not the position of the append's last event.
pub(crate) fn unchanged_position(append: &Append, idempotency: &Idempotency) -> Option<i64> {
    let is_written = append.writes.iter().any(|write| write.stream == idempotency.stream);
    idempotency.unchanged.filter(|_| !is_written).map(|unchanged| unchanged.position)
}

/// Decides which appends win. They are checked in order of arrival, each on the state after the winners before it.
pub(crate) fn plan<'a>(batch: &[&'a Append], state: &LockedState<'a>, lineages: &Lineages) -> Plan<'a> {
    let mut planner = BatchPlanner {
        state,
        lineages,
        versions: state.streams.iter().map(|(_, version)| *version).collect(),
        used_keys: HashSet::new(),
        tickets: HashMap::new(),
        head: 0,
        checkpoints: state.checkpoints.clone(),
        backlog: HashMap::new(),
        deadlines: HashMap::new(),
    };
    let mut taken = state.keys.iter().map(|(_, taken)| *taken);
    let outcomes = batch
        .iter()
        .map(|append| {
            let is_taken = append.idempotency.is_some() && taken.next().unwrap_or_default();
            match planner.check(append, is_taken) {
                Ok(()) => Ok(planner.apply(append)),
                Err(error) => {
                    planner.break_lineages(append);
                    Err(error)
                }
            }
        })
        .collect();
    Plan {
        outcomes,
        events: planner.head,
        checkpoints: planner.checkpoints,
        backlog: planner.backlog,
        deadlines: planner.deadlines,
        recorded_at: now_us(),
    }
}

/// The state after the appends checked so far.
struct BatchPlanner<'a, 'b> {
    state: &'b LockedState<'a>,
    lineages: &'b Lineages,
    /// Versions of the streams, in the order of `state.streams`.
    versions: Vec<i64>,
    /// Idempotency keys used by this batch: scope and key.
    used_keys: HashSet<(&'a str, &'a str)>,
    /// Last ticket of each chain that this batch continues; `None` when the chain is broken.
    tickets: HashMap<u64, Option<u64>>,
    /// Number of events of the winners so far.
    head: i64,
    checkpoints: Vec<Checkpoint<'a>>,
    backlog: HashMap<BacklogRow<'a>, Option<&'a BacklogEntry>>,
    deadlines: HashMap<DeadlineRow<'a>, Option<i64>>,
}

impl<'a> BatchPlanner<'a, '_> {
    /// Checks all conditions of an append.
    fn check(&self, append: &'a Append, is_taken: bool) -> Result<(), AppendError> {
        if let Some(idempotency) = &append.idempotency
            && (is_taken || self.used_keys.contains(&(&*idempotency.scope, &*idempotency.key)))
        {
            return Err(AppendError::KeyUsed);
        }
        for lineage in append.writes.iter().filter_map(|write| write.lineage.as_ref()) {
            if lineage.predecessor.is_some() && lineage.predecessor != self.last_ticket(lineage) {
                return Err(AppendError::Predecessor);
            }
        }
        for write in &append.writes {
            self.check_version(&write.stream, write.expected_version)?;
        }
        for check in &append.checks {
            self.check_version(&check.stream, check.version)?;
        }
        match &append.reaction {
            Some(reaction) if !self.reaction_applies(reaction) => Err(AppendError::Fenced),
            _ => Ok(()),
        }
    }

    fn check_version(&self, stream: &StreamId, expected: i64) -> Result<(), AppendError> {
        let actual = self.state.places.get(stream).map_or(0, |place| self.versions[*place]);
        match actual == expected {
            true => Ok(()),
            false => Err(AppendError::Conflict { stream: stream.clone(), expected, actual }),
        }
    }

    fn last_ticket(&self, lineage: &Lineage) -> Option<u64> {
        self.tickets.get(&lineage.id).copied().unwrap_or_else(|| self.lineages.last(lineage.id))
    }

    /// Returns whether the checkpoint is where the reaction expects it, and every backlog row that it settles exists.
    fn reaction_applies(&self, reaction: &'a ReactionMove) -> bool {
        let place = place_of(&self.checkpoints, reaction);
        let is_there = |row: &BacklogRow<'_>| match self.backlog.get(row) {
            Some(now) => now.is_some(),
            None => self.state.backlog.get(row).copied().unwrap_or_default(),
        };
        place.is_some_and(|place| self.checkpoints[place].at == Some((reaction.from, reaction.fence)))
            && reaction.settle.iter().all(|done| is_there(&BacklogRow::new(reaction, &done.key, done.position)))
    }

    fn apply(&mut self, append: &'a Append) -> Appended {
        let mut versions = Vec::with_capacity(append.writes.len());
        for write in &append.writes {
            let version = write.expected_version + write.events.len() as i64;
            versions.push(version);
            self.head += write.events.len() as i64;
            if let Some(place) = self.state.places.get(&write.stream) {
                self.versions[*place] = version;
            }
            if let Some(lineage) = &write.lineage {
                self.tickets.insert(lineage.id, Some(lineage.ticket));
            }
        }
        if let Some(reaction) = &append.reaction {
            self.apply_reaction(reaction);
        }
        let mut unchanged = None;
        if let Some(idempotency) = &append.idempotency {
            self.used_keys.insert((&idempotency.scope, &idempotency.key));
            unchanged = idempotency.unchanged;
        }
        let position = match append.writes.is_empty() {
            true => unchanged.map_or(0, |unchanged| unchanged.position),
            false => self.head,
        };
        Appended { versions, position }
    }

    fn apply_reaction(&mut self, reaction: &'a ReactionMove) {
        if let Some(place) = place_of(&self.checkpoints, reaction) {
            self.checkpoints[place].at = Some((reaction.to, reaction.fence));
        }
        for done in &reaction.settle {
            self.backlog.insert(BacklogRow::new(reaction, &done.key, done.position), None);
        }
        for entry in &reaction.park {
            let row = BacklogRow::new(reaction, &entry.event.key, entry.event.position);
            self.backlog.insert(row, Some(entry));
        }
        for key in &reaction.deadlines.unschedule {
            self.deadlines.insert((&key.process, &key.id, &key.name), None);
        }
        for deadline in &reaction.deadlines.schedule {
            let key = &deadline.key;
            self.deadlines.insert((&key.process, &key.id, &key.name), Some(deadline.due_at));
        }
    }

    fn break_lineages(&mut self, append: &Append) {
        for lineage in append.writes.iter().filter_map(|write| write.lineage.as_ref()) {
            self.tickets.insert(lineage.id, None);
        }
    }
}

/// The last committed ticket of each chain. Bounded: when the newer half is full, the older half is discarded.
#[derive(Debug, Default)]
pub(crate) struct Lineages {
    newer: HashMap<u64, u64>,
    older: HashMap<u64, u64>,
}

impl Lineages {
    fn last(&self, id: u64) -> Option<u64> {
        self.newer.get(&id).or_else(|| self.older.get(&id)).copied()
    }

    /// Records whether an append was committed. Any failure breaks its chains.
    pub(crate) fn record(&mut self, append: &Append, is_committed: bool) {
        for lineage in append.writes.iter().filter_map(|write| write.lineage.as_ref()) {
            self.older.remove(&lineage.id);
            if !is_committed {
                self.newer.remove(&lineage.id);
                continue;
            }
            if self.newer.len() >= LINEAGES_MAX / 2 {
                self.older = std::mem::take(&mut self.newer);
            }
            self.newer.insert(lineage.id, lineage.ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::append::{BacklogKey, Deadline, DeadlineChanges, DeadlineKey, StreamCheck, StreamWrite, Unchanged};
    use crate::event::NewEvent;

    fn write(id: &str, expected_version: i64, events: usize) -> StreamWrite {
        let event = NewEvent { event_type: "E", event_version: "1", payload: "{}".into(), metadata: "{}".into() };
        let stream = StreamId::new("t", id);
        StreamWrite { stream, expected_version, events: vec![event; events], lineage: None }
    }

    fn append(id: &str, expected_version: i64, events: usize) -> Append {
        Append { writes: vec![write(id, expected_version, events)], ..Append::default() }
    }

    fn keyed(id: &str, key: &str, unchanged: Option<Unchanged>) -> Option<Idempotency> {
        Some(Idempotency {
            scope: "s".into(),
            key: key.into(),
            request_hash: "h".into(),
            status: 200,
            stream: StreamId::new("t", id),
            unchanged,
            answer: None,
        })
    }

    /// Plans a batch on a log whose head is position 10. Streams not in `versions` do not exist.
    fn outcomes(batch: &[Append], versions: &[(&str, i64)]) -> Vec<Result<Appended, AppendError>> {
        let batch: Vec<&Append> = batch.iter().collect();
        let mut state = LockedState::optimistic(&batch);
        for (stream, version) in &mut state.streams {
            let known = versions.iter().find(|(id, _)| *id == stream.aggregate_id);
            *version = known.map_or(0, |(_, version)| *version);
        }
        plan(&batch, &state, &Lineages::default()).after(10).outcomes
    }

    fn at(versions: &[i64], position: i64) -> Appended {
        Appended { versions: versions.to_vec(), position }
    }

    #[test]
    fn a_conflict_affects_no_other_append_and_leaves_no_gap() {
        let batch = [append("a", 0, 2), append("a", 0, 1), append("a", 2, 1), append("b", 4, 1)];
        let outcomes = outcomes(&batch, &[("b", 4)]);
        assert_eq!(outcomes[0].as_ref().unwrap(), &at(&[2], 12));
        assert!(matches!(outcomes[1], Err(AppendError::Conflict { expected: 0, actual: 2, .. })));
        assert_eq!(outcomes[2].as_ref().unwrap(), &at(&[3], 13));
        assert_eq!(outcomes[3].as_ref().unwrap(), &at(&[5], 14));
    }

    #[test]
    fn an_append_to_several_streams_is_atomic() {
        let both = |a, b| Append { writes: vec![write("a", a, 2), write("b", b, 1)], ..Append::default() };
        let outcomes = outcomes(&[both(0, 1), both(0, 0), append("b", 1, 1), append("a", 2, 1)], &[]);
        let Err(AppendError::Conflict { stream, expected: 1, actual: 0 }) = &outcomes[0] else { panic!() };
        assert_eq!(stream.aggregate_id, "b");
        assert_eq!(outcomes[1].as_ref().unwrap(), &at(&[2, 1], 13));
        assert_eq!(outcomes[2].as_ref().unwrap(), &at(&[2], 14));
        assert_eq!(outcomes[3].as_ref().unwrap(), &at(&[3], 15));
    }

    #[test]
    fn a_check_sees_the_writes_before_it() {
        let checked = |id: &str, version| Append {
            checks: vec![StreamCheck { stream: StreamId::new("t", "a"), version }],
            ..append(id, 0, 1)
        };
        let outcomes = outcomes(&[checked("b", 1), append("a", 1, 1), checked("c", 1), checked("d", 2)], &[("a", 1)]);
        assert!(outcomes[0].is_ok() && outcomes[1].is_ok() && outcomes[3].is_ok(), "{outcomes:?}");
        assert!(
            matches!(&outcomes[2], Err(AppendError::Conflict { stream, expected: 1, actual: 2 }) if stream.aggregate_id == "a")
        );
    }

    #[test]
    fn an_append_without_events_returns_its_given_position() {
        let nothing = Append {
            checks: vec![StreamCheck { stream: StreamId::new("t", "b"), version: 4 }],
            idempotency: keyed("b", "k", Some(Unchanged { version: 4, position: 7 })),
            ..Append::default()
        };
        let outcomes = outcomes(&[nothing, append("a", 0, 1)], &[("b", 4)]);
        assert_eq!(outcomes[0].as_ref().unwrap(), &at(&[], 7));
        assert_eq!(outcomes[1].as_ref().unwrap(), &at(&[1], 11));
    }

    #[test]
    fn an_idempotency_key_is_used_once_and_a_conflict_releases_it() {
        let with_key = |id: &str, expected| Append { idempotency: keyed(id, "k", None), ..append(id, expected, 1) };
        let outcomes = outcomes(&[with_key("a", 3), with_key("a", 0), with_key("b", 0)], &[]);
        assert!(matches!(outcomes[0], Err(AppendError::Conflict { .. })));
        assert!(outcomes[1].is_ok());
        assert!(matches!(outcomes[2], Err(AppendError::KeyUsed)));
    }

    #[test]
    fn a_write_fails_after_its_predecessor_failed() {
        let chained = |ticket, predecessor, expected| {
            let mut append = append("a", expected, 1);
            append.writes[0].lineage = Some(Lineage { id: 1, ticket, predecessor });
            append
        };
        let mut lineages = Lineages::default();
        let mut decide = |batch: &[Append], version| {
            let batch: Vec<&Append> = batch.iter().collect();
            let mut state = LockedState::optimistic(&batch);
            state.streams[0].1 = version;
            let outcomes = plan(&batch, &state, &lineages).outcomes;
            batch.iter().zip(&outcomes).for_each(|(append, outcome)| lineages.record(append, outcome.is_ok()));
            outcomes
        };
        // The chain continues within one batch and in the next batch.
        let outcomes = decide(&[chained(1, None, 0), chained(2, Some(1), 1)], 0);
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        assert!(decide(&[chained(3, Some(2), 2)], 2)[0].is_ok());
        // An event of another writer took version 4: the second append fails, though its expected version matches.
        let outcomes = decide(&[chained(4, Some(3), 3), chained(5, Some(4), 4)], 4);
        assert!(matches!(outcomes[0], Err(AppendError::Conflict { .. })));
        assert!(matches!(outcomes[1], Err(AppendError::Predecessor)));
        assert!(matches!(decide(&[chained(6, Some(5), 4)], 4)[0], Err(AppendError::Predecessor)));
        // A write that was decided on committed state starts the chain again.
        assert!(decide(&[chained(7, None, 4), chained(8, Some(7), 5)], 4).iter().all(Result::is_ok));
    }

    fn done(key: &str, position: i64) -> BacklogKey {
        BacklogKey { key: key.into(), position }
    }

    fn parked(key: &str, position: i64) -> BacklogEntry {
        BacklogEntry { event: done(key, position), attempts: 1, due_at: Some(5), reason: None }
    }

    #[test]
    fn reactions_of_one_batch_see_the_earlier_ones() {
        let step = |from, to, fence| ReactionMove { reactor: "r".into(), from, to, fence, ..ReactionMove::default() };
        let deadline = |name: &str| DeadlineKey { process: "p".into(), id: "1".into(), name: name.into() };
        let batch = [
            ReactionMove {
                park: vec![parked("k", 6)],
                deadlines: DeadlineChanges {
                    schedule: vec![Deadline { key: deadline("d"), due_at: 9 }],
                    unschedule: vec![],
                },
                ..step(5, 6, 1)
            },
            step(5, 6, 1),
            step(6, 7, 0),
            ReactionMove {
                settle: vec![done("k", 6)],
                deadlines: DeadlineChanges { schedule: vec![], unschedule: vec![deadline("d")] },
                ..step(6, 6, 1)
            },
            // The reaction before this one has just settled the event.
            ReactionMove { settle: vec![done("k", 6)], ..step(6, 7, 1) },
            step(6, 8, 1),
        ]
        .map(|reaction| Append { reaction: Some(reaction), ..Append::default() });
        let batch: Vec<&Append> = batch.iter().collect();
        let mut state = LockedState::optimistic(&batch);
        state.backlog.values_mut().for_each(|is_there| *is_there = false);
        let plan = plan(&batch, &state, &Lineages::default());
        let won: Vec<_> = plan.outcomes.iter().map(Result::is_ok).collect();
        assert_eq!(won, [true, false, false, true, false, true]);
        assert!(
            plan.outcomes.iter().flat_map(|outcome| outcome.as_ref().err()).all(|e| matches!(e, AppendError::Fenced))
        );
        assert_eq!(plan.checkpoints[0].at, Some((8, 1)));
        assert!(plan.backlog.values().all(Option::is_none) && plan.deadlines.values().all(Option::is_none));
    }
}
