//! A client that lost a response sends the command again with the same key.

use futures::future::join_all;
use serde_json::json;
use tests::client::{Answer, token};
use tests::fold::read_log;
use tests::system::TestSystem;

tests::stories![the_same_key_gives_the_same_answer, a_key_survives_a_crash];

fn same(first: &Answer, second: &Answer) {
    assert_eq!((second.status, &second.body), (first.status, &first.body));
    assert_eq!(second.header("etag"), first.header("etag"));
    assert_eq!(second.header("location"), first.header("location"));
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
}

async fn the_same_key_gives_the_same_answer(system: TestSystem) {
    let body = |customer: &str| json!({"customer_id": customer, "items": [{"sku": "pen", "quantity": 1, "unit_price": "1.00"}]});
    let first = system.post("/v1/orders").key("one").json(body("ada")).send().await.expect(201);
    assert_eq!(first.header("idempotency-replayed"), None);
    same(&first, &system.post("/v1/orders").key("one").json(body("ada")).send().await);
    system.post("/v1/orders").key("one").json(body("bob")).send().await.expect_problem(422, "idempotency-key-reused");
    let order = first.json()["order_id"].as_str().expect("an id").to_owned();
    system.post(&format!("/v1/orders/{order}/items")).key("one").json(body("ada")).send().await.expect(422);

    // A key belongs to the user who sent it.
    let clerk = token("clerk", "staff");
    let other = system.post("/v1/orders").token(&clerk).key("one").json(body("bob")).send().await.expect(201);
    assert_ne!(other.json()["order_id"], first.json()["order_id"]);

    // A refusal is stored under the key too.
    let path = format!("/v1/orders/{order}/items/ink");
    let refused = system.delete(&path).key("two").send().await.expect(422);
    let again = system.delete(&path).key("two").send().await.expect(422);
    assert_eq!(again.json()["type"], refused.json()["type"]);

    let path = format!("/v1/orders/{order}/items");
    let item = json!({"sku": "ink", "quantity": 1, "unit_price": "2.00"});
    let answers = join_all((0..32).map(|_| system.post(&path).key("three").json(item.clone()).send())).await;
    let done: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert!(!done.is_empty() && done.iter().all(|answer| answer.body == done[0].body), "{answers:?}");
    assert!(answers.iter().all(|answer| [200, 409].contains(&answer.status)), "{answers:?}");
    let log = read_log(system.reader()).await;
    assert_eq!(log.iter().filter(|event| event.payload["sku"] == "ink").count(), 1, "one key must have one effect");

    system.post(&path).key(&"x".repeat(256)).json(item).send().await.expect(400);
}

async fn a_key_survives_a_crash(mut system: TestSystem) {
    let body = json!({"order_id": "crash-key", "customer_id": "ada"});
    let first = system.post("/v1/orders").key("durable").json(body.clone()).send().await.expect(201);
    let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00"});
    let added = system.post("/v1/orders/crash-key/items").key("durable-2").json(item.clone()).send().await.expect(200);
    system.kill9();
    system.restart().await;
    same(&first, &system.post("/v1/orders").key("durable").json(body).send().await);
    same(&added, &system.post("/v1/orders/crash-key/items").key("durable-2").json(item).send().await);
    assert_eq!(read_log(system.reader()).await.len(), 2);
}
