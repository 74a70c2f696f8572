//! Verification: folds the log up to a projection's checkpoint in memory and compares the result with the rows of the
//! read model. Verification writes nothing and may run while a server projects.

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

/// Maximum number of events that are read and folded at once.
const CHUNK: i64 = 10_000;
/// Maximum number of streams that a sample reads and folds at once.
const STREAMS: usize = 500;
/// Maximum number of events that are searched for one that a sample can use.
const SAMPLE_SEARCH_MAX: i64 = 500;

/// The extent of a verification.
#[derive(Debug, Clone, Copy)]
pub enum Extent {
    /// Every row.
    Whole,
    /// The rows of up to this number of streams, chosen at random from the log. A sample cannot check tables that
    /// aggregate rows of several streams, such as sums.
    Sample(usize),
}

/// The result of a verification for one projection.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// Name of the projection.
    pub name: &'static str,
    /// Position of its checkpoint, up to which the log was folded.
    pub position: i64,
    /// Number of rows expected from the log and compared.
    pub rows: usize,
    /// Number of rows that are missing, unexpected, or different from the fold of the log.
    pub differences: usize,
    /// The first differences, ordered by table and key.
    pub first: Vec<Difference>,
    /// False when the sample contains no row of this projection, so that nothing was checked.
    pub checked: bool,
}

/// The result of a verification.
#[derive(Debug, Clone, Serialize)]
pub struct Findings {
    /// The result for each projection.
    pub projections: Vec<Verified>,
    /// Number of positions at which the log has no event, because it was removed from the table. A sample does not look
    /// for missing events.
    pub missing_events: i64,
}

/// A row that differs from the fold of the log.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// Name of the table.
    pub table: &'static str,
    /// Values of the row's primary key, joined by `/`.
    pub key: String,
    /// The differing columns, each with its value and the value that follows from the log.
    pub what: Vec<String>,
}

/// Compares projections of a checkpoint group with the log. Returns at most `first_max` differences per projection.
/// `progress` is called with the number of folded events and the number of all events; for a sample, with numbers of
/// streams.
///
/// # Errors
/// The database is unavailable; an event that cannot be applied and is not parked; a read model that is not of this log
/// or not of this release's version.
pub async fn verify(
    store: &Store,
    group: &Group,
    settings: &Settings,
    projections: &[&'static dyn AnyProjection],
    extent: Extent,
    first_max: usize,
    mut progress: impl FnMut(i64, i64),
) -> Result<Findings, Error> {
    // A snapshot transaction: checkpoints and rows stay consistent, however long the verification takes.
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
        // For a large share of the log, reading stream by stream takes longer than reading the whole log.
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
                // If events are missing from the log, the read returns events beyond `until`.
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
                        let changes = fold.fold_whole(&events, *position)?;
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
            // A sample without a row has checked nothing.
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
                    different
                        .extend(wrong.into_iter().map(|key| (table.name, show_key(&key), key)).map(KeyedDifference));
                }
                Extent::Sample(_) => {
                    for key in expected.hashes.keys().cloned().collect::<Vec<_>>() {
                        let row = tx.row(table, generation.number, &key).await?;
                        if !row.is_some_and(|row| expected.take(&row, &hasher)) {
                            different.insert(KeyedDifference((table.name, show_key(&key), key)));
                        }
                    }
                }
            }
        }
        let mut first = Vec::new();
        for KeyedDifference((table, shown, key)) in different.iter().take(first_max) {
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

/// A differing row: table name, key as shown to operators, and key. Ordered by the first two.
struct KeyedDifference((&'static str, String, Key));

impl Ord for KeyedDifference {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0.0, &self.0.1).cmp(&(other.0.0, &other.0.1))
    }
}
impl PartialOrd for KeyedDifference {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for KeyedDifference {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for KeyedDifference {}

/// Writes the rows of `changes` into the expected tables of the projections whose position is greater than `after`.
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

/// Chooses streams at random and returns their aggregate ids by type. A stream with more events is more likely to be
/// chosen.
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
        // The next event of an aggregate type that the group folds. The search is limited, so the sample may become
        // smaller.
        let mut events = store.read(after, SAMPLE_SEARCH_MAX).await?.into_iter();
        let found = events.find(|event| own.contains(&&*event.aggregate_type));
        drawn.extend(found.map(|event| (event.aggregate_type, event.aggregate_id)));
    }
    let of_type = |name: &'static str| {
        let own = drawn.iter().filter(|(aggregate_type, _)| aggregate_type == name);
        (name, own.map(|(_, id)| id.to_string()).collect())
    };
    Ok(fold.aggregate_types().map(of_type).collect())
}

/// Folds one aggregate again and returns its row with the key `wanted`, whose first value must be the aggregate's id.
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
    let mut rows = fold.fold_whole(&events, position)?.rows(projection, None)?.into_iter();
    let rows = rows.find(|(table, _)| table.name == expected.table.name).map(|(_, rows)| rows).unwrap_or_default();
    Ok(rows.into_iter().find(|row| key(expected.table, row) == *wanted))
}
