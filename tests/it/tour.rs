//! First steps of a new client.

use serde_json::{Value, json};
use tests::client::{signed, token};
use tests::system::TestSystem;
use tests::verify::{list_orders, read_models_equal_the_fold};

tests::stories![
    an_order_from_draft_to_confirmed,
    a_list_is_filtered_sorted_and_paged,
    errors_are_problems,
    versions_guard_changes,
    orders_of_other_customers_are_not_found,
    commands_can_be_sent_in_bulk,
];

/// Reads an order once the read model has reached `position`.
async fn order_at(system: &TestSystem, order_id: &str, position: u64) -> Value {
    let path = format!("/v1/orders/{order_id}?min_position={position}&wait_ms=10000");
    let answer = system.get(&path).send().await.expect(200);
    let read_at: u64 =
        answer.header("docket-position").expect("every query returns its position").parse().expect("a number");
    assert!(read_at >= position, "{read_at} is before {position}");
    answer.json()
}

async fn an_order_from_draft_to_confirmed(system: TestSystem) {
    let body = json!({"order_id": "tour-1", "customer_id": "ada", "currency": "USD", "attributes": {"store_id": "7"},
        "items": [{"sku": "bagel", "quantity": 2, "unit_price": "0.50", "name": "Bagel", "category": "PASTRY"}]});
    let created = system.post("/v1/orders").json(body).send().await.expect(201);
    assert_eq!(created.header("location"), Some("/v1/orders/tour-1"));
    assert_eq!((created.version(), created.json()["order_id"].as_str()), (2, Some("tour-1")));

    let milk = json!({"sku": "milk", "quantity": 1, "unit_price": "2.55", "name": "Milk", "category": "DAIRY"});
    let added = system.post("/v1/orders/tour-1/items").json(milk.clone()).send().await.expect(200);
    assert_eq!(added.version(), 3);
    assert_eq!(system.post("/v1/orders/tour-1/items").json(milk).send().await.expect(200).version(), 4);
    let changed = system.put("/v1/orders/tour-1/items/bagel").json(json!({"quantity": 6})).send().await.expect(200);
    assert_eq!(changed.version(), 5);
    let again = system.put("/v1/orders/tour-1/items/bagel").json(json!({"quantity": 6})).send().await.expect(200);
    assert_eq!(again.version(), 5, "setting the current quantity must change nothing");

    let tea = json!({"sku": "tea", "quantity": 1, "unit_price": "10"});
    system.post("/v1/orders/tour-1/items").json(tea).send().await.expect(200);
    let removed = system.delete("/v1/orders/tour-1/items/tea").send().await.expect(200);
    let draft = order_at(&system, "tour-1", removed.position()).await;
    assert_eq!((&draft["status"], &draft["total"], &draft["quantity"]), (&json!("draft"), &json!("8.10"), &json!(8)));
    assert_eq!(draft["lines"][0]["sku"], "bagel");
    assert_eq!(draft["lines"][1]["line_total"], "5.10");

    let confirmed = system.post("/v1/orders/tour-1/confirm").send().await.expect(200);
    let order = order_at(&system, "tour-1", confirmed.position()).await;
    assert_eq!((&order["status"], order["version"].as_u64()), (&json!("confirmed"), Some(confirmed.version())));

    let history = system.get("/v1/orders/tour-1/events").send().await.expect(200).json();
    let kinds: Vec<&str> =
        history["items"].as_array().expect("items").iter().filter_map(|event| event["type"].as_str()).collect();
    let expected = [
        "OrderCreated",
        "ItemAdded",
        "ItemAdded",
        "ItemAdded",
        "ItemQuantityChanged",
        "ItemAdded",
        "ItemRemoved",
        "OrderConfirmed",
    ];
    assert_eq!(kinds, expected);
    let then = system.get("/v1/orders/tour-1?as_of=3").send().await.expect(200).json();
    assert_eq!((&then["status"], &then["total"], &then["version"]), (&json!("draft"), &json!("3.55"), &json!(3)));
    let placed_at = order["placed_at"].as_str().expect("a time");
    system.get(&format!("/v1/orders/tour-1?as_of={placed_at}")).send().await.expect(200);
    system.get("/v1/customers/ada").send().await.expect(200);
    read_models_equal_the_fold(&system).await;
}

