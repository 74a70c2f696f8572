//! End-to-end tests of the loyalty program over HTTP and the CLI, in the modes embedded and scaled.

use std::time::Duration;

use serde_json::{Value, json};
use tests::client::{Client, token};
use tests::dice::Dice;
use tests::system::{Builder, Mode, TestSystem};
use tests::wait::until;

tests::stories![
    settings = with_loyalty;
    confirmed_orders_grant_points_and_points_expire,
    imports_and_restores_grant_nothing,
    points_are_granted_once_despite_kills
];

/// How often the server is killed. `DOCKET_KILLS=200` runs a long campaign.
const KILLS: u32 = 8;

fn with_loyalty(builder: Builder) -> Builder {
    builder.program("docket-loyalty").setting("DOCKET_LOYALTY_POINTS_LAST_SECONDS", "3600")
}

/// Creates and confirms an order of `units` pens at 1.00 each.
async fn order(system: &TestSystem, id: &str, customer: &str, units: u32) {
    let items = json!([{"sku": "pen", "quantity": units, "unit_price": "1.00"}]);
    let body = json!({"order_id": id, "customer_id": customer, "items": items});
    system.post("/v1/orders").json(body).send().await.expect(201);
    system.post(&format!("/v1/orders/{id}/confirm")).send().await.expect(200);
}

async fn points(system: &TestSystem, customer: &str) -> Option<Value> {
    let answer = system.get(&format!("/v1/points/{customer}")).send().await;
    (answer.status == 200).then(|| answer.json())
}

async fn points_of_orders(system: &TestSystem, customer: &str, orders: i64) -> Value {
    until("the points", async || points(system, customer).await.filter(|points| points["orders"] == orders)).await
}

/// Returns the events of one type in the log.
async fn events(system: &TestSystem, event_type: &str) -> Vec<Value> {
    let log = system.cli(&["events", "export"]).await;
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|event| event["type"].as_str().is_some_and(|name| name.ends_with(event_type))).collect()
}

async fn confirmed_orders_grant_points_and_points_expire(mut system: TestSystem) {
    order(&system, "o-1", "ada", 12).await;
    order(&system, "o-2", "ada", 5).await;
    let shown = points_of_orders(&system, "ada", 2).await;
    assert_eq!((&shown["balance"], &shown["granted"]), (&json!(17), &json!(17)));
    let (ada, eve) = (token("ada", "customer"), token("eve", "customer"));
    system.settled().await;
    let show = || system.get("/v1/points/ada").token(&ada);
    // A new connection to the database invalidates the cache, so the second request is not always the cached one.
    let (first, second) = until("a cached response", async || {
        let (first, second) = (show().send().await.expect(200), show().send().await.expect(200));
        (second.header("docket-cache") == Some("hit")).then_some((first, second))
    })
    .await;
    assert_eq!((first.json(), first.header("docket-position")), (second.json(), second.header("docket-position")));
    // Other customers see neither the account nor its cached response.
    system.get("/v1/points/ada").token(&eve).send().await.expect_problem(404, "account-not-found");
    let redeem = |points: i64| system.post("/v1/points/ada/redemptions").token(&ada).json(json!({"points": points}));
    redeem(18).send().await.expect_problem(422, "too-few-points");
    redeem(4).send().await.expect(200);
    let spent = async || {
        let answer = show().send().await.expect(200);
        (answer.json()["balance"] == 13).then(|| answer.header("docket-cache").map(str::to_owned))
    };
    assert_eq!(
        until("the new balance", spent).await,
        None,
        "the next change of the read model invalidates the cached response"
    );
    // The correlation id links the points to the order.
    let (granted, scheduled) = (events(&system, "PointsGranted").await, events(&system, "ExpiryScheduled").await);
    let confirmed = events(&system, "OrderConfirmed").await;
    let correlation = |event: &Value| event["data"]["metadata"]["correlation_id"].as_str().map(str::to_owned);
    for event in &confirmed {
        let follows = |events: &[Value]| events.iter().filter(|one| correlation(one) == correlation(event)).count();
        assert_eq!((follows(&granted), follows(&scheduled)), (1, 1), "{event}");
    }
    let list = reactors(&system).await;
    assert!(list.iter().all(|reactor| reactor["backlog_events"] == 0), "{list:?}");
    // From here, points are valid for one second.
    system.set("DOCKET_LOYALTY_POINTS_LAST_SECONDS", "1");
    system.restart().await;
    order(&system, "o-3", "bob", 7).await;
    points_of_orders(&system, "bob", 1).await;
    let expired = async || points(&system, "bob").await.filter(|points| points["balance"] == 0);
    assert_eq!(until("the expiry", expired).await["granted"], 7);
    assert_eq!(points(&system, "ada").await.expect("an account")["balance"], 13, "these points are valid for an hour");
    system.settled().await;
    system.cli(&["replay", "--all"]).await;
    system.cli(&["verify"]).await;
    assert_eq!(events(&system, "PointsGranted").await.len(), 3, "a rebuild grants nothing");
}

