//! Rebuilds: a new generation is filled from the log beside the one that serves, catches up with it, is compared with it,
//! and takes its place, in one transaction. Queries see the one or the other, whole.
//!
//! A generation's checkpoint moves with its rows, so a rebuild that was killed goes on where it stopped. It writes tables
//! and checkpoints only: no event, no signal.

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
    BUILDING, CHECKPOINTS, Checkpoint, CheckpointGroup, Generation, GenerationRows, LIVE, OLD, RETURNING, bump_fence,
    by_position, checkpoints, create, prepare_group, remove, serving_now, set_state,
};
use crate::group_fold::GroupFold;
use crate::projection::AnyProjection;
use crate::registry::{Group, Registry, projecting, rebuilding};
use crate::settings::Settings;
use crate::state::FoldError;

/// Events read and folded at once, and about how many bytes of them: with what is folded and what is read ahead, some ten
/// megabytes.
const CHUNK: i64 = 10_000;
const CHUNK_BYTES: usize = 8 * 1024 * 1024;
/// The least that is worth a transaction; also what is read before it is known how long events are.
const CHUNK_MIN: i64 = 500;
/// Events that may be left for the switch, while which the live generation stands still.
const LEFT_FOR_THE_SWITCH: i64 = 2_000;
/// Events that may be folded while the switch holds its locks, and how often it is tried with so few.
const LEFT_UNDER_LOCK: i64 = 200;
const SWITCHES_MAX: u32 = 20;
/// Pauses after failures of the database, before the rebuild goes on where it stopped.
const RETRY: Duration = Duration::from_millis(500);
const RETRIES_MAX: u32 = 240;

/// Where the new generation begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum From {
    /// At the log's first event, or where a killed rebuild stopped.
    Log,
    /// At the log's first event, whatever a killed rebuild has left.
    Afresh,
    /// In the generation that served before.
    Older,
}

/// What became of one projection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Switched {
    /// The projection.
    pub name: &'static str,
    /// The generation that serves now.
    pub generation: i64,
    /// Rows that are not the same in the one that served before; `None` where the two cannot be compared, because they
    /// are not of the same version or position.
    pub differences: Option<i64>,
}

/// What a rebuild did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rebuilt {
    /// Every projection of it.
    pub projections: Vec<Switched>,
    /// Events folded, by this process.
    pub events: i64,
    /// Positions at which the log holds no event: somebody has removed it.
    pub missing: i64,
    /// Position at which the new generations took over.
    pub position: i64,
}

/// Whether a rebuild of a group runs now, in any process.
///
/// # Errors
/// The database is away.
pub async fn is_running(store: &Store, group: &Group) -> Result<bool, StoreError> {
    Ok(store.try_lead(&rebuilding(group.name)).await?.is_none())
}

