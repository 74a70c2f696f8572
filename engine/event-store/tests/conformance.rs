//! What a store promises, asked of both backends by the same tests.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use cqrs_es::persist::{PersistedEventRepository, SerializedEvent};
use event_store::append::{Append, Appended, Idempotency};
use event_store::error::AppendError;
use event_store::event::NewEvent;
use event_store::migrations::Migrations;
use event_store::settings::Settings;
use event_store::store::{Store, open, open_beside};
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History, Refusal, RefusalClass};
use kernel::stock::Stock;
use kernel::upcast::{Upcaster, Upcasters};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::migrate::Migrator;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Counts: enough of an aggregate to load.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
struct Counter {
    sum: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
enum Counted {
    Added { by: i64 },
}

impl EventType for Counted {
    const VERSIONS: &'static [(&'static str, &'static str)] = &[("Added", "1")];
    fn name(&self) -> &'static str {
        "Added"
    }
}

/// Nothing can be asked of it: these tests append events of their own.
struct NoCommand;

impl CommandType for NoCommand {
    fn name(&self) -> &'static str {
        "none"
    }
    fn creates(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refused")
    }
}
impl std::error::Error for Refused {}
impl Refusal for Refused {
    fn not_found() -> Self {
        Self
    }
    fn slug(&self) -> &'static str {
        "refused"
    }
    fn class(&self) -> RefusalClass {
        RefusalClass::Rule
    }
    fn title(&self) -> &'static str {
        "Refused"
    }
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    const STATE_VERSION: i64 = 1;
    const HISTORY: History = History::Bounded;
    // Version 0 said `plus`.
    const UPCASTERS: &'static [Upcaster] = &[Upcaster {
        event_type: "Added",
        from: "0",
        to: "1",
        upcast: |payload| {
            if let Some(by) = payload.remove("plus") {
                payload.insert("by".into(), by);
            }
        },
    }];
    type Command = NoCommand;
    type Event = Counted;
    type Error = Refused;
    fn decide(&self, _: &NoCommand) -> Result<Vec<Counted>, Refused> {
        Ok(vec![])
    }
    fn evolve(&mut self, Counted::Added { by }: &Counted) {
        self.sum += by;
    }
    fn access(&self) -> Access<'_> {
        Access::Staff
    }
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
}

fn upcasters() -> Upcasters {
    Upcasters::default().and::<Counter>()
}

fn append(id: &str, expected_version: i64, by: &[i64]) -> Append {
    let events = by.iter().map(|by| NewEvent {
        event_type: "Added".into(),
        event_version: "1".into(),
        payload: json!({"Added": {"by": by}}).to_string(),
        metadata: json!({"event_id": uuid::Uuid::now_v7().to_string()}).to_string(),
    });
    Append {
        aggregate_type: "counter",
        aggregate_id: id.into(),
        expected_version,
        events: events.collect(),
        last_position: 0,
        source: 0,
        is_patient: false,
        idempotency: None,
        trace: None,
    }
}

fn migrations() -> Migrations {
    static SQLITE_LOG: Migrator = sqlx::migrate!("../../migrations/sqlite/log");
    static SQLITE_READ: Migrator = sqlx::migrate!("../../migrations/sqlite/read");
    static POSTGRES_LOG: Migrator = sqlx::migrate!("../../migrations/postgres/log");
    static POSTGRES_READ: Migrator = sqlx::migrate!("../../migrations/postgres/read");
    Migrations {
        sqlite_log: &SQLITE_LOG,
        sqlite_read: &SQLITE_READ,
        postgres_log: &POSTGRES_LOG,
        postgres_read: &POSTGRES_READ,
    }
}

/// A store in its own database, which goes with it.
struct Backend {
    store: Store,
    settings: Settings,
    _folder: tempfile::TempDir,
    _postgres: Option<tests::postgres::Postgres>,
}

async fn reopened(settings: &Settings) -> Store {
    open(settings.clone(), migrations(), upcasters(), CancellationToken::new(), TaskTracker::new())
        .await
        .expect("the store opens")
}

async fn reopened_beside(settings: &Settings) -> Store {
    open_beside(settings.clone(), migrations(), upcasters()).await.expect("the store opens a second time")
}

async fn sqlite() -> Backend {
    let folder = tempfile::tempdir().unwrap();
    let database_url = format!("sqlite:{}", folder.path().join("store.db").display());
    let settings = Settings { database_url, snapshot_every_events: 5, ..Settings::default() };
    Backend { store: reopened(&settings).await, settings, _folder: folder, _postgres: None }
}