async fn reactors(system: &TestSystem) -> Vec<Value> {
    let list: Value = serde_json::from_str(&system.cli(&["reactors", "list", "--json"]).await).expect("JSON");
    list["items"].as_array().expect("items").clone()
}

async fn imports_and_restores_grant_nothing(mut system: TestSystem) {
    order(&system, "o-1", "ada", 3).await;
    points_of_orders(&system, "ada", 1).await;
    // An imported file of orders is history.
    let file = system.directory().join("orders.csv");
    let header = "order_ref,customer_ref,store_id,placed_at,sku,product_name,department,quantity,unit_price";
    let line = "old-1,ada,s-1,2017-01-01T10:00:00Z,pen,Pen,office,9,1.00";
    std::fs::write(&file, format!("{header}\n{line}\n")).expect("the file is written");
    let (url, staff) = (system.writer().base().to_owned(), token("clerk", "staff"));
    let path = file.to_str().expect("UTF-8");
    system.cli(&["import", path, "--url", &url, "--token", &staff]).await;
    // A later order shows that the reactor is past the import.
    order(&system, "o-2", "ada", 1).await;
    let shown = points_of_orders(&system, "ada", 2).await;
    assert_eq!(shown["granted"], 4, "{shown}");
    // A held reactor resumes when it is released.
    system.cli(&["reactors", "hold", "loyalty-points", "--reason", "a test"]).await;
    order(&system, "o-3", "ada", 1).await;
    let held = reactors(&system).await.into_iter().find(|one| one["name"] == "loyalty-points").expect("it is listed");
    assert_eq!(held["held"], "a test");
    let unknown = system.try_cli(&["reactors", "hold", "nobody"]).await;
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("Its reactors are loyalty-expiry, loyalty-points"),
        "{unknown:?}"
    );
    system.kill9();
    system.restart().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(events(&system, "PointsGranted").await.len(), 2);
    system.cli(&["reactors", "release", "loyalty-points"]).await;
    points_of_orders(&system, "ada", 3).await;
}

/// Write processes are upgraded first. The orders that they accept are handled as soon as an upgraded process with the
/// role `react` runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_upgrade_loses_no_order() {
    let processes = ["write", "react,project,read"];
    let mut system = TestSystem::builder(Mode::Scaled).processes(&processes).start().await;
    order(&system, "before", "ada", 9).await;
    system.run_program("docket-loyalty");
    system.dockets[0].restart().await;
    order(&system, "between", "ada", 2).await;
    let granted = async || events(&system, "PointsGranted").await.len();
    assert_eq!(granted().await, 0);
    system.dockets[1].restart().await;
    order(&system, "after", "ada", 1).await;
    let shown = points_of_orders(&system, "ada", 2).await;
    assert_eq!(shown["granted"], 3, "orders from before the module grant no points: {shown}");
}

/// After a log is moved to another store, no event is handled again, and the deadlines of processes are restored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_log_grants_nothing_again_and_keeps_its_deadlines() {
    let builder = with_loyalty(TestSystem::builder(Mode::Embedded));
    let mut system = builder.setting("DOCKET_LOYALTY_POINTS_LAST_SECONDS", "6").start().await;
    order(&system, "o-1", "ada", 5).await;
    points_of_orders(&system, "ada", 1).await;
    until("the countdown", async || (events(&system, "ExpiryScheduled").await.len() == 1).then_some(())).await;
    let (log, moved) = (system.directory().join("log.ndjson"), system.directory().join("moved.db"));
    std::fs::write(&log, system.cli(&["events", "export"]).await).expect("the log is written");
    system.kill9();
    system.set("DOCKET_DATABASE_URL", &format!("sqlite:{}", moved.display()));
    let imported = system.try_cli(&["events", "import", log.to_str().expect("UTF-8")]).await;
    assert!(imported.status.success(), "{imported:?}");
    let list: Value = serde_json::from_str(&system.cli(&["reactors", "list", "--json"]).await).expect("JSON");
    let all = list["items"].as_array().expect("items");
    assert!(all.iter().all(|one| one["position"] == list["head"] && one["held"].is_null()), "{list}");
    assert_eq!(list["deadlines"][0]["open"], 1, "{list}");
    system.restart().await;
    let expired = async || points(&system, "ada").await.filter(|points| points["balance"] == 0);
    assert_eq!(until("the expiry", expired).await["granted"], 5);
    assert_eq!(events(&system, "PointsGranted").await.len(), 1);
    // The order and the expiry have the same correlation id.
    let correlations = |events: &[Value]| events[0]["data"]["metadata"]["correlation_id"].clone();
    let (confirmed, gone) = (events(&system, "OrderConfirmed").await, events(&system, "PointsExpired").await);
    assert_eq!(correlations(&confirmed), correlations(&gone));
    assert_eq!(gone[0]["data"]["metadata"]["causation_id"], events(&system, "ExpiryScheduled").await[0]["id"]);
}

