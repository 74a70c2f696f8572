//! Sales reports by local day, and times with offsets. Python's `zoneinfo` computes the expected sums.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tests::fold::{Report, parse_report};
use tests::process::target_directory;
use tests::system::TestSystem;
use tests::verify::read_models_equal_the_fold;
use tests::wait::until;

use crate::replay::statement;

tests::stories![
    local_days_have_23_and_25_hours,
    local_days_are_available_once_their_read_model_is_built,
    a_time_keeps_its_offset_everywhere,
];

/// Middles of the days on which clocks change in the zones of [`ZONES`], in 2024, and an ordinary day.
const DAYS: [&str; 7] = [
    "2024-03-10T12:00:00Z",
    "2024-03-31T12:00:00Z",
    "2024-04-06T12:00:00Z",
    "2024-07-01T12:00:00Z",
    "2024-10-05T12:00:00Z",
    "2024-10-27T12:00:00Z",
    "2024-11-03T12:00:00Z",
];
const ZONES: [&str; 5] = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"];
const ORDERS_PER_DAY: u64 = 120;

/// A sequence of numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Confirms orders that were placed within 40 hours of each of [`DAYS`], some of them in the last and the first
/// microsecond of a quarter of an hour. Returns them for the computation in Python.
async fn sell(system: &TestSystem) -> Vec<Value> {
    let mut numbers = Numbers(7);
    let (mut orders, mut lines) = (Vec::new(), String::new());
    for (day, middle) in DAYS.iter().enumerate() {
        let middle: Timestamp = middle.parse().expect("a time");
        for order in 0..ORDERS_PER_DAY {
            let us = match order % 3 {
                0 => numbers.below(320) as i64 * 900_000_000 - 1,
                1 => numbers.below(320) as i64 * 900_000_000,
                _ => numbers.below(80 * 3_600_000_000) as i64,
            };
            let placed_at = format!("{:.6}", middle + SignedDuration::from_micros(us - 40 * 3_600_000_000));
            let id = format!("local-{day}-{order}");
            let currency = if numbers.below(3) == 0 { "EUR" } else { "USD" };
            let store = numbers.below(2).to_string();
            let (mut items, mut sold) = (Vec::new(), Vec::new());
            for sku in ["tea", "ink", "pen"].into_iter().take(1 + numbers.below(3) as usize) {
                let (quantity, cents) = (1 + numbers.below(9), 1 + numbers.below(5_000));
                let category = ["DRINKS", "OFFICE"][numbers.below(2) as usize];
                let price = format!("{}.{:02}", cents / 100, cents % 100);
                items.push(json!({"sku": sku, "quantity": quantity, "unit_price": price, "category": category}));
                sold.push(json!([category, quantity, cents]));
            }
            let create = json!({"type": "create_order", "order_id": id, "customer_id": "ada", "currency": currency,
                "attributes": {"store_id": store}, "occurred_at": placed_at, "items": items});
            // Confirmed on another day: a sale counts on the day on which its order was placed.
            let confirm = json!({"type": "confirm_order", "order_id": id, "occurred_at": "2024-12-24T00:00:00+01:00"});
            lines.push_str(&format!("{create}\n{confirm}\n"));
            orders.push(json!({"placed_at": placed_at, "currency": currency, "store": store, "lines": sold}));
        }
    }
    let answer = system.post("/v1/commands").body("application/x-ndjson", lines).send().await.expect(200);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    for line in text.lines() {
        let result: Value = serde_json::from_str(line).expect("a result is JSON");
        assert!(matches!(result["status"].as_u64(), Some(200 | 201)), "{line}");
    }
    system.settled().await;
    orders
}

