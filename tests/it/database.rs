//! PostgreSQL in realistic operation: it fails over, its connection limit is reached, its defaults are unusual, another
//! store is in the same database, a long transaction holds a snapshot.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tests::load::{Load, Shape};
use tests::postgres::{PASSWORD, Postgres};
use tests::system::{Mode, TestSystem};
use tests::verify::{assert_outcomes_match_log, read_models_equal_the_fold};
use tests::wait::{until, until_true, until_within};

/// Time limit for a process to leave a server that was replaced.
const FAILOVER_WITHIN: Duration = Duration::from_secs(5);

fn order(id: &str) -> Value {
    json!({"order_id": id, "customer_id": "ada", "items": [{"sku": "pen", "quantity": 1, "unit_price": "1.00", "category": "OFFICE"}]})
}

fn postgres(system: &TestSystem) -> &Postgres {
    system.postgres.as_ref().expect("a scaled system")
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("PostgreSQL accepts the connection")
}

/// Creates orders until one is accepted, and returns its id.
async fn create_until_accepted(system: &TestSystem, name: &str, deadline: Duration) -> String {
    let mut numbers = 0..;
    until_within(deadline, "a command is accepted", async || {
        let id = format!("{name}-{}", numbers.next()?);
        let answer = system.post("/v1/orders").json(order(&id)).try_send().await;
        answer.is_ok_and(|answer| answer.status == 201).then_some(id)
    })
    .await
}

/// Whether a query finds an order.
async fn found(system: &TestSystem, id: &str) -> Option<()> {
    (system.get(&format!("/v1/orders/{id}")).send().await.status == 200).then_some(())
}

/// Returns the readiness report of a process.
async fn readiness(system: &TestSystem, docket: usize) -> Value {
    system.dockets[docket].client.get("/health/ready").anonymous().send().await.json()
}

/// The old primary keeps answering, read-only, on its open connections: no process may keep using it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_process_uses_the_old_server_after_a_failover() {
    let mut system = TestSystem::builder(Mode::Scaled).standby().processes(&["write", "project", "read"]).start().await;
    let load = Load::start(system.writer(), Shape { name: "failover", clients: 8, orders: 8, commands_each: 200 });
    load.acknowledged(200).await;
    let _old = system.fail_over().await;
    let started = Instant::now();
    let id = create_until_accepted(&system, "after", FAILOVER_WITHIN).await;
    // A query must find the order soon: no process reads from the old server any more.
    let left = FAILOVER_WITHIN.saturating_sub(started.elapsed());
    until_within(left, "a query finds the order", async || found(&system, &id).await).await;
    let sent = load.finish().await;
    let log = read_models_equal_the_fold(&system).await;
    assert_outcomes_match_log(&log, &sent);
    for docket in 0..3 {
        let ready = readiness(&system, docket).await;
        assert_eq!(ready["checks"]["database"]["status"], "ok", "{ready}");
    }
}

/// When a machine disappears, its connections stay open but silent. Requests that wait on such a connection are
/// abandoned, and commands, read models and queries continue over new connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_abandoned() {
    let system = TestSystem::builder(Mode::Scaled).standby().processes(&["write", "project", "read"]).start().await;
    let network = system.database.as_ref().expect("a proxy in front of the database");
    system.post("/v1/orders").json(order("before")).send().await.expect(201);
    system.settled().await;
    // Queries, a command and a readiness probe are in flight when the network becomes silent.
    let asking: Vec<_> = (0..12).map(|_| tokio::spawn(system.get("/v1/orders").try_send())).collect();
    network.silence();
    let started = Instant::now();
    let (probe, command) = tokio::join!(
        system.dockets[0].client.get("/health/ready").anonymous().send(),
        system.post("/v1/orders").json(order("during")).try_send(),
    );
    assert!([200, 503].contains(&probe.status), "{probe:?}");
    assert!(command.is_ok_and(|answer| [201, 503].contains(&answer.status)));
    let id = create_until_accepted(&system, "after", 3 * FAILOVER_WITHIN).await;
    let left = (6 * FAILOVER_WITHIN).saturating_sub(started.elapsed());
    until_within(left, "the read models catch up", async || found(&system, &id).await).await;
    for asked in asking {
        assert!(asked.await.expect("the task ends").is_ok(), "a query got no response");
    }
    read_models_equal_the_fold(&system).await;
    for docket in 0..3 {
        let ready = readiness(&system, docket).await;
        assert_eq!(ready["checks"]["database"]["status"], "ok", "{ready}");
    }
}

