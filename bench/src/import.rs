//! The case `import`: measures `docket import` of a whole file, and checks that the reports are exact afterwards.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tests::client::token;
use tests::fold::{Report, money, parse_report};
use tests::system::{Mode, TestSystem};
use tests::verify::list_orders;

use crate::systems::{Peer, docket, peak_memory_mib, settled};
use crate::table;

/// Exit code of `docket import` when it finished but some lines were rejected. Real files have such lines.
const EXIT_REJECTED: i32 = 3;
/// The currency of the files.
const CURRENCY: &str = "USD";

/// Imports the file into each peer, on an empty store, and prints a table.
///
/// # Errors
/// A system or the import fails, or a report differs from `expected`. Each difference is printed on stderr.
pub async fn run(file: &Path, expected: &Path, peers: &[Peer]) -> anyhow::Result<()> {
    let modes =
        peers.iter().map(|&peer| Ok((peer, peer.mode().context("stock has no import; leave it out of --peers")?)));
    let modes: Vec<(Peer, Mode)> = modes.collect::<anyhow::Result<_>>()?;
    let text = std::fs::read_to_string(expected).with_context(|| format!("cannot read {}", expected.display()))?;
    let expected: Value =
        serde_json::from_str(&text).with_context(|| format!("cannot parse {}", expected.display()))?;
    let file = file.canonicalize().with_context(|| format!("cannot find {}", file.display()))?;
    let (mut rows, mut differences) = (vec![], 0);
    for (peer, mode) in modes {
        let (row, different) = measure(peer, mode, &file, &expected).await.with_context(|| format!("{peer:?}"))?;
        different.iter().for_each(|line| eprintln!("{peer:?}: {line}"));
        differences += different.len();
        rows.push(row);
    }
    println!("import: {}, {} lines", file.file_name().unwrap_or_default().display(), expected["lines"]);
    let heads = ["peer", "mode", "seconds", "lines/s", "peak MiB", "settle s", "differences"];
    table::print(&heads, &rows);
    ensure!(differences == 0, "{differences} figures differ from the expected ones.");
    Ok(())
}

async fn measure(peer: Peer, mode: Mode, file: &Path, expected: &Value) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let system = docket(mode, &[]).await?;
    let (url, token) = (system.writer().base().to_owned(), token("bench", "staff"));
    let file = file.to_str().context("the file's name is not UTF-8")?;
    let started = Instant::now();
    let output = system.try_cli(&["import", file, "--partial", "--url", &url, "--token", &token, "--json"]).await;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(
        matches!(output.status.code(), Some(0 | EXIT_REJECTED)),
        "docket import failed: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let summary: Value = serde_json::from_slice(&output.stdout).context("cannot parse the summary of docket import")?;
    let (_, settle) = settled(&system).await?;
    let peak = peak_memory_mib()?;
    let differences = differences(&system, &summary, expected).await;
    let lines = summary["lines"].as_f64().context("no lines in the summary")?;
    let numbers = [
        format!("{seconds:.2}"),
        format!("{:.0}", lines / seconds),
        format!("{peak:.0}"),
        format!("{:.2}", settle.as_secs_f64()),
        differences.len().to_string(),
    ];
    Ok((peer.title().into_iter().chain(numbers).collect(), differences))
}

/// A figure: its actual and its expected value.
struct Figure {
    name: String,
    is: Value,
    must: Value,
}

/// Returns a text for every figure that differs from `expected`.
async fn differences(system: &TestSystem, summary: &Value, expected: &Value) -> Vec<String> {
    let mut figures = vec![];
    let mut add = |name: &str, is: Value, must: Value| figures.push(Figure { name: name.to_owned(), is, must });
    for name in ["orders", "confirmed", "lines", "rejected_lines"] {
        add(&format!("{name} of the import"), summary[name].clone(), expected[name].clone());
    }
    let confirmed = list_orders(system.reader(), "&status=confirmed").await;
    let drafts = list_orders(system.reader(), "&status=draft").await;
    let customers: BTreeSet<&str> =
        confirmed.values().chain(drafts.values()).filter_map(|order| order["customer_id"].as_str()).collect();
    add("confirmed", json!(confirmed.len()), expected["confirmed"].clone());
    add("left_draft_empty", json!(drafts.len()), expected["left_draft_empty"].clone());
    add("customers", json!(customers.len()), expected["customers"].clone());
    let (day, category, store) =
        (report(system, "day").await, report(system, "category").await, report(system, "store").await);
    add("by_day_count", json!(day.len()), expected["by_day_count"].clone());
    add("by_store_count", json!(store.len()), expected["by_store_count"].clone());
    for (by, (orders, quantity, revenue)) in [("day", sum(&day)), ("store", sum(&store))] {
        add(&format!("orders by {by}"), json!(orders), expected["confirmed"].clone());
        add(&format!("quantity by {by}"), json!(quantity), expected["quantity"].clone());
        add(&format!("revenue by {by}"), json!(money(revenue, CURRENCY)), expected["revenue"].clone());
    }
    add("by_category", by_key(&category), expected["by_category"].clone());
    let first = expected["by_day_first"].as_object().map_or(0, serde_json::Map::len);
    let first_days = day.into_iter().take(first).collect();
    add("by_day_first", by_key(&first_days), expected["by_day_first"].clone());
    add("largest_order", largest_order(system).await, expected["largest_order"].clone());
    add("top_products", top_products(system).await, expected["top_products"].clone());
    let wrong = figures.into_iter().filter(|figure| figure.is != figure.must);
    wrong.map(|Figure { name, is, must }| format!("{name} is {is}, expected {must}")).collect()
}

async fn report(system: &TestSystem, by: &str) -> Report {
    parse_report(&get(system, &format!("/v1/reports/sales?by={by}")).await)
}

async fn largest_order(system: &TestSystem) -> Value {
    let page = get(system, "/v1/orders?sort=-total&limit=1").await;
    json!({"order_ref": page["items"][0]["order_id"], "total": page["items"][0]["total"]})
}

async fn top_products(system: &TestSystem) -> Value {
    let rows = get(system, "/v1/products/top?by=revenue&limit=5").await;
    let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
    let by_sku = rows.iter().map(|row| (row["sku"].as_str().unwrap_or_default().to_owned(), row["revenue"].clone()));
    Value::Object(by_sku.collect())
}

async fn get(system: &TestSystem, path: &str) -> Value {
    system.get(path).send().await.expect(200).json()
}

fn sum(report: &Report) -> (u64, u64, u64) {
    report.values().fold((0, 0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1, sum.2 + row.2))
}

/// Returns a report in the form of the expected file. All its rows have one currency.
fn by_key(report: &Report) -> Value {
    let rows = report.iter().map(|((key, currency), &(orders, quantity, revenue))| {
        (key.clone(), json!({"orders": orders, "quantity": quantity, "revenue": money(revenue, currency)}))
    });
    Value::Object(rows.collect())
}
