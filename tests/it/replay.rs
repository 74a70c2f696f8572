//! An operator rebuilds, verifies and repairs read models while the system is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::stream;
use futures::StreamExt;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, SqliteConnection};
use tests::fold::{normal, read_log};
use tests::load::{Load, Shape};
use tests::system::{Mode, TestSystem};
use tests::verify::{assert_outcomes_match_log, list_orders, read_models_equal_the_fold};
use tests::wait::until;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

tests::stories![
    a_rebuild_gives_the_same_rows,
    a_rebuild_under_load_does_not_affect_queries,
    a_row_changed_by_hand_is_found_and_repaired,
    a_projection_can_roll_back_to_an_older_generation,
    a_poisoned_event_parks_one_order,
    many_poisoned_orders_park_together,
    an_order_whose_creation_is_discarded_does_not_exist,
    a_dead_letter_does_not_stop_a_release,
    two_releases_do_not_overwrite_each_other,
    a_new_projection_is_built_while_the_others_serve,
    events_of_another_log_are_not_projected,
    dead_letters_do_not_outlive_their_log,
];

/// The story that restarts PostgreSQL, so it needs its own servers.
mod killed {
    use super::a_killed_rebuild_resumes_where_it_stopped;

    tests::stories![settings = own_servers; a_killed_rebuild_resumes_where_it_stopped];

    fn own_servers(builder: tests::system::Builder) -> tests::system::Builder {
        builder.own_servers()
    }
}

/// Returns everything that a client can read of orders, reports, best sellers and some customers.
async fn rows(system: &TestSystem) -> Vec<(String, Value)> {
    let list = list_orders(system.reader(), "").await;
    let mut paths: Vec<String> = list.keys().map(|id| format!("/v1/orders/{id}")).collect();
    paths.extend((0..5).map(|number| format!("/v1/customers/customer-{number}")));
    paths.extend(["day", "category", "store"].map(|by| format!("/v1/reports/sales?by={by}")));
    paths.extend(["revenue", "quantity"].map(|by| format!("/v1/products/top?by={by}")));
    let row = async |path: String| {
        let row = system.get(&path).send().await.expect(200).json();
        (path, normal(&row))
    };
    let rows = futures::stream::iter(paths).map(row).buffered(16).collect::<Vec<_>>().await;
    list.into_iter().chain(rows).collect()
}

async fn loaded(system: &TestSystem, name: &'static str) {
    let shape = Shape { name, clients: 16, orders: 12, commands_each: 60 };
    Load::start(system.writer(), shape).finish().await;
}

async fn status(system: &TestSystem, name: &str) -> Value {
    let answer = system.get("/v1/projections").send().await.expect(200).json();
    let items = answer["items"].as_array().expect("items");
    items.iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("{name} is not in {answer}")).clone()
}

async fn a_rebuild_gives_the_same_rows(mut system: TestSystem) {
    loaded(&system, "replay").await;
    let log = read_models_equal_the_fold(&system).await;
    let before = rows(&system).await;
    system.terminate().await;
    let summary = system.cli(&["replay", "--all", "--json"]).await;
    let done: Value = serde_json::from_str(summary.lines().last().expect("a summary")).expect("the summary is JSON");
    let projections = done["done"]["projections"].as_array().expect("projections");
    assert_eq!(projections.len(), 6);
    assert!(projections.iter().all(|projection| projection["differences"] == 0), "{done}");
    system.start().await;
    system.settled().await;
    assert_eq!(rows(&system).await, before);
    assert_eq!(read_log(system.reader()).await.len(), log.len(), "a rebuild must write no events");
    read_models_equal_the_fold(&system).await;
}

/// Reads one order repeatedly, each time with the position of its last command. A read model that is half built or too
/// old would miss that command.
async fn watch(system: &TestSystem, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    let (writer, reader) = (system.writer().clone(), system.reader().clone());
    let body = json!({"order_id": "watched", "customer_id": "watcher"});
    writer.post("/v1/orders").json(body).send().await.expect(201);
    tokio::spawn(async move {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let item = json!({"sku": format!("s-{number}"), "quantity": 1, "unit_price": "1.00"});
            let added = writer.post("/v1/orders/watched/items").json(item).send().await.expect(200).json();
            let position = added["position"].as_i64().expect("a position");
            let with = |path: &str| format!("{path}min_position={position}&wait_ms=10000");
            let order = reader.get(&with("/v1/orders/watched?")).send().await.expect(200).json();
            assert_eq!(order["lines"].as_array().map(Vec::len), Some(number), "a stale or broken order: {order}");
            let list = reader.get(&with("/v1/orders?customer_id=watcher&")).send().await.expect(200).json();
            assert_eq!(list["items"][0]["line_count"], number, "a stale or broken list: {list}");
            // The number of lines per order is limited.
            if number == 50 {
                for number in 1..=50 {
                    let path = format!("/v1/orders/watched/items/s-{number}");
                    writer.delete(&path).send().await.expect(200);
                }
                number = 0;
            }
        }
        number as u64
    })
}