/// Builds new generations of a group's projections and switches to them. `progress` is told each projection's position and where it
/// has to go.
///
/// # Errors
/// [`Error::Busy`] while another rebuild runs; an event that does not apply, parked or not: a rebuild skips nothing but
/// what an operator has discarded.
pub async fn rebuild(
    store: &Store,
    group: &Group,
    settings: &Settings,
    projections: &[&'static dyn AnyProjection],
    from: From,
    mut progress: impl FnMut(&str, i64, i64),
) -> Result<Rebuilt, Error> {
    let mut failures = 0;
    let mut events = 0;
    let mut missing = 0;
    let mut from = from;
    let mut wanted: Vec<Generation> = Vec::new();
    loop {
        // The answer to a switch may have been lost with its connection.
        if let Some(position) = all_serve(store, &wanted).await {
            let switched = |generation: &Generation| Switched {
                name: generation.projection.name(),
                generation: generation.number,
                differences: None,
            };
            return Ok(Rebuilt { projections: wanted.iter().map(switched).collect(), events, missing, position });
        }
        // Held while it works: one rebuild at a time.
        let outcome = async {
            let mut leadership = store.try_lead(&rebuilding(group.name)).await?.ok_or(Error::Busy)?;
            let mut build = Build::begin(store, group, settings, projections, from).await?;
            if from == From::Afresh {
                from = From::Log;
            }
            wanted = build.groups.iter().flat_map(|group| group.generations.iter().copied()).collect();
            let outcome = build.run(&mut leadership, &mut progress).await;
            (events, missing) = (events + build.events, missing + build.missing);
            outcome
        };
        match outcome.await {
            Ok((projections, position)) => return Ok(Rebuilt { projections, events, missing, position }),
            Err(error) if failures < RETRIES_MAX && passes(&error, failures) => {
                failures += 1;
                tracing::warn!(%error, "rebuild: going on where it stopped");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Where generations stand that all serve already; `None` where one does not, or nobody can tell.
async fn all_serve(store: &Store, wanted: &[Generation]) -> Option<i64> {
    if wanted.is_empty() {
        return None;
    }
    let serving = serving_now(store.db()).await.ok()?;
    let positions = wanted.iter().map(|generation| {
        let live = serving.get(generation.projection.name());
        live.filter(|live| live.generation == generation.number).map(|live| live.position)
    });
    positions.collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Whether a rebuild may go on after a failure.
fn passes(error: &Error, failures: u32) -> bool {
    match error {
        Error::Store(error) => error.may_pass(),
        // A database that crashed has lost the last commits, and the checkpoints stand where they stood before. The lock
        // of rebuilds is held again before anything else, so it is not another rebuild that has taken them over.
        Error::Fenced => true,
        // The lock of a rebuild whose connection died is freed a moment later.
        Error::Busy => failures > 0,
        _ => false,
    }
}

/// What a rebuild would do with one projection.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The projection.
    pub name: &'static str,
    /// The generation that would serve.
    pub generation: i64,
    /// Where it begins: 0, or where a killed rebuild or the older generation stands.
    pub position: i64,
}

/// What [`rebuild`] would do now. Nothing is changed.
///
/// # Errors
/// What would end the rebuild before its first event.
pub async fn plan(
    store: &Store,
    group: &Group,
    projections: &[&'static dyn AnyProjection],
    from: From,
) -> Result<Vec<Planned>, Error> {
    let _leadership = store.try_lead(&rebuilding(group.name)).await?.ok_or(Error::Busy)?;
    let mut tx = store.db().begin().await?;
    // Never committed.
    let (generations, _) = generations(&mut tx, store, group, projections, from).await?;
    let planned = |(generation, position): (Generation, i64)| Planned {
        name: generation.projection.name(),
        generation: generation.number,
        position,
    };
    Ok(generations.into_iter().map(planned).collect())
}

/// Removes the generations that served before and those that no rebuild will finish, or only names them: projections
/// and generations.
///
/// # Errors
/// [`Error::Busy`] while a rebuild runs.
pub async fn prune(
    store: &Store,
    group: &Group,
    projections: &[&'static dyn AnyProjection],
    dry_run: bool,
) -> Result<Vec<(&'static str, i64)>, Error> {
    let _leadership = store.try_lead(&rebuilding(group.name)).await?.ok_or(Error::Busy)?;
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

/// Builds what this release has in a newer version than the database, and what can no longer be brought on, for ever.
pub(crate) async fn upgrade(store: &Store, registry: &Registry, group: &Group, settings: &Settings) {
    loop {
        match outdated(store, group).await {
            Ok(projections) if projections.is_empty() => {}
            Ok(projections) => {
                let names: Vec<_> = projections.iter().map(|projection| projection.name()).collect();
                tracing::info!(?names, "building newer versions of projections");
                match catch_panic(rebuild(store, group, settings, &projections, From::Log, |_, _, _| {})).await {
                    Ok(rebuilt) => tracing::info!(?rebuilt, "newer versions serve"),
                    Err(error) => {
                        tracing::error!(%error, "newer versions are not built");
                        // No projector of this release works before they are built, so it is for this one to park.
                        if let Error::Fold(failed) = error
                            && projections.len() == group.projections.len()
                            && let Err(error) = park(store, registry, group, &failed).await
                        {
                            tracing::warn!(%error, "the stream could not be parked");
                        }
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the projections' versions cannot be read"),
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn park(store: &Store, registry: &Registry, group: &Group, failed: &FoldError) -> Result<(), StoreError> {
    let mut tx = store.db().begin().await?;
    dead_letters::park_undecodable(&mut tx, registry, group.name, failed, 1).await?;
    tx.commit().await
}

/// Projections whose live generation is of an older version than this release's.
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
    groups: Vec<CheckpointGroup>,
    fence: i64,
    fold: GroupFold,
    events: i64,
    missing: i64,
    /// How often the switch was tried.
    switches: u32,
    /// How far to go at least, where nobody projected when it began; and as far as the live generations are in any case.
    end: i64,
}

impl<'a> Build<'a> {
    async fn begin(
        store: &'a Store,
        group: &'a Group,
        settings: &Settings,
        projections: &[&'static dyn AnyProjection],
        from: From,
    ) -> Result<Self, Error> {
        prepare_group(store, group).await?;
        let mut tx = store.db().begin().await?;
        let (generations, exclusions) = generations(&mut tx, store, group, projections, from).await?;
        let fence = bump_fence(&mut tx, group.name, &[from.state()]).await?;
        tx.commit().await?;
        let nobody_projects = store.try_lead(&projecting(group.name)).await?.is_some();
        let end = if nobody_projects { store.head().await? } else { 0 };
        let fold = GroupFold::new(store, group, settings.aggregates_in_memory_max, exclusions);
        Ok(Self {
            store,
            group,
            groups: by_position(generations),
            fence,
            fold,
            events: 0,
            missing: 0,
            switches: 0,
            end,
        })
    }

    /// Three things at once: the next events are read, these are folded, those before are written.
    async fn run(
        &mut self,
        leadership: &mut Leadership,
        progress: &mut impl FnMut(&str, i64, i64),
    ) -> Result<(Vec<Switched>, i64), Error> {
        let mut checked = Instant::now();
        let mut indexed = false;
        let mut reading = Reading::new();
        let mut writing = Writing::default();
        loop {
            // A server beside it takes no commands any more, until there is room.
            if let Some(trouble) = self.store.disk().and_then(Disk::trouble) {
                return Err(StoreError::Storage(trouble).into());
            }
            let target = self.target().await?;
            let position = self.groups[0].position;
            for group in &self.groups {
                let names = group.generations.iter().map(|generation| generation.projection.name());
                names.for_each(|name| progress(name, group.position, target));
            }
            if self.groups.len() == 1 && target - position <= CHUNK && !indexed {
                writing.done().await?;
                self.index().await?;
                indexed = true;
            }
            if self.groups.len() == 1 && target - position <= LEFT_FOR_THE_SWITCH {
                writing.done().await?;
                if let Some(switched) = self.switch().await? {
                    return Ok(switched);
                }
                continue;
            }
            let until = self.groups.get(1).map_or(target, |next| next.position);
            let events = reading.take(self.store, position, until).await?;
            let Some(last) = events.last().cloned() else {
                return Err(Error::Store(StoreError::Stored(format!("no event follows position {position}"))));
            };
            self.missing += last.position - position - events.len() as i64;
            let position = last.position;
            reading.begin(self.store, position, until);
            let changes = self.fold.changes(&events).await?;
            let rows = self.fold.run(|| self.groups[0].rows(&changes, None))?;
            self.fold.put(&changes);
            writing.done().await?;
            writing.begin(self.store, &self.groups[0], self.fence, rows, last);
            self.events += events.len() as i64;
            self.groups[0].position = position;
            if self.groups.get(1).is_some_and(|next| next.position == position) {
                let caught_up = self.groups.remove(0);
                self.groups[0].generations.extend(caught_up.generations);
            }
            if checked.elapsed() > Duration::from_secs(2) {
                leadership.check().await?;
                checked = Instant::now();
            }
        }
    }

    /// How far to go before the switch.
    async fn target(&self) -> Result<i64, Error> {
        let rows: Vec<Checkpoint> = self.store.db().fetch_all(CHECKPOINTS, vec![]).await?;
        let own = self.groups.last().map_or(0, |group| group.position);
        let furthest = furthest(&rows, self.group).max(own).max(self.end);
        Ok(furthest.min(self.store.head().await?))
    }

    /// The checkpoints that this build will replace.
    fn live(&self, rows: &[Checkpoint]) -> Vec<Checkpoint> {
        let generations = self.groups.iter().flat_map(|group| &group.generations);
        let names: Vec<_> = generations.map(|generation| generation.projection.name()).collect();
        rows.iter().filter(|row| row.state == LIVE && names.contains(&&*row.projection)).cloned().collect()
    }

    async fn index(&self) -> Result<(), Error> {
        for generation in &self.groups[0].generations {
            for table in generation.projection.tables() {
                let mut tx = self.store.db().begin().await?;
                tx.index(table, generation.number).await?;
                tx.commit().await?;
            }
        }
        Ok(())
    }

    /// Folds and commits what there is now: while the switch holds its locks, as little as possible is left to fold.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let until = self.target().await?;
        let group = &mut self.groups[0];
        let mut events = self.store.read(group.position, (until - group.position).clamp(0, CHUNK)).await?;
        events.retain(|event| event.position <= until);
        let Some(last) = events.last() else { return Ok(()) };
        let changes = self.fold.changes(&events).await?;
        let rows = self.fold.run(|| group.rows(&changes, None))?;
        group.commit(self.store, self.fence, rows, last).await?;
        self.fold.put(&changes);
        self.events += events.len() as i64;
        self.missing += last.position - group.position - events.len() as i64;
        group.position = last.position;
        Ok(())
    }

    /// While the checkpoints stand still: the last events, the comparison, and the exchange, in one transaction. `None`
    /// where the live generations have gone too far ahead meanwhile.
    async fn switch(&mut self) -> Result<Option<(Vec<Switched>, i64)>, Error> {
        self.catch_up().await?;
        // What an operator is told of survives the machine; what was filled before is on the disk with it.
        let mut tx = self.store.db().begin_durably().await?;
        tx.lock_checkpoints().await?;
        let known = checkpoints(&mut tx).await?;
        self.fold.exclusions.discarded = exclusions(&mut tx, self.store, self.group).await?.discarded;
        let live = self.live(&known);
        let head = self.store.head().await?;
        let furthest = furthest(&known, self.group).max(self.end).min(head);
        let group = &mut self.groups[0];
        let most = if self.switches < SWITCHES_MAX { LEFT_UNDER_LOCK } else { CHUNK };
        self.switches += 1;
        if furthest - group.position > most {
            return Ok(None);
        }
        while group.position < furthest {
            let mut events = self.store.read(group.position, CHUNK.min(furthest - group.position)).await?;
            events.retain(|event| event.position <= furthest);
            let Some(last) = events.last() else { break };
            let changes = self.fold.changes(&events).await?;
            let rows = self.fold.run(|| group.rows(&changes, None))?;
            group.write(&mut tx, self.fence, rows, Some(last)).await?;
            self.fold.put(&changes);
            self.events += events.len() as i64;
            self.missing += last.position - group.position - events.len() as i64;
            group.position = last.position;
        }
        let mut switched = Vec::new();
        for &Generation { projection, number } in &group.generations {
            let name = projection.name();
            let was = live.iter().find(|row| row.projection == name);
            let mut differences = None;
            if let Some(was) = was.filter(|was| was.position == group.position && was.version == projection.version()) {
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
        // Whoever moved the ones that are old now writes nothing more, and reads the checkpoints again.
        bump_fence(&mut tx, self.group.name, &[OLD, LIVE]).await?;
        tx.commit().await?;
        Ok(Some((switched, group.position)))
    }
}

/// Where the read models are: also those that are not built, so that the new generation follows the log with them.
fn furthest(rows: &[Checkpoint], group: &Group) -> i64 {
    rows.iter()
        .filter(|row| row.group_name == group.name && row.state == LIVE)
        .map(|row| row.position)
        .max()
        .unwrap_or(0)
}

/// Events on their way from the log.
struct Reading {
    ahead: Option<(i64, Read)>,
    /// Events to read at once.
    limit: i64,
}

type Read = JoinHandle<Result<Vec<RecordedEvent>, StoreError>>;

impl Reading {
    fn new() -> Self {
        Self { ahead: None, limit: CHUNK_MIN }
    }

    fn begin(&mut self, store: &Store, after: i64, until: i64) {
        if after < until {
            let (store, limit) = (store.clone(), self.limit.min(until - after));
            self.ahead = Some((after, tokio::spawn(async move { store.read(after, limit).await })));
        }
    }

    /// The events that follow a position, up to another one; those read ahead where they are the ones.
    async fn take(&mut self, store: &Store, after: i64, until: i64) -> Result<Vec<RecordedEvent>, Error> {
        let mut events = match self.ahead.take() {
            Some((from, reading)) if from == after => reading.await.map_err(gone)??,
            _ => store.read(after, self.limit.min(until - after)).await?,
        };
        let bytes: usize = events.iter().map(|event| event.payload.len() + event.metadata.len()).sum();
        if let Some(limit) = (CHUNK_BYTES * events.len()).checked_div(bytes) {
            self.limit = (limit as i64).clamp(CHUNK_MIN, CHUNK);
        }
        // More than was asked for where the log lacks some.
        events.retain(|event| event.position <= until);
        Ok(events)
    }
}

/// Rows on their way to the database; one batch at a time.
#[derive(Default)]
struct Writing(Option<JoinHandle<Result<(), Error>>>);

impl Writing {
    fn begin(&mut self, store: &Store, group: &CheckpointGroup, fence: i64, rows: GenerationRows, last: RecordedEvent) {
        let (store, group) = (store.clone(), group.clone());
        self.0 = Some(tokio::spawn(async move { group.commit(&store, fence, rows, &last).await }));
    }

    async fn done(&mut self) -> Result<(), Error> {
        match self.0.take() {
            Some(writing) => writing.await.map_err(gone)?,
            None => Ok(()),
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // What is not committed by now is written again by whoever goes on.
        if let Some(writing) = &self.0 {
            writing.abort();
        }
    }
}

impl From {
    /// The state of a generation that is on its way.
    fn state(self) -> &'static str {
        match self {
            Self::Log | Self::Afresh => BUILDING,
            Self::Older => RETURNING,
        }
    }
}

/// Finds the generations to go on with, or makes them; and what is left out of them.
async fn generations(
    tx: &mut Tx,
    store: &Store,
    group: &Group,
    projections: &[&'static dyn AnyProjection],
    from: From,
) -> Result<(Vec<(Generation, i64)>, Exclusions), Error> {
    tx.lock_checkpoints().await?;
    let head = store.head().await?;
    let exclusions = exclusions(tx, store, group).await?;
    let begun = from.state();
    let mut known = Vec::new();
    for row in checkpoints(tx).await? {
        let own = projections.iter().copied().find(|projection| projection.name() == row.projection);
        match own.filter(|_| row.state == BUILDING || row.state == RETURNING) {
            // Left by a killed rebuild, but begun for another purpose, by another release or from another log.
            Some(own)
                if from == From::Afresh
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
        if let Some(live) = own(LIVE).filter(|row| row.version > projection.version() && from != From::Older) {
            let (name, version) = (live.projection.clone(), live.version);
            return Err(Error::Newer { projection: name, version, known: projection.version() });
        }
        let (generation, position) = match (own(begun), from) {
            (Some(begun), _) => (begun.generation, begun.position),
            (None, From::Older) => {
                let older = own(OLD).filter(|row| row.version == projection.version());
                let older = older.ok_or_else(|| Error::NoOlder(projection.name().to_owned()))?;
                older.check_belongs_to(store, head).await?;
                set_state(tx, projection.name(), older.generation, RETURNING).await?;
                (older.generation, older.position)
            }
            (None, From::Log | From::Afresh) => (create(tx, group, projection, &known).await?, 0),
        };
        wanted.push((Generation { projection, number: generation }, position));
    }
    Ok((wanted, exclusions))
}

fn gone(error: JoinError) -> Error {
    Error::Store(StoreError::Stored(format!("a task of the rebuild ended: {error}")))
}

/// What operators have discarded; refuses to go on while a stream is parked.
async fn exclusions(tx: &mut Tx, store: &Store, group: &Group) -> Result<Exclusions, Error> {
    let letters = dead_letters::of_this_log(tx, store).await?;
    let (exclusions, asked) = dead_letters::partition(&letters, group.name);
    if let Some(row) = asked.first() {
        return Err(Error::Waits { stream: row.stream(), position: row.position });
    }
    match exclusions.parked.iter().min_by_key(|(_, position)| **position) {
        Some((stream, position)) => Err(Error::Parked { stream: stream.clone(), position: *position }),
        None => Ok(exclusions),
    }
}