async fn a_list_is_filtered_sorted_and_paged(system: TestSystem) {
    for (number, customer) in ["ada", "ada", "bob", "bob", "bob"].into_iter().enumerate() {
        let item = json!({"sku": "pen", "quantity": number + 1, "unit_price": "1.00", "category": "OFFICE"});
        let body = json!({"order_id": format!("list-{number}"), "customer_id": customer, "items": [item]});
        system.post("/v1/orders").json(body).send().await.expect(201);
    }
    system.post("/v1/orders/list-4/confirm").send().await.expect(200);
    system.post("/v1/orders/list-0/cancel").json(json!({"reason": "changed my mind"})).send().await.expect(200);
    system.settled().await;

    let ids = |filter: &'static str| {
        let system = &system;
        async move { list_orders(system.reader(), filter).await.into_keys().collect::<Vec<_>>().join(" ") }
    };
    assert_eq!(ids("").await, "list-0 list-1 list-2 list-3 list-4");
    assert_eq!(ids("&status=draft").await, "list-1 list-2 list-3");
    assert_eq!(ids("&status=cancelled").await, "list-0");
    assert_eq!(ids("&customer_id=bob&status=draft").await, "list-2 list-3");
    assert_eq!(ids("&min_total=2.00&max_total=4.00").await, "list-1 list-2 list-3");
    assert_eq!(ids("&category=OFFICE&customer_id=ada").await, "list-0 list-1");
    assert_eq!(ids("&placed_to=2001-01-01T00:00:00Z").await, "");

    let mut totals = vec![];
    let mut cursor = String::new();
    loop {
        let page = system.get(&format!("/v1/orders?sort=-total&limit=2{cursor}")).send().await.expect(200).json();
        totals.extend(
            page["items"]
                .as_array()
                .expect("items")
                .iter()
                .map(|item| item["total"].as_str().expect("text").to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(totals, ["5.00", "4.00", "3.00", "2.00", "1.00"]);
}

async fn errors_are_problems(system: TestSystem) {
    let item = |price: Value| json!({"sku": "pen", "quantity": 1, "unit_price": price});
    system.post("/v1/orders").json(json!({"order_id": "err-1", "customer_id": "ada"})).send().await.expect(201);

    assert_eq!(system.post("/v1/orders/err-1/confirm").send().await.expect_problem(422, "order-empty")["status"], 422);
    system.post("/v1/orders/err-1/items").json(item(json!("1.00"))).send().await.expect(200);
    system.post("/v1/orders/err-1/items").json(item(json!("1.01"))).send().await.expect_problem(422, "price-mismatch");
    let number =
        system.post("/v1/orders/err-1/items").json(item(json!(1.5))).send().await.expect_problem(422, "invalid-body");
    assert_eq!(number["errors"][0]["pointer"], "/unit_price", "{number}");
    let detail = number["detail"].as_str().expect("text");
    assert!(detail.contains("\"1.5\""), "the message must show the right form: {detail}");
    system.post("/v1/orders/err-1/items").json(item(json!("1.001"))).send().await.expect(422);

    let unknown = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00", "colour": "red"});
    let unknown = system.post("/v1/orders/err-1/items").json(unknown).send().await.expect_problem(422, "invalid-body");
    assert!(unknown.to_string().contains("colour"), "the error must name the field: {unknown}");
    let malformed = system.post("/v1/orders/err-1/items").body("application/json", "{\"sku\":".to_owned());
    malformed.send().await.expect_problem(400, "malformed-json");
    system.post("/v1/orders/err-1/items").body("text/plain", "{}".to_owned()).send().await.expect(415);
    let huge = system.post("/v1/orders/err-1/items").body("application/json", " ".repeat((1 << 20) + 1));
    assert!(huge.try_send().await.is_ok_and(|answer| answer.status == 413), "a body over the limit must give 413");

    system
        .post("/v1/orders")
        .json(json!({"order_id": "err-1", "customer_id": "ada"}))
        .send()
        .await
        .expect_problem(409, "order-exists");
    system.post("/v1/orders/nowhere/confirm").send().await.expect_problem(404, "order-not-found");
    system.delete("/v1/orders/err-1/items/ink").send().await.expect_problem(422, "item-not-found");
    system.post("/v1/orders/err-1/confirm").send().await.expect(200);
    system.post("/v1/orders/err-1/items").json(item(json!("1.00"))).send().await.expect_problem(422, "order-not-draft");

    system.get("/v1/orders/nowhere").send().await.expect(404);
    system.get("/v1/no/such/path").send().await.expect(404);
    system.get("/v1/orders?limit=0").send().await.expect(400);
    system.get("/v1/orders?sort=colour").send().await.expect(400);
    let behind = system.get("/v1/orders/err-1?min_position=1000000&wait_ms=50").send().await;
    assert!(behind.header("retry-after").is_some());
    behind.expect_problem(503, "projection-behind");
}

async fn versions_guard_changes(system: TestSystem) {
    let created =
        system.post("/v1/orders").json(json!({"order_id": "etag-1", "customer_id": "ada"})).send().await.expect(201);
    let item = |sku: &str| json!({"sku": sku, "quantity": 1, "unit_price": "1.00"});
    let added =
        system.post("/v1/orders/etag-1/items").if_match(created.version()).json(item("pen")).send().await.expect(200);
    let stale = system.post("/v1/orders/etag-1/items").if_match(created.version()).json(item("ink")).send().await;
    stale.expect_problem(412, "version-mismatch");
    let path = format!("/v1/orders/etag-1?min_position={}&wait_ms=10000", added.position());
    assert_eq!(system.get(&path).send().await.expect(200).version(), added.version());

    // Of many commands with one expected version, only one commits.
    let racers = (0..16).map(|number| {
        let request = system.post("/v1/orders/etag-1/items").if_match(added.version());
        request.json(item(&format!("racer-{number}"))).send()
    });
    let statuses: Vec<u16> = futures::future::join_all(racers).await.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|&&status| status == 412).count(), 15, "{statuses:?}");
    read_models_equal_the_fold(&system).await;
}