/// The URL names both servers, the standby first. Docket finds the server that accepts writes, also after a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_with_two_hosts_finds_the_primary() {
    let mut first = Postgres::start(false).await;
    let second = Postgres::start_standby(&first).await;
    let url = format!(
        "postgres://postgres:{PASSWORD}@{},{}/docket?target_session_attrs=read-write",
        second.address(),
        first.address()
    );
    let system = TestSystem::builder(Mode::Scaled).setting("DOCKET_DATABASE_URL", &url).start().await;
    system.post("/v1/orders").json(order("before")).send().await.expect(201);
    system.settled().await;
    first.kill_all();
    second.promote().await;
    create_until_accepted(&system, "after", FAILOVER_WITHIN).await;
    read_models_equal_the_fold(&system).await;
    system.get("/v1/orders/before").send().await.expect(200);
}

/// The appender loses its connection while the role is at its connection limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_appender_reconnects_at_the_connection_limit() {
    let postgres = Postgres::start(false).await;
    let own = ["create role shop login password 'shop'", "alter database docket owner to shop"];
    postgres.sql(&own).await;
    postgres.sql(&["alter schema public owner to shop"]).await;
    let url = format!("postgres://shop:shop@{}/docket", postgres.address());
    let system = TestSystem::builder(Mode::Scaled).setting("DOCKET_DATABASE_URL", &url).start().await;
    system.post("/v1/orders").json(order("first")).send().await.expect(201);
    // Fills every connection pool to its maximum size.
    join_all((0..64).map(|_| system.get("/v1/orders").send())).await;
    system.settled().await;
    let count = "select count(*) from pg_stat_activity where usename = 'shop'";
    let held: u32 = postgres.sql(&[count]).await.trim().parse().expect("a number");
    postgres.sql(&[&format!("alter role shop connection limit {held}")]).await;
    let appender = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                    where usename = 'shop' and application_name = 'docket append'";
    assert_eq!(postgres.sql(&[appender]).await.trim(), "1", "one connection belongs to the appender");
    // Another connection of the role takes its slot at once.
    let _taken = until("the slot is free", async || PgConnection::connect(&url).await.ok()).await;
    create_until_accepted(&system, "again", Duration::from_secs(10)).await;
    read_models_equal_the_fold(&system).await;
    let ready = readiness(&system, 0).await;
    assert_eq!(ready["checks"]["append"]["status"], "ok", "{ready}");
}

/// Leadership belongs to a store (a schema), not to the whole database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_schemas_hold_two_stores() {
    let first = TestSystem::scaled().await;
    postgres(&first).sql(&["create schema second"]).await;
    let url = format!("{}?options=-csearch_path%3Dsecond", first.database_url());
    let second = TestSystem::builder(Mode::Scaled).setting("DOCKET_DATABASE_URL", &url).start().await;
    first.post("/v1/orders").json(order("one")).send().await.expect(201);
    second.post("/v1/orders").json(order("two")).send().await.expect(201);
    for (system, own, other) in [(&first, "one", "two"), (&second, "two", "one")] {
        read_models_equal_the_fold(system).await;
        system.get(&format!("/v1/orders/{own}")).send().await.expect(200);
        system.get(&format!("/v1/orders/{other}")).send().await.expect(404);
    }
}

/// A database or a role may have any defaults: durability and appends must not depend on them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_settings_override_server_defaults() {
    let mut system = TestSystem::builder(Mode::Scaled).durable().stopped().await;
    let defaults = [
        "alter database docket set synchronous_commit = off",
        "alter database docket set default_transaction_isolation = 'serializable'",
        "alter database docket set idle_session_timeout = '1s'",
        "alter role postgres set timezone = 'Asia/Kathmandu'",
        "alter role postgres set datestyle = 'German'",
    ];
    postgres(&system).sql(&defaults).await;
    system.start().await;
    for cycle in 0..3 {
        let name = ["first", "second", "third"][cycle];
        let load = Load::start(system.writer(), Shape { name, clients: 12, orders: 4, commands_each: 60 });
        load.acknowledged(200).await;
        // Acknowledged commands must be on disk.
        system.postgres.as_mut().expect("a scaled system").kill_all();
        system.postgres.as_mut().expect("a scaled system").restart().await;
        let sent = load.finish().await;
        let log = read_models_equal_the_fold(&system).await;
        assert_outcomes_match_log(&log, &sent);
    }
    // Without a crash, no command of a contended order fails as if the store were unavailable.
    let load = Load::start(system.writer(), Shape { name: "quiet", clients: 12, orders: 2, commands_each: 40 });
    let before = system.dockets[0].metric("docket_append_failures_total").await.unwrap_or(0.0);
    load.finish().await;
    assert_eq!(system.dockets[0].metric("docket_append_failures_total").await.unwrap_or(0.0), before);
}