async fn a_rebuild_under_load_does_not_affect_queries(system: TestSystem) {
    // More events than a switch may have left to apply: the generation must be built and catch up before it takes over.
    system.import_sample().await;
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch(&system, stop.clone()).await;
    let shape = Shape { name: "noon", clients: 8, orders: 8, commands_each: 150 };
    let load = Load::start(system.writer(), shape);
    for generation in 2..5 {
        system.cli(&["replay", "--all"]).await;
        assert_eq!(status(&system, "sales").await["generation"], generation);
    }
    load.finish().await;
    stop.store(true, Ordering::Relaxed);
    watcher.await.expect("no query fails or is stale");
    read_models_equal_the_fold(&system).await;
    system.cli(&["verify"]).await;
}

/// Starts a rebuild and returns once it has begun to fold events.
async fn begun(system: &TestSystem) -> Child {
    let mut rebuild = system.spawn_cli(&["replay", "--all", "--json"]);
    let mut stdout = BufReader::new(rebuild.stdout.take().expect("standard output is piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).await.expect("a line of progress");
    assert!(line.contains("target"), "{line}");
    rebuild.stdout = Some(stdout.into_inner());
    rebuild
}

/// Returns the position at which the next rebuild begins: that of the last killed rebuild, or 0.
async fn begins_at(system: &TestSystem) -> i64 {
    // PostgreSQL releases the lock of a killed rebuild only after a moment.
    let planned = until("the plan of a rebuild", async || {
        let output = system.try_cli(&["replay", "sales", "--dry-run"]).await;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    let planned = planned.await;
    let position = planned.split_once("from position ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    position.unwrap_or_else(|| panic!("{planned}"))
}

async fn a_killed_rebuild_resumes_where_it_stopped(mut system: TestSystem) {
    system.import_sample().await;
    system.settled().await;
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = watch(&system, stop.clone()).await;
    let load = Load::start(system.writer(), Shape { name: "killed", clients: 2, orders: 8, commands_each: 100_000 });
    let mut begins = Vec::new();
    for pause_ms in [0, 10, 20, 40, 80, 120, 160, 200, 300, 400] {
        let mut rebuild = begun(&system).await;
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        rebuild.kill().await.expect("the rebuild is killed");
        begins.push(begins_at(&system).await);
    }
    assert!(
        begins.iter().any(|position| *position > 0),
        "no rebuild was killed between two of its commits: {begins:?}"
    );
    stop.store(true, Ordering::Relaxed);
    watcher.await.expect("no query fails or is stale");
    // Commands are retried during the following restart of PostgreSQL; queries of the watcher would fail with 503.
    let rebuild = begun(&system).await;
    if let Some(postgres) = &mut system.postgres {
        postgres.restart().await;
    }
    let output = rebuild.wait_with_output().await.expect("the rebuild ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sent = load.stop().await;
    let log = read_models_equal_the_fold(&system).await;
    assert!(status(&system, "sales").await["rebuild"].is_null());
    assert_outcomes_match_log(&log, &sent);
    system.cli(&["verify"]).await;
}

/// A rebuild that began while no process projected must not take over with an old position, because a server has
/// advanced in the meantime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_never_moves_a_position_back() {
    let mut system = TestSystem::scaled().await;
    system.import_sample().await;
    system.settled().await;
    system.terminate().await;
    let rebuild = begun(&system).await;
    let pid = rebuild.id().expect("the rebuild runs").to_string();
    let signal = async |name: &str| {
        let status = tokio::process::Command::new("kill").args([name, &pid]).status().await;
        assert!(status.is_ok_and(|status| status.success()), "kill {name}");
    };
    signal("-STOP").await;
    system.start().await;
    for number in 0..5 {
        let order = json!({"order_id": format!("meanwhile-{number}"), "customer_id": "c"});
        system.post("/v1/orders").json(order).send().await.expect(201);
    }
    system.settled().await;
    signal("-CONT").await;
    let output = rebuild.wait_with_output().await.expect("the rebuild ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sales = status(&system, "sales").await;
    assert_eq!((&sales["generation"], &sales["lag_events"]), (&json!(2), &json!(0)), "{sales}");
    system.get("/v1/orders/meanwhile-4").send().await.expect(200);
    read_models_equal_the_fold(&system).await;
}

/// Orders that cannot be decoded delay the others once, not once per order.
async fn many_poisoned_orders_park_together(system: TestSystem) {
    for number in 0..20 {
        foreign_event(&system, &format!("bad-{number}"), 1, r#"{"Unheard":{}}"#).await;
    }
    let good = json!({"order_id": "good", "customer_id": "c"});
    let position = system.post("/v1/orders").json(good).send().await.expect(201).position();
    let path = format!("/v1/orders/good?min_position={position}&wait_ms=10000");
    system.get(&path).send().await.expect(200);
    assert_eq!(dead_letters(&system).await.len(), 20);
}

/// Changes one row of the log or of the read models.
async fn sql(system: &TestSystem, read_models: bool, change: &str) {
    assert_eq!(statement(system, read_models, change).await, 1, "{change}");
}

/// Runs a statement on the database of the log or of the read models. Returns the number of affected rows.
pub(crate) async fn statement(system: &TestSystem, read_models: bool, statement: &str) -> u64 {
    let url = match read_models {
        true => system.database_url().replace("docket.db", "docket-read.db"),
        false => system.database_url().to_owned(),
    };
    if system.mode == Mode::Embedded {
        let mut connection = SqliteConnection::connect(&url).await.expect("the file opens");
        sqlx::raw_sql(statement).execute(&mut connection).await.expect(statement).rows_affected()
    } else {
        let mut connection = PgConnection::connect(&url).await.expect("PostgreSQL answers");
        sqlx::raw_sql(statement).execute(&mut connection).await.expect(statement).rows_affected()
    }
}

async fn a_row_changed_by_hand_is_found_and_repaired(system: TestSystem) {
    loaded(&system, "hand").await;
    system.settled().await;
    system.cli(&["verify"]).await;
    let order = list_orders(system.reader(), "").await.into_keys().next().expect("an order");
    sql(&system, true, &format!("update order_summaries_g1 set line_count = 99 where order_id = '{order}'")).await;
    let output = system.try_cli(&["verify", "--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).expect("the output is JSON");
    assert_eq!(found["differences"], 1, "{found}");
    let summaries = &found["projections"][0];
    assert_eq!((&summaries["name"], &summaries["first"][0]["key"]), (&json!("order_summaries"), &json!(order)));
    let what = summaries["first"][0]["what"][0].as_str().expect("a column");
    assert!(what.starts_with("line_count is 99, must be "), "{what}");
    let view = format!(
        "update order_details_g1 set view = replace(view, '\"status\":\"', '\"status\":\"un') where order_id = '{order}'"
    );
    sql(&system, true, &view).await;
    let output = system.try_cli(&["verify", "order_details"]).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("view.status is \"un"), "the output must name only the field: {told}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("`docket replay --fresh order_details`"));
    system.cli(&["replay", "--fresh", "order_details"]).await;
    let sampled = system.try_cli(&["verify", "order_summaries", "--sample", "2000", "--json"]).await;
    assert_eq!(sampled.status.code(), Some(1), "a large sample must find the difference");
    system.cli(&["replay", "order_summaries"]).await;
    system.cli(&["verify"]).await;
    read_models_equal_the_fold(&system).await;
}

async fn a_projection_can_roll_back_to_an_older_generation(system: TestSystem) {
    loaded(&system, "first").await;
    system.settled().await;
    let refused = system.try_cli(&["replay", "sales", "--rollback"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no older generation"));
    system.cli(&["replay", "sales", "products"]).await;
    loaded(&system, "second").await;
    for (arguments, tells) in [
        (&["replay", "sales", "--rollback", "--dry-run"][..], "sales: generation 1 would be built from position"),
        (&["replay", "sales", "--dry-run"], "sales: generation 3 would be built from position 0 to"),
        (&["replay", "--all", "--prune", "--dry-run"], "products: generation 1 would be removed"),
    ] {
        let told = system.cli(arguments).await;
        assert!(told.contains(tells), "{told}");
    }
    assert_eq!(status(&system, "sales").await["generation"], 2, "a dry run must change nothing");
    system.cli(&["replay", "sales", "--rollback"]).await;
    let sales = status(&system, "sales").await;
    assert_eq!((&sales["generation"], &sales["older_generation"]), (&json!(1), &json!(2)));
    read_models_equal_the_fold(&system).await;
    // A rebuild must not continue a rollback that was killed.
    sql(&system, true, "update checkpoints set state = 'returning' where projection = 'sales' and state = 'old'").await;
    statement(&system, true, "update sales_g2 set quantity = quantity + 1").await;
    system.cli(&["replay", "sales"]).await;
    system.cli(&["verify"]).await;
    system.cli(&["replay", "--all", "--prune"]).await;
    assert!(status(&system, "sales").await["older_generation"].is_null());
    loaded(&system, "third").await;
    read_models_equal_the_fold(&system).await;
    system.cli(&["verify"]).await;
}

/// Returns every dead letter, as `docket dead-letters list --json` prints it.
pub(crate) async fn dead_letters(system: &TestSystem) -> Vec<Value> {
    let output = system.cli(&["dead-letters", "list", "--json"]).await;
    let list: Value = serde_json::from_str(&output).expect("the output is JSON");
    list["items"].as_array().expect("items").clone()
}

/// Inserts an event with this payload as foreign code does: the statement contains no position.
async fn foreign_event(system: &TestSystem, order: &str, sequence: u64, payload: &str) {
    let statement = format!(
        "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
         values ('order', '{order}', {sequence}, 'ItemAdded', '1', '{payload}', '{{}}')"
    );
    sql(system, false, &statement).await;
}

async fn a_poisoned_event_parks_one_order(system: TestSystem) {
    let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00"});
    let body = |id: &str| json!({"order_id": id, "customer_id": "c", "items": [item]});
    system.post("/v1/orders").json(body("sick")).send().await.expect(201);
    system.settled().await;
    let good = r#"{"ItemAdded":{"sku":"ink","quantity":2,"unit_price":300}}"#;
    foreign_event(&system, "sick", 3, &good.replace("2,", r#""two","#)).await;
    foreign_event(&system, "sick", 4, &good.replace("ink", "cup")).await;
    loaded(&system, "healthy").await;
    // A thousand other commands are processed.
    let bulk: String = (0..500)
        .flat_map(|number| {
            let create = json!({"type": "create_order", "order_id": format!("well-{number}"), "customer_id": "c"});
            let add = json!({"type": "add_item", "order_id": format!("well-{number}"), "sku": "a", "quantity": 1, "unit_price": "1.00"});
            [format!("{create}\n"), format!("{add}\n")]
        })
        .collect();
    system.post("/v1/commands").body("application/x-ndjson", bulk).send().await.expect(200);
    let letter = until("the order is parked", async || dead_letters(&system).await.pop()).await;
    assert_eq!((&letter["aggregate_id"], &letter["sequence"]), (&json!("sick"), &json!(3)), "{letter}");
    system.settled().await;
    let health = async || Some(system.get("/health/ready").send().await.expect(200).json());
    let degraded = async || health().await.filter(|health| health["checks"]["dead_letters"]["status"] == "failed");
    let health = until("readiness reports the dead letter", degraded).await;
    assert_eq!(health["status"], "degraded");
    assert_eq!(list_orders(system.reader(), "&q=well-").await.len(), 500);
    let sick = system.get("/v1/orders/sick").send().await.expect(200).json();
    assert_eq!(sick["version"], 2, "the order must be in its state before the event");
    system.cli(&["verify"]).await;
    let position = letter["position"].to_string();
    for arguments in [&["replay", "--all"][..], &["replay", "--all", "--dry-run"]] {
        let refused = system.try_cli(arguments).await;
        assert!(String::from_utf8_lossy(&refused.stderr).contains("parked"), "a rebuild must not skip a parked event");
    }
    // The event is not repaired yet, so the retry parks the order again.
    let again = system.try_cli(&["dead-letters", "retry", &position]).await;
    assert!(String::from_utf8_lossy(&again.stderr).contains("parked again"), "{again:?}");
    let letter = dead_letters(&system).await.pop().expect("the dead letter still exists");
    assert_eq!((&letter["attempts"], &letter["state"]), (&json!(4), &json!("parked")));
    sql(&system, false, &format!("update events set payload = '{good}' where position = {position}")).await;
    system.cli(&["dead-letters", "retry", &position]).await;
    until("the dead letter is gone", async || dead_letters(&system).await.is_empty().then_some(())).await;
    read_models_equal_the_fold(&system).await;
    system.cli(&["verify"]).await;
    // An order that is applied late must not replace the name of a later sale.
    let named = |id: &str, name: &str| {
        let items = json!([{"sku": "mug", "quantity": 1, "unit_price": "2.00", "name": name}]);
        json!({"order_id": id, "customer_id": "c", "items": items})
    };
    system.post("/v1/orders").json(named("early", "old mug")).send().await.expect(201);
    foreign_event(&system, "early", 3, "{}").await;
    foreign_event(&system, "early", 4, r#"{"OrderConfirmed":{"total":200,"currency":"EUR"}}"#).await;
    let letter = until("the order is parked", async || dead_letters(&system).await.pop()).await;
    system.post("/v1/orders").json(named("late", "new mug")).send().await.expect(201);
    system.post("/v1/orders/late/confirm").send().await.expect(200);
    system.settled().await;
    system.cli(&["dead-letters", "discard", &letter["position"].to_string()]).await;
    let top = system.get("/v1/products/top?by=quantity&limit=100").send().await.expect(200).json();
    let mug =
        top.as_array().expect("products").iter().find(|product| product["sku"] == "mug").expect("the product was sold");
    assert_eq!((&mug["name"], &mug["orders"]), (&json!("new mug"), &json!(2)), "{mug}");
    system.cli(&["verify"]).await;
    // An event that cannot be repaired is discarded, and the order continues without it.
    system.post("/v1/orders").json(body("lost")).send().await.expect(201);
    foreign_event(&system, "lost", 3, "{}").await;
    foreign_event(&system, "lost", 4, good).await;
    let letter = until("the order is parked", async || {
        dead_letters(&system).await.into_iter().find(|letter| letter["aggregate_id"] == "lost")
    })
    .await;
    system.cli(&["dead-letters", "discard", &letter["position"].to_string()]).await;
    let lost = until("the order continues", async || {
        let order = system.get("/v1/orders/lost").send().await.expect(200).json();
        (order["version"] == 4).then_some(order)
    })
    .await;
    assert_eq!(lost["total"], "7.00");
    let then = system.get("/v1/orders/lost?as_of=3").send().await.expect(200).json();
    assert_eq!((&then["version"], &then["total"]), (&json!(3), &json!("1.00")), "{then}");
    let history = system.get("/v1/orders/lost/events").send().await.expect(200).json();
    assert_eq!((&history["items"][2]["payload"], history["items"][3]["payload"].is_object()), (&json!(null), true));
    system.cli(&["verify"]).await;
    // Subscribers of the order continue without the event too.
    let path = "/v1/poll?channel=order:lost&wait=10";
    let first = system.get(path).send().await.expect(200).json();
    foreign_event(&system, "lost", 5, good).await;
    let path = format!("{path}&cursor={}", first["cursor"].as_str().expect("a cursor"));
    let next = system.get(&path).send().await.expect(200).json();
    assert_eq!(next["events"][0]["data"]["view"]["total"], "13.00", "{next}");
    // A price that overflows a sum must not stop a projection.
    let dear = good.replace("300", "9100000000000000000");
    foreign_event(&system, "lost", 6, &dear).await;
    system.settled().await;
    system.cli(&["verify"]).await;
    system.cli(&["replay", "--all"]).await;
    let again = system.get("/v1/orders/lost").send().await.expect(200).json();
    assert_eq!((&again["version"], again["lines"].as_array().map(Vec::len)), (&json!(6), Some(2)), "{again}");
    system.cli(&["verify"]).await;
}

/// Events of an order whose creation cannot be read do not form an order.
async fn an_order_whose_creation_is_discarded_does_not_exist(system: TestSystem) {
    system.post("/v1/orders").json(json!({"order_id": "sound", "customer_id": "c"})).send().await.expect(201);
    foreign_event(&system, "phantom", 1, "{}").await;
    foreign_event(&system, "phantom", 2, r#"{"ItemAdded":{"sku":"ink","quantity":2,"unit_price":300}}"#).await;
    let letter = until("the order is parked", async || dead_letters(&system).await.pop()).await;
    system.cli(&["dead-letters", "discard", &letter["position"].to_string()]).await;
    until("the event is discarded", async || {
        let letter = dead_letters(&system).await.pop().expect("the dead letter stays in the list");
        (letter["state"] == "discarded").then_some(())
    })
    .await;
    foreign_event(&system, "phantom", 3, r#"{"OrderConfirmed":{"total":600,"currency":"EUR"}}"#).await;
    system.settled().await;
    let nowhere = async || {
        assert_eq!(list_orders(system.reader(), "").await.into_keys().collect::<Vec<_>>(), ["sound"]);
        for path in ["", "?as_of=3", "/events"] {
            system.get(&format!("/v1/orders/phantom{path}")).send().await.expect(404);
        }
        let sales = system.get("/v1/reports/sales?by=day").send().await.expect(200).json();
        assert_eq!(sales, json!([]));
        system.cli(&["verify"]).await;
    };
    nowhere().await;
    system.cli(&["replay", "--all"]).await;
    nowhere().await;
    // A readable creation that follows later is applied.
    let created = r#"{"OrderCreated":{"customer_id":"late","currency":"EUR","attributes":{}}}"#;
    foreign_event(&system, "phantom", 4, created).await;
    system.settled().await;
    let order = system.get("/v1/orders/phantom").send().await.expect(200).json();
    assert_eq!((&order["customer_id"], &order["version"]), (&json!("late"), &json!(4)), "{order}");
    let year = order["placed_at"].as_str().and_then(|at| at[..4].parse::<i32>().ok());
    assert!(year > Some(2020), "the order must be placed at its creation: {order}");
    let customer = system.get("/v1/customers/late").send().await.expect(200).json();
    assert_eq!(customer["orders"], 1, "{customer}");
    system.cli(&["verify"]).await;
}

/// A decision about a dead letter applies to the generations of an older and of a newer release too.
async fn a_dead_letter_does_not_stop_a_release(mut system: TestSystem) {
    for (name, version, of) in [("one", 99, " and projection = 'sales'"), ("all", 0, "")] {
        let order = json!({"order_id": name, "customer_id": "c"});
        system.post("/v1/orders").json(order).send().await.expect(201);
        system.settled().await;
        foreign_event(&system, name, 2, "{}").await;
        foreign_event(&system, name, 3, r#"{"ItemAdded":{"sku":"ink","quantity":2,"unit_price":300}}"#).await;
        let letter = until("the order is parked", async || {
            dead_letters(&system).await.into_iter().find(|letter| letter["aggregate_id"] == name)
        })
        .await;
        loaded(&system, name).await;
        system.settled().await;
        system.terminate().await;
        let other = format!("update checkpoints set version = {version} where state = 'live'{of}");
        statement(&system, true, &other).await;
        system.start().await;
        let discard = ["dead-letters", "discard", &letter["position"].to_string()];
        system.cli(&discard).await;
        until("this release's projection versions serve", async || {
            let answer = system.get("/v1/projections").send().await.expect(200).json();
            let items = answer["items"].as_array().expect("items").clone();
            let own = |item: &Value| item["version"].as_i64().is_some_and(|version| (1..99).contains(&version));
            items.iter().all(|item| item["state"] == "live" && own(item)).then_some(())
        })
        .await;
        let order = system.get(&format!("/v1/orders/{name}")).send().await.expect(200).json();
        assert_eq!((&order["version"], &order["total"]), (&json!(3), &json!("6.00")));
        system.settled().await;
        system.cli(&["verify"]).await;
    }
}

/// The version of a generation distinguishes what an older and a newer release left in the database.
async fn two_releases_do_not_overwrite_each_other(mut system: TestSystem) {
    let version =
        |version| format!("update checkpoints set version = {version} where projection = 'sales' and state = 'live'");
    loaded(&system, "older").await;
    system.settled().await;
    system.terminate().await;
    sql(&system, true, &version(0)).await;
    system.start().await;
    until("the newer version serves", async || {
        let sales = status(&system, "sales").await;
        (sales["version"] == 1 && sales["generation"] == 2).then_some(())
    })
    .await;
    loaded(&system, "newer").await;
    read_models_equal_the_fold(&system).await;
    system.cli(&["verify"]).await;

    system.terminate().await;
    sql(&system, true, &version(99)).await;
    system.start().await;
    let before = status(&system, "sales").await["position"].as_u64();
    let path = "/v1/poll?channel=orders&wait=10";
    let first = system.get(path).send().await.expect(200).json();
    system.post("/v1/orders").json(json!({"order_id": "later", "customer_id": "c"})).send().await.expect(201);
    until("the other projections continue", async || {
        let list = system.get("/v1/orders?q=later").send().await.expect(200).json();
        (list["items"].as_array().map(Vec::len) == Some(1)).then_some(())
    })
    .await;
    assert_eq!(status(&system, "sales").await["position"].as_u64(), before, "only the newer release may move it");
    assert_eq!(status(&system, "sales").await["state"], "frozen");
    system.get("/v1/reports/sales?by=day").send().await.expect(200);
    let path = format!("{path}&cursor={}", first["cursor"].as_str().expect("a cursor"));
    let live = system.get(&path).send().await.expect(200).json();
    assert_eq!(
        live["events"][0]["data"]["order_id"], "later",
        "live updates must not wait for the frozen projection: {live}"
    );
    until("the report's snapshot is refused because it is too old", async || {
        let behind = system.get("/v1/poll?channel=reports:sales&wait=0").send().await;
        let slug = behind.json()["type"].as_str().map(str::to_owned);
        slug.is_some_and(|slug| slug.ends_with("projection-behind")).then_some(())
    })
    .await;
    let refused = system.try_cli(&["replay", "sales"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("use the newer program"));
}

async fn a_new_projection_is_built_while_the_others_serve(mut system: TestSystem) {
    loaded(&system, "before").await;
    system.settled().await;
    system.terminate().await;
    let unknown = "drop view sales; drop table sales_g1; delete from checkpoints where projection = 'sales'";
    statement(&system, true, unknown).await;
    system.start().await;
    until("the projection is built", async || {
        let sales = status(&system, "sales").await;
        // The first generation was the empty one that served in the meantime.
        (sales["state"] == "live" && sales["generation"] == 2).then_some(())
    })
    .await;
    // The process that answers queries learns of the switch a moment later.
    until("the report is answered", async || {
        (system.get("/v1/reports/sales?by=day").send().await.status == 200).then_some(())
    })
    .await;
    read_models_equal_the_fold(&system).await;
    system.cli(&["verify"]).await;
}

/// A log that was restored to an older state and has grown since: the positions exist, but the events are others.
async fn events_of_another_log_are_not_projected(mut system: TestSystem) {
    loaded(&system, "lost").await;
    system.settled().await;
    let position = status(&system, "sales").await["position"].as_i64().expect("a position");
    let first = system.get("/v1/poll?channel=orders&wait=0").send().await.expect(200).json();
    let cursor = first["cursor"].as_str().expect("a cursor").to_owned();
    system.terminate().await;
    system.cli(&["events", "restored"]).await;
    let other = format!("update events set metadata = '{{\"event_id\":\"another\"}}' where position = {position}");
    sql(&system, false, &other).await;
    system.start().await;
    system.post("/v1/orders").json(json!({"order_id": "grown", "customer_id": "c"})).send().await.expect(201);
    let failed = until("the other log is noticed", async || {
        let sales = status(&system, "sales").await;
        (sales["state"] == "failed").then_some(sales)
    })
    .await;
    assert!(failed["last_error"].as_str().is_some_and(|error| error.contains("another log")), "{failed}");
    assert_eq!(failed["position"], position, "no event may be applied to rows of another log");
    let refused = system.try_cli(&["verify"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another log"));
    system.cli(&["replay", "--all"]).await;
    system.settled().await;
    read_models_equal_the_fold(&system).await;
    system.cli(&["verify"]).await;
    let resumed =
        system.get(&format!("/v1/poll?channel=orders&wait=0&cursor={cursor}")).send().await.expect(200).json();
    assert_eq!(resumed["events"][0]["event"], "reset", "a subscriber must be reset: {resumed}");
}

/// After a restore, decisions about events that the log lost are removed, and events that are parked in the restored
/// log can be decided.
async fn dead_letters_do_not_outlive_their_log(mut system: TestSystem) {
    let order = async |system: &TestSystem, id: &str| {
        let body = json!({"order_id": id, "customer_id": "c"});
        system.post("/v1/orders").json(body).send().await.expect(201).position()
    };
    let parked = async |system: &TestSystem, order: &str| {
        let letter = until("the order is parked", async || {
            dead_letters(system).await.into_iter().find(|letter| letter["aggregate_id"] == order)
        });
        letter.await["position"].as_i64().expect("a position")
    };
    for name in ["stays", "goes"] {
        order(&system, name).await;
        system.settled().await;
        foreign_event(&system, name, 2, "{}").await;
        parked(&system, name).await;
    }
    let (stays, goes) = (parked(&system, "stays").await, parked(&system, "goes").await);
    system.cli(&["dead-letters", "discard", &goes.to_string()]).await;
    order(&system, "lost").await;
    system.settled().await;
    system.terminate().await;
    // Restores the state before the discarded event.
    statement(&system, false, &format!("delete from events where position >= {goes}")).await;
    sql(&system, false, &format!("update log_head set position = {}", goes - 1)).await;
    system.cli(&["events", "restored"]).await;
    if let Some(nats) = &system.nats {
        let jetstream = nats.jetstream().await;
        assert!(
            jetstream.get_stream(nats.stream()).await.is_err(),
            "the stream contained events that the log does not have"
        );
        // A stream of another incarnation may belong to another store.
        let (name, subjects) = (nats.stream().to_owned(), vec![format!("{}.events.>", nats.stream())]);
        let other = stream::Config { name, subjects, ..Default::default() };
        jetstream.create_stream(other).await.expect("the stream is created");
        let refused = system.try_cli(&["events", "restored"]).await;
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--delete-stream"), "{refused:?}");
        system.cli(&["events", "restored", "--delete-stream"]).await;
        assert!(jetstream.get_stream(nats.stream()).await.is_err(), "the option deletes the stream");
    }
    system.start().await;
    until("the other log is noticed", async || (status(&system, "sales").await["state"] == "failed").then_some(()))
        .await;
    let refused = system.try_cli(&["replay", "--all"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("parked"));
    system.cli(&["dead-letters", "discard", &stays.to_string()]).await;
    system.cli(&["replay", "--all"]).await;
    assert_eq!(order(&system, "new").await as i64, goes, "the new event must get the position of the discarded one");
    system.settled().await;
    let new = system.get("/v1/orders/new").send().await.expect(200).json();
    assert_eq!((&new["status"], &new["version"]), (&json!("draft"), &json!(1)), "{new}");
    let letters = dead_letters(&system).await;
    assert_eq!((letters.len(), &letters[0]["position"]), (1, &json!(stays)), "{letters:?}");
    system.cli(&["verify"]).await;
}

/// A log moves between embedded and scaled mode and back. If `DOCKET_ORDERS` names a file, its orders are imported too.
async fn a_log_moves(from: Mode, to: Mode) {
    let mut source = TestSystem::builder(from).start().await;
    loaded(&source, "moved").await;
    let orders = std::env::var_os("DOCKET_ORDERS");
    if let Some(orders) = &orders {
        source.import(orders.as_ref()).await;
    }
    let head = source.settled().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("log.ndjson.gz");
    let file = file.to_str().expect("UTF-8");
    source.cli(&["events", "export", "--output", file]).await;
    let mut target = TestSystem::builder(to).stopped().await;
    target.cli(&["events", "import", file]).await;
    target.cli(&["events", "import", file]).await;
    target.start().await;
    assert_eq!(target.settled().await, head);
    let moved = rows(&target).await;
    assert_eq!(moved, rows(&source).await);
    println!("{head} events were moved, {} rows and reports are equal", moved.len());
    let events = async |system: &TestSystem| {
        system.get("/v1/events?limit=1000").send().await.expect(200).json()["items"].clone()
    };
    assert_eq!(events(&target).await, events(&source).await);
    if orders.is_none() {
        read_models_equal_the_fold(&target).await;
    }
    target.post("/v1/orders").json(json!({"customer_id": "new"})).send().await.expect(201);
    target.settled().await;
    target.terminate().await;
    source.terminate().await;
    let refused = source.try_cli(&["events", "import", file]).await;
    assert!(refused.status.success(), "the same log may be imported again");
    target.cli(&["events", "export", "--output", file]).await;
    let mut other = TestSystem::builder(to).start().await;
    other.post("/v1/orders").json(json!({"customer_id": "other"})).send().await.expect(201);
    other.terminate().await;
    let refused = other.try_cli(&["events", "import", file]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Import into an empty store"));
}

/// SQLite stores any text in the payload column.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_is_not_json_is_exported_too() {
    let mut source = TestSystem::builder(Mode::Embedded).start().await;
    source.post("/v1/orders").json(json!({"order_id": "odd", "customer_id": "c"})).send().await.expect(201);
    foreign_event(&source, "odd", 2, "{\"not\n json").await;
    let letter = until("the order is parked", async || dead_letters(&source).await.pop()).await;
    let position = letter["position"].to_string();
    let shown: Value =
        serde_json::from_str(&source.cli(&["dead-letters", "show", &position]).await).expect("the output is JSON");
    assert_eq!(shown["waiting"][0]["data"]["payload_text"], "{\"not\n json", "{shown}");
    let tail = source.cli(&["events", "tail"]).await;
    source.cli(&["dead-letters", "discard", &position]).await;
    source.terminate().await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    source.cli(&["events", "export", "--output", &file("one")]).await;
    let target = TestSystem::builder(Mode::Embedded).stopped().await;
    target.cli(&["events", "import", &file("one")]).await;
    let (one, again) = (std::fs::read_to_string(file("one")), target.cli(&["events", "export"]).await);
    assert_eq!((one.as_deref().expect("a text file"), &tail), (&*again, &again));
    // Events with the same ids but other content.
    std::fs::write(file("edited"), again.replace("\"c\"", "\"d\"")).expect("the file is written");
    for (name, told) in [("edited", "Import into an empty store"), ("nothing", "contains no events"), ("csv", "line 1")]
    {
        match name {
            "nothing" => std::fs::write(file(name), "").expect("the file is written"),
            "csv" => std::fs::write(file(name), "order,sku\n").expect("the file is written"),
            _ => {}
        }
        let refused = target.try_cli(&["events", "import", &file(name)]).await;
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && stderr.contains(told), "{name}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_moves_from_embedded_to_scaled() {
    a_log_moves(Mode::Embedded, Mode::Scaled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_moves_from_scaled_to_embedded() {
    a_log_moves(Mode::Scaled, Mode::Embedded).await;
}
