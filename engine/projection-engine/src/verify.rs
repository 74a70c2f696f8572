//! Verification: the log is folded up to a projection's checkpoint and compared with its rows, in memory, beside
//! everything else that runs. Nothing is written.

mod expected;
mod explain;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use event_store::store::Store;
use event_store::table::Value;
use serde::Serialize;

use crate::dead_letters;
use crate::error::Error;
use crate::generation::{Generation, LIVE, checkpoints};
use crate::group_fold::{Batch, GroupFold};
use crate::projection::AnyProjection;
use crate::registry::Group;
use crate::settings::Settings;
use crate::verify::expected::{Expected, Key, key};
use crate::verify::explain::{explain, show_key};

/// Events read and folded at once.
const CHUNK: i64 = 10_000;
/// Streams folded at once for a sample.
const STREAMS: usize = 500;
/// Events that are looked through for one that a sample can use.
const LOOKED_THROUGH_MAX: i64 = 500;

/// How much is verified.
#[derive(Debug, Clone, Copy)]
pub enum Extent {
    /// Every row.
    Whole,
    /// The rows of so many streams, drawn at random from the log; tables of sums cannot be checked so.
    Sample(usize),
}

/// What was found of one projection.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// The projection.
    pub name: &'static str,
    /// Its checkpoint: how far the log was folded.
    pub position: i64,
    /// Rows compared.
    pub rows: usize,
    /// Rows that are missing, too many, or not as the log says.
    pub differences: usize,
    /// The first of them, by key.
    pub first: Vec<Difference>,
    /// False where a sample can say nothing of it.
    pub checked: bool,
}

/// What was found of all.
#[derive(Debug, Clone, Serialize)]
pub struct Findings {
    /// Each projection.
    pub projections: Vec<Verified>,
    /// Positions at which the log holds no event: somebody has removed it. A sample does not look for them.
    pub missing_events: i64,
}

/// A row that is not as the log says.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// The table.
    pub table: &'static str,
    /// Values of its primary key.
    pub key: String,
    /// What differs: a column, its value, and what the log says.
    pub what: Vec<String>,
}

