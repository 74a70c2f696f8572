//! A module from outside the repository next to the built-in ones: it shares nothing with them, and its failures do not
//! affect them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::token;
use tests::system::{Builder, Mode, TestSystem};
use tests::wait::until;

use crate::replay::{dead_letters, statement};

tests::stories![
    settings = with_toy;
    aggregates_of_two_types_are_independent,
    events_of_an_unbounded_stream_are_folded_one_by_one,
    a_panic_in_a_fold_parks_its_own_group_only,
    a_stream_is_parked_at_the_event_that_fails,
    an_id_that_no_aggregate_can_have_is_refused,
    a_refused_row_parks_its_own_group_only,
    an_event_that_does_not_decode_parks_its_stream_for_every_group,
    the_stream_at_fault_is_parked_and_not_one_with_the_same_id,
    decisions_in_two_groups_write_nothing_twice,
    an_aggregate_that_panics_stops_its_own_stream_only,
    a_slow_fold_delays_no_other_module,
    one_cursor_resumes_two_groups,
    a_panic_in_a_channel_returns_500_and_affects_nothing_else,
    data_of_a_removed_module_is_listed_and_pruned,
    a_restored_log_acts_outside_only_after_a_release
];

fn with_toy(builder: Builder) -> Builder {
    builder.program("docket-toy")
}

async fn order(system: &TestSystem, id: &str) {
    let items = json!([{"sku": "pen", "quantity": 1, "unit_price": "1.00"}]);
    let body = json!({"order_id": id, "customer_id": "ada", "items": items});
    system.post("/v1/orders").json(body).send().await.expect(201);
}

async fn counter(system: &TestSystem, id: &str) {
    system.post("/v1/counters").json(json!({"counter_id": id})).send().await.expect(201);
}

async fn count(system: &TestSystem, id: &str, by: i64, note: &str) -> i64 {
    let path = format!("/v1/counters/{id}/count");
    let answer = system.post(&path).json(json!({"by": by, "note": note})).send().await.expect(200);
    answer.json()["version"].as_i64().expect("a version")
}

async fn counted(system: &TestSystem, id: &str) -> Value {
    system.get(&format!("/v1/counters/{id}")).send().await.expect(200).json()
}

/// Waits until a counter is projected up to a version, and returns it.
async fn counted_at(system: &TestSystem, id: &str, version: i64) -> Value {
    until("the counter is projected", async || {
        let answer = system.get(&format!("/v1/counters/{id}")).send().await;
        (answer.status == 200 && answer.json()["version"] == version).then(|| answer.json())
    })
    .await
}

async fn letter(system: &TestSystem) -> Value {
    until("a stream is parked", async || dead_letters(system).await.pop()).await
}