/// Readiness reports a server that does not sync.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_sync_degrades_readiness() {
    let system = TestSystem::scaled().await;
    let ready = readiness(&system, 0).await;
    assert_eq!((&ready["status"], &ready["checks"]["durability"]["status"]), (&json!("degraded"), &json!("failed")));
    let check = system.try_cli(&["config", "check"]).await;
    let notes = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(check.status.success() && notes.contains("fsync"), "{notes}");
}

/// A database that cannot store every text is refused, because retries could never succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_with_another_encoding_than_utf8_is_refused() {
    let postgres = Postgres::start(false).await;
    let create = "create database narrow encoding 'LATIN1' locale 'C' template template0";
    postgres.sql(&[create]).await;
    let url = postgres.url().replace("/docket", "/narrow");
    let system = TestSystem::builder(Mode::Scaled).setting("DOCKET_DATABASE_URL", &url).stopped().await;
    for command in [&["migrate"][..], &["config", "check"]] {
        let output = system.try_cli(command).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("LATIN1") && error.contains("encoding 'UTF8'"), "{error}");
    }
}

/// A value that the database refuses is not an outage: the response says so, and nothing is retried forever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_refused_by_the_database_is_not_an_outage() {
    let system = TestSystem::scaled().await;
    let rules = "create function refuse() returns trigger language plpgsql as $$ begin
                     if new.aggregate_id = 'no-value' then raise exception sqlstate '22P05'; end if;
                     if new.aggregate_id = 'no-row' then raise exception sqlstate '23514'; end if;
                     return new; end $$";
    let trigger = "create trigger refuse before insert on events for each row execute function refuse()";
    postgres(&system).sql(&[rules, trigger]).await;
    system.post("/v1/orders").json(order("no-value")).send().await.expect_problem(422, "unstorable-value");
    let refused = system.post("/v1/orders").json(order("no-row")).send().await.expect_problem(500, "internal-error");
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("operator")), "{refused}");
    system.post("/v1/orders").json(order("fine")).send().await.expect(201);
    read_models_equal_the_fold(&system).await;
}

/// While a transaction holds a snapshot, no old version of the log head's row can be removed: an append must not scan
/// these versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_snapshot_does_not_slow_appends() {
    let system = TestSystem::scaled().await;
    system.post("/v1/orders").json(order("before")).send().await.expect(201);
    let mut holder = connect(system.database_url()).await;
    sqlx::raw_sql("begin isolation level repeatable read; select count(*) from events")
        .execute(&mut holder)
        .await
        .expect("a snapshot");
    // Each foreign event adds a version of the head's row.
    let append = async |from: u32, to: u32| {
        let sql = format!(
            "do $$ begin for number in {from}..{to} loop
             insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
             values ('foreign', 'one', number, 'Happened', '1', '{{}}', '{{}}'); end loop; end $$"
        );
        let started = Instant::now();
        postgres(&system).sql(&[&sql]).await;
        started.elapsed()
    };
    let first = append(1, 200).await;
    append(201, 30_000).await;
    let last = append(30_001, 30_200).await;
    assert!(last < first * 6, "200 events took {first:?} at first, but {last:?} after 30,000 others");
    // The appender's own path must not scan them either.
    let started = Instant::now();
    for number in 0..50 {
        system.post("/v1/orders").json(order(&format!("under-{number}"))).send().await.expect(201);
    }
    let commits =
        system.dockets[0].metric("docket_append_commit_duration_seconds_sum").await.expect("the metric has a sum");
    let count =
        system.dockets[0].metric("docket_append_commit_duration_seconds_count").await.expect("the metric has a count");
    assert!(
        commits / count < 20.0 * first.as_secs_f64() / 200.0 + 0.005,
        "{commits} s for {count} commits within {:?}",
        started.elapsed()
    );
}

/// The first of several NATS servers may be down, also when a process starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_nats_server_may_be_down() {
    let nats = tests::nats::Nats::start().await;
    let nobody = tests::ports::free_port();
    let urls = format!("nats://127.0.0.1:{nobody},{}", nats.url());
    let system = TestSystem::builder(Mode::Scaled).setting("DOCKET_NATS_URL", &urls).start().await;
    system.post("/v1/orders").json(order("one")).send().await.expect(201);
    read_models_equal_the_fold(&system).await;
    system.cli(&["config", "check"]).await;
    let (jetstream, stream) = (nats.jetstream().await, system.nats.as_ref().expect("a scaled system").stream());
    until_true("the relay has published both events", async || {
        let found = jetstream.get_stream(stream).await;
        found.is_ok_and(|stream| stream.cached_info().state.last_sequence == 2)
    })
    .await;
}