async fn orders_of_other_customers_are_not_found(system: TestSystem) {
    let (ada, bob, clerk) = (token("ada", "customer"), token("bob", "customer"), token("clerk", "staff"));
    let mine = json!({"order_id": "own-1", "customer_id": "ada", "items": [{"sku": "pen", "quantity": 1, "unit_price": "1.00"}]});
    system.post("/v1/orders").token(&bob).json(mine.clone()).send().await.expect(403);
    system.post("/v1/orders").token(&ada).json(mine).send().await.expect(201);
    system.settled().await;

    for path in ["/v1/orders/own-1", "/v1/orders/own-1/events", "/v1/orders/own-1?as_of=1"] {
        system.get(path).token(&ada).send().await.expect(200);
        system.get(path).token(&clerk).send().await.expect(200);
        let hidden = system.get(path).token(&bob).send().await.expect(404).json();
        let absent = system.get(&path.replace("own-1", "own-2")).token(&bob).send().await.expect(404).json();
        for field in ["type", "title", "status"] {
            assert_eq!(
                hidden[field], absent[field],
                "{path}: another customer's order and a missing one must look the same"
            );
        }
    }
    let rename = |order: &str| system.post(&format!("/v1/orders/{order}/confirm")).token(&bob).send();
    let (hidden, absent) =
        (rename("own-1").await.expect_problem(404, "order-not-found"), rename("own-2").await.expect(404).json());
    assert_eq!(hidden["title"], absent["title"]);
    assert!(
        system.get("/v1/orders").token(&bob).send().await.expect(200).json()["items"]
            .as_array()
            .is_some_and(Vec::is_empty)
    );

    for path in ["/v1/events?after=0&limit=10", "/v1/projections"] {
        system.get(path).token(&clerk).send().await.expect(403);
        system.get(path).token(&ada).send().await.expect(403);
    }
    system.get("/v1/reports/sales?by=day").token(&ada).send().await.expect(403);
    let refused = system.get("/v1/orders").anonymous().send().await.expect(401);
    assert!(refused.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
    let expired = signed(
        &json!({"sub": "ada", "role": "admin", "iss": "docket", "aud": "docket", "nbf": 1, "exp": 1000, "iat": 1, "jti": "x"}),
    );
    system.get("/v1/orders").token(&expired).send().await.expect(401);
    let elsewhere = signed(
        &json!({"sub": "ada", "role": "admin", "iss": "docket", "aud": "another", "nbf": 1, "exp": 9_999_999_999_u64}),
    );
    system.get("/v1/orders").token(&elsewhere).send().await.expect(401);
}

async fn commands_can_be_sent_in_bulk(system: TestSystem) {
    let lines = [
        json!({"type": "create_order", "id": "a", "order_id": "bulk-1", "customer_id": "ada", "occurred_at": "2017-01-01T11:53:26Z"}).to_string(),
        json!({"type": "add_item", "id": "b", "order_id": "bulk-1", "sku": "pen", "quantity": 2, "unit_price": "1.00"}).to_string(),
        json!({"type": "add_item", "id": "c", "order_id": "bulk-1", "sku": "ink", "quantity": 0, "unit_price": "1.00"}).to_string(),
        "{not json".to_owned(),
        json!({"type": "confirm_order", "id": "e", "order_id": "bulk-1"}).to_string(),
    ];
    let answer =
        system.post("/v1/commands").body("application/x-ndjson", lines.join("\n") + "\n").send().await.expect(200);
    let text = String::from_utf8(answer.body.to_vec()).expect("the body is UTF-8");
    let results: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    assert_eq!(results.len(), 5, "{text}");
    let expected = [
        (201, Some("a"), Some(1)),
        (200, Some("b"), Some(2)),
        (422, Some("c"), None),
        (400, None, None),
        (200, Some("e"), Some(3)),
    ];
    for (result, expected) in results.iter().zip(expected) {
        let found = (result["status"].as_u64().expect("a status"), result["id"].as_str(), result["version"].as_u64());
        assert_eq!(found, expected, "{text}");
        assert_eq!(result["problem"]["status"].as_u64(), (found.0 >= 400).then_some(found.0), "{text}");
    }
    let log = read_models_equal_the_fold(&system).await;
    assert_eq!(log[0].occurred_at.to_string(), "2017-01-01T11:53:26Z");
}
