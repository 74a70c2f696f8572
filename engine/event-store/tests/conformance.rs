//! Guarantees of the store. The same tests run on both databases.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cqrs_es::persist::{PersistedEventRepository, SerializedEvent};
use event_store::aggregates::{AggregateRepository, Loaded};
use event_store::append::{
    Append, Appended, BacklogEntry, BacklogKey, Deadline, DeadlineChanges, DeadlineKey, Idempotency, Lineage,
    ReactionMove, StreamCheck, StreamWrite, Unchanged,
};
use event_store::error::{AppendError, Error};
use event_store::event::NewEvent;
use event_store::migrations::Migrations;
use event_store::settings::Settings;
use event_store::store::{Store, open, open_without_appender};
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History, Refusal, RefusalClass, RefusalType};
use kernel::stock::Stock;
use kernel::stream::StreamId;
use kernel::upcast::{Upcaster, Upcasters};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection, SqliteConnection};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

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

/// A command type without commands: these tests append events directly.
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
    const TYPES: &'static [RefusalType] = &[RefusalType {
        slug: "refused",
        class: RefusalClass::Rule,
        title: "Refused",
        meaning: "The aggregate refuses every such command.",
    }];

    fn not_found() -> Self {
        Self
    }

    fn refusal_type(&self) -> &'static RefusalType {
        &Self::TYPES[0]
    }
}

/// Declares an aggregate that sums the numbers of its events.
macro_rules! counting {
    ($name:ident, $aggregate_type:literal, $state_version:literal) => {
        #[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
        struct $name {
            sum: i64,
        }

        impl Aggregate for $name {
            const TYPE: &'static str = $aggregate_type;
            const STATE_VERSION: i64 = $state_version;
            const HISTORY: History = History::Bounded;
            const UPCASTERS: &'static [Upcaster] = UPCASTERS;
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
    };
}

/// In version 0 the member `by` was called `plus`.
const UPCASTERS: &[Upcaster] = &[Upcaster {
    event_type: "Added",
    from: "0",
    to: "1",
    upcast: |payload| {
        if let Some(by) = payload.remove("plus") {
            payload.insert("by".into(), by);
        }
    },
}];

counting!(Counter, "counter", 1);
// The counter in a later release: its state has the same JSON form but another meaning.
counting!(NextCounter, "counter", 2);
// Another aggregate type with the same events.
counting!(Gauge, "gauge", 1);

fn upcasters() -> Upcasters {
    Upcasters::of(Counter::TYPE, Counter::UPCASTERS)
}

fn event(by: i64) -> NewEvent {
    NewEvent {
        event_type: "Added",
        event_version: "1",
        payload: json!({"Added": {"by": by}}).to_string(),
        metadata: json!({"event_id": uuid::Uuid::now_v7().to_string()}).to_string(),
    }
}

fn write(aggregate_type: &str, id: &str, expected_version: i64, by: &[i64]) -> StreamWrite {
    let events = by.iter().copied().map(event).collect();
    StreamWrite { stream: StreamId::new(aggregate_type, id), expected_version, events, lineage: None }
}

/// Builds an append to one counter.
fn append(id: &str, expected_version: i64, by: &[i64]) -> Append {
    Append { writes: vec![write(Counter::TYPE, id, expected_version, by)], ..Append::default() }
}

/// Builds a check of a counter's version.
fn check(id: &str, version: i64) -> StreamCheck {
    StreamCheck { stream: StreamId::new(Counter::TYPE, id), version }
}

/// Builds an idempotency record whose answer describes a counter.
fn idempotency(key: &str, id: &str) -> Option<Idempotency> {
    Some(Idempotency {
        scope: "me".into(),
        key: key.into(),
        request_hash: "h".into(),
        status: 201,
        stream: StreamId::new(Counter::TYPE, id),
        unchanged: None,
        answer: None,
    })
}

fn migrations() -> Migrations {
    static SQLITE_LOG: Migrator = sqlx_macros::migrate!("../../migrations/sqlite/log");
    static SQLITE_READ: Migrator = sqlx_macros::migrate!("../../migrations/sqlite/read");
    static POSTGRES_LOG: Migrator = sqlx_macros::migrate!("../../migrations/postgres/log");
    static POSTGRES_READ: Migrator = sqlx_macros::migrate!("../../migrations/postgres/read");
    Migrations {
        sqlite_log: &SQLITE_LOG,
        sqlite_read: &SQLITE_READ,
        postgres_log: &POSTGRES_LOG,
        postgres_read: &POSTGRES_READ,
    }
}

/// A store with its own database, which is removed when this value is dropped.
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
    open_without_appender(settings.clone(), migrations(), upcasters()).await.expect("a second process opens the store")
}