async fn aggregates_of_two_types_are_independent(mut system: TestSystem) {
    order(&system, "17").await;
    counter(&system, "17").await;
    counter(&system, "18").await;
    order(&system, "18").await;
    assert_eq!(count(&system, "17", 5, "").await, 2);
    let item = json!({"sku": "ink", "quantity": 1, "unit_price": "2.00"});
    let added = system.post("/v1/orders/17/items").json(item.clone()).send().await.expect(200);
    assert_eq!(added.version(), 3, "each stream has its own versions");
    // The same key for another aggregate is another request, so the key counts as reused.
    system.post("/v1/counters/17/count").key("one").json(json!({"by": 1})).send().await.expect(200);
    let reused = system.post("/v1/orders/17/items").key("one").json(item).send().await;
    reused.expect_problem(422, "idempotency-key-reused");
    let replayed = system.post("/v1/counters/17/count").key("one").json(json!({"by": 1})).send().await.expect(200);
    assert_eq!(replayed.json()["counter_id"], "17");
    // Bulk commands work too.
    let lines = [
        json!({"type": "count", "counter_id": "17", "by": 10}),
        json!({"type": "add_item", "order_id": "17", "sku": "cup", "quantity": 1, "unit_price": "3.00"}),
        json!({"type": "nothing", "order_id": "17"}),
    ];
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let answer = system.post("/v1/commands").body("application/x-ndjson", body).send().await.expect(200);
    let results: Vec<Value> = String::from_utf8_lossy(&answer.body)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a result is JSON"))
        .collect();
    assert_eq!((&results[0]["counter_id"], &results[1]["order_id"]), (&json!("17"), &json!("17")));
    let known = results[2]["problem"]["detail"].as_str().expect("the problem has a detail");
    assert!(known.contains("create_order") && known.contains("create_counter"), "{known}");
    // Other customers cannot see a counter.
    let stranger = token("eve", "customer");
    system.settled().await;
    system.get("/v1/counters/17").token(&stranger).send().await.expect_problem(404, "counter-not-found");
    let path = "/v1/counters/17/count";
    system.post(path).token(&stranger).json(json!({"by": 1})).send().await.expect_problem(404, "counter-not-found");
    assert_eq!(counted(&system, "17").await["sum"], 16);
    assert_eq!(system.get("/v1/orders/17").send().await.expect(200).json()["total"], "6.00");
    // The state survives a crash and a rebuild.
    system.kill9();
    system.restart().await;
    assert_eq!(count(&system, "17", 4, "").await, 5);
    system.settled().await;
    system.cli(&["replay", "--all"]).await;
    system.cli(&["verify"]).await;
    assert_eq!(counted(&system, "17").await["sum"], 20);
    let modules = system.get("/v1/modules").send().await.expect(200).json();
    let toy = modules["items"].as_array().expect("items").iter().find(|module| module["name"] == "toy");
    assert_eq!(toy.expect("the module")["aggregates"], json!(["counter", "meter"]));
}

async fn events_of_an_unbounded_stream_are_folded_one_by_one(system: TestSystem) {
    for value in [3, 9, 4] {
        system.post("/v1/meters/m-1/readings").json(json!({"value": value})).send().await.expect(200);
    }
    system.settled().await;
    let shown = system.get("/v1/meters/m-1").send().await.expect(200).json();
    assert_eq!(shown, json!({"meter_id": "m-1", "value": 4, "readings": 3}));
    system.cli(&["replay", "toy_meters"]).await;
    system.cli(&["verify", "toy_meters"]).await;
    // An event that cannot be decoded is skipped once it is discarded; the events after it are not skipped.
    let unreadable =
        "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
                      values ('meter', 'm-1', 4, 'MeterRead', '1', '{\"MeterRead\":{}}', '{}')";
    assert_eq!(statement(&system, false, unreadable).await, 1);
    let letter = letter(&system).await;
    assert_eq!((&letter["group"], &letter["aggregate_type"]), (&json!(null), &json!("meter")));
    system.post("/v1/meters/m-2/readings").json(json!({"value": 1})).send().await.expect(200);
    system.cli(&["dead-letters", "discard", &letter["position"].to_string()]).await;
    system.settled().await;
    system.cli(&["replay", "--all"]).await;
    system.cli(&["verify"]).await;
    assert_eq!(system.get("/v1/meters/m-1").send().await.expect(200).json()["value"], 4);
}