/// A store with a part of a log reacts to nothing until the import is complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_import_grants_nothing() {
    let mut system = with_loyalty(TestSystem::builder(Mode::Embedded)).start().await;
    let line = |number: usize, what: &str| match what {
        "create" => json!({"type": "create_order", "order_id": format!("o-{number}"), "customer_id": "ada",
            "items": [{"sku": "pen", "quantity": 1, "unit_price": "1.00"}]}),
        _ => json!({"type": "confirm_order", "order_id": format!("o-{number}")}),
    };
    let lines = (0..1_000).flat_map(|number| ["create", "confirm"].map(|what| format!("{}\n", line(number, what))));
    let body: String = lines.collect();
    system.post("/v1/commands").body("application/x-ndjson", body).send().await.expect(200);
    until("every countdown", async || (events(&system, "ExpiryScheduled").await.len() == 1_000).then_some(())).await;
    let text = system.cli(&["events", "export"]).await;
    let (whole, cut) = (system.directory().join("whole.ndjson"), system.directory().join("cut.ndjson"));
    std::fs::write(&whole, &text).expect("the log is written");
    std::fs::write(&cut, &text[..text.len() - 200]).expect("the log is written");
    system.kill9();
    let moved = system.directory().join("moved.db");
    system.set("DOCKET_DATABASE_URL", &format!("sqlite:{}", moved.display()));
    // A file that is not a log changes nothing.
    let garbage = system.directory().join("garbage.ndjson");
    std::fs::write(&garbage, "nothing\n").expect("the file is written");
    let import = async |file: &std::path::Path| {
        let output = system.try_cli(&["events", "import", file.to_str().expect("UTF-8")]).await;
        output.status.success()
    };
    assert!(!import(&garbage).await);
    assert!(!moved.exists(), "a file without events creates no store");
    assert!(!import(&cut).await);
    let held = "an import of the log is not complete";
    assert!(reactors(&system).await.iter().all(|one| one["held"] == held), "{:?}", reactors(&system).await);
    let refused = system.try_cli(&["reactors", "release", "loyalty-points"]).await;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("--at-head"), "{told}");
    assert!(import(&whole).await, "the import resumes where it was cut off");
    assert!(reactors(&system).await.iter().all(|one| one["held"].is_null() && one["lag_events"] == 0));
    system.restart().await;
    order(&system, "new", "ada", 1).await;
    points_of_orders(&system, "ada", 1_001).await;
    assert_eq!(events(&system, "PointsGranted").await.len(), 1_001);
}

/// Sends orders until the task is aborted, and ignores failures.
async fn keep_ordering(client: Client, name: String) {
    for number in 0.. {
        let (id, customer) = (format!("{name}-{number}"), format!("c-{}", number % 5));
        let items = json!([{"sku": "pen", "quantity": 1 + number % 3, "unit_price": "1.00"}]);
        let body = json!({"order_id": id, "customer_id": customer, "items": items});
        let created = client.post("/v1/orders").json(body).try_send().await;
        let confirmed = client.post(&format!("/v1/orders/{id}/confirm")).try_send().await;
        if created.and(confirmed).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn points_are_granted_once_despite_kills(mut system: TestSystem) {
    let kills = std::env::var("DOCKET_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let mut dice = Dice::new(7);
    for kill in 0..kills {
        let client = Client::new(system.writer().base().to_owned()).with_token(token("clerk", "staff"));
        let senders = ["a", "b", "c", "d"]
            .map(|sender| tokio::spawn(keep_ordering(client.clone(), format!("o-{kill}-{sender}"))));
        tokio::time::sleep(Duration::from_millis(20 + dice.below(300))).await;
        system.kill9();
        senders.iter().for_each(tokio::task::JoinHandle::abort);
        system.restart().await;
    }
    let confirmed = events(&system, "OrderConfirmed").await.len();
    assert!(confirmed > kills as usize, "{confirmed} orders in {kills} kills");
    until("every grant", async || (events(&system, "PointsGranted").await.len() >= confirmed).then_some(())).await;
    until("every expiry", async || (events(&system, "ExpiryScheduled").await.len() >= confirmed).then_some(())).await;
    system.settled().await;
    let granted = events(&system, "PointsGranted").await;
    assert_eq!(granted.len(), confirmed, "each confirmed order grants points once");
    let mut orders: Vec<_> =
        granted.iter().map(|event| event["data"]["payload"]["PointsGranted"]["order_id"].to_string()).collect();
    orders.sort();
    orders.dedup();
    assert_eq!(orders.len(), confirmed, "no order twice");
    assert_eq!(events(&system, "ExpiryScheduled").await.len(), confirmed);
    assert!(reactors(&system).await.iter().all(|reactor| reactor["backlog_events"] == 0));
    system.cli(&["verify"]).await;
    println!("{confirmed} orders granted points exactly once despite {kills} kills");
}