/// Returns the reports that Python computes.
fn computed(orders: &[Value], queries: &[Value]) -> Vec<Report> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/local_days.py");
    let mut python = Command::new("python3")
        .arg(script)
        // Where the system has no time zones, Python takes those of the package `tzdata`.
        .env("PYTHONPATH", target_directory().join("tools/python"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 starts");
    let asked = json!({"orders": orders, "queries": queries}).to_string();
    python.stdin.take().expect("standard input is piped").write_all(asked.as_bytes()).expect("python3 reads");
    let output = python.wait_with_output().expect("python3 ends");
    let reports: Value = serde_json::from_slice(&output.stdout).expect("the reports are JSON");
    let row = |row: &Value| {
        let text = |at: usize| row[at].as_str().expect("a text").to_owned();
        let number = |at: usize| row[at].as_u64().expect("a number");
        ((text(0), text(1)), (number(2), number(3), number(4)))
    };
    let report = |rows: &Value| -> Report { rows.as_array().expect("rows").iter().map(row).collect() };
    reports.as_array().expect("reports").iter().map(report).collect()
}

fn path(query: &Value) -> String {
    let mut path = format!("/v1/reports/sales?by={}", query["by"].as_str().expect("a text"));
    for name in ["timezone", "from", "to"] {
        if let Some(value) = query[name].as_str() {
            path.push_str(&format!("&{name}={}", value.replace('+', "%2B")));
        }
    }
    path
}

async fn local_days_have_23_and_25_hours(system: TestSystem) {
    let orders = sell(&system).await;
    let mut queries = Vec::new();
    for by in ["day", "category", "store"] {
        for zone in ZONES {
            for (from, to) in [
                (None, None),
                (Some("2024-03-10"), Some("2024-03-10")),
                (Some("2024-03-31"), Some("2024-03-31")),
                (Some("2024-04-07"), None),
                (None, Some("2024-10-06")),
                (Some("2024-10-27"), Some("2024-11-03")),
                (Some("2024-03-10T00:00:00+02:00"), Some("2024-03-31T04:45:00+05:45")),
                (Some("2024-03-10T07:15:00-05:00"), Some("2024-03-10")),
                (Some("2024-11-03T05:30:00Z"), Some("2024-11-03T08:00:00Z")),
                (Some("2024-11-04"), Some("2024-11-03")),
            ] {
                queries.push(json!({"by": by, "timezone": zone, "from": from, "to": to}));
            }
        }
        queries.push(json!({"by": by, "timezone": null, "from": "2024-03-10", "to": "2024-04-06"}));
    }
    let mut rows = 0;
    for (query, expected) in queries.iter().zip(computed(&orders, &queries)) {
        let path = path(query);
        let report = system.get(&path).send().await.expect(200).json();
        let keys: Vec<_> = report.as_array().expect("rows").iter().map(|row| (&row["key"], &row["currency"])).collect();
        assert!(keys.is_sorted_by_key(|(key, currency)| (key.as_str(), currency.as_str())), "{path}: {report}");
        assert_eq!(parse_report(&report), expected, "{path}");
        rows += expected.len();
    }
    assert!(rows > 500, "{rows}");
    // The live channel keeps its days in UTC.
    let live = system.get("/v1/poll?channel=reports:sales&wait=0").send().await.expect(200).json();
    let snapshot = live["events"][0]["data"].to_string();
    let by_day = system.get("/v1/reports/sales?by=day").send().await.expect(200).json();
    assert!(snapshot.contains(&by_day.to_string()), "{live}");
    read_models_equal_the_fold(&system).await;
    system.cli(&["verify"]).await;
}

/// Earlier releases did not count by quarters of an hour.
async fn local_days_are_available_once_their_read_model_is_built(mut system: TestSystem) {
    let orders = sell(&system).await;
    system.terminate().await;
    let older = "drop view sales_quarters; drop table sales_quarters_g1;
                 delete from checkpoints where projection = 'sales_quarters'";
    statement(&system, true, older).await;
    system.start().await;
    let query = json!({"by": "day", "timezone": "Europe/Berlin", "from": null, "to": null});
    let report = until("the read model is rebuilt", async || {
        system.get("/v1/reports/sales?by=day").send().await.expect(200);
        let answer = system.get(&path(&query)).send().await;
        if answer.status != 200 {
            answer.expect_problem(503, "projection-behind");
            return None;
        }
        Some(answer.json())
    })
    .await;
    assert_eq!(parse_report(&report), computed(&orders, &[query])[0]);
    system.cli(&["verify"]).await;
}

async fn a_time_keeps_its_offset_everywhere(system: TestSystem) {
    let mut lines = String::new();
    for (id, at) in [("before", "2024-03-10T01:59:59.999999+04:00"), ("after", "2024-03-09T22:00:00Z")] {
        let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00"});
        for command in [
            json!({"type": "create_order", "order_id": id, "customer_id": "c", "occurred_at": at, "items": [item]}),
            json!({"type": "confirm_order", "order_id": id, "occurred_at": at}),
        ] {
            lines.push_str(&format!("{command}\n"));
        }
    }
    system.post("/v1/commands").body("application/x-ndjson", lines).send().await.expect(200);
    system.settled().await;
    let ids = async |query: &str| -> Vec<String> {
        let list = system.get(&format!("/v1/orders?sort=placed_at&{query}")).send().await.expect(200).json();
        let items = list["items"].as_array().expect("items").clone();
        items.iter().map(|order| order["order_id"].as_str().expect("an id").to_owned()).collect()
    };
    for midnight in ["2024-03-10T00:00:00%2B02:00", "2024-03-10T00:00:00+02:00", "2024-03-09T17:00:00-05:00"] {
        assert_eq!(ids(&format!("placed_from={midnight}")).await, ["after"], "{midnight}");
        assert_eq!(ids(&format!("placed_to={midnight}")).await, ["before"], "{midnight}");
        let report = system.get(&format!("/v1/reports/sales?by=day&from={midnight}")).send().await.expect(200).json();
        assert_eq!((report[0]["orders"].as_u64(), &report[1]), (Some(1), &Value::Null), "{midnight}: {report}");
    }
    assert_eq!(ids("placed_from=2024-03-10&timezone=Europe/Athens").await, ["after"]);
    assert_eq!(ids("placed_to=2024-03-09&timezone=Europe/Athens").await, ["before"]);
    assert_eq!(ids("placed_from=2024-03-09&placed_to=2024-03-09").await, ["before", "after"]);
    for (at, status) in [
        ("2024-03-10T00:00:00%2B02:00", 200),
        ("2024-03-10T00:00:00+02:00", 200),
        ("2024-03-09T23:59:59%2B02:00", 404),
        ("2024-03-09", 200),
        ("2024-03-08", 404),
        ("2", 200),
    ] {
        system.get(&format!("/v1/orders/after?as_of={at}")).send().await.expect(status);
    }
    for (query, says) in [
        ("/v1/orders?placed_from=2024-03-10T00:00:00", "offset"),
        ("/v1/orders?placed_to=yesterday", "RFC 3339"),
        ("/v1/orders/after?as_of=2024-03-10T00:00:00", "offset"),
        ("/v1/reports/sales?by=day&from=2024-03-10T00:00:00", "offset"),
        ("/v1/reports/sales?by=day&to=2024-03-10T00:07:00Z", "15"),
        ("/v1/reports/sales?by=day&timezone=Mars", "Europe/Berlin"),
    ] {
        let problem = system.get(query).send().await.expect_problem(400, "invalid-query");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(says)), "{query}: {problem}");
    }
}