/// Compares projections of a group with the log. Gives at most `first_max` differences of each. `progress` is told how many of how
/// many events are folded.
///
/// # Errors
/// The database is away; an event that does not apply and is not parked; read models beyond the log's end.
pub async fn verify(
    store: &Store,
    group: &Group,
    settings: &Settings,
    projections: &[&'static dyn AnyProjection],
    extent: Extent,
    first_max: usize,
    mut progress: impl FnMut(i64, i64),
) -> Result<Findings, Error> {
    // One state of checkpoints and rows, however long it takes.
    let mut tx = store.db().snapshot().await?;
    let rows = checkpoints(&mut tx).await?;
    let (exclusions, _) = dead_letters::partition(&dead_letters::rows(&mut tx).await?, group.name);
    let fold = GroupFold::new(store, group, settings.aggregates_in_memory_max, exclusions);
    let head = store.head().await?;
    let (mut found, mut missing_events) = (Vec::new(), 0);
    let mut generations = Vec::new();
    for &projection in projections {
        let Some(row) = rows.iter().find(|row| row.projection == projection.name() && row.state == LIVE) else {
            continue;
        };
        row.check_belongs_to(store, head).await?;
        if row.version != projection.version() {
            let (name, version, known) = (row.projection.clone(), row.version, projection.version());
            return Err(match version > known {
                true => Error::Newer { projection: name, version, known },
                false => Error::Frozen { projection: name },
            });
        }
        generations.push((Generation { projection, number: row.generation }, row.position));
    }
    let hasher = RandomState::new();
    let mut all: Vec<(Expected, i64)> = generations
        .iter()
        .flat_map(|(generation, position)| {
            let tables = generation.projection.tables().iter();
            tables.map(|table| (Expected::new(*generation, table), *position))
        })
        .collect();
    let end = generations.iter().map(|(_, position)| *position).max().unwrap_or(0);
    let extent = match extent {
        // Reading one by one what may be read in one go takes longer.
        Extent::Sample(streams) if streams as i64 >= end / 10 => Extent::Whole,
        extent => extent,
    };
    match extent {
        Extent::Whole => {
            let stops: BTreeSet<i64> = generations.iter().map(|(_, position)| *position).collect();
            let mut at = 0;
            while at < end {
                let until = stops.range(at + 1..).next().copied().unwrap_or(end).min(at + CHUNK);
                let mut events = store.read(at, until - at).await?;
                // More than was asked for where the log lacks some.
                events.retain(|event| event.position <= until);
                let Some(last) = events.last().map(|event| event.position) else { break };
                missing_events += last - at - events.len() as i64;
                let changes = fold.changes(&events).await?;
                expect(&mut all, &changes, at, &hasher)?;
                fold.put(&changes);
                at = last;
                progress(at, end);
            }
        }
        Extent::Sample(streams) => {
            all.retain(|(expected, _)| !expected.sums);
            let sampled = sample_ids(store, &fold, streams, end).await?;
            let mut folded = 0;
            for (aggregate_type, ids) in sampled {
                for ids in ids.chunks(STREAMS) {
                    let events = store.read_streams(aggregate_type, ids, end + 1).await?;
                    for (generation, position) in &generations {
                        let changes = fold.whole(&events, *position)?;
                        let is_own = |(expected, _): &mut (Expected, i64)| {
                            expected.generation.projection.name() == generation.projection.name()
                        };
                        let mut own: Vec<_> = all.extract_if(.., is_own).collect();
                        expect(&mut own, &changes, 0, &hasher)?;
                        all.extend(own);
                    }
                    folded += ids.len() as i64;
                    progress(folded, streams as i64);
                }
            }
        }
    }
    let extent_is_whole = matches!(extent, Extent::Whole);
    for (generation, position) in generations {
        let name = generation.projection.name();
        let (mut rows, mut different, mut checked) = (0, BTreeSet::new(), false);
        for (expected, _) in all.iter_mut().filter(|(expected, _)| expected.generation.projection.name() == name) {
            // A sample without a row says nothing.
            checked |= extent_is_whole || expected.len() > 0;
            rows += expected.len();
            let table = expected.table;
            match extent {
                Extent::Whole => {
                    let mut wrong = Vec::new();
                    let each = |row: Vec<Value>| {
                        if !expected.take(&row, &hasher) {
                            wrong.push(key(table, &row));
                        }
                    };
                    tx.each_row(table, generation.number, each).await?;
                    wrong.extend(expected.rows.keys().chain(expected.hashes.keys()).cloned());
                    different.extend(wrong.into_iter().map(|key| (table.name, show_key(&key), key)).map(Named));
                }
                Extent::Sample(_) => {
                    for key in expected.hashes.keys().cloned().collect::<Vec<_>>() {
                        let row = tx.row(table, generation.number, &key).await?;
                        if !row.is_some_and(|row| expected.take(&row, &hasher)) {
                            different.insert(Named((table.name, show_key(&key), key)));
                        }
                    }
                }
            }
        }
        let mut first = Vec::new();
        for Named((table, shown, key)) in different.iter().take(first_max) {
            let Some((expected, _)) = all.iter().find(|(expected, _)| expected.table.name == *table) else { continue };
            let should = match expected.rows.get(key) {
                Some(row) => Some(row.clone()),
                None if expected.hashes.contains_key(key) => fold_row(store, &fold, expected, key, position).await?,
                None => None,
            };
            let is = tx.row(expected.table, generation.number, key).await?;
            first.push(Difference { table, key: shown.clone(), what: explain(expected.table, is, should) });
        }
        found.push(Verified { name, position, rows, differences: different.len(), first, checked });
    }
    Ok(Findings { projections: found, missing_events })
}

/// Ordered by name and key as shown.
struct Named((&'static str, String, Key));

impl Ord for Named {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.0, &self.0.1).cmp(&(other.0.0, &other.0.1))
    }
}
impl PartialOrd for Named {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Named {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Named {}

/// Writes what changes lead to into the tables of projections that are beyond `after`.
fn expect(all: &mut [(Expected, i64)], changes: &Batch, after: i64, hasher: &RandomState) -> Result<(), Error> {
    let mut done: Vec<&str> = Vec::new();
    let generations: Vec<_> = all.iter().map(|(expected, position)| (expected.generation, *position)).collect();
    for (Generation { projection, .. }, position) in generations {
        if position <= after || done.contains(&projection.name()) {
            continue;
        }
        done.push(projection.name());
        for (table, rows) in changes.rows(projection, None)? {
            if let Some((expected, _)) = all.iter_mut().find(|(expected, _)| expected.table.name == table.name) {
                rows.into_iter().for_each(|row| expected.write(row, hasher));
            }
        }
    }
    Ok(())
}

/// Streams drawn at random, by type: the more events a stream has, the likelier it is.
async fn sample_ids(
    store: &Store,
    fold: &GroupFold,
    streams: usize,
    end: i64,
) -> Result<Vec<(&'static str, Vec<String>)>, Error> {
    let random = RandomState::new();
    let own: Vec<_> = fold.aggregate_types().collect();
    let mut drawn = BTreeSet::new();
    for number in 0..streams as u64 {
        let after = (random.hash_one(number) % end.max(1) as u64) as i64;
        // The next event of a kind that the group folds, unless there is none for long.
        let mut events = store.read(after, LOOKED_THROUGH_MAX).await?.into_iter();
        let found = events.find(|event| own.contains(&&*event.aggregate_type));
        drawn.extend(found.map(|event| (event.aggregate_type, event.aggregate_id)));
    }
    let of_type = |name: &'static str| {
        let own = drawn.iter().filter(|(aggregate_type, _)| aggregate_type == name);
        (name, own.map(|(_, id)| id.to_string()).collect())
    };
    Ok(fold.aggregate_types().map(of_type).collect())
}

/// The row of one aggregate, folded again. Its key begins with the aggregate's id.
async fn fold_row(
    store: &Store,
    fold: &GroupFold,
    expected: &Expected,
    wanted: &Key,
    position: i64,
) -> Result<Option<Vec<Value>>, Error> {
    let Some(Value::Text(Some(id))) = wanted.first() else { return Ok(None) };
    let projection = expected.generation.projection;
    let aggregate_type = projection.aggregate().aggregate_type();
    let events = store.read_streams(aggregate_type, std::slice::from_ref(id), position + 1).await?;
    let mut rows = fold.whole(&events, position)?.rows(projection, None)?.into_iter();
    let rows = rows.find(|(table, _)| table.name == expected.table.name).map(|(_, rows)| rows).unwrap_or_default();
    Ok(rows.into_iter().find(|row| key(expected.table, row) == *wanted))
}
