//! Three read models of counters in two groups, and a projector that tests start and stop.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use event_store::db::{Read, Row};
use event_store::event::NewEvent;
use event_store::store::Store;
use event_store::table::{Merge, Table, int, text};
use projection_engine::change::{Change, Decoded, Rows};
use projection_engine::generation::prepare;
use projection_engine::progress::Progress;
use projection_engine::projection::{AnyProjection, Fold, Projection};
use projection_engine::pump;
use projection_engine::registry::{CORE, Group, Registry};
use projection_engine::settings::Settings;
use projection_engine::verify::{Extent, Findings, verify};
use testkit::counter::{Counted, Counter};
use testkit::store::TestStore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Time limit of a wait for a condition.
const DEADLINE: Duration = Duration::from_secs(20);
/// Name of the second group, next to the core group.
pub const OTHER: &str = "other";

/// Whether the fold of `sums` panics at the note `panic`.
pub static PANICS: AtomicBool = AtomicBool::new(true);

static SUMS_TABLE: Table = Table {
    name: "sums",
    columns: &[text("id", Merge::Key), int("sum", Merge::Set), int("version", Merge::Set)],
    indexes: &["sum"],
};

/// The sum of each counter, from its state.
pub static SUMS: Projection<Counter> =
    Projection { name: "sums", version: 1, tables: &[&SUMS_TABLE], fold: Fold::OfState(fold_sums) };

/// The same read model in a later release, which doubles the sum.
pub static SUMS_DOUBLED: Projection<Counter> =
    Projection { name: "sums", version: 2, tables: &[&SUMS_TABLE], fold: Fold::OfState(fold_sums_doubled) };

fn fold_sums(changes: &[Change<Counter>]) -> Vec<Rows> {
    vec![(&SUMS_TABLE, changes.iter().map(|change| sum_row(change, 1)).collect())]
}

fn fold_sums_doubled(changes: &[Change<Counter>]) -> Vec<Rows> {
    vec![(&SUMS_TABLE, changes.iter().map(|change| sum_row(change, 2)).collect())]
}

fn sum_row(Change { after, .. }: &Change<Counter>, factor: i64) -> Vec<event_store::table::Value> {
    assert!(after.state.note != "panic" || !PANICS.load(Relaxed), "the note says so");
    vec![after.id.to_string().into(), (factor * after.state.sum).into(), after.version.into()]
}

static TOTAL_TABLE: Table =
    Table { name: "total", columns: &[text("name", Merge::Key), int("sum", Merge::Add)], indexes: &[] };

/// The sum of all counters. Each batch adds to it, so an event that is projected twice makes it wrong.
pub static TOTAL: Projection<Counter> =
    Projection { name: "total", version: 1, tables: &[&TOTAL_TABLE], fold: Fold::OfState(fold_total) };

fn fold_total(changes: &[Change<Counter>]) -> Vec<Rows> {
    let sum =
        |change: &Change<Counter>| change.after.state.sum - change.before.as_ref().map_or(0, |before| before.state.sum);
    vec![(&TOTAL_TABLE, vec![vec!["all".into(), changes.iter().map(sum).sum::<i64>().into()]])]
}

static LAST_TABLE: Table = Table {
    name: "last",
    columns: &[text("id", Merge::Key), int("amount", Merge::Set), int("version", Merge::Set)],
    indexes: &[],
};

/// The last number of each counter, from its events.
pub static LAST: Projection<Counter> =
    Projection { name: "last", version: 1, tables: &[&LAST_TABLE], fold: Fold::OfEvents(fold_last) };

fn fold_last(events: &[&Decoded<Counter>]) -> Vec<Rows> {
    let row = |event: &&Decoded<Counter>| {
        let Counted::Added { by, .. } = event.event;
        vec![event.id.to_string().into(), by.into(), event.sequence.into()]
    };
    vec![(&LAST_TABLE, events.iter().map(row).collect())]
}

/// The read models of this release: `sums` and `total` in the core group, `last` in a second group.
pub fn groups() -> Vec<Group> {
    vec![group(CORE, vec![&SUMS, &TOTAL]), group(OTHER, vec![&LAST])]
}

/// Returns a group without observers.
pub fn group(name: &'static str, projections: Vec<&'static dyn AnyProjection>) -> Group {
    Group { name, projections, observers: Vec::new() }
}

/// A store and its read models.
pub struct Rig {
    pub kit: TestStore,
    pub registry: Registry,
}