async fn a_panic_in_a_fold_parks_its_own_group_only(mut system: TestSystem) {
    counter(&system, "calm").await;
    counter(&system, "wild").await;
    system.settled().await;
    count(&system, "wild", 1, "panic").await;
    count(&system, "wild", 1, "panic").await;
    assert_eq!(count(&system, "calm", 1, "").await, 2);
    order(&system, "o-1").await;
    let letter = letter(&system).await;
    assert_eq!((&letter["group"], &letter["aggregate_id"]), (&json!("toy"), &json!("wild")), "{letter}");
    system.settled().await;
    assert_eq!(counted_at(&system, "calm", 2).await["sum"], 1);
    assert_eq!(counted(&system, "wild").await["version"], 1, "the counter must be in its state before the event");
    system.get("/v1/orders/o-1").send().await.expect(200);
    // The core group can be rebuilt. The module's group cannot, until an operator resolves the dead letter.
    system.cli(&["replay", "order_details", "sales"]).await;
    let refused = system.try_cli(&["replay", "toy_counters"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("counter/wild is parked"), "{refused:?}");
    system.cli(&["verify"]).await;
    let position = letter["position"].to_string();
    let again = system.try_cli(&["dead-letters", "retry", &position]).await;
    assert!(String::from_utf8_lossy(&again.stderr).contains("parked again"), "{again:?}");
    // Simulates a new release that does not panic.
    system.set("DOCKET_TOY_PANICS", "false");
    system.restart().await;
    system.cli(&["dead-letters", "retry", &position]).await;
    assert_eq!(counted_at(&system, "wild", 3).await["sum"], 2);
    assert_eq!(dead_letters(&system).await, Vec::<Value>::new());
    system.cli(&["replay", "--all"]).await;
    system.cli(&["verify"]).await;
}

async fn a_stream_is_parked_at_the_event_that_fails(system: TestSystem) {
    for id in ["one", "two", "calm"] {
        counter(&system, id).await;
    }
    system.settled().await;
    // All events are in one batch.
    let counted = |id: &str, sequence: i64, note: &str| {
        format!(
            "('counter', '{id}', {sequence}, 'ItemAdded', '1', '{{\"ItemAdded\":{{\"by\":1,\"note\":\"{note}\"}}}}', '{{}}')"
        )
    };
    let events =
        [counted("one", 2, "fine"), counted("two", 2, "panic"), counted("one", 3, "panic"), counted("calm", 2, "fine")];
    let insert = format!(
        "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
         values {}",
        events.join(", ")
    );
    assert_eq!(statement(&system, false, &insert).await, 4);
    let mut letters = until("both streams are parked", async || {
        let letters = dead_letters(&system).await;
        (letters.len() == 2).then_some(letters)
    })
    .await;
    letters.sort_by_key(|letter| letter["position"].as_i64());
    let parked: Vec<_> = letters.iter().map(|letter| (&letter["aggregate_id"], &letter["sequence"])).collect();
    assert_eq!(parked, [(&json!("two"), &json!(2)), (&json!("one"), &json!(3))]);
    system.settled().await;
    assert_eq!(counted_at(&system, "one", 2).await["sum"], 1);
    assert_eq!(counted_at(&system, "calm", 2).await["sum"], 1);
    // Only the one event is skipped.
    let discarded = letters[1]["position"].to_string();
    system.cli(&["dead-letters", "discard", &discarded]).await;
    count(&system, "one", 1, "").await;
    assert_eq!(counted_at(&system, "one", 4).await["sum"], 2);
    system.cli(&["verify"]).await;
}

async fn an_id_that_no_aggregate_can_have_is_refused(system: TestSystem) {
    let create = async |id: String| {
        let answer = system.post("/v1/counters").json(json!({"counter_id": id})).send().await;
        (answer.status, answer.json()["type"].clone())
    };
    // One database refuses the long ids, together with everything in the same transaction.
    let bad = ["", " bad id", "..", "e\u{301}"]
        .map(str::to_owned)
        .into_iter()
        .chain(std::iter::repeat_n("x".repeat(6_000), 5));
    let good = (0..20).map(|number| format!("good-{number}"));
    let answers =
        futures::future::join(futures::future::join_all(bad.map(create)), futures::future::join_all(good.map(create)));
    let (refused, created) = answers.await;
    for (status, kind) in refused {
        assert_eq!((status, kind.as_str()), (422, Some("/problems/invalid-id")));
    }
    assert!(created.iter().all(|(status, _)| *status == 201), "{created:?}");
}

async fn a_refused_row_parks_its_own_group_only(system: TestSystem) {
    counter(&system, "large").await;
    counter(&system, "small").await;
    system.settled().await;
    let refuses = match system.mode {
        Mode::Embedded => {
            "create trigger toy_limit before update on toy_counters_g1 when new.sum > 100
             begin select raise(abort, 'too large'); end"
        }
        Mode::Scaled => "alter table toy_counters_g1 add constraint toy_limit check (sum <= 100)",
    };
    statement(&system, true, refuses).await;
    count(&system, "large", 1_000, "").await;
    assert_eq!(count(&system, "small", 1, "").await, 2);
    order(&system, "o-1").await;
    let letter = letter(&system).await;
    assert_eq!((&letter["group"], &letter["aggregate_id"]), (&json!("toy"), &json!("large")), "{letter}");
    system.settled().await;
    assert_eq!(counted_at(&system, "small", 2).await["sum"], 1);
    system.cli(&["replay", "order_details"]).await;
    let position = letter["position"].to_string();
    system.cli(&["dead-letters", "discard", &position]).await;
    system.settled().await;
    assert_eq!(counted(&system, "large").await["sum"], 0, "the counter must continue without the event");
    // The event is discarded for the module's group only.
    let letters = dead_letters(&system).await;
    assert_eq!((&letters[0]["group"], &letters[0]["state"]), (&json!("toy"), &json!("discarded")), "{letters:?}");
    system.cli(&["replay", "--all"]).await;
    system.cli(&["verify"]).await;
}

async fn an_event_that_does_not_decode_parks_its_stream_for_every_group(system: TestSystem) {
    counter(&system, "17").await;
    order(&system, "17").await;
    system.settled().await;
    // An event of an order in the stream of a counter.
    let foreign = "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
                   values ('counter', '17', 2, 'ItemAdded', '2',
                           '{\"ItemAdded\":{\"sku\":\"ink\",\"quantity\":1,\"unit_price\":100,\"name\":null,\"category\":null}}', '{}')";
    assert_eq!(statement(&system, false, foreign).await, 1);
    let letter = letter(&system).await;
    assert_eq!((&letter["group"], &letter["aggregate_type"]), (&json!(null), &json!("counter")), "{letter}");
    let item = json!({"sku": "cup", "quantity": 1, "unit_price": "3.00"});
    system.post("/v1/orders/17/items").json(item).send().await.expect(200);
    system.settled().await;
    assert_eq!(
        system.get("/v1/orders/17").send().await.expect(200).json()["total"],
        "4.00",
        "the order must not be affected"
    );
    system.cli(&["dead-letters", "discard", &letter["position"].to_string()]).await;
    // A command cannot decode the event either: it needs all events of the stream.
    system.post("/v1/counters/17/count").json(json!({"by": 1})).send().await.expect(500);
    system.cli(&["replay", "--all"]).await;
    system.cli(&["verify"]).await;
}

async fn the_stream_at_fault_is_parked_and_not_one_with_the_same_id(system: TestSystem) {
    counter(&system, "17").await;
    system.settled().await;
    // Both are in one batch, so that the valid stream comes first.
    let lines: String =
        (0..20).map(|_| format!("{}\n", json!({"type": "count", "counter_id": "17", "by": 1}))).collect();
    let bulk = system.post("/v1/commands").body("application/x-ndjson", lines).send();
    let reading = system.post("/v1/meters/17/readings").json(json!({"value": -1})).send();
    let (bulk, reading) = futures::future::join(bulk, reading).await;
    bulk.expect(200);
    reading.expect(200);
    let letter = letter(&system).await;
    let parked = (&letter["group"], &letter["aggregate_type"], &letter["aggregate_id"]);
    assert_eq!(parked, (&json!("toy"), &json!("meter"), &json!("17")), "{letter}");
    assert_eq!(counted_at(&system, "17", 21).await["sum"], 20);
    system.cli(&["dead-letters", "discard", &letter["position"].to_string()]).await;
    system.settled().await;
    system.cli(&["verify"]).await;
}

async fn decisions_in_two_groups_write_nothing_twice(mut system: TestSystem) {
    counter(&system, "c").await;
    count(&system, "c", 1, "").await;
    system.settled().await;
    // The stream is parked in one group at this event; the other group continues.
    count(&system, "c", 10, "panic").await;
    let first = letter(&system).await;
    assert_eq!(first["group"], "toy", "{first}");
    count(&system, "c", 100, "panic").await;
    system.settled().await;
    // The stream is parked at a later event too, which no group can decode.
    let broken =
        "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
                  values ('counter', 'c', 5, 'ItemAdded', '1', '{\"ItemAdded\":{}}', '{}')";
    assert_eq!(statement(&system, false, broken).await, 1);
    let after =
        "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
                 values ('counter', 'c', 6, 'ItemAdded', '1', '{\"ItemAdded\":{\"by\":1000,\"note\":\"\"}}', '{}')";
    assert_eq!(statement(&system, false, after).await, 1);
    let second = until("the stream is parked at a second event", async || {
        dead_letters(&system).await.into_iter().find(|letter| letter["sequence"] == 5)
    })
    .await;
    system.settled().await;
    system.cli(&["verify"]).await;
    // The decision about the later event comes first.
    system.try_cli(&["dead-letters", "discard", &second["position"].to_string()]).await;
    system.cli(&["verify"]).await;
    system.set("DOCKET_TOY_PANICS", "false");
    system.restart().await;
    system.try_cli(&["dead-letters", "retry", &first["position"].to_string()]).await;
    assert_eq!(counted_at(&system, "c", 6).await["sum"], 1_111);
    until("every decision is carried out", async || {
        dead_letters(&system).await.iter().all(|letter| letter["state"] == "discarded").then_some(())
    })
    .await;
    system.cli(&["verify"]).await;
    system.cli(&["replay", "--all"]).await;
    system.cli(&["verify"]).await;
}

async fn an_aggregate_that_panics_stops_its_own_stream_only(system: TestSystem) {
    counter(&system, "bad").await;
    counter(&system, "good").await;
    system.settled().await;
    let cursor = |answer: &Value| answer["cursor"].as_str().expect("a cursor").to_owned();
    let path = "/v1/poll?channel=counter:good&channel=counter:bad";
    let mut at = cursor(&system.get(path).send().await.expect(200).json());
    let event = "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
                 values ('counter', 'bad', 2, 'ItemAdded', '1', '{\"ItemAdded\":{\"by\":1,\"note\":\"panic in evolve\"}}', '{}')";
    assert_eq!(statement(&system, false, event).await, 1);
    let letter = letter(&system).await;
    assert_eq!((&letter["group"], &letter["aggregate_id"]), (&json!(null), &json!("bad")), "{letter}");
    // A new subscription to a stream whose events panic does not stop the feed of other channels.
    for number in 1..4 {
        let later = format!(
            "insert into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata)
             values ('counter', 'bad', {}, 'ItemAdded', '1', '{{\"ItemAdded\":{{\"by\":1,\"note\":\"\"}}}}', '{{}}')",
            number + 2
        );
        let listening = async {
            let path = format!("{path}&wait=3&cursor={at}");
            system.get(&path).send().await
        };
        let working = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(statement(&system, false, &later).await, 1);
            count(&system, "good", 1, "").await
        };
        let (answer, _) = futures::future::join(listening, working).await;
        if answer.status == 200 {
            at = cursor(&answer.json());
        }
    }
    assert_eq!(counted_at(&system, "good", 4).await["sum"], 3);
    let path = "/v1/poll?channel=counter:good";
    let at = cursor(&system.get(path).send().await.expect(200).json());
    count(&system, "good", 1, "").await;
    let path = format!("{path}&wait=10&cursor={at}");
    let answer = system.get(&path).send().await.expect(200).json();
    assert_eq!(answer["events"][0]["data"]["version"], 5, "the feed must continue: {answer}");
}

