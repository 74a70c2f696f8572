//! Rebuilds: a new generation is filled from the log beside the live one and catches up with it. Then one transaction
//! compares the two and makes the new generation live. Queries see either the old or the new generation, never a
//! mixture.
//!
//! A generation's checkpoint is committed together with its rows, so a rebuild that was killed resumes where it
//! stopped. A rebuild writes only tables and checkpoints: it appends no events and sends no notifications.

use std::time::{Duration, Instant};

use event_store::db::Tx;
use event_store::disk::Disk;
use event_store::error::Error as StoreError;
use event_store::event::RecordedEvent;
use event_store::leader::Leadership;
use event_store::store::Store;
use serde::Serialize;
use tokio::task::{JoinError, JoinHandle};

use crate::dead_letters;
use crate::error::{Error, catch_panic};
use crate::exclusions::Exclusions;
use crate::generation::{
    BUILDING, CHECKPOINTS, Checkpoint, Generation, GenerationRows, GenerationSet, LIVE, OLD, RETURNING, bump_fence,
    by_position, checkpoints, create, live_generations, prepare_group, remove, set_state,
};
use crate::group_fold::GroupFold;
use crate::projection::AnyProjection;
use crate::registry::{Group, Registry, projection_role, rebuild_role};
use crate::settings::Settings;
use crate::state::FoldError;

/// Maximum number of events in a chunk: the events that are read and folded at once.
const CHUNK: i64 = 10_000;
/// Approximate maximum size of a chunk in bytes. With the folded rows and the chunk that is read ahead, a rebuild uses
/// a few tens of megabytes.
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// Minimum number of events in a chunk, so that a transaction is worthwhile; also the size of the first chunk, before
/// the size of events is known.
const CHUNK_MIN: i64 = 500;
/// Maximum number of events by which the new generation may be behind when the switch begins. The live generation is
/// not updated during the switch.
const SWITCH_LAG_MAX: i64 = 2_000;
/// Maximum number of events that are folded while the switch holds its locks.
const LOCKED_LAG_MAX: i64 = 200;
/// Number of switches that are tried with this limit; after that the limit is [`CHUNK`].
const SWITCHES_MAX: u32 = 20;
/// Delay after a failure of the database, before the rebuild resumes where it stopped.
const RETRY: Duration = Duration::from_millis(500);
/// Maximum number of resumes after failures.
const RETRIES_MAX: u32 = 240;

/// Where a rebuild starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RebuildStart {
    /// At the first event of the log, or where a killed rebuild stopped.
    Log,
    /// At the first event of the log. The generation of a killed rebuild is removed.
    Scratch,
    /// From the older generation, which is updated and becomes live again: a rollback.
    Older,
}

/// The result of a rebuild for one projection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Switched {
    /// Name of the projection.
    pub name: &'static str,
    /// Number of the generation that is live now.
    pub generation: i64,
    /// Number of rows that differ from the generation that was live before; `None` when the two were not compared,
    /// because they differ in version or position, or because the switch was found already done after a lost
    /// connection.
    pub differences: Option<i64>,
}

/// The result of a rebuild.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rebuilt {
    /// The result for each rebuilt projection.
    pub projections: Vec<Switched>,
    /// Number of events folded by this process.
    pub events: i64,
    /// Number of folded positions at which the log has no event, because it was removed from the table.
    pub missing: i64,
    /// Position at which the new generations became live.
    pub position: i64,
}

/// Whether a rebuild of a checkpoint group is running in any process.
///
/// # Errors
/// The database is unavailable.
pub async fn is_running(store: &Store, group: &Group) -> Result<bool, StoreError> {
    Ok(store.try_lead(&rebuild_role(group.name)).await?.is_none())
}

