//! Foreign code inserts an event with stock SQL and commits late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kernel::aggregate::Aggregate;
use serde_json::json;
use sqlx::{Connection, PgConnection, Postgres, Row, Transaction};
use tests::client::{Answer, Client, Request};
use tests::fold::{Event, read_log};
use tests::process::POLL;
use tests::system::{Mode, TestSystem};
use tests::verify::read_models_equal_the_fold;

const INSERT: &str =
    "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
    values ($1, $2, 1, 'OrderCreated', '1', $3, '{}')";

/// Reads the log while it grows, and fails when a position is skipped.
async fn follow(client: Client, stop: Arc<AtomicBool>) -> Vec<Event> {
    let mut seen: Vec<Event> = vec![];
    loop {
        let last_round = stop.load(Ordering::Relaxed);
        let page = client.get(&format!("/v1/events?after={}&limit=1000", seen.len())).send().await.expect(200).json();
        for event in page["items"].as_array().expect("items").iter().map(Event::parse) {
            assert_eq!(event.position, seen.len() as u64 + 1, "a reader of the log skipped an event");
            seen.push(event);
        }
        if last_round {
            return seen;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until another session waits for a lock, or until `done` returns true.
async fn wait_for_blocked_session(observer: &mut PgConnection, done: impl Fn() -> bool) {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(20) && !done() {
        // Other systems use other databases of the same server.
        let sql = "select count(*) as waiting from pg_stat_activity
                   where datname = current_database() and wait_event_type = 'Lock'";
        let row = sqlx::query(sql).fetch_one(&mut *observer).await;
        if row.expect("pg_stat_activity").get::<i64, _>("waiting") > 0 {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn create(system: &TestSystem, id: &str) -> Request {
    let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00", "category": "OFFICE"});
    system.post("/v1/orders").json(json!({"order_id": id, "customer_id": "ada", "items": [item]}))
}

/// Starts a transaction of foreign code that has inserted the order `slow` and is neither committed nor rolled back.
async fn open_transaction(slow: &mut PgConnection) -> Transaction<'_, Postgres> {
    let mut transaction = slow.begin().await.expect("PostgreSQL answers");
    let payload = json!({"OrderCreated": {"customer_id": "foreign", "currency": "USD", "attributes": {}}});
    let insert = sqlx::query(INSERT).bind(domain::order::Order::TYPE).bind("slow").bind(payload);
    insert.execute(&mut *transaction).await.expect("stock SQL inserts an event");
    transaction
}

async fn a_slow_transaction(commit: bool) {
    let system = TestSystem::scaled().await;
    create(&system, "before").send().await.expect(201);

    let stop = Arc::new(AtomicBool::new(false));
    let follower = tokio::spawn(follow(system.reader().clone(), Arc::clone(&stop)));
    let mut slow = PgConnection::connect(system.database_url()).await.expect("PostgreSQL accepts the connection");
    let mut observer = PgConnection::connect(system.database_url()).await.expect("PostgreSQL accepts the connection");
    let transaction = open_transaction(&mut slow).await;

    let commands: Vec<_> =
        (0..8).map(|number| tokio::spawn(create(&system, &format!("during-{number}")).try_send())).collect();
    wait_for_blocked_session(&mut observer, || commands.iter().all(tokio::task::JoinHandle::is_finished)).await;
    if commit { transaction.commit().await } else { transaction.rollback().await }.expect("PostgreSQL answers");

    let mut acknowledged: Vec<Answer> = vec![];
    for command in commands {
        let answer = command.await.expect("the task ends").expect("a response");
        assert!([201, 503].contains(&answer.status), "{answer:?}");
        acknowledged.extend((answer.status == 201).then_some(answer));
    }
    create(&system, "after").send().await.expect(201);
    let log = read_models_equal_the_fold(&system).await;
    for answer in &acknowledged {
        let position = usize::try_from(answer.position()).expect("a position");
        assert_eq!(
            answer.json()["order_id"],
            log[position - 1].order_id,
            "an acknowledged position must keep its event"
        );
    }
    assert_eq!(log.iter().filter(|event| event.order_id == "slow").count(), usize::from(commit));

    stop.store(true, Ordering::Relaxed);
    let followed: Vec<String> =
        follower.await.expect("the follower does not fail").into_iter().map(|event| event.event_id).collect();
    let logged: Vec<String> = read_log(system.reader()).await.into_iter().map(|event| event.event_id).collect();
    assert_eq!(followed, logged, "the log must not change behind a reader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_commit_is_not_skipped() {
    a_slow_transaction(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_rollback_leaves_no_gap() {
    a_slow_transaction(false).await;
}

/// While the appender is blocked, more commands arrive than its queue may hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_returns_503() {
    let system = TestSystem::builder(Mode::Scaled).setting("DOCKET_APPEND_QUEUE_MAX", "2").start().await;
    let mut slow = PgConnection::connect(system.database_url()).await.expect("PostgreSQL accepts the connection");
    let transaction = open_transaction(&mut slow).await;
    let send = async |number: i32| (number, create(&system, &format!("order-{number}")).send().await);
    let mut answers = (0..12).map(send).collect::<FuturesUnordered<_>>();
    let (_, first) = answers.next().await.expect("a response");
    assert_eq!(first.header("retry-after"), Some("1"));
    first.expect_problem(503, "overloaded");
    transaction.rollback().await.expect("PostgreSQL answers");
    let mut created = vec![];
    while let Some((number, answer)) = answers.next().await {
        match answer.status {
            201 => created.push(format!("order-{number}")),
            _ => drop(answer.expect_problem(503, "overloaded")),
        }
    }
    let log = read_models_equal_the_fold(&system).await;
    let mut found: Vec<_> = log.into_iter().filter(|event| event.sequence == 1).map(|event| event.order_id).collect();
    found.sort_unstable();
    created.sort_unstable();
    assert!(!created.is_empty(), "the queued commands must be answered");
    assert_eq!(found, created);
}