async fn a_slow_fold_delays_no_other_module(system: TestSystem) {
    counter(&system, "slow").await;
    system.settled().await;
    count(&system, "slow", 1, "sleep 5000").await;
    let started = Instant::now();
    let mut longest = Duration::ZERO;
    for number in 0..20 {
        let body = json!({"order_id": format!("quick-{number}"), "customer_id": "ada"});
        let position = system.post("/v1/orders").json(body).send().await.expect(201).position();
        let asked = Instant::now();
        let path = format!("/v1/orders/quick-{number}?min_position={position}&wait_ms=10000");
        system.get(&path).send().await.expect(200);
        longest = longest.max(asked.elapsed());
    }
    assert!(started.elapsed() < Duration::from_secs(5), "the orders must not wait for the sleeping fold");
    assert!(longest < Duration::from_secs(1), "an order waited {longest:?} for the fold of a counter");
    assert_eq!(counted_at(&system, "slow", 2).await["sum"], 1);
}

/// Polls two channels of two groups until `changes` changes have arrived. Returns the channel and position of each, and
/// the last cursor.
async fn polled(system: &TestSystem, cursor: &str, changes: usize) -> (Vec<(String, u64)>, String) {
    let (mut found, mut cursor) = (Vec::new(), cursor.to_owned());
    let started = Instant::now();
    while found.len() < changes {
        assert!(started.elapsed() < Duration::from_secs(20), "received only {found:?}, expected {changes} changes");
        let path = format!("/v1/poll?channel=order:17&channel=counter:17&wait=2&cursor={cursor}");
        let answer = system.get(&path).send().await.expect(200).json();
        for event in answer["events"].as_array().expect("events") {
            assert_eq!(event["event"], "pub", "unexpected event: {event}");
            let channel = event["channel"].as_str().expect("a channel").to_owned();
            found.push((channel, event["data"]["position"].as_u64().expect("a position")));
        }
        cursor = answer["cursor"].as_str().expect("a cursor").to_owned();
    }
    (found, cursor)
}

