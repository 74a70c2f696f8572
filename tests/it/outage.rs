//! NATS is only a transport, not a source of truth: its stream may be deleted, and NATS may be killed or lose its data.

use serde_json::json;
use tests::load::{Load, Shape};
use tests::nats::Nats;
use tests::stream::stream_equals_the_log;
use tests::system::{Mode, TestSystem};
use tests::verify::{assert_outcomes_match_log, read_models_equal_the_fold};
use tests::wait::until_true;

/// Starts one process per role. Only then do the projections and the live updates depend on JetStream.
async fn by_role() -> TestSystem {
    TestSystem::builder(Mode::Scaled).own_servers().processes(&["write", "project", "read"]).start().await
}

fn nats(system: &mut TestSystem) -> &mut Nats {
    system.nats.as_mut().expect("a scaled system")
}

/// Sends one more command and checks that the read models and the JetStream stream equal the log.
async fn assert_consistent(system: &TestSystem, sent: &[tests::load::Sent]) {
    let body = json!({"customer_id": "after", "items": [{"sku": "pen", "quantity": 1, "unit_price": "1.00", "category": "OFFICE"}]});
    system.post("/v1/orders").json(body).send().await.expect(201);
    let log = read_models_equal_the_fold(system).await;
    if !sent.is_empty() {
        assert_outcomes_match_log(&log, sent);
    }
    stream_equals_the_log(system, &log).await;
}

/// Deletes the stream, as soon as the relay has created it.
async fn delete_stream(nats: &Nats) {
    let jetstream = nats.jetstream().await;
    until_true("the stream can be deleted", async || jetstream.delete_stream(nats.stream()).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_is_deleted_under_load() {
    let mut system = by_role().await;
    let load = Load::start(system.writer(), Shape { name: "deleted", clients: 16, orders: 8, commands_each: 120 });
    for acknowledged in [300, 700] {
        load.acknowledged(acknowledged).await;
        delete_stream(nats(&mut system)).await;
    }
    let sent = load.finish().await;
    assert_consistent(&system, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_dies_and_comes_back_empty() {
    let mut system = by_role().await;
    let load = Load::start(system.writer(), Shape { name: "wiped", clients: 16, orders: 8, commands_each: 120 });
    load.acknowledged(300).await;
    nats(&mut system).kill9();
    nats(&mut system).wipe();
    load.acknowledged(600).await;
    nats(&mut system).restart().await;
    let sent = load.finish().await;
    assert_consistent(&system, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_dies_and_comes_back_with_its_data() {
    let mut system = by_role().await;
    let load = Load::start(system.writer(), Shape { name: "killed", clients: 16, orders: 8, commands_each: 120 });
    load.acknowledged(300).await;
    nats(&mut system).kill9();
    nats(&mut system).restart().await;
    load.acknowledged(900).await;
    nats(&mut system).kill9();
    nats(&mut system).restart().await;
    let sent = load.finish().await;
    assert_consistent(&system, &sent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_reads_answer_without_nats() {
    let mut system = by_role().await;
    let body = |id: &str| json!({"order_id": id, "customer_id": "ada", "items": [{"sku": "pen", "quantity": 1, "unit_price": "1.00"}]});
    system.post("/v1/orders").json(body("before")).send().await.expect(201);
    system.settled().await;
    nats(&mut system).kill9();
    system.post("/v1/orders").json(body("during")).send().await.expect(201);
    system.post("/v1/orders/before/confirm").send().await.expect(200);
    assert_eq!(system.get("/v1/orders/before").send().await.expect(200).json()["order_id"], "before");
    system.get("/v1/orders").send().await.expect(200);
    nats(&mut system).restart().await;
    assert_consistent(&system, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_dies_under_load() {
    let mut system = by_role().await;
    let load = Load::start(system.writer(), Shape { name: "primary", clients: 16, orders: 8, commands_each: 60 });
    load.acknowledged(300).await;
    let postgres = system.postgres.as_mut().expect("a scaled system");
    postgres.kill9();
    postgres.restart().await;
    let sent = load.finish().await;
    assert_consistent(&system, &sent).await;
}