async fn postgres() -> Backend {
    let postgres = tests::postgres::Postgres::start(false).await;
    let settings = Settings { database_url: postgres.url(), snapshot_every_events: 5, ..Settings::default() };
    let folder = tempfile::tempdir().unwrap();
    Backend { store: reopened(&settings).await, settings, _folder: folder, _postgres: Some(postgres) }
}

macro_rules! conformance {
    ($($test:ident),+ $(,)?) => {
        mod in_sqlite { $(#[tokio::test(flavor = "multi_thread")] async fn $test() { super::$test(super::sqlite().await).await })+ }
        mod in_postgres { $(#[tokio::test(flavor = "multi_thread")] async fn $test() { super::$test(super::postgres().await).await })+ }
    };
}

conformance![
    concurrent_appends_are_dense_and_ordered,
    a_loser_writes_nothing_and_disturbs_nobody,
    a_key_has_one_effect,
    streams_and_log_agree,
    aggregates_load_from_events_and_snapshots,
    a_stale_cache_costs_a_conflict_and_no_event,
    foreign_rows_get_positions,
    a_subscription_sees_everything_once,
    a_reopened_store_is_the_same,
    a_row_that_the_database_refuses_fails_alone,
    an_old_version_is_upcast_whoever_reads_it,
];

async fn concurrent_appends_are_dense_and_ordered(backend: Backend) {
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..32 {
        let store = backend.store.clone();
        tasks.spawn(async move {
            let id = format!("c-{}", task % 4);
            let mut version = 0;
            let mut taken = Vec::new();
            while taken.len() < 10 {
                match store.append(append(&id, version, &[1, 2])).await {
                    Ok(appended) => {
                        version = appended.version;
                        taken.push(appended);
                    }
                    Err(AppendError::Conflict { actual, .. }) => version = actual,
                    Err(error) => panic!("{error}"),
                }
            }
            taken
        });
    }
    let taken: Vec<Appended> = tasks.join_all().await.into_iter().flatten().collect();
    let log = backend.store.read(0, 10_000).await.unwrap();
    assert_eq!(log.len(), 32 * 10 * 2);
    assert_eq!(backend.store.head().await.unwrap(), log.len() as i64);
    let mut sequences: BTreeMap<&str, i64> = BTreeMap::new();
    for (at, event) in log.iter().enumerate() {
        assert_eq!(event.position, at as i64 + 1, "positions are dense");
        let sequence = sequences.entry(&event.aggregate_id).or_default();
        *sequence += 1;
        assert_eq!(event.sequence, *sequence, "a stream has no gap");
    }
    let positions: HashSet<i64> = taken.iter().map(|appended| appended.position).collect();
    assert_eq!(positions.len(), taken.len(), "no two commands were told the same position");
    for Appended { version, position } in taken {
        assert_eq!(log[position as usize - 1].sequence, version, "what was acknowledged is there");
        // One command's events lie side by side.
        assert_eq!(log[position as usize - 2].aggregate_id, log[position as usize - 1].aggregate_id);
    }
}

async fn a_loser_writes_nothing_and_disturbs_nobody(backend: Backend) {
    let store = &backend.store;
    store.append(append("a", 0, &[1])).await.unwrap();
    let attempts = (0..40).map(|n| {
        let expected = if n % 2 == 0 { 0 } else { 7 };
        store.append(append(if n % 4 == 0 { "a" } else { &*format!("b-{n}").leak() }, expected, &[1]))
    });
    let outcomes = futures::future::join_all(attempts).await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(won, 10, "only new streams at version 0 win");
    let lost = |outcome: &Result<_, _>| matches!(outcome, Err(AppendError::Conflict { .. }));
    assert_eq!(outcomes.iter().filter(|outcome| lost(outcome)).count(), 30);
    assert_eq!(store.head().await.unwrap(), 11);
    assert_eq!(store.read(0, 100).await.unwrap().len(), 11);
}

async fn a_key_has_one_effect(backend: Backend) {
    let store = &backend.store;
    let idempotency =
        |hash: &str| Some(Idempotency { scope: "me".into(), key: "k".into(), request_hash: hash.into(), status: 201 });
    let attempts = (0..16).map(|n| {
        let append = Append { idempotency: idempotency("h"), ..append(&format!("a-{n}"), 0, &[1]) };
        store.append(append)
    });
    let outcomes = futures::future::join_all(attempts).await;
    let won: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(won.len(), 1);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(AppendError::KeyUsed))));
    let remembered = store.remembered("me", "k").await.unwrap().unwrap();
    assert_eq!((remembered.request_hash.as_str(), remembered.status), ("h", 201));
    assert_eq!((remembered.version, remembered.position), (won[0].version, won[0].position));
    assert_eq!(store.remembered("you", "k").await.unwrap(), None);
    // A conflict gives the key back.
    let conflict = Append { idempotency: None, ..append("z", 3, &[1]) };
    let second = Some(Idempotency { key: "k2".into(), ..idempotency("h").unwrap() });
    store.append(Append { idempotency: second.clone(), ..conflict }).await.unwrap_err();
    let first = store.append(Append { idempotency: second, ..append("z", 0, &[1]) }).await.unwrap();
    // Nothing to write, and yet an answer to remember: that of the stream, not of the log's head.
    store.append(append("elsewhere", 0, &[1])).await.unwrap();
    let key = Some(Idempotency { key: "k3".into(), ..idempotency("h").unwrap() });
    let nothing = Append { events: vec![], last_position: first.position, idempotency: key, ..append("z", 1, &[]) };
    assert_eq!(store.append(nothing).await.unwrap(), first);
    let remembered = store.remembered("me", "k3").await.unwrap().unwrap();
    assert_eq!((remembered.version, remembered.position), (first.version, first.position));
}

async fn streams_and_log_agree(backend: Backend) {
    let store = &backend.store;
    for n in 0..6 {
        store.append(append("a", n * 2, &[n, n])).await.unwrap();
        store.append(append("b", n, &[n])).await.unwrap();
    }
    let log = store.read(0, 100).await.unwrap();
    let of = |id: &str| log.iter().filter(|event| event.aggregate_id == id).cloned().collect::<Vec<_>>();
    assert_eq!(store.read_stream("counter", "a", 0, i64::MAX, 100).await.unwrap(), of("a"));
    assert_eq!(store.read_stream("counter", "a", 3, 5, 100).await.unwrap(), of("a")[3..5]);
    assert_eq!(store.read(4, 3).await.unwrap(), log[4..7]);
    let before = store.read_streams("counter", &["b".into(), "a".into()], 9).await.unwrap();
    let expected: Vec<_> = of("a").into_iter().chain(of("b")).filter(|event| event.position < 9).collect();
    assert_eq!(before, expected);
}

async fn aggregates_load_from_events_and_snapshots(backend: Backend) {
    let counters = backend.store.aggregates::<Counter>();
    let mut state = Counter::default();
    for version in 0..12 {
        let appended = backend.store.append(append("a", version, &[version])).await.unwrap();
        state.sum += version;
        counters.keep("a", state.clone(), appended.version, 1).await;
    }
    assert_eq!(counters.cached("a").unwrap().version, 12);
    let loaded = backend.store.aggregates::<Counter>().load("a").await.unwrap();
    assert_eq!((&loaded.state, loaded.version), (&state, 12));
    assert_eq!(backend.store.aggregates::<Counter>().load("none").await.unwrap().version, 0);
}

async fn a_stale_cache_costs_a_conflict_and_no_event(backend: Backend) {
    let (here, there) = (backend.store.aggregates::<Counter>(), backend.store.aggregates::<Counter>());
    backend.store.append(append("a", 0, &[1])).await.unwrap();
    here.load("a").await.unwrap();
    let elsewhere = there.load("a").await.unwrap();
    backend.store.append(append("a", elsewhere.version, &[2])).await.unwrap();
    let stale = here.cached("a").unwrap();
    let refused = backend.store.append(append("a", stale.version, &[3])).await;
    assert!(matches!(refused, Err(AppendError::Conflict { expected: 1, actual: 2 })));
    let fresh = here.load("a").await.unwrap();
    backend.store.append(append("a", fresh.version, &[3])).await.unwrap();
    assert_eq!(there.load("a").await.unwrap().state.sum, 6);
}

async fn foreign_rows_get_positions(backend: Backend) {
    backend.store.append(append("a", 0, &[1])).await.unwrap();
    let event = |sequence| {
        SerializedEvent::new(
            "a".into(),
            sequence,
            Counter::TYPE.into(),
            "Added".into(),
            "1".into(),
            json!({"Added": {"by": 10}}),
            json!({}),
        )
    };
    let events = [event(2), event(3)];
    match &backend._postgres {
        Some(postgres) => {
            let pool = sqlx::PgPool::connect(&postgres.url()).await.unwrap();
            postgres_es::PostgresEventRepository::new(pool).persist::<Stock<Counter>>(&events, None).await.unwrap();
        }
        None => {
            let pool = sqlx::SqlitePool::connect(&backend.settings.database_url).await.unwrap();
            sqlite_es::SqliteEventRepository::new(pool).persist::<Stock<Counter>>(&events, None).await.unwrap();
        }
    }
    let refused = backend.store.append(append("a", 1, &[1])).await;
    assert!(matches!(refused, Err(AppendError::Conflict { actual: 3, .. })), "the foreign rows count");
    backend.store.append(append("a", 3, &[100])).await.unwrap();
    let log = backend.store.read(0, 10).await.unwrap();
    assert_eq!(log.iter().map(|event| event.position).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(log.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(log.iter().all(|event| event.recorded_at > 0));
    assert_eq!(log.iter().map(|event| event.id()).collect::<HashSet<_>>().len(), 4);
    assert_eq!(backend.store.aggregates::<Counter>().load("a").await.unwrap().state.sum, 121);
}

async fn a_subscription_sees_everything_once(backend: Backend) {
    let store = backend.store.clone();
    let writer = tokio::spawn(async move {
        for n in 0..300 {
            store.append(append(&format!("a-{}", n % 7), n / 7, &[1])).await.unwrap();
        }
    });
    let mut positions = Vec::new();
    let mut subscription = backend.store.subscribe(0);
    while positions.len() < 300 {
        let events = tokio::time::timeout(Duration::from_secs(20), subscription.next()).await.unwrap().unwrap();
        positions.extend(events.iter().map(|event| event.position));
    }
    writer.await.unwrap();
    assert_eq!(positions, (1..=300).collect::<Vec<_>>());
    assert_eq!(backend.store.subscribe(290).next().await.unwrap()[0].position, 291);
}

async fn a_reopened_store_is_the_same(backend: Backend) {
    backend.store.append(append("a", 0, &[1, 2, 3])).await.unwrap();
    let incarnation = backend.store.incarnation().to_owned();
    let Backend { store, settings, _folder, _postgres } = backend;
    drop(store);
    // The appender's task ends with the last handle; only then is the file free again.
    let mut again =
        open(settings.clone(), migrations(), upcasters(), CancellationToken::new(), TaskTracker::new()).await;
    for _ in 0..100 {
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        again = open(settings.clone(), migrations(), upcasters(), CancellationToken::new(), TaskTracker::new()).await;
    }
    let store = again.expect("the store opens again");
    assert_eq!((store.head().await.unwrap(), store.incarnation()), (3, &*incarnation));
    let appended = store.append(append("a", 3, &[4])).await.unwrap();
    assert_eq!(appended, Appended { version: 4, position: 4 });
}

async fn a_row_that_the_database_refuses_fails_alone(backend: Backend) {
    // NUL is no text for PostgreSQL; SQLite takes it.
    let bad = append("b\0ad", 0, &[1]);
    let attempts = [
        backend.store.append(bad),
        backend.store.append(append("good", 0, &[1])),
        backend.store.append(append("fine", 0, &[1])),
    ];
    let outcomes = futures::future::join_all(attempts).await;
    assert!(outcomes[1].is_ok() && outcomes[2].is_ok(), "{outcomes:?}");
    let written = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(backend.store.head().await.unwrap(), written as i64);
    assert_eq!(backend.store.read(0, 10).await.unwrap().len(), written);
}

async fn an_old_version_is_upcast_whoever_reads_it(backend: Backend) {
    let store = &backend.store;
    let mut old = append("a", 0, &[0]);
    old.events[0].event_version = "0".into();
    old.events[0].payload = r#"{"Added":{"plus":5}}"#.into();
    store.append(old).await.unwrap();
    // From a position before it, so that no reader has it from memory only.
    let subscribed = reopened_beside(&backend.settings).await.subscribe(0).next().await.unwrap();
    let ids = ["a".to_owned()];
    let read = [
        store.read(0, 10).await.unwrap(),
        store.read_stream("counter", "a", 0, 1, 10).await.unwrap(),
        store.read_streams("counter", &ids, 10).await.unwrap(),
        subscribed,
    ];
    for events in read {
        let [event] = &events[..] else { panic!("{events:?}") };
        assert_eq!((&*event.event_version, &*event.payload), ("1", r#"{"Added":{"by":5}}"#));
    }
    assert_eq!(store.aggregates::<Counter>().load("a").await.unwrap().state.sum, 5);
    let stored = store.read_stored(0, 10).await.unwrap();
    assert_eq!((&*stored[0].event_version, &*stored[0].payload), ("0", r#"{"Added":{"plus":5}}"#));
}
