//! Commands on one process, projections on another, queries and WebSockets on a third.

use std::time::Duration;

use serde_json::json;
use sqlx::{Connection, PgConnection};
use tests::client::token;
use tests::socket::Socket;
use tests::system::{Mode, TestSystem};
use tests::verify::read_models_equal_the_fold;
use tests::wait::until_within;

async fn three() -> TestSystem {
    TestSystem::builder(Mode::Scaled).processes(&["write", "project", "read"]).start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_act_as_one_system() {
    let system = three().await;
    let (write, read) = (&system.dockets[0].client, &system.dockets[2].client);
    let ada = token("ada", "customer");
    let created = write
        .post("/v1/orders")
        .token(&ada)
        .json(json!({"order_id": "roles-1", "customer_id": "ada"}))
        .send()
        .await
        .expect(201);
    let path = format!("/v1/orders/roles-1?min_position={}&wait_ms=10000", created.position());
    assert_eq!(read.get(&path).token(&ada).send().await.expect(200).version(), 1);

    let mut socket = Socket::connect(read, &ada).await;
    let snapshot = socket.subscribe("order:roles-1").await;
    assert_eq!((&snapshot["type"], &snapshot["view"]["version"]), (&json!("snapshot"), &json!(1)), "{snapshot}");
    let item = json!({"sku": "pen", "quantity": 3, "unit_price": "1.00", "category": "OFFICE"});
    let added = write.post("/v1/orders/roles-1/items").token(&ada).json(item).send().await.expect(200);
    let confirmed = write.post("/v1/orders/roles-1/confirm").token(&ada).send().await.expect(200);
    for (kind, answer, status) in [("ItemAdded", &added, "draft"), ("OrderConfirmed", &confirmed, "confirmed")] {
        let publication = socket.next_publication("order:roles-1").await;
        let data = &publication["data"];
        assert_eq!((&data["type"], data["version"].as_u64()), (&json!(kind), Some(answer.version())), "{publication}");
        assert_eq!(data["position"], answer.position(), "{publication}");
        assert_eq!(publication["offset"], answer.position(), "{publication}");
        assert_eq!(
            (&data["view"]["status"], &data["view"]["total"]),
            (&json!(status), &json!("3.00")),
            "{publication}"
        );
    }

    let mut other = Socket::connect(read, &token("bob", "customer")).await;
    for channel in ["order:roles-1", "order:nowhere", "orders"] {
        let reply = other.call("subscribe", json!({"channel": channel})).await;
        assert_eq!(
            reply["error"]["code"], 103,
            "{channel}: permission must be denied, whether the order exists or not: {reply}"
        );
    }
    read_models_equal_the_fold(&system).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_can_fail_alone() {
    let mut system = three().await;
    let body = |id: &str| json!({"order_id": id, "customer_id": "ada", "items": [{"sku": "pen", "quantity": 1, "unit_price": "1.00", "category": "OFFICE"}]});
    system.dockets[1].kill9();
    system.dockets[2].kill9();
    system.post("/v1/orders").json(body("alone-1")).send().await.expect(201);
    system.dockets[1].restart().await;
    system.dockets[2].restart().await;
    system.settled().await;
    system.dockets[0].kill9();
    system.get("/v1/orders/alone-1").send().await.expect(200);
    system.dockets[0].restart().await;
    system.post("/v1/orders").json(body("alone-2")).send().await.expect(201);
    read_models_equal_the_fold(&system).await;
}

/// PostgreSQL does not wait for the disk when read models are written. A crash loses the last commits, and surviving
/// processes must forget the positions that were lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_accept_checkpoints_that_moved_back() {
    let mut system = three().await;
    system.post("/v1/orders").json(json!({"order_id": "back", "customer_id": "ada"})).send().await.expect(201);
    let head = system.settled().await;
    let path = format!("/v1/orders/back?min_position={head}&wait_ms=0");
    system.get(&path).send().await.expect(200);
    system.dockets[1].kill9();
    let mut postgres = PgConnection::connect(system.database_url()).await.expect("PostgreSQL accepts the connection");
    sqlx::query("update checkpoints set position = position - 1")
        .execute(&mut postgres)
        .await
        .expect("the table exists");
    let forgotten = async || (system.get(&path).send().await.status != 200).then_some(());
    until_within(Duration::from_secs(10), "the process no longer uses the old position in memory", forgotten).await;
    let behind = system.get(&path).send().await.expect_problem(503, "projection-behind");
    assert_eq!(behind["position"], head - 1, "{behind}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_with_every_role_act_as_one_system() {
    use tests::load::{Load, Shape};
    let all = "write,react,project,read";
    let system = TestSystem::builder(Mode::Scaled).processes(&[all, all]).start().await;
    let loads = ["left", "right"].into_iter().zip(&system.dockets);
    let loads: Vec<Load> = loads
        .map(|(name, docket)| Load::start(&docket.client, Shape { name, clients: 12, orders: 4, commands_each: 60 }))
        .collect();
    let mut sent = vec![];
    for load in loads {
        sent.extend(load.finish().await);
    }
    // Two processes write to one order.
    let (left, right) = (&system.dockets[0].client, &system.dockets[1].client);
    left.post("/v1/orders").json(json!({"order_id": "both", "customer_id": "ada"})).send().await.expect(201);
    for number in 0..10 {
        let item = json!({"sku": format!("sku-{number}"), "quantity": 1, "unit_price": "1.00", "category": "OFFICE"});
        let writer = if number % 2 == 0 { left } else { right };
        assert_eq!(writer.post("/v1/orders/both/items").json(item).send().await.expect(200).version(), number + 2);
    }
    // The cached state of one writer is stale as soon as the other has written: only the log decides whether a command
    // changes nothing.
    let (path, quantity) = ("/v1/orders/both/items/sku-9", |quantity: u32| json!({"quantity": quantity}));
    assert_eq!(right.put(path).json(quantity(1)).send().await.expect(200).version(), 11);
    assert_eq!(left.put(path).json(quantity(5)).send().await.expect(200).version(), 12);
    assert_eq!(right.put(path).json(quantity(1)).send().await.expect(200).version(), 13);
    assert_eq!(left.put(path).key("back").json(quantity(5)).send().await.expect(200).version(), 14);
    let log = read_models_equal_the_fold(&system).await;
    tests::verify::assert_outcomes_match_log(&log, &sent);
}