/// A projector that runs in the background.
pub struct Projector {
    pub progress: Progress,
    stop: CancellationToken,
    tasks: [JoinHandle<()>; 2],
}

impl Projector {
    /// Stops the projector, and waits until its tasks have ended.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.await.expect("the projector does not panic");
        }
    }

    /// Aborts the tasks of the projector at any point, as a crash does.
    pub async fn abort(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Returns settings with few attempts and short pauses, so that tests are fast.
pub fn settings() -> Settings {
    Settings { retry_delay_ms: 1, attempts_max: 2, ..Settings::default() }
}

impl Rig {
    pub async fn new() -> Self {
        Self { kit: TestStore::open().await, registry: Registry::new(groups()).expect("the groups are valid") }
    }

    pub fn store(&self) -> &Store {
        &self.kit.store
    }

    pub fn group(&self, name: &str) -> &Group {
        self.registry.group(name).expect("a group of the registry")
    }

    /// Appends events to a counter. Returns the position of the last one.
    pub async fn append(&self, id: &str, events: Vec<NewEvent>) -> i64 {
        self.kit.append("counter", id, events).await
    }

    /// Starts a projector.
    pub async fn start(&self) -> Projector {
        prepare(self.store(), &self.registry).await.expect("the first generations are created");
        let (progress, stop) = (Progress::new(self.registry.clone()), CancellationToken::new());
        let tasks = [
            tokio::spawn(pump::run(self.store().clone(), settings(), progress.clone(), stop.clone())),
            tokio::spawn(progress.clone().follow(self.store().clone(), stop.clone())),
        ];
        Projector { progress, stop, tasks }
    }

    /// Starts a projector, waits until every read model is at the head of the log, and stops it.
    pub async fn project(&self) {
        let projector = self.start().await;
        self.settled().await;
        projector.stop().await;
    }

    /// Waits until every read model is at the head of the log. Returns the head.
    pub async fn settled(&self) -> i64 {
        let head = self.store().head().await.expect("a head");
        self.until("the head of the log", async || {
            let behind = "select count(*) from checkpoints where state = 'live' and position < $1";
            let checkpoints = "select count(*) from checkpoints where state = 'live' and $1 >= 0";
            let live = self.rows::<(i64,)>(checkpoints, head).await[0].0;
            live > 0 && self.rows::<(i64,)>(behind, head).await[0].0 == 0
        })
        .await;
        head
    }

    /// Waits until a condition holds.
    ///
    /// # Panics
    /// If it does not hold within 20 seconds.
    pub async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let started = Instant::now();
        while !holds().await {
            assert!(started.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs a query with one parameter.
    pub async fn rows<T: Row>(&self, sql: &str, parameter: i64) -> Vec<T> {
        self.store().db().rows(sql, vec![parameter.into()]).await.expect("a query of the test")
    }

    /// Executes a statement without the engine, and commits it.
    pub async fn execute(&self, sql: &str) {
        let mut tx = self.store().db().begin().await.expect("a transaction");
        tx.execute(sql, vec![]).await.expect("a statement of the test");
        tx.commit().await.expect("the test's change commits");
    }

    /// Returns the rows of `sums`: id, sum, version.
    pub async fn sums(&self) -> Vec<(String, i64, i64)> {
        self.rows("select id, sum, version from sums where $1 = 0 order by id", 0).await
    }

    /// Returns the rows of `last`: id, amount, version.
    pub async fn last(&self) -> Vec<(String, i64, i64)> {
        self.rows("select id, amount, version from last where $1 = 0 order by id", 0).await
    }

    /// Returns the sum in `total`; 0 if it has no row.
    pub async fn total(&self) -> i64 {
        let rows: Vec<(i64,)> = self.rows("select sum from total where $1 = 0", 0).await;
        rows.first().map_or(0, |row| row.0)
    }

    /// Compares every row of a group with the log.
    pub async fn verify(&self, group: &str) -> Findings {
        let group = self.group(group);
        let verified = verify(self.store(), group, &settings(), &group.projections, Extent::Whole, 10, |_, _| {}).await;
        verified.expect("the verification completes")
    }

    /// Asserts that no row of any group differs from the log.
    pub async fn assert_verified(&self) {
        for group in self.registry.groups() {
            let found = self.verify(group.name).await;
            assert!(found.projections.iter().all(|one| one.differences == 0), "{found:#?}");
        }
    }
}

/// Returns a row of `sums` or `last`.
pub fn row(id: &str, number: i64, version: i64) -> (String, i64, i64) {
    (id.to_owned(), number, version)
}
