//! The positions of the read models, kept up to date in every process of the read side.
//!
//! After each commit the pump reports the new position: directly in its own process, and to other processes with a
//! notification over the bus. Notifications may be lost, so each process also polls the checkpoints. PostgreSQL may
//! lose its last commits in a crash; then checkpoints and rows go back together. Therefore each position is kept
//! together with the value of [`Db::connections_opened`] at which it was read, and [`Progress::read_at`] returns a
//! position only if the rows were read at the same value.

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

/// Topic of the notifications.
pub(crate) const POSITION_TOPIC: &str = "projected";
/// Interval at which the checkpoints are read, even without a notification.
const POLL: Duration = Duration::from_millis(250);
/// Maximum number of times that a query runs because the database may have crashed during the query.
const READS_MAX: u32 = 20;
/// Maximum time for which a query is repeated for that reason.
const READS_WITHIN: Duration = Duration::from_secs(5);
/// Time over which a rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// The positions of the read models.
#[derive(Debug, Clone, PartialEq)]
pub struct Positions {
    /// Value of [`Db::connections_opened`] when the positions were read.
    connections_opened: u64,
    by_name: BTreeMap<String, i64>,
    /// Live generation and its revision, by projection name.
    builds: BTreeMap<String, (i64, i64)>,
    /// Names of the projections whose live generation has another version than this release's and is not updated.
    frozen: BTreeSet<String>,
    /// Name of the checkpoint group, by projection name.
    groups: Arc<BTreeMap<&'static str, &'static str>>,
}

impl Positions {
    /// Returns the position of a projection, or 0 if it is unknown.
    pub fn of(&self, projection: &str) -> i64 {
        self.by_name.get(projection).copied().unwrap_or(0)
    }

    /// Returns the lowest position in a checkpoint group. Frozen projections count only if all of the group are frozen.
    pub fn slowest(&self, group: &str) -> i64 {
        let of_group = || self.by_name.iter().filter(|(name, _)| self.groups.get(name.as_str()) == Some(&group));
        let moving = of_group().filter(|(name, _)| !self.frozen.contains(*name));
        moving.map(|(_, position)| *position).min().or_else(|| of_group().map(|(_, at)| *at).min()).unwrap_or(0)
    }
}

/// The state of a read model, as known to this process. Equal states mean equal rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ReadModelState {
    /// Value of [`Db::connections_opened`] when the state was read.
    pub connections_opened: u64,
    /// Number of the live generation.
    pub generation: i64,
    /// Counter that increases when rows change but the position does not.
    pub revision: i64,
    /// Position of the last event in the read model.
    pub position: i64,
}

/// Positions by projection name and generation.
type Generations = BTreeMap<(String, i64), i64>;

/// Keeps the positions of the read models. Cheap to clone.
#[derive(Clone)]
pub struct Progress {
    registry: Registry,
    positions: Arc<watch::Sender<Positions>>,
    /// Held while the checkpoints are read and stored. Otherwise a slow read could replace the result of a later one, and
    /// positions would move back although the database did not.
    refreshing: Arc<tokio::sync::Mutex<()>>,
    /// Number of commits that the pump of this process has reported.
    commits: Arc<AtomicU64>,
    /// Number of the live generation, by projection name.
    generations: Arc<Mutex<BTreeMap<String, i64>>>,
    /// Positions over the last seconds, from which rates are computed.
    samples: Arc<Mutex<VecDeque<(Instant, Generations)>>>,
}

/// Status of a projection, as shown to operators.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Status {
    /// Name of the projection.
    pub name: String,
    /// Name of its checkpoint group.
    pub group: &'static str,
    /// Number of the live generation; a rebuild creates a new generation.
    pub generation: i64,
    /// Version of the projection that filled the live generation; 0 when the generation is outdated.
    pub version: i64,
    /// Position of the last event in the live generation.
    pub position: i64,
    /// Number of events of the log that the live generation does not contain.
    pub lag_events: i64,
    /// Age in seconds of the oldest event that the live generation does not contain; 0 when there is none.
    pub lag_seconds: f64,
    /// Events projected per second, measured by this process over the last seconds.
    pub events_per_second: f64,
    /// State of the read model: `live`; `failed` while it cannot be updated because of an error, which is retried;
    /// `frozen` while the live generation has another version than this release's, until it is rebuilt.
    pub state: &'static str,
    /// The last error, if the read model cannot be updated.
    pub last_error: Option<String>,
    /// The generation that is being built, if there is one.
    pub rebuild: Option<Rebuild>,
    /// Number of the generation that a rollback makes live again, if there is one.
    pub older_generation: Option<i64>,
}