/// Builds new generations of a checkpoint group's projections and switches to them. `progress` is called with each
/// projection's name, its position and its target position.
///
/// # Errors
/// [`Error::Busy`] while another rebuild runs; [`Error::Fold`], [`Error::Parked`] or [`Error::DecisionPending`] for an
/// event that cannot be applied: a rebuild skips only events that an operator has discarded. Failures that may be
/// temporary are retried first.
pub async fn rebuild(
    store: &Store,
    group: &Group,
    settings: &Settings,
    projections: &[&'static dyn AnyProjection],
    from: RebuildStart,
    mut progress: impl FnMut(&str, i64, i64),
) -> Result<Rebuilt, Error> {
    let mut failures = 0;
    let mut events = 0;
    let mut missing = 0;
    let mut from = from;
    let mut wanted: Vec<Generation> = Vec::new();
    loop {
        // The connection may have broken after the switch was committed but before its answer arrived.
        if let Some(position) = live_position(store, &wanted).await {
            let switched = |generation: &Generation| Switched {
                name: generation.projection.name(),
                generation: generation.number,
                differences: None,
            };
            return Ok(Rebuilt { projections: wanted.iter().map(switched).collect(), events, missing, position });
        }
        // The leadership is held during the work, so that only one rebuild of a group runs at a time.
        let outcome = async {
            let mut leadership = store.try_lead(&rebuild_role(group.name)).await?.ok_or(Error::Busy)?;
            let mut build = Build::begin(store, group, settings, projections, from).await?;
            if from == RebuildStart::Scratch {
                from = RebuildStart::Log;
            }
            wanted = build.sets.iter().flat_map(|set| set.generations.iter().copied()).collect();
            let outcome = build.run(&mut leadership, &mut progress).await;
            (events, missing) = (events + build.events, missing + build.missing);
            outcome
        };
        match outcome.await {
            Ok((projections, position)) => return Ok(Rebuilt { projections, events, missing, position }),
            Err(error) if failures < RETRIES_MAX && is_resumable(&error, failures) => {
                failures += 1;
                tracing::warn!(%error, "The rebuild was interrupted. Resuming where it stopped.");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Returns the lowest position of the generations if all of them are live; `None` if one is not, or if the checkpoints
/// cannot be read.
async fn live_position(store: &Store, wanted: &[Generation]) -> Option<i64> {
    if wanted.is_empty() {
        return None;
    }
    let serving = live_generations(store.db()).await.ok()?;
    let positions = wanted.iter().map(|generation| {
        let live = serving.get(generation.projection.name());
        live.filter(|live| live.generation == generation.number).map(|live| live.position)
    });
    positions.collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Whether a rebuild may resume after a failure.
fn is_resumable(error: &Error, failures: u32) -> bool {
    match error {
        Error::Store(error) => error.is_transient(),
        // A database that crashed has lost its last commits, so the checkpoints are behind the positions in memory. No
        // other rebuild has taken the checkpoints over: the leadership is acquired again before anything else.
        Error::Fenced => true,
        // After a failure the lock of this rebuild's own broken connection is released with a delay.
        Error::Busy => failures > 0,
        _ => false,
    }
}

/// The plan of a rebuild for one projection.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Name of the projection.
    pub name: &'static str,
    /// Number of the generation that would become live.
    pub generation: i64,
    /// Position at which it would start: 0, or the position of the older generation or of a generation that a killed
    /// rebuild left.
    pub position: i64,
}

/// Returns what [`rebuild`] would do now, without changing anything.
///
/// # Errors
/// Every error that would end the rebuild before its first event.
pub async fn plan(
    store: &Store,
    group: &Group,
    projections: &[&'static dyn AnyProjection],
    from: RebuildStart,
) -> Result<Vec<Planned>, Error> {
    let _leadership = store.try_lead(&rebuild_role(group.name)).await?.ok_or(Error::Busy)?;
    let mut tx = store.db().begin().await?;
    // This transaction is never committed.
    let (generations, _) = generations(&mut tx, store, group, projections, from).await?;
    let planned = |(generation, position): (Generation, i64)| Planned {
        name: generation.projection.name(),
        generation: generation.number,
        position,
    };
    Ok(generations.into_iter().map(planned).collect())
}

/// Removes all generations of the projections that are not live: older ones and those of unfinished rebuilds. Returns
/// the name and the generation number of each; with `dry_run` nothing is removed.
///
/// # Errors
/// [`Error::Busy`] while a rebuild runs; the database is unavailable.
pub async fn prune(
    store: &Store,
    group: &Group,
    projections: &[&'static dyn AnyProjection],
    dry_run: bool,
) -> Result<Vec<(&'static str, i64)>, Error> {
    let _leadership = store.try_lead(&rebuild_role(group.name)).await?.ok_or(Error::Busy)?;
    let mut tx = store.db().begin().await?;
    tx.lock_checkpoints().await?;
    let mut removed = Vec::new();
    for row in checkpoints(&mut tx).await?.iter().filter(|row| row.state != LIVE) {
        if let Some(projection) = projections.iter().find(|projection| projection.name() == row.projection) {
            remove(&mut tx, *projection, row.generation).await?;
            removed.push((projection.name(), row.generation));
        }
    }
    if !dry_run {
        tx.commit().await?;
    }
    Ok(removed)
}

/// Rebuilds the group's outdated projections, in an endless loop: those that this release has in a newer version than
/// the live generation, and those whose live generation can no longer be updated.
pub(crate) async fn upgrade(store: &Store, registry: &Registry, group: &Group, settings: &Settings) {
    loop {
        match outdated(store, group).await {
            Ok(projections) if projections.is_empty() => {}
            Ok(projections) => {
                let names: Vec<_> = projections.iter().map(|projection| projection.name()).collect();
                tracing::info!(?names, "Rebuilding outdated projections.");
                match catch_panic(rebuild(store, group, settings, &projections, RebuildStart::Log, |_, _, _| {})).await
                {
                    Ok(rebuilt) => tracing::info!(?rebuilt, "Rebuilt the outdated projections."),
                    Err(error) => {
                        tracing::error!(%error, "Could not rebuild the outdated projections. Retrying shortly.");
                        // If every projection of the group is outdated, no pump of this release projects the group, so
                        // the rebuild must park the stream.
                        if let Error::Fold(failed) = error
                            && projections.len() == group.projections.len()
                            && let Err(error) = park(store, registry, group, &failed).await
                        {
                            tracing::warn!(%error, "Could not park the stream.");
                        }
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "Could not read the versions of the projections."),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn park(store: &Store, registry: &Registry, group: &Group, failed: &FoldError) -> Result<(), StoreError> {
    let mut tx = store.db().begin().await?;
    dead_letters::park_undecodable(&mut tx, registry, group.name, failed, 1).await?;
    tx.commit().await
}

/// Returns the projections whose live generation is of an older version than this release's, or outdated.
async fn outdated(store: &Store, group: &Group) -> Result<Vec<&'static dyn AnyProjection>, StoreError> {
    let rows: Vec<Checkpoint> = store.db().fetch_all(CHECKPOINTS, vec![]).await?;
    let live = |name: &str| rows.iter().find(|row| row.projection == name && row.state == LIVE);
    let is_older = |projection: &&'static dyn AnyProjection| {
        live(projection.name()).is_some_and(|row| row.version < projection.version())
    };
    Ok(group.projections.iter().copied().filter(is_older).collect())
}

struct Build<'a> {
    store: &'a Store,
    group: &'a Group,
    sets: Vec<GenerationSet>,
    fence: i64,
    fold: GroupFold,
    events: i64,
    missing: i64,
    /// Number of switches that were tried.
    switches: u32,
    /// Minimum target position: the end of the log if no process projected the group when the rebuild began, otherwise
    /// 0. The position of the live generations is a further minimum.
    end: i64,
}

impl<'a> Build<'a> {
    async fn begin(
        store: &'a Store,
        group: &'a Group,
        settings: &Settings,
        projections: &[&'static dyn AnyProjection],
        from: RebuildStart,
    ) -> Result<Self, Error> {
        prepare_group(store, group).await?;
        let mut tx = store.db().begin().await?;
        let (generations, exclusions) = generations(&mut tx, store, group, projections, from).await?;
        let fence = bump_fence(&mut tx, group.name, &[from.state()]).await?;
        tx.commit().await?;
        let nobody_projects = store.try_lead(&projection_role(group.name)).await?.is_some();
        let end = if nobody_projects { store.head().await? } else { 0 };
        let fold = GroupFold::new(store, group, settings.aggregates_in_memory_max, exclusions);
        Ok(Self { store, group, sets: by_position(generations), fence, fold, events: 0, missing: 0, switches: 0, end })
    }

    /// Runs the rebuild up to the switch. While a chunk is folded, the next one is read and the previous one is
    /// written.
    async fn run(
        &mut self,
        leadership: &mut Leadership,
        progress: &mut impl FnMut(&str, i64, i64),
    ) -> Result<(Vec<Switched>, i64), Error> {
        let mut checked = Instant::now();
        let mut indexed = false;
        let mut reading = ReadAhead::new();
        let mut writing = WriteBehind::default();
        loop {
            // The disk is full or cannot be written. A server on this store refuses commands too until that is fixed.
            if let Some(problem) = self.store.disk().and_then(Disk::problem) {
                return Err(StoreError::Storage(problem).into());
            }
            let target = self.target().await?;
            let position = self.sets[0].position;
            for set in &self.sets {
                let names = set.generations.iter().map(|generation| generation.projection.name());
                names.for_each(|name| progress(name, set.position, target));
            }
            if self.sets.len() == 1 && target - position <= CHUNK && !indexed {
                writing.done().await?;
                self.index().await?;
                indexed = true;
            }
            if self.sets.len() == 1 && target - position <= SWITCH_LAG_MAX {
                writing.done().await?;
                if let Some(switched) = self.switch().await? {
                    return Ok(switched);
                }
                continue;
            }
            let until = self.sets.get(1).map_or(target, |next| next.position);
            let events = reading.take(self.store, position, until).await?;
            let Some(last) = events.last().cloned() else {
                return Err(Error::Store(StoreError::CorruptData(format!(
                    "the log has no event after position {position}"
                ))));
            };
            self.missing += last.position - position - events.len() as i64;
            let position = last.position;
            reading.begin(self.store, position, until);
            let changes = self.fold.changes(&events).await?;
            let rows = self.fold.run(|| self.sets[0].rows(&changes, None))?;
            self.fold.put(&changes);
            writing.done().await?;
            writing.begin(self.store, &self.sets[0], self.fence, rows, last);
            self.events += events.len() as i64;
            self.sets[0].position = position;
            if self.sets.get(1).is_some_and(|next| next.position == position) {
                let caught_up = self.sets.remove(0);
                self.sets[0].generations.extend(caught_up.generations);
            }
            if checked.elapsed() > Duration::from_secs(2) {
                leadership.check().await?;
                checked = Instant::now();
            }
        }
    }

    /// Returns the position that the rebuild must reach before the switch.
    async fn target(&self) -> Result<i64, Error> {
        let rows: Vec<Checkpoint> = self.store.db().fetch_all(CHECKPOINTS, vec![]).await?;
        let own = self.sets.last().map_or(0, |set| set.position);
        let furthest = furthest(&rows, self.group).max(own).max(self.end);
        Ok(furthest.min(self.store.head().await?))
    }

    /// Returns the live checkpoints that this rebuild will replace.
    fn live(&self, rows: &[Checkpoint]) -> Vec<Checkpoint> {
        let generations = self.sets.iter().flat_map(|set| &set.generations);
        let names: Vec<_> = generations.map(|generation| generation.projection.name()).collect();
        rows.iter().filter(|row| row.state == LIVE && names.contains(&&*row.projection)).cloned().collect()
    }

    async fn index(&self) -> Result<(), Error> {
        for generation in &self.sets[0].generations {
            for table in generation.projection.tables() {
                let mut tx = self.store.db().begin().await?;
                tx.index(table, generation.number).await?;
                tx.commit().await?;
            }
        }
        Ok(())
    }

    /// Folds and commits the events up to the current target, so that few events are left to fold while the switch
    /// holds its locks.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let until = self.target().await?;
        let set = &mut self.sets[0];
        let mut events = self.store.read(set.position, (until - set.position).clamp(0, CHUNK)).await?;
        events.retain(|event| event.position <= until);
        let Some(last) = events.last() else { return Ok(()) };
        let changes = self.fold.changes(&events).await?;
        let rows = self.fold.run(|| set.rows(&changes, None))?;
        set.commit(self.store, self.fence, rows, last).await?;
        self.fold.put(&changes);
        self.events += events.len() as i64;
        self.missing += last.position - set.position - events.len() as i64;
        set.position = last.position;
        Ok(())
    }

    /// Applies the last events, compares the generations and makes the new ones live, in one transaction that locks the
    /// checkpoints. Returns `None` when the live generations are too far ahead for that; the caller then catches up and
    /// tries again.
    async fn switch(&mut self) -> Result<Option<(Vec<Switched>, i64)>, Error> {
        self.catch_up().await?;
        // Commits durably: a switch that was reported to an operator must survive a crash of the machine. The rows
        // committed before become durable with it.
        let mut tx = self.store.db().begin_durably().await?;
        tx.lock_checkpoints().await?;
        let known = checkpoints(&mut tx).await?;
        self.fold.exclusions.discarded = exclusions(&mut tx, self.store, self.group).await?.discarded;
        let live = self.live(&known);
        let head = self.store.head().await?;
        let furthest = furthest(&known, self.group).max(self.end).min(head);
        let set = &mut self.sets[0];
        let most = if self.switches < SWITCHES_MAX { LOCKED_LAG_MAX } else { CHUNK };
        self.switches += 1;
        if furthest - set.position > most {
            return Ok(None);
        }
        while set.position < furthest {
            let mut events = self.store.read(set.position, CHUNK.min(furthest - set.position)).await?;
            events.retain(|event| event.position <= furthest);
            let Some(last) = events.last() else { break };
            let changes = self.fold.changes(&events).await?;
            let rows = self.fold.run(|| set.rows(&changes, None))?;
            set.write(&mut tx, self.fence, rows, Some(last)).await?;
            self.fold.put(&changes);
            self.events += events.len() as i64;
            self.missing += last.position - set.position - events.len() as i64;
            set.position = last.position;
        }
        let mut switched = Vec::new();
        for &Generation { projection, number } in &set.generations {
            let name = projection.name();
            let was = live.iter().find(|row| row.projection == name);
            let mut differences = None;
            if let Some(was) = was.filter(|was| was.position == set.position && was.version == projection.version()) {
                let mut rows = 0;
                for table in projection.tables() {
                    rows += tx.differences(table, was.generation, number).await?;
                }
                differences = Some(rows);
            }
            for table in projection.tables() {
                tx.serve(table, number).await?;
            }
            for row in known.iter().filter(|row| row.projection == name && row.generation != number) {
                match row.state == LIVE {
                    true => set_state(&mut tx, name, row.generation, OLD).await?,
                    false => remove(&mut tx, projection, row.generation).await?,
                }
            }
            set_state(&mut tx, name, number, LIVE).await?;
            switched.push(Switched { name, generation: number, differences });
        }
        // The pump that updated the old generations can no longer write; it reads the checkpoints again.
        bump_fence(&mut tx, self.group.name, &[OLD, LIVE]).await?;
        tx.commit().await?;
        Ok(Some((switched, set.position)))
    }
}

/// Returns the furthest live position of the group. It includes projections that are not rebuilt, so that the new
/// generation can advance together with them after the switch.
fn furthest(rows: &[Checkpoint], group: &Group) -> i64 {
    rows.iter()
        .filter(|row| row.group_name == group.name && row.state == LIVE)
        .map(|row| row.position)
        .max()
        .unwrap_or(0)
}

/// Reads events from the log ahead of the fold.
struct ReadAhead {
    /// The read in progress, with the position after which it starts.
    ahead: Option<(i64, Read)>,
    /// Number of events to read at once; follows from the size of the last events.
    limit: i64,
}

type Read = JoinHandle<Result<Vec<RecordedEvent>, StoreError>>;

impl ReadAhead {
    fn new() -> Self {
        Self { ahead: None, limit: CHUNK_MIN }
    }

    fn begin(&mut self, store: &Store, after: i64, until: i64) {
        if after < until {
            let (store, limit) = (store.clone(), self.limit.min(until - after));
            self.ahead = Some((after, tokio::spawn(async move { store.read(after, limit).await })));
        }
    }

    /// Returns events after `after` and up to `until`. Uses the events that were read ahead if they start at `after`.
    async fn take(&mut self, store: &Store, after: i64, until: i64) -> Result<Vec<RecordedEvent>, Error> {
        let mut events = match self.ahead.take() {
            Some((from, reading)) if from == after => reading.await.map_err(task_failed)??,
            _ => store.read(after, self.limit.min(until - after)).await?,
        };
        let bytes: usize = events.iter().map(|event| event.payload.len() + event.metadata.len()).sum();
        if let Some(limit) = (CHUNK_BYTES * events.len()).checked_div(bytes) {
            self.limit = (limit as i64).clamp(CHUNK_MIN, CHUNK);
        }
        // If events are missing from the log, the read returns events beyond `until`.
        events.retain(|event| event.position <= until);
        Ok(events)
    }
}

/// Writes rows to the database in the background, one batch at a time.
#[derive(Default)]
struct WriteBehind(Option<JoinHandle<Result<(), Error>>>);

impl WriteBehind {
    fn begin(&mut self, store: &Store, set: &GenerationSet, fence: i64, rows: GenerationRows, last: RecordedEvent) {
        let (store, set) = (store.clone(), set.clone());
        self.0 = Some(tokio::spawn(async move { set.commit(&store, fence, rows, &last).await }));
    }

    async fn done(&mut self) -> Result<(), Error> {
        match self.0.take() {
            Some(writing) => writing.await.map_err(task_failed)?,
            None => Ok(()),
        }
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        // Rows that are not committed by now are written again when the rebuild resumes.
        if let Some(writing) = &self.0 {
            writing.abort();
        }
    }
}

impl RebuildStart {
    /// Returns the state of a generation while this rebuild fills it.
    fn state(self) -> &'static str {
        match self {
            Self::Log | Self::Scratch => BUILDING,
            Self::Older => RETURNING,
        }
    }
}

/// Finds the generations that the rebuild resumes, or creates new ones. Returns them with their positions, and the
/// events to exclude. Removes unfinished generations that cannot be resumed.
async fn generations(
    tx: &mut Tx,
    store: &Store,
    group: &Group,
    projections: &[&'static dyn AnyProjection],
    from: RebuildStart,
) -> Result<(Vec<(Generation, i64)>, Exclusions), Error> {
    tx.lock_checkpoints().await?;
    let head = store.head().await?;
    let exclusions = exclusions(tx, store, group).await?;
    let begun = from.state();
    let mut known = Vec::new();
    for row in checkpoints(tx).await? {
        let own = projections.iter().copied().find(|projection| projection.name() == row.projection);
        match own.filter(|_| row.state == BUILDING || row.state == RETURNING) {
            // A killed rebuild left this generation, but it cannot be resumed: it was begun from another start, by
            // another release or from another log.
            Some(own)
                if from == RebuildStart::Scratch
                    || row.state != begun
                    || row.version != own.version()
                    || row.check_belongs_to(store, head).await.is_err() =>
            {
                remove(tx, own, row.generation).await?;
            }
            _ => known.push(row),
        }
    }
    let mut wanted = Vec::new();
    for &projection in projections {
        let own = |state: &str| known.iter().rfind(|row| row.projection == projection.name() && row.state == state);
        if let Some(live) = own(LIVE).filter(|row| row.version > projection.version() && from != RebuildStart::Older) {
            let (name, version) = (live.projection.clone(), live.version);
            return Err(Error::Newer { projection: name, version, known: projection.version() });
        }
        let (generation, position) = match (own(begun), from) {
            (Some(begun), _) => (begun.generation, begun.position),
            (None, RebuildStart::Older) => {
                let older = own(OLD).filter(|row| row.version == projection.version());
                let older = older.ok_or_else(|| Error::NoOlder(projection.name().to_owned()))?;
                older.check_belongs_to(store, head).await?;
                set_state(tx, projection.name(), older.generation, RETURNING).await?;
                (older.generation, older.position)
            }
            (None, RebuildStart::Log | RebuildStart::Scratch) => (create(tx, group, projection, &known).await?, 0),
        };
        wanted.push((Generation { projection, number: generation }, position));
    }
    Ok((wanted, exclusions))
}

fn task_failed(error: JoinError) -> Error {
    Error::Store(StoreError::CorruptData(format!("a task of the rebuild panicked or was cancelled: {error}")))
}

/// Returns the events that operators have discarded.
///
/// # Errors
/// [`Error::Parked`] or [`Error::DecisionPending`] while a stream is parked.
async fn exclusions(tx: &mut Tx, store: &Store, group: &Group) -> Result<Exclusions, Error> {
    let letters = dead_letters::remove_foreign(tx, store).await?;
    let (exclusions, asked) = dead_letters::partition(&letters, group.name);
    if let Some(row) = asked.first() {
        return Err(Error::DecisionPending { stream: row.stream(), position: row.position });
    }
    match exclusions.parked.iter().min_by_key(|(_, position)| **position) {
        Some((stream, position)) => Err(Error::Parked { stream: stream.clone(), position: *position }),
        None => Ok(exclusions),
    }
}