async fn one_cursor_resumes_two_groups(mut system: TestSystem) {
    order(&system, "17").await;
    counter(&system, "17").await;
    system.settled().await;
    let first = system.get("/v1/poll?channel=order:17&channel=counter:17").send().await.expect(200).json();
    let begin = first["cursor"].as_str().expect("a cursor").to_owned();
    assert!(begin.contains("core=") && begin.contains("toy="), "{begin}");
    let item = |sku: &str| json!({"sku": sku, "quantity": 1, "unit_price": "2.00"});
    let mut expected = Vec::new();
    for number in 0..3 {
        let added = system.post("/v1/orders/17/items").json(item(&format!("i-{number}"))).send().await.expect(200);
        expected.push(("order:17".to_owned(), added.position()));
        let path = "/v1/counters/17/count";
        let counted = system.post(path).json(json!({"by": 1})).send().await.expect(200);
        expected.push(("counter:17".to_owned(), counted.position()));
    }
    let sorted = |mut changes: Vec<(String, u64)>| {
        changes.sort_by_key(|(_, position)| *position);
        changes
    };
    let (found, cursor) = polled(&system, &begin, 6).await;
    assert_eq!(sorted(found), expected);
    // One group is blocked and the other one continues. Nothing is lost when the blocked group resumes.
    let slept =
        system.post("/v1/counters/17/count").json(json!({"by": 1, "note": "sleep 4000"})).send().await.expect(200);
    let added = system.post("/v1/orders/17/items").json(item("meanwhile")).send().await.expect(200);
    let started = Instant::now();
    let (found, cursor) = polled(&system, &cursor, 1).await;
    assert_eq!(found, [("order:17".to_owned(), added.position())]);
    assert!(started.elapsed() < Duration::from_secs(3), "the order waited for the counter");
    let (found, _) = polled(&system, &cursor, 1).await;
    assert_eq!(found, [("counter:17".to_owned(), slept.position())]);
    // A cursor from before a crash is still valid.
    system.kill9();
    system.restart().await;
    expected.extend([("counter:17".to_owned(), slept.position()), ("order:17".to_owned(), added.position())]);
    let (found, _) = polled(&system, &begin, 8).await;
    assert_eq!(sorted(found), expected);
    // A cursor that contains only the group of another channel does not cover this channel, so it begins with a
    // snapshot.
    let only = system.get("/v1/poll?channel=order:17").send().await.expect(200).json();
    let path = format!("/v1/poll?channel=counter:17&cursor={}", only["cursor"].as_str().expect("a cursor"));
    let answer = system.get(&path).send().await.expect(200).json();
    assert!(answer["events"].as_array().expect("events").iter().any(|event| event["event"] == "snapshot"), "{answer}");
}