/// Status of a generation that is being built.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Rebuild {
    /// Number of the generation.
    pub generation: i64,
    /// Version of the projection that fills the generation.
    pub version: i64,
    /// Position of the last event in the generation.
    pub position: i64,
    /// Number of events by which the generation is behind the live one.
    pub lag_events: i64,
    /// Events projected per second, measured by this process over the last seconds.
    pub events_per_second: f64,
    /// Estimated time in seconds until the generation has caught up, at this rate; `null` while it does not advance.
    pub seconds_left: Option<f64>,
}

impl Progress {
    /// Creates the progress of a program's projections. All positions are 0 before the first [`Self::refresh`].
    pub fn new(registry: Registry) -> Self {
        let by_name = registry.projections().map(|projection| (projection.name().to_owned(), 0)).collect();
        let groups = registry.groups().iter();
        let groups =
            groups.flat_map(|group| group.projections.iter().map(|projection| (projection.name(), group.name)));
        let (builds, frozen, groups) = (BTreeMap::new(), BTreeSet::new(), Arc::new(groups.collect()));
        let positions = Positions { connections_opened: 0, by_name, builds, frozen, groups };
        Self {
            registry,
            positions: Arc::new(watch::channel(positions).0),
            refreshing: Arc::default(),
            commits: Arc::default(),
            generations: Arc::default(),
            samples: Arc::default(),
        }
    }