async fn sqlite() -> Backend {
    let folder = tempfile::tempdir().unwrap();
    let database_url = format!("sqlite:{}", folder.path().join("store.db").display());
    let settings = Settings { database_url, snapshot_every_events: 5, ..Settings::default() };
    Backend { store: reopened(&settings).await, settings, _folder: folder, _postgres: None }
}

async fn postgres() -> Backend {
    let postgres = tests::postgres::Postgres::shared().await;
    let settings = Settings { database_url: postgres.url(), snapshot_every_events: 5, ..Settings::default() };
    let folder = tempfile::tempdir().unwrap();
    Backend { store: reopened(&settings).await, settings, _folder: folder, _postgres: Some(postgres) }
}

/// A connection of another program to the log's database.
enum Other {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Other {
    async fn sql(&mut self, sql: &str) {
        match self {
            Self::Sqlite(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
            Self::Postgres(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
        }
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    async fn number(&mut self, sql: &str) -> i64 {
        let (number,) = match self {
            Self::Sqlite(connection) => sqlx::query_as::<_, (i64,)>(sql).fetch_one(connection).await,
            Self::Postgres(connection) => sqlx::query_as(sql).fetch_one(connection).await,
        }
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
        number
    }

    /// Acquires the lock that every append needs, until this connection commits.
    async fn hold(&mut self) {
        match self {
            Self::Sqlite(_) => self.sql("begin immediate").await,
            Self::Postgres(_) => self.sql("begin; select from log_head for update").await,
        }
    }
}

impl Backend {
    async fn other(&self) -> Other {
        match &self._postgres {
            Some(postgres) => Other::Postgres(PgConnection::connect(&postgres.url()).await.unwrap()),
            None => Other::Sqlite(SqliteConnection::connect(&self.settings.database_url).await.unwrap()),
        }
    }

    async fn number(&self, sql: &str) -> i64 {
        self.other().await.number(sql).await
    }

    /// Opens the store in the role of a second appending process. SQLite allows only one, so there it returns the
    /// first.
    async fn second_writer(&self) -> Store {
        match &self._postgres {
            Some(_) => reopened(&self.settings).await,
            None => self.store.clone(),
        }
    }

    /// Waits until an append waits for the lock.
    async fn appender_waits(&self) {
        if self._postgres.is_none() {
            // SQLite does not report waiting connections.
            return tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Other tests use other databases of the same server.
        let waiting =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        while self.number(waiting).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Appends in one batch: the appends are queued in this order while the appender waits for the lock.
    async fn append_together(&self, appends: Vec<Append>) -> Vec<Result<Appended, AppendError>> {
        let mut other = self.other().await;
        other.hold().await;
        let store = self.store.clone();
        let first = tokio::spawn(async move { store.append(append(&uuid::Uuid::now_v7().to_string(), 0, &[1])).await });
        self.appender_waits().await;
        let outcomes = futures::future::join_all(appends.into_iter().map(|append| self.store.append(append)));
        let release = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            other.sql("commit").await;
        };
        let (outcomes, ()) = tokio::join!(outcomes, release);
        first.await.unwrap().unwrap();
        outcomes
    }
}

macro_rules! conformance {
    ($($test:ident),+ $(,)?) => {
        mod in_sqlite { $(#[tokio::test(flavor = "multi_thread")] async fn $test() { super::$test(super::sqlite().await).await })+ }
        mod in_postgres { $(#[tokio::test(flavor = "multi_thread")] async fn $test() { super::$test(super::postgres().await).await })+ }
    };
}

conformance![
    a_cancelled_snapshot_does_not_freeze_its_connection,
    concurrent_appends_are_dense_and_ordered,
    a_conflict_writes_nothing_and_affects_no_other_append,
    an_idempotency_key_takes_effect_once,
    streams_and_log_agree,
    aggregates_load_from_events_and_snapshots,
    a_stale_cache_causes_a_conflict_and_loses_no_event,
    foreign_rows_get_positions,
    a_subscription_delivers_every_event_once,
    a_reopened_store_keeps_its_events_and_incarnation,
    a_row_that_the_database_refuses_fails_alone,
    an_old_version_is_upcast_for_every_reader,
    two_aggregate_types_can_share_an_id,
    an_idempotency_record_names_its_aggregate,
    a_check_that_fails_writes_nothing,
    a_conflict_in_one_of_several_streams_writes_nothing,
    appends_in_opposite_stream_order_are_atomic,
    appends_of_a_batch_are_checked_in_order,
    a_write_fails_when_its_predecessor_fails,
    a_malformed_append_is_refused,
    a_stale_reaction_writes_nothing,
    a_reaction_fails_if_its_fence_was_raised_meanwhile,
    backlog_and_deadlines_change_with_the_append,
    a_snapshot_of_another_state_version_is_ignored,
    a_snapshot_waits_for_an_append_in_sqlite,
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
                        version = appended.versions[0];
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
    assert_eq!(positions.len(), taken.len(), "each command gets its own position");
    for Appended { versions, position } in taken {
        assert_eq!(vec![log[position as usize - 1].sequence], versions, "an acknowledged event is in the log");
        // The events of one command are adjacent.
        assert_eq!(log[position as usize - 2].aggregate_id, log[position as usize - 1].aggregate_id);
    }
}

async fn a_conflict_writes_nothing_and_affects_no_other_append(backend: Backend) {
    let store = &backend.store;
    store.append(append("a", 0, &[1])).await.unwrap();
    let attempts = (0..40).map(|n| {
        let expected = if n % 2 == 0 { 0 } else { 7 };
        store.append(append(if n % 4 == 0 { "a" } else { &*format!("b-{n}").leak() }, expected, &[1]))
    });
    let outcomes = futures::future::join_all(attempts).await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(won, 10, "only appends that create a stream win");
    let lost = |outcome: &Result<_, _>| matches!(outcome, Err(AppendError::Conflict { .. }));
    assert_eq!(outcomes.iter().filter(|outcome| lost(outcome)).count(), 30);
    assert_eq!(store.head().await.unwrap(), 11);
    assert_eq!(store.read(0, 100).await.unwrap().len(), 11);
}

async fn an_idempotency_key_takes_effect_once(backend: Backend) {
    let store = &backend.store;
    let attempts = (0..16).map(|n| {
        let id = format!("a-{n}");
        store.append(Append { idempotency: idempotency("k", &id), ..append(&id, 0, &[1]) })
    });
    let outcomes = futures::future::join_all(attempts).await;
    let won: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    assert_eq!(won.len(), 1);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(AppendError::KeyUsed))));
    let record = store.idempotency_record("me", "k").await.unwrap().unwrap();
    assert_eq!((record.request_hash.as_str(), record.status), ("h", 201));
    assert_eq!((vec![record.version], record.position), (won[0].versions.clone(), won[0].position));
    assert_eq!(store.idempotency_record("you", "k").await.unwrap(), None);
    // After a conflict the key can be used again.
    store.append(Append { idempotency: idempotency("k2", "z"), ..append("z", 3, &[1]) }).await.unwrap_err();
    let first = store.append(Append { idempotency: idempotency("k2", "z"), ..append("z", 0, &[1]) }).await.unwrap();
    // An append without events still records an answer: with the position of the stream, not of the log's head.
    store.append(append("elsewhere", 0, &[1])).await.unwrap();
    let nothing = |version| {
        let unchanged = Some(Unchanged { version, position: first.position });
        let idempotency = idempotency("k3", "z").map(|key| Idempotency { unchanged, answer: Some("{}".into()), ..key });
        Append { checks: vec![check("z", version)], idempotency, ..Append::default() }
    };
    let refused = store.append(nothing(2)).await;
    assert!(matches!(refused, Err(AppendError::Conflict { expected: 2, actual: 1, .. })), "{refused:?}");
    assert_eq!(store.append(nothing(1)).await.unwrap(), Appended { versions: vec![], position: first.position });
    let record = store.idempotency_record("me", "k3").await.unwrap().unwrap();
    assert_eq!((record.version, record.position, record.answer.as_deref()), (1, first.position, Some("{}")));
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
    let counters = AggregateRepository::<Counter>::new(backend.store.clone());
    let mut state = Counter::default();
    for version in 0..12 {
        let appended = backend.store.append(append("a", version, &[version])).await.unwrap();
        state.sum += version;
        counters.put("a", at(state.clone(), appended.versions[0]), 1).await;
    }
    assert_eq!(counters.cached("a").unwrap().version, 12);
    let loaded = AggregateRepository::<Counter>::new(backend.store.clone()).load("a").await.unwrap();
    assert_eq!((&loaded.state, loaded.version), (&state, 12));
    assert_eq!(AggregateRepository::<Counter>::new(backend.store.clone()).load("none").await.unwrap().version, 0);
}

async fn a_stale_cache_causes_a_conflict_and_loses_no_event(backend: Backend) {
    let (here, there) = (
        AggregateRepository::<Counter>::new(backend.store.clone()),
        AggregateRepository::<Counter>::new(backend.store.clone()),
    );
    backend.store.append(append("a", 0, &[1])).await.unwrap();
    here.load("a").await.unwrap();
    let elsewhere = there.load("a").await.unwrap();
    backend.store.append(append("a", elsewhere.version, &[2])).await.unwrap();
    let stale = here.cached("a").unwrap();
    let refused = backend.store.append(append("a", stale.version, &[3])).await;
    assert!(matches!(refused, Err(AppendError::Conflict { expected: 1, actual: 2, .. })));
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
    assert!(
        matches!(refused, Err(AppendError::Conflict { actual: 3, .. })),
        "rows of foreign code are part of the stream"
    );
    backend.store.append(append("a", 3, &[100])).await.unwrap();
    let log = backend.store.read(0, 10).await.unwrap();
    assert_eq!(log.iter().map(|event| event.position).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(log.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(log.iter().all(|event| event.recorded_at > 0));
    assert_eq!(log.iter().map(|event| event.id()).collect::<HashSet<_>>().len(), 4);
    assert_eq!(AggregateRepository::<Counter>::new(backend.store.clone()).load("a").await.unwrap().state.sum, 121);
}

async fn a_subscription_delivers_every_event_once(backend: Backend) {
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

async fn a_reopened_store_keeps_its_events_and_incarnation(backend: Backend) {
    backend.store.append(append("a", 0, &[1, 2, 3])).await.unwrap();
    let incarnation = backend.store.incarnation().to_owned();
    let Backend { store, settings, _folder, _postgres } = backend;
    drop(store);
    // The appender's task ends after the last handle is dropped. Only then is the database file unlocked.
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
    assert_eq!(appended, Appended { versions: vec![4], position: 4 });
}

async fn a_row_that_the_database_refuses_fails_alone(backend: Backend) {
    // PostgreSQL refuses NUL in a text; SQLite accepts it.
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

async fn an_old_version_is_upcast_for_every_reader(backend: Backend) {
    let store = &backend.store;
    let mut old = append("a", 0, &[0]);
    old.writes[0].events[0].event_version = "0";
    old.writes[0].events[0].payload = r#"{"Added":{"plus":5}}"#.into();
    store.append(old).await.unwrap();
    // The subscription belongs to another store, which does not have the event in memory, so it reads it from the log.
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
    assert_eq!(AggregateRepository::<Counter>::new(store.clone()).load("a").await.unwrap().state.sum, 5);
    let stored = store.read_stored(0, 10).await.unwrap();
    assert_eq!((&*stored[0].event_version, &*stored[0].payload), ("0", r#"{"Added":{"plus":5}}"#));
}

async fn two_aggregate_types_can_share_an_id(backend: Backend) {
    let store = &backend.store;
    store.append(append("17", 0, &[1, 2])).await.unwrap();
    let gauge =
        |version, by: &[i64]| Append { writes: vec![write(Gauge::TYPE, "17", version, by)], ..Append::default() };
    assert_eq!(store.append(gauge(0, &[10])).await.unwrap(), Appended { versions: vec![1], position: 3 });
    // Both streams in one append, each with its own expected version.
    let both = Append {
        writes: vec![write(Gauge::TYPE, "17", 1, &[20]), write(Counter::TYPE, "17", 2, &[3, 4])],
        ..Append::default()
    };
    assert_eq!(store.append(both).await.unwrap(), Appended { versions: vec![2, 4], position: 6 });
    let refused = store.append(gauge(4, &[1])).await;
    assert!(
        matches!(&refused, Err(AppendError::Conflict { stream, actual: 2, .. }) if stream.aggregate_type == "gauge")
    );
    for (aggregate_type, positions) in [(Counter::TYPE, vec![1, 2, 5, 6]), (Gauge::TYPE, vec![3, 4])] {
        let events = store.read_stream(aggregate_type, "17", 0, i64::MAX, 100).await.unwrap();
        assert!(events.iter().zip(1..).all(|(event, sequence)| event.sequence == sequence), "{events:?}");
        assert!(events.iter().all(|event| event.aggregate_type == aggregate_type));
        assert_eq!(events.iter().map(|event| event.position).collect::<Vec<_>>(), positions);
    }
    assert_eq!(AggregateRepository::<Counter>::new(store.clone()).load("17").await.unwrap().state.sum, 10);
    assert_eq!(AggregateRepository::<Gauge>::new(store.clone()).load("17").await.unwrap().state.sum, 30);
}

async fn an_idempotency_record_names_its_aggregate(backend: Backend) {
    let store = &backend.store;
    let of = |stream: StreamWrite| {
        let idempotency = idempotency("k", "").map(|key| Idempotency { stream: stream.stream.clone(), ..key });
        Append { writes: vec![stream], idempotency, ..Append::default() }
    };
    store.append(of(write(Gauge::TYPE, "17", 0, &[1]))).await.unwrap();
    let refused = store.append(of(write(Counter::TYPE, "17", 0, &[1]))).await;
    assert!(matches!(refused, Err(AppendError::KeyUsed)), "{refused:?}");
    let record = store.idempotency_record("me", "k").await.unwrap().unwrap();
    assert_eq!((&*record.aggregate_type, &*record.aggregate_id, record.answer), (Gauge::TYPE, "17", None));
    assert_eq!(store.head().await.unwrap(), 1);
    // With several streams, the record describes the stream that it names.
    let both = Append {
        writes: vec![write(Counter::TYPE, "a", 0, &[1]), write(Counter::TYPE, "b", 0, &[1, 2])],
        idempotency: idempotency("k2", "b"),
        ..Append::default()
    };
    store.append(both).await.unwrap();
    let record = store.idempotency_record("me", "k2").await.unwrap().unwrap();
    assert_eq!((&*record.aggregate_id, record.version, record.position), ("b", 2, 4));
}

async fn a_check_that_fails_writes_nothing(backend: Backend) {
    let store = &backend.store;
    store.append(append("checked", 0, &[1, 2])).await.unwrap();
    for (id, version, actual) in [("checked", 1, 2), ("checked", 3, 2), ("checked", 0, 2), ("absent", 1, 0)] {
        let refused = store.append(Append { checks: vec![check(id, version)], ..append("new", 0, &[1]) }).await;
        let Err(AppendError::Conflict { stream, expected, actual: found }) = refused else { panic!("{refused:?}") };
        assert_eq!((&*stream.aggregate_id, expected, found), (id, version, actual));
    }
    // In one batch with appends that succeed.
    let outcomes = backend
        .append_together(vec![
            append("left", 0, &[1]),
            Append { checks: vec![check("checked", 1)], ..append("new", 0, &[1]) },
            append("right", 0, &[1]),
        ])
        .await;
    assert!(outcomes[0].is_ok() && outcomes[1].is_err() && outcomes[2].is_ok(), "{outcomes:?}");
    assert_eq!(AggregateRepository::<Counter>::new(store.clone()).load("new").await.unwrap().version, 0);
    let checks = vec![check("checked", 2), check("absent", 0)];
    store.append(Append { checks, ..append("new", 0, &[1]) }).await.unwrap();
    assert_eq!(store.head().await.unwrap(), backend.number("select count(*) from events").await);
    assert_eq!(
        AggregateRepository::<Counter>::new(store.clone()).load("checked").await.unwrap().version,
        2,
        "a check writes nothing"
    );
}

async fn a_conflict_in_one_of_several_streams_writes_nothing(backend: Backend) {
    let store = &backend.store;
    store.append(append("b", 0, &[1])).await.unwrap();
    let writes = || vec![write(Counter::TYPE, "a", 0, &[1]), write(Counter::TYPE, "b", 0, &[1, 1])];
    let key = || idempotency("k", "a");
    let refused = store.append(Append { writes: writes(), idempotency: key(), ..Append::default() }).await;
    let Err(AppendError::Conflict { stream, actual: 1, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(stream.aggregate_id, "b");
    assert_eq!((store.head().await.unwrap(), backend.number("select count(*) from events").await), (1, 1));
    assert_eq!(store.idempotency_record("me", "k").await.unwrap(), None);
    let mut writes = writes();
    writes[1].expected_version = 1;
    let appended = store.append(Append { writes, idempotency: key(), ..Append::default() }).await.unwrap();
    assert_eq!(appended, Appended { versions: vec![1, 3], position: 4 });
}

async fn appends_in_opposite_stream_order_are_atomic(backend: Backend) {
    const EACH: i64 = 60;
    let second = backend.second_writer().await;
    let writers = [backend.store.clone(), second.clone(), backend.store.clone(), second];
    let mut tasks = tokio::task::JoinSet::new();
    for (task, store) in (0..).zip(writers) {
        tasks.spawn(async move {
            let names = if task % 3 == 0 { ["x", "y"] } else { ["y", "x"] };
            let mut versions = [0, 0];
            for number in 0..EACH {
                loop {
                    let mark = task * EACH + number;
                    let of = |at: usize| write(Counter::TYPE, names[at], versions[at], &[mark]);
                    match store.append(Append { writes: vec![of(0), of(1)], ..Append::default() }).await {
                        Ok(appended) => break versions.copy_from_slice(&appended.versions),
                        Err(AppendError::Conflict { stream, actual, .. }) => {
                            versions[usize::from(stream.aggregate_id != names[0])] = actual;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
    }
    tokio::time::timeout(Duration::from_secs(60), tasks.join_all()).await.expect("no deadlock");
    let log = backend.store.read(0, 10_000).await.unwrap();
    assert_eq!(log.len() as i64, 2 * 4 * EACH);
    let mut versions = BTreeMap::new();
    for (event, position) in log.iter().zip(1..) {
        assert_eq!(event.position, position, "positions are dense");
        let version = versions.entry(&*event.aggregate_id).or_insert(0);
        *version += 1;
        assert_eq!(event.sequence, *version, "a stream has no gap");
    }
    for both in log.chunks(2) {
        assert_eq!(both[0].payload, both[1].payload, "each append is complete");
        assert_ne!(both[0].aggregate_id, both[1].aggregate_id);
    }
}

async fn appends_of_a_batch_are_checked_in_order(backend: Backend) {
    backend.store.append(append("a", 0, &[1])).await.unwrap();
    let checked = |id: &str, version| Append { checks: vec![check("a", version)], ..append(id, 0, &[1]) };
    let appends = vec![checked("b", 1), append("a", 1, &[1]), checked("c", 1), checked("d", 2), append("a", 2, &[1])];
    let outcomes = backend.append_together(appends).await;
    let won: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(won, [true, true, false, true, true], "{outcomes:?}");
    assert!(matches!(&outcomes[2], Err(AppendError::Conflict { stream, actual: 2, .. }) if stream.aggregate_id == "a"));
    // A conflict that only the database detects is known before the following appends are checked.
    backend.other().await.sql(FOREIGN).await;
    let outcomes =
        backend.append_together(vec![append("a", 3, &[1]), append("a", 4, &[1]), append("a", 4, &[1])]).await;
    let won: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(won, [false, true, false], "{outcomes:?}");
    assert_eq!(backend.store.head().await.unwrap(), backend.number("select count(*) from events").await);
}

/// Version 4 of the counter `a`, written by stock cqrs-es code.
const FOREIGN: &str =
    "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
                       values ('counter', 'a', 4, 'Added', '1', '{\"Added\":{\"by\":1}}', '{}')";

async fn a_write_fails_when_its_predecessor_fails(backend: Backend) {
    let chained = |ticket, predecessor, expected| {
        let mut append = append("a", expected, &[1]);
        append.writes[0].lineage = Some(Lineage { id: 1, ticket, predecessor });
        append
    };
    let outcomes =
        backend.append_together(vec![chained(1, None, 0), chained(2, Some(1), 1), chained(3, Some(2), 2)]).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    backend.other().await.sql(FOREIGN).await;
    // The expected version of the second append matches, but the append was decided on an event that was not written.
    let outcomes = backend.append_together(vec![chained(4, Some(3), 3), chained(5, Some(4), 4)]).await;
    assert!(matches!(outcomes[0], Err(AppendError::Conflict { actual: 4, .. })), "{outcomes:?}");
    assert!(matches!(outcomes[1], Err(AppendError::Predecessor)), "{outcomes:?}");
    let late = backend.store.append(chained(6, Some(5), 4)).await;
    assert!(matches!(late, Err(AppendError::Predecessor)), "{late:?}");
    backend.store.append(chained(7, None, 4)).await.unwrap();
    backend.store.append(chained(8, Some(7), 5)).await.unwrap();
}

async fn a_malformed_append_is_refused(backend: Backend) {
    let refused = backend.store.append(Append { checks: vec![check("a", 0)], ..Append::default() }).await;
    assert!(matches!(refused, Err(AppendError::Store(Error::Malformed(_)))), "{refused:?}");
    let twice = vec![write(Counter::TYPE, "a", 0, &[1]), write(Counter::TYPE, "a", 1, &[1])];
    let refused = backend.store.append(Append { writes: twice, ..Append::default() }).await;
    assert!(matches!(refused, Err(AppendError::Store(Error::Malformed(_)))), "{refused:?}");
    assert_eq!(backend.store.head().await.unwrap(), 0);
}

const REACTOR: &str = "insert into reactor_checkpoints (reactor, partition, position, fence, updated_at)
                       values ('r', 0, 5, 1, 0), ('r', 1, 0, 9, 0)";
const CHECKPOINT: &str =
    "select position * 1000 + fence from reactor_checkpoints where reactor = 'r' and partition = 0";

fn step(from: i64, to: i64, fence: i64) -> ReactionMove {
    ReactionMove { reactor: "r".into(), from, to, fence, ..ReactionMove::default() }
}

/// Builds a reaction with one event.
fn reacted(id: &str, reaction: ReactionMove) -> Append {
    Append { reaction: Some(reaction), ..append(id, 0, &[1]) }
}

async fn a_stale_reaction_writes_nothing(backend: Backend) {
    let store = &backend.store;
    let refused = store.append(reacted("a", step(5, 6, 1))).await;
    assert!(matches!(refused, Err(AppendError::Fenced)), "the reactor has no checkpoint: {refused:?}");
    backend.other().await.sql(REACTOR).await;
    for (from, fence) in [(4, 1), (6, 1), (5, 0), (5, 2)] {
        let stale = ReactionMove { park: vec![parked("k", 5)], ..step(from, from + 1, fence) };
        let refused = store.append(Append { idempotency: idempotency("k", "a"), ..reacted("a", stale) }).await;
        assert!(matches!(refused, Err(AppendError::Fenced)), "{refused:?}");
    }
    assert_eq!((store.head().await.unwrap(), backend.number(CHECKPOINT).await), (0, 5_001));
    assert_eq!(backend.number("select count(*) from reactor_backlog").await, 0);
    assert_eq!(store.idempotency_record("me", "k").await.unwrap(), None);
    // Two reactions in one batch follow each other; a third one, which is stale, does not affect them.
    let appends = vec![reacted("a", step(4, 5, 1)), reacted("b", step(5, 6, 1)), reacted("c", step(6, 8, 1))];
    let outcomes = backend.append_together(appends).await;
    let won: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!((won, backend.number(CHECKPOINT).await), (vec![false, true, true], 8_001), "{outcomes:?}");
    // A reaction without events only moves the checkpoint.
    let appended = store.append(Append { reaction: Some(step(8, 9, 1)), ..Append::default() }).await.unwrap();
    assert_eq!((appended.versions.len(), backend.number(CHECKPOINT).await), (0, 9_001));
    // After a conflict of a stream the checkpoint has not moved.
    let refused = store.append(reacted("b", step(9, 10, 1))).await;
    assert!(matches!(refused, Err(AppendError::Conflict { .. })), "{refused:?}");
    assert_eq!(backend.number(CHECKPOINT).await, 9_001);
}

async fn a_reaction_fails_if_its_fence_was_raised_meanwhile(backend: Backend) {
    let mut other = backend.other().await;
    other.sql(REACTOR).await;
    // The appender now has a connection, and in PostgreSQL the function has cached its plans.
    backend.store.append(reacted("first", step(5, 6, 1))).await.unwrap();
    other.hold().await;
    let store = backend.store.clone();
    let reaction = tokio::spawn(async move { store.append(reacted("second", step(6, 7, 1))).await });
    backend.appender_waits().await;
    other.sql("update reactor_checkpoints set fence = 2 where reactor = 'r' and partition = 0").await;
    other.sql("commit").await;
    let refused = reaction.await.unwrap();
    assert!(matches!(refused, Err(AppendError::Fenced)), "{refused:?}");
    assert_eq!((backend.store.head().await.unwrap(), backend.number(CHECKPOINT).await), (1, 6_002));
}

fn done(key: &str, position: i64) -> BacklogKey {
    BacklogKey { key: key.into(), position }
}

fn parked(key: &str, position: i64) -> BacklogEntry {
    BacklogEntry { event: done(key, position), attempts: 1, due_at: None, reason: Some("it failed".into()) }
}

fn deadline(name: &str) -> DeadlineKey {
    DeadlineKey { process: "p".into(), id: "1".into(), name: name.into() }
}

async fn backlog_and_deadlines_change_with_the_append(backend: Backend) {
    let (store, mut other) = (&backend.store, backend.other().await);
    other.sql(REACTOR).await;
    let rows = "select (select count(*) from reactor_backlog) * 100 + (select count(*) from process_deadlines)";
    let begun = ReactionMove {
        park: vec![parked("k", 6), parked("k", 7), parked("l", 6)],
        deadlines: DeadlineChanges {
            schedule: vec![Deadline { key: deadline("d"), due_at: 40 }, Deadline { key: deadline("e"), due_at: 50 }],
            unschedule: vec![],
        },
        ..step(5, 7, 1)
    };
    store.append(reacted("a", begun)).await.unwrap();
    assert_eq!(other.number(rows).await, 302);
    // A retry settles one row and schedules another attempt of a second one; one deadline moves and another is removed.
    let again = BacklogEntry { attempts: 2, due_at: Some(9), reason: None, ..parked("k", 7) };
    let retried = ReactionMove {
        park: vec![again],
        settle: vec![done("k", 6)],
        deadlines: DeadlineChanges {
            schedule: vec![Deadline { key: deadline("d"), due_at: 60 }],
            unschedule: vec![deadline("d"), deadline("e"), deadline("never set")],
        },
        ..step(7, 7, 1)
    };
    store.append(reacted("b", retried.clone())).await.unwrap();
    assert_eq!(other.number(rows).await, 201);
    let values = "select (select attempts * 10 + due_at from reactor_backlog where key = 'k') * 100
                         + (select due_at from process_deadlines)";
    assert_eq!(other.number(values).await, 2_960);
    // A repeated retry is refused, because its row is already settled.
    let refused = store.append(reacted("c", retried)).await;
    assert!(matches!(refused, Err(AppendError::Fenced)), "{refused:?}");
    // An event that a batch parks can be settled in the same batch, but only once.
    let park = ReactionMove { park: vec![parked("m", 8)], ..step(7, 8, 1) };
    let settle = ReactionMove { settle: vec![done("m", 8), done("l", 6)], ..step(8, 8, 1) };
    let appends = vec![reacted("d", park), reacted("e", settle.clone()), reacted("f", settle)];
    let outcomes = backend.append_together(appends).await;
    let won: Vec<_> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(won, [true, true, false], "{outcomes:?}");
    assert_eq!(other.number(rows).await, 101);
    // A conflict changes neither backlog nor checkpoint.
    let refused = store.append(reacted("a", ReactionMove { settle: vec![done("k", 7)], ..step(8, 9, 1) })).await;
    assert!(matches!(refused, Err(AppendError::Conflict { .. })), "{refused:?}");
    assert_eq!((other.number(rows).await, other.number(CHECKPOINT).await), (101, 8_001));
}

async fn a_snapshot_of_another_state_version_is_ignored(backend: Backend) {
    let store = &backend.store;
    store.append(append("a", 0, &[1, 2, 3, 4, 5])).await.unwrap();
    // The sum differs from that of the events, so that a load shows whether it used the snapshot.
    AggregateRepository::<Counter>::new(store.clone()).put("a", at(Counter { sum: 1_000 }, 5), 5).await;
    store.append(append("a", 5, &[6])).await.unwrap();
    let sums = async || {
        let (this, next) = (
            AggregateRepository::<Counter>::new(store.clone()),
            AggregateRepository::<NextCounter>::new(store.clone()),
        );
        (this.load("a").await.unwrap().state.sum, next.load("a").await.unwrap().state.sum)
    };
    assert_eq!(sums().await, (1_006, 21), "a snapshot with another state version is ignored, although it deserializes");
    let mut other = backend.other().await;
    other.sql("update snapshots set payload = '[]'").await;
    assert_eq!(sums().await, (21, 21), "a snapshot that does not deserialize is ignored");
    AggregateRepository::<NextCounter>::new(store.clone()).put("a", at(NextCounter { sum: 2_000 }, 6), 6).await;
    store.append(append("b", 0, &[1])).await.unwrap();
    assert_eq!(sums().await, (21, 2_000));
    // An older release does not write the columns of the state version.
    store.append(append("a", 6, &[7])).await.unwrap();
    other.sql("update snapshots set payload = '{\"sum\": 3000}', last_sequence = 7").await;
    assert_eq!(sums().await, (28, 28));
    // This release replaces that snapshot with a valid one.
    AggregateRepository::<Counter>::new(store.clone()).put("a", at(Counter { sum: 4_000 }, 7), 7).await;
    store.append(append("b", 1, &[1])).await.unwrap();
    assert_eq!(sums().await, (4_000, 28));
}

async fn a_snapshot_waits_for_an_append_in_sqlite(backend: Backend) {
    let (store, mut other) = (&backend.store, backend.other().await);
    let counters = AggregateRepository::<Counter>::new(store.clone());
    for version in 0..12 {
        store.append(append("a", version, &[1])).await.unwrap();
    }
    counters.put("a", at(Counter { sum: 5 }, 5), 5).await;
    counters.put("a", at(Counter { sum: 12 }, 12), 7).await;
    let at = "select coalesce(max(last_sequence), 0) from snapshots";
    let is_sqlite = backend._postgres.is_none();
    assert_eq!(other.number(at).await, if is_sqlite { 0 } else { 12 });
    store.probe().await.unwrap();
    let refused = store.append(append("a", 0, &[1])).await;
    assert!(refused.is_err());
    assert_eq!(other.number(at).await, if is_sqlite { 0 } else { 12 }, "without an append no snapshot is written");
    store.append(append("b", 0, &[1])).await.unwrap();
    assert_eq!((other.number(at).await, other.number("select count(*) from snapshots").await), (12, 1));
}

fn at<A>(state: A, version: i64) -> Arc<Loaded<A>> {
    Arc::new(Loaded { state, version })
}

/// A client that disconnects cancels whatever its request waits for. The connection that it used must not stay in the
/// snapshot that was begun for it.
async fn a_cancelled_snapshot_does_not_freeze_its_connection(backend: Backend) {
    let db = backend.store.db();
    let count = async || {
        let rows: Vec<(i64,)> = db.fetch_all("select count(*) from revocations", vec![]).await.unwrap();
        rows[0].0
    };
    for round in 1..=40 {
        // The future is dropped after some polls, on each connection.
        for _ in 0..20 {
            let mut snapshot = std::pin::pin!(db.snapshot());
            for _ in 0..=round / 5 {
                if futures::poll!(snapshot.as_mut()).is_ready() {
                    break;
                }
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
        }
        let mut tx = db.begin().await.unwrap();
        let sql = "insert into revocations (kind, value, revoked_at, actor) values ('subject', $1, 0, 'admin')";
        tx.execute(sql, vec![format!("s-{round}").into()]).await.unwrap();
        tx.commit().await.unwrap();
        // More readers than connections, so every connection is used.
        for _ in 0..20 {
            let counts = futures::future::join_all((0..20).map(|_| count())).await;
            assert!(counts.iter().all(|count| *count == round), "{counts:?} after {round} commits");
        }
    }
}