async fn a_panic_in_a_channel_returns_500_and_affects_nothing_else(system: TestSystem) {
    counter(&system, "panic-snapshot").await;
    order(&system, "17").await;
    system.settled().await;
    for id in ["panic", "panic-snapshot"] {
        system.get(&format!("/v1/poll?channel=counter:{id}")).send().await.expect(500);
        system.get("/v1/poll?channel=order:17").send().await.expect(200);
    }
}

async fn data_of_a_removed_module_is_listed_and_pruned(mut system: TestSystem) {
    counter(&system, "17").await;
    order(&system, "17").await;
    system.settled().await;
    let refused = system.try_cli(&["modules", "--prune", "toy"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("This program has the module toy"), "{refused:?}");
    let mistyped = system.try_cli(&["modules", "--prune", "../../x/y"]).await;
    assert_eq!(mistyped.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&mistyped.stderr).contains("Nothing is left of a module"), "{mistyped:?}");
    system.terminate().await;
    system.run_program("docket");
    system.restart().await;
    order(&system, "18").await;
    system.settled().await;
    let modules: Value = serde_json::from_str(&system.cli(&["modules", "--json"]).await).expect("the output is JSON");
    let left = modules["unclaimed"].as_array().expect("unclaimed");
    assert_eq!((left.len(), &left[0]["group"], &left[1]["group"]), (3, &json!("audit"), &json!("toy")), "{left:?}");
    assert_eq!(system.get("/v1/modules").send().await.expect(200).json()["unclaimed"], modules["unclaimed"]);
    let list = system.cli(&["reactors", "list"]).await;
    assert!(list.contains("toy-calls") && list.contains("no module"), "{list}");
    system.cli(&["modules", "--prune", "toy"]).await;
    system.cli(&["modules", "--prune", "audit"]).await;
    assert!(!system.cli(&["reactors", "list"]).await.contains("toy-calls"));
    let modules: Value = serde_json::from_str(&system.cli(&["modules", "--json"]).await).expect("the output is JSON");
    assert_eq!(modules["unclaimed"], json!([]));
    system.cli(&["verify"]).await;
    // The module is installed again, and its read models are built from the log.
    system.terminate().await;
    system.run_program("docket-toy");
    system.restart().await;
    assert_eq!(counted_at(&system, "17", 1).await["sum"], 0);
    system.cli(&["verify"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_modules_are_checked_and_choose_what_runs() {
    let system = TestSystem::builder(Mode::Embedded).program("docket-toy").start().await;
    let shown = system.cli(&["config", "show"]).await;
    assert!(shown.contains("toy_panics = \"true\""), "{shown}");
    let refused = system.try_cli_with(&[("DOCKET_TOY_PANICS", "perhaps")], &["config", "check"]).await;
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("toy_panics: `perhaps` must be true or false"),
        "{refused:?}"
    );
    for (modules, reason) in [
        ("orders,nothing", "`nothing` is not a module"),
        ("toy", "The module toy requires the module orders, which is missing"),
        ("orders", "A process with the role project must run all built-in modules or none"),
    ] {
        let refused = system.try_cli_with(&[("DOCKET_MODULES", modules)], &["config", "check"]).await;
        assert!(String::from_utf8_lossy(&refused.stderr).contains(reason), "{modules}: {refused:?}");
    }
}

/// Returns the ids of the counters for which the external system was called.
fn calls(file: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

async fn called(file: &std::path::Path, ids: &[&str]) {
    until("the calls", async || (calls(file) == ids).then_some(())).await;
}

async fn a_restored_log_acts_outside_only_after_a_release(mut system: TestSystem) {
    let file = system.directory().join("calls");
    system.set("TOY_CALLS", file.to_str().expect("UTF-8"));
    system.restart().await;
    counter(&system, "one").await;
    called(&file, &["one"]).await;
    counter(&system, "two").await;
    called(&file, &["one", "two"]).await;
    // Simulates a restored log: actions outside the log since the backup are not known.
    system.settled().await;
    system.kill9();
    let restored = system.try_cli(&["events", "restored"]).await;
    let told = String::from_utf8_lossy(&restored.stderr).into_owned();
    assert!(restored.status.success() && told.contains("toy-calls acts outside the log, so it is held"), "{told}");
    system.restart().await;
    counter(&system, "three").await;
    system.settled().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(calls(&file), ["one", "two"]);
    let ready = system.get("/health/ready").anonymous().send().await.json();
    assert_eq!((&ready["status"], &ready["checks"]["reactors"]["status"]), (&json!("degraded"), &json!("failed")));
    let list = system.cli(&["reactors", "list"]).await;
    assert!(list.contains("held: the log was restored from a backup"), "{list}");
    system.cli(&["reactors", "release", "toy-calls"]).await;
    called(&file, &["one", "two", "three"]).await;
}
