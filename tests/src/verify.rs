//! Invariants that any story may check at its end.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value;

use crate::client::{Client, encoded};
use crate::fold::{Event, Report, customers, fold, normal, parse_report, products, read_log, sales};
use crate::load::{Outcome, Sent};
use crate::system::{TestSystem, settled};

/// Checks that positions are dense, that the sequences of each order are 1..n, and that event ids are unique.
///
/// # Panics
/// At the first event that violates this.
pub fn assert_log_invariants(log: &[Event]) {
    let (mut versions, mut ids) = (HashMap::<&str, u64>::new(), HashSet::new());
    for (event, expected) in log.iter().zip(1..) {
        assert_eq!(event.position, expected, "positions are not dense");
        let version = versions.entry(&event.order_id).or_default();
        *version += 1;
        assert_eq!(event.sequence, *version, "sequences of {} are not 1..n", event.order_id);
        assert!(ids.insert(&event.event_id), "the event {} is in the log twice", event.event_id);
    }
}

/// Checks the outcome of each command. The events of an acknowledged command are in the log once, at the version and
/// position of its response. A refused command left no event. A command without a response left all of its events or
/// none.
///
/// # Panics
/// At the first command that violates this.
pub fn assert_outcomes_match_log(log: &[Event], sent: &[Sent]) {
    let mut by_request: HashMap<&str, Vec<&Event>> = HashMap::new();
    for event in log {
        if let Some(request_id) = event.metadata["request_id"].as_str() {
            by_request.entry(request_id).or_default().push(event);
        }
    }
    let positions: HashMap<(&str, u64), u64> =
        log.iter().map(|event| ((event.order_id.as_str(), event.sequence), event.position)).collect();
    for command in sent {
        let attempts = command.request_ids.iter().filter_map(|id| by_request.get(id.as_str()));
        let left: Vec<Vec<&Event>> = attempts.cloned().collect();
        let events = left.concat();
        assert!(left.len() <= 1, "two attempts of one key took effect: {command:?}: {events:?}");
        assert!(events.iter().all(|event| event.order_id == command.order_id), "{command:?}: {events:?}");
        let whole = (command.events.0..=command.events.1).contains(&events.len());
        match &command.outcome {
            Outcome::Acknowledged { version, position } => {
                assert!(whole, "acknowledged, but its events are not all in the log: {command:?}: {events:?}");
                let there = positions.get(&(command.order_id.as_str(), *version));
                let there = *there.unwrap_or_else(|| panic!("the acknowledged version is not in the log: {command:?}"));
                // A command that created no event may return any position at or after that of the version.
                assert!(
                    if events.is_empty() { there <= *position } else { there == *position },
                    "{there}: {command:?}"
                );
                assert!(events.last().is_none_or(|last| last.position == there), "{command:?}: {events:?}");
            }
            Outcome::Refused => assert!(events.is_empty(), "refused, but in the log: {command:?}: {events:?}"),
            Outcome::Unknown => assert!(whole || events.is_empty(), "partly in the log: {command:?}: {events:?}"),
        }
    }
    assert!(
        sent.iter().any(|command| matches!(command.outcome, Outcome::Acknowledged { .. })),
        "nothing was acknowledged"
    );
}

/// Waits until the read models have caught up, compares each with the fold of the log, and returns the log.
///
/// # Panics
/// At the first difference.
pub async fn read_models_equal_the_fold(system: &TestSystem) -> Vec<Event> {
    read_models_of(system.reader()).await
}

/// Compares the read models as [`read_models_equal_the_fold`] does, through any process that answers queries.
///
/// # Panics
/// At the first difference.
pub async fn read_models_of(reader: &Client) -> Vec<Event> {
    settled(reader, 0).await;
    let log = read_log(reader).await;
    assert_log_invariants(&log);
    let orders = fold(&log);
    let listed = list_orders(reader, "").await;
    assert_eq!(
        listed.keys().collect::<Vec<_>>(),
        orders.keys().collect::<Vec<_>>(),
        "the list and the log have different orders"
    );
    for order in orders.values() {
        assert_eq!(listed[&order.order_id], normal(&order.list_item()), "the list and the log differ");
        let path = format!("/v1/orders/{}", encoded(&order.order_id));
        let answer = reader.get(&path).send().await.expect(200);
        assert_eq!(answer.version(), order.version, "{path}");
        assert_eq!(normal(&answer.json()), order.view(), "{path} and the log differ");
    }
    for by in ["day", "category", "store"] {
        let rows = reader.get(&format!("/v1/reports/sales?by={by}")).send().await.expect(200).json();
        assert_eq!(parse_report(&rows), sales(&orders, by), "sales by {by}");
    }
    best_sellers_equal(reader, &products(&orders)).await;
    for (id, expected) in customers(&orders) {
        let found = reader.get(&format!("/v1/customers/{}", encoded(&id))).send().await.expect(200).json();
        assert_eq!(normal(&found), expected, "the customer {id}");
    }
    log
}

async fn best_sellers_equal(reader: &Client, expected: &Report) {
    let top = reader.get("/v1/products/top?by=quantity&limit=1000").send().await.expect(200).json();
    let rows = top.as_array().expect("rows");
    let keyed = rows.iter().cloned().map(|mut row| {
        row["key"] = row["sku"].take();
        row
    });
    let found = parse_report(&keyed.collect());
    assert_eq!(found.len(), expected.len().min(1000));
    for (product, row) in &found {
        assert_eq!(expected.get(product), Some(row), "{product:?}");
    }
    let quantities: Vec<u64> = rows.iter().filter_map(|row| row["quantity"].as_u64()).collect();
    assert!(quantities.is_sorted_by(|more, less| more >= less), "best sellers first");
}

/// Returns every order of the list by id, read page by page. `filter` is added to the query (`&status=draft`).
///
/// # Panics
/// If the list contains an order twice.
pub async fn list_orders(client: &Client, filter: &str) -> BTreeMap<String, Value> {
    let mut orders = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/v1/orders?limit=200{filter}{cursor}")).send().await.expect(200).json();
        for item in page["items"].as_array().expect("items") {
            let id = item["order_id"].as_str().expect("an order has an id").to_owned();
            assert!(orders.insert(id, normal(item)).is_none(), "the list shows an order twice: {item}");
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return orders,
        }
    }
}