    /// Returns the projections of the program.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Keeps the positions up to date in this process until `stop` is cancelled.
    pub async fn follow(self, store: Store, stop: CancellationToken) {
        let mut hints = store.positions(POSITION_TOPIC).await;
        while !stop.is_cancelled() {
            if let Err(error) = self.refresh(store.db()).await {
                tracing::warn!(%error, "Could not read the checkpoints.");
            }
            tokio::select! {
                _ = hints.next() => {}
                () = tokio::time::sleep(POLL) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Reads the positions from the checkpoints. A position may become lower: a database that crashed has lost its last
    /// commits.
    pub async fn refresh(&self, db: &Db) -> Result<(), Error> {
        let _turn = self.refreshing.lock().await;
        self.read_checkpoints(db).await
    }

    /// Reads the positions again if the database may have crashed since they were read. Of many callers at once, one
    /// reads.
    async fn refresh_if_stale(&self, db: &Db) -> Result<(), Error> {
        let _turn = self.refreshing.lock().await;
        if self.positions.borrow().connections_opened == db.connections_opened() {
            return Ok(());
        }
        self.read_checkpoints(db).await
    }

    async fn read_checkpoints(&self, db: &Db) -> Result<(), Error> {
        let commits = self.commits.load(Relaxed);
        let connections_opened = db.connections_opened();
        let checkpoints = checkpoints(db).await?;
        // Projections that only another release has are ignored.
        let of_release = |row: &&Checkpoint| row.state == LIVE && self.registry.find(&row.projection).is_some();
        let live = checkpoints.iter().filter(of_release);
        let frozen = live.clone().filter(|row| self.is_frozen(row)).map(|row| row.projection.clone()).collect();
        let generations: BTreeMap<_, _> = live.clone().map(|row| (row.projection.clone(), row.generation)).collect();
        let builds = live.clone().map(|row| (row.projection.clone(), (row.generation, row.revision))).collect();
        let by_name = live.map(|row| (row.projection.clone(), row.position)).collect();
        let groups = self.positions.borrow().groups.clone();
        let mut positions = Positions { connections_opened, by_name, builds, frozen, groups };
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
            while samples.front().is_some_and(|(at, _)| at.elapsed() > RATE_WINDOW) {
                samples.pop_front();
            }
        }
        self.positions.send_if_modified(|known| {
            // If the pump of this process has committed since the read began, the known positions may be newer than
            // those read.
            let overtaken = self.commits.load(Relaxed) != commits && known.connections_opened == connections_opened;
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

    /// Records that the pump of this process has committed up to `position`. `connections_opened` is the value of
    /// [`Db::connections_opened`] before the transaction.
    pub(crate) fn committed(&self, names: &[&str], position: i64, connections_opened: u64) {
        self.positions.send_if_modified(|known| {
            if known.connections_opened != connections_opened {
                // The database may have crashed and lost the commit. The next refresh reads the actual position.
                return false;
            }
            self.commits.fetch_add(1, Relaxed);
            for name in names {
                known.by_name.insert((*name).to_owned(), position);
            }
            true
        });
    }

    /// Returns the known state of a projection's read model.
    pub fn read_model_state(&self, projection: &str) -> ReadModelState {
        let known = self.positions.borrow();
        let (generation, revision) = known.builds.get(projection).copied().unwrap_or_default();
        ReadModelState {
            connections_opened: known.connections_opened,
            generation,
            revision,
            position: known.of(projection),
        }
    }

    /// Whether a projection is new in this release and has no rows yet, because its first rebuild has not ended.
    pub fn is_being_built(&self, projection: &str) -> bool {
        let known = self.positions.borrow();
        known.of(projection) == 0 && known.frozen.contains(projection)
    }

    /// Runs a query and returns its rows together with a position. The rows contain every projected event up to that
    /// position, and possibly later ones. The query is repeated when the database may have crashed while it ran.
    ///
    /// # Errors
    /// The database is unavailable, or its connections keep being replaced.
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
            let (connections_opened, position) = {
                let known = self.positions.borrow();
                (known.connections_opened, known.of(projection))
            };
            if connections_opened != db.connections_opened() {
                self.refresh_if_stale(db).await?;
                continue;
            }
            let rows = query().await?;
            if db.connections_opened() == connections_opened {
                return Ok((position, rows));
            }
        }
        Err(connections_replaced())
    }

    /// Returns [`Self::slowest`] for the present state of the database: refreshes the positions if the database may
    /// have crashed since they were read.
    ///
    /// # Errors
    /// The database is unavailable, or its connections keep being replaced.
    pub async fn slowest_in(&self, db: &Db, group: &str) -> Result<i64, Error> {
        for _ in 0..READS_MAX {
            let (connections_opened, slowest) = {
                let known = self.positions.borrow();
                (known.connections_opened, known.slowest(group))
            };
            if connections_opened == db.connections_opened() {
                return Ok(slowest);
            }
            self.refresh_if_stale(db).await?;
        }
        Err(connections_replaced())
    }

    /// Returns the lowest position in a checkpoint group, as [`Positions::slowest`] does.
    pub fn slowest(&self, group: &str) -> i64 {
        self.positions.borrow().slowest(group)
    }

    /// Waits until a projection has reached `position`, at most for the duration `at_most`. Returns the projection's
    /// position at the end of the wait.
    pub async fn wait_for(&self, projection: &str, position: i64, at_most: Duration) -> i64 {
        let mut positions = self.positions.subscribe();
        let there = positions.wait_for(|known| known.of(projection) >= position);
        match tokio::time::timeout(at_most, there).await {
            Ok(Ok(known)) => known.of(projection),
            _ => self.positions.borrow().of(projection),
        }
    }

    /// Returns a receiver that is notified of every change of a position.
    pub fn changes(&self) -> watch::Receiver<Positions> {
        self.positions.subscribe()
    }

    /// Returns the status of every projection, and the position of the last event of the log.
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

    /// Records the metrics of lag and dead letters.
    ///
    /// # Errors
    /// The database is unavailable.
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

    /// Whether the generation has another version than this release's, so that this release does not update it.
    fn is_frozen(&self, row: &Checkpoint) -> bool {
        self.registry.find(&row.projection).is_some_and(|(_, projection)| projection.version() != row.version)
    }

    /// Returns the events per second that a generation has projected over the last seconds.
    fn rate(&self, row: &Checkpoint) -> f64 {
        let samples = self.samples.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some((at, positions)) = samples.front() else { return 0.0 };
        let since = at.elapsed().as_secs_f64().max(0.001);
        let before = positions.get(&(row.projection.clone(), row.generation)).copied().unwrap_or(row.position);
        ((row.position - before) as f64 / since).max(0.0).round()
    }
}

/// Returns the error of a read during which new database connections were opened at every attempt.
fn connections_replaced() -> Error {
    sqlx::Error::Protocol(
        "the read could not be confirmed because the connections to the database keep being replaced".into(),
    )
    .into()
}

async fn checkpoints(db: &Db) -> Result<Vec<Checkpoint>, Error> {
    db.fetch_all(CHECKPOINTS, vec![]).await
}
