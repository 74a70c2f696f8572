//! How far the read models have come, as every process of the read side knows it.
//!
//! The pump tells it after each commit: in its own process at once, in others by a hint over the bus, and, because hints
//! may be lost, by a look at the checkpoints. PostgreSQL may lose its last commits in a crash, and checkpoints go back with
//! the rows. So a position is known together with the epoch of the database in which it was read, and [`Progress::read_at`]
//! answers with a position only if the rows were read in the same epoch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_store::db::Db;
use event_store::error::Error;
use event_store::now_us;
use event_store::store::Store;
use futures::StreamExt;
use opentelemetry::KeyValue;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::dead_letters;
use crate::generation::{BUILDING, CHECKPOINTS, Checkpoint, LIVE, OLD, RETURNING};
use crate::metrics::METRICS;
use crate::registry::Registry;

/// Name of the hint.
pub(crate) const HINT: &str = "projected";
/// How often the checkpoints are read whatever the hints say.
const POLL: Duration = Duration::from_millis(250);
/// How often a query is repeated because the database may have crashed while it ran.
const READS_MAX: u32 = 20;
/// And for how long.
const READS_WITHIN: Duration = Duration::from_secs(5);
/// Over which time a rate is measured.
const RATE_OVER: Duration = Duration::from_secs(5);

/// Where the projections are.
#[derive(Debug, Clone, PartialEq)]
pub struct Positions {
    /// Epoch of the database in which they were read.
    epoch: u64,
    by_name: BTreeMap<String, i64>,
    /// Generation and revision of each.
    builds: BTreeMap<String, (i64, i64)>,
    /// Those that serve in a version of another release, and wait until they are built again.
    frozen: BTreeSet<String>,
    /// The group of each.
    groups: Arc<BTreeMap<&'static str, &'static str>>,
}

impl Positions {
    /// Position of one projection.
    pub fn of(&self, projection: &str) -> i64 {
        self.by_name.get(projection).copied().unwrap_or(0)
    }

    /// Position that every read model of a group has reached that follows the log.
    pub fn slowest(&self, group: &str) -> i64 {
        let of_group = || self.by_name.iter().filter(|(name, _)| self.groups.get(name.as_str()) == Some(&group));
        let moving = of_group().filter(|(name, _)| !self.frozen.contains(*name));
        moving.map(|(_, position)| *position).min().or_else(|| of_group().map(|(_, at)| *at).min()).unwrap_or(0)
    }
}

/// The state of a read model, as this process knows it: the same state, the same rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Reading {
    /// Epoch of the database in which it was read.
    pub epoch: u64,
    /// The generation that serves.
    pub generation: i64,
    /// Raised when rows change though the position does not.
    pub revision: i64,
    /// Position of the last event.
    pub position: i64,
}

/// Position of each generation.
type Generations = BTreeMap<(String, i64), i64>;

/// Positions of the read models; cheap to clone.
#[derive(Clone)]
pub struct Progress {
    registry: Registry,
    positions: Arc<watch::Sender<Positions>>,
    /// How often the pump of this process has told of a commit.
    commits: Arc<AtomicU64>,
    /// The generation that serves, a projection.
    generations: Arc<Mutex<BTreeMap<String, i64>>>,
    samples: Arc<Mutex<VecDeque<(Instant, Generations)>>>,
}

/// A projection, as operators see it.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// The group that it follows the log with.
    pub group: &'static str,
    /// Which build of its tables serves; a rebuild makes a new one.
    pub generation: i64,
    /// Version of the code that filled it.
    pub version: i64,
    /// Position of the last event in it.
    pub position: i64,
    /// Events that it has still to take.
    pub lag_events: i64,
    /// Age of the oldest event that it has still to take.
    pub lag_seconds: f64,
    /// Events a second, over the last seconds, as this process saw it.
    pub events_per_second: f64,
    /// `live`; `failed` while it cannot go on, which is tried again; `frozen` while it serves in a version that is not
    /// this release's, until it is built again.
    pub state: &'static str,
    /// Why it failed last.
    pub last_error: Option<String>,
    /// The generation that is being built, if any.
    pub rebuild: Option<Rebuild>,
    /// The generation that a rollback goes back to, if any.
    pub older_generation: Option<i64>,
}

/// A generation on its way.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Rebuild {
    /// Its number.
    pub generation: i64,
    /// Version of the code that fills it.
    pub version: i64,
    /// Position of the last event in it.
    pub position: i64,
    /// Events that it has still to take until it is where the one that serves is.
    pub lag_events: i64,
    /// Events a second, over the last seconds, as this process saw it.
    pub events_per_second: f64,
    /// How long that will take at this rate, in seconds; `null` while it does not move.
    pub seconds_left: Option<f64>,
}

impl Progress {
    /// Of the read models of a program; nothing is known before the first [`Self::refresh`].
    pub fn new(registry: Registry) -> Self {
        let by_name = registry.projections().map(|projection| (projection.name().to_owned(), 0)).collect();
        let groups = registry.groups().iter();
        let groups =
            groups.flat_map(|group| group.projections.iter().map(|projection| (projection.name(), group.name)));
        let (builds, frozen, groups) = (BTreeMap::new(), BTreeSet::new(), Arc::new(groups.collect()));
        let positions = Positions { epoch: 0, by_name, builds, frozen, groups };
        Self {
            registry,
            positions: Arc::new(watch::channel(positions).0),
            commits: Arc::default(),
            generations: Arc::default(),
            samples: Arc::default(),
        }
    }

    /// The read models.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Keeps the positions up to date in this process, until `stop`.
    pub async fn follow(self, store: Store, stop: CancellationToken) {
        let mut hints = store.positions(HINT).await;
        while !stop.is_cancelled() {
            if let Err(error) = self.refresh(store.db()).await {
                tracing::warn!(%error, "checkpoints cannot be read");
            }
            tokio::select! {
                _ = hints.next() => {}
                () = tokio::time::sleep(POLL) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Reads the checkpoints. They may stand before what is known: a database that crashed has lost the last commits.
    pub async fn refresh(&self, db: &Db) -> Result<(), Error> {
        let commits = self.commits.load(Relaxed);
        let epoch = db.epoch();
        let checkpoints = checkpoints(db).await?;
        // What only another release knows does not concern this one.
        let of_release = |row: &&Checkpoint| row.state == LIVE && self.registry.find(&row.projection).is_some();
        let live = checkpoints.iter().filter(of_release);
        let frozen = live.clone().filter(|row| self.is_frozen(row)).map(|row| row.projection.clone()).collect();
        let generations: BTreeMap<_, _> = live.clone().map(|row| (row.projection.clone(), row.generation)).collect();
        let builds = live.clone().map(|row| (row.projection.clone(), (row.generation, row.revision))).collect();
        let by_name = live.map(|row| (row.projection.clone(), row.position)).collect();
        let groups = self.positions.borrow().groups.clone();
        let mut positions = Positions { epoch, by_name, builds, frozen, groups };
        let before = {
            let mut known = self.generations.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            std::mem::replace(&mut *known, generations.clone())
        };
        {
            let mut samples = self.samples.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if samples.back().is_none_or(|(at, _)| at.elapsed() >= POLL) {
                let all = checkpoints.iter().map(|row| ((row.projection.clone(), row.generation), row.position));
                samples.push_back((Instant::now(), all.collect()));
            }
            while samples.front().is_some_and(|(at, _)| at.elapsed() > RATE_OVER) {
                samples.pop_front();
            }
        }
        self.positions.send_if_modified(|known| {
            // Where the pump of this process has committed since, it knows better.
            let overtaken = self.commits.load(Relaxed) != commits && known.epoch == epoch;
            for (name, read) in &mut positions.by_name {
                if overtaken && before.get(name) == generations.get(name) {
                    *read = known.of(name).max(*read);
                }
            }
            let changed = *known != positions;
            *known = positions;
            changed
        });
        Ok(())
    }

    /// The pump has committed, in a transaction that began in this epoch of the database.
    pub(crate) fn committed(&self, names: &[&str], position: i64, epoch: u64) {
        self.positions.send_if_modified(|known| {
            if known.epoch != epoch {
                // The next look at the checkpoints shows whether the commit is still there.
                return false;
            }
            self.commits.fetch_add(1, Relaxed);
            for name in names {
                known.by_name.insert((*name).to_owned(), position);
            }
            true
        });
    }

    /// The state of a projection.
    pub fn reading(&self, projection: &str) -> Reading {
        let known = self.positions.borrow();
        let (generation, revision) = known.builds.get(projection).copied().unwrap_or_default();
        Reading { epoch: known.epoch, generation, revision, position: known.of(projection) }
    }

    /// Runs a query, and gives its rows with a position that they are not older than.
    ///
    /// # Errors
    /// The database is away.
    pub async fn read_at<T, F: Future<Output = Result<T, Error>>>(
        &self,
        db: &Db,
        projection: &str,
        query: impl Fn() -> F,
    ) -> Result<(i64, T), Error> {
        let until = Instant::now() + READS_WITHIN;
        for _ in 0..READS_MAX {
            if Instant::now() > until {
                break;
            }
            let (epoch, position) = {
                let known = self.positions.borrow();
                (known.epoch, known.of(projection))
            };
            if epoch != db.epoch() {
                self.refresh(db).await?;
                continue;
            }
            let rows = query().await?;
            if db.epoch() == epoch {
                return Ok((position, rows));
            }
        }
        Err(unsteady())
    }

    /// Position that every read model of a group has reached that follows the log, as the database has it now.
    ///
    /// # Errors
    /// The database is away.
    pub async fn slowest_in(&self, db: &Db, group: &str) -> Result<i64, Error> {
        for _ in 0..READS_MAX {
            let (epoch, slowest) = {
                let known = self.positions.borrow();
                (known.epoch, known.slowest(group))
            };
            if epoch == db.epoch() {
                return Ok(slowest);
            }
            self.refresh(db).await?;
        }
        Err(unsteady())
    }

    /// Position that every read model of a group has reached that follows the log.
    pub fn slowest(&self, group: &str) -> i64 {
        self.positions.borrow().slowest(group)
    }

    /// Waits until a projection has a position, at most so long. Gives where it is then.
    pub async fn wait_for(&self, projection: &str, position: i64, at_most: Duration) -> i64 {
        let mut positions = self.positions.subscribe();
        let there = positions.wait_for(|known| known.of(projection) >= position);
        match tokio::time::timeout(at_most, there).await {
            Ok(Ok(known)) => known.of(projection),
            _ => self.positions.borrow().of(projection),
        }
    }

    /// Waits for the next change of any position.
    pub fn changes(&self) -> watch::Receiver<Positions> {
        self.positions.subscribe()
    }

    /// Every projection with its lag, and the log's head.
    pub async fn status(&self, store: &Store) -> Result<(Vec<Status>, i64), Error> {
        let checkpoints = checkpoints(store.db()).await?;
        let head = store.head().await?;
        let mut status = Vec::new();
        for projection in self.registry.projections() {
            let Some((group, _)) = self.registry.find(projection.name()) else { continue };
            let name = projection.name();
            let own = |state: &str| checkpoints.iter().rfind(|row| row.projection == name && row.state == state);
            let Some(live) = own(LIVE) else { continue };
            let position = live.position;
            let waits = store.read(position, 1).await?;
            let ahead = (position > head).then(|| crate::error::Error::Ahead { position, head }.to_string());
            let last_error = live.last_error.clone().or(ahead);
            status.push(Status {
                name: name.to_owned(),
                group: group.name,
                generation: live.generation,
                version: live.version,
                position,
                lag_events: (head - position).max(0),
                lag_seconds: waits.first().map_or(0.0, |event| (now_us() - event.recorded_at).max(0) as f64 / 1e6),
                events_per_second: self.rate(live),
                state: match &last_error {
                    Some(_) => "failed",
                    None if self.is_frozen(live) => "frozen",
                    None => "live",
                },
                last_error,
                rebuild: own(BUILDING).or(own(RETURNING)).map(|row| {
                    let (lag_events, events_per_second) = ((position - row.position).max(0), self.rate(row));
                    Rebuild {
                        generation: row.generation,
                        version: row.version,
                        position: row.position,
                        lag_events,
                        events_per_second,
                        seconds_left: (events_per_second > 0.0).then(|| (lag_events as f64 / events_per_second).ceil()),
                    }
                }),
                older_generation: own(OLD).map(|row| row.generation),
            });
        }
        Ok((status, head))
    }

    /// Measures lag and dead letters.
    ///
    /// # Errors
    /// The database is away.
    pub async fn observe(&self, store: &Store) -> Result<(), Error> {
        let (status, _) = self.status(store).await?;
        for projection in status {
            let name = [KeyValue::new("projection", projection.name)];
            METRICS.position.record(projection.position, &name);
            METRICS.lag_events.record(projection.lag_events, &name);
            METRICS.lag_seconds.record(projection.lag_seconds, &name);
            METRICS.failed.record((projection.state == "failed").into(), &name);
        }
        let letters = dead_letters::list(store.db()).await?;
        for state in ["parked", "retry", "discard", "discarded"] {
            let count = letters.iter().filter(|letter| letter.state == state).count() as u64;
            METRICS.dead_letters.record(count, &[KeyValue::new("state", state)]);
        }
        let open = letters.iter().filter(|letter| letter.state != "discarded").map(|letter| letter.age_seconds);
        METRICS.oldest.record(open.fold(0.0, f64::max), &[]);
        Ok(())
    }

    /// Whether it was filled by another release's code.
    fn is_frozen(&self, row: &Checkpoint) -> bool {
        self.registry.find(&row.projection).is_some_and(|(_, projection)| projection.version() != row.version)
    }

    fn rate(&self, row: &Checkpoint) -> f64 {
        let samples = self.samples.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some((at, positions)) = samples.front() else { return 0.0 };
        let since = at.elapsed().as_secs_f64().max(0.001);
        let before = positions.get(&(row.projection.clone(), row.generation)).copied().unwrap_or(row.position);
        ((row.position - before) as f64 / since).max(0.0).round()
    }
}

/// The server ends connections as fast as they are opened.
fn unsteady() -> Error {
    sqlx::Error::Protocol("connections to the database are opened again and again".into()).into()
}

async fn checkpoints(db: &Db) -> Result<Vec<Checkpoint>, Error> {
    db.fetch_all(CHECKPOINTS, vec![]).await
}
