//! Two thousand real orders, and reports that an independent program computed.

use serde_json::Value;
use tests::fold::{Report, parse_report, read_log};
use tests::system::{TestSystem, sample};
use tests::verify::{list_orders, read_models_equal_the_fold};

tests::stories![real_orders_give_the_expected_reports];

async fn report(system: &TestSystem, by: &str) -> Report {
    parse_report(&system.get(&format!("/v1/reports/sales?by={by}")).send().await.expect(200).json())
}

/// Returns a row of the expected file in the form of a report's row.
fn row(expected: &Value) -> (u64, u64, u64) {
    let number = |field: &str| expected[field].as_u64().expect("a number");
    (number("orders"), number("quantity"), cents(&expected["revenue"]))
}

fn cents(amount: &Value) -> u64 {
    amount.as_str().and_then(|text| text.replace('.', "").parse().ok()).expect("an amount in dollars and cents")
}

async fn real_orders_give_the_expected_reports(system: TestSystem) {
    let text = std::fs::read_to_string(sample("expected.json")).expect("the expected file exists");
    let expected: Value = serde_json::from_str(&text).expect("the file is JSON");
    system.import_sample().await;
    let head = system.settled().await;
    assert_equal(&system, &expected).await;
    let again = system.import(&sample("csv")).await;
    assert_eq!(again.status.code(), Some(3));
    let refused = String::from_utf8_lossy(&again.stdout).lines().count() as u64;
    assert_eq!(refused, expected["rejected_lines"], "each refused line must be reported in each import");
    assert_eq!(system.settled().await, head, "a second import of a file must add nothing");
    assert_equal(&system, &expected).await;
    assert_eq!(read_log(system.reader()).await.len() as u64, head);
    read_models_equal_the_fold(&system).await;
}

async fn assert_equal(system: &TestSystem, expected: &Value) {
    let days = report(system, "day").await;
    let stores = report(system, "store").await;
    let sum =
        |report: &Report| report.values().fold((0, 0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1, sum.2 + row.2));
    let all = (
        expected["confirmed"].as_u64().expect("a number"),
        expected["quantity"].as_u64().expect("a number"),
        cents(&expected["revenue"]),
    );
    assert_eq!((sum(&days), sum(&stores)), (all, all));
    assert_eq!(days.len() as u64, expected["by_day_count"]);
    assert_eq!(stores.len() as u64, expected["by_store_count"]);
    for (day, row_expected) in expected["by_day_first"].as_object().expect("days") {
        assert_eq!(days[&(day.clone(), "USD".to_owned())], row(row_expected), "{day}");
    }
    let categories = expected["by_category"].as_object().expect("categories");
    let categories: Report =
        categories.iter().map(|(name, values)| ((name.clone(), "USD".to_owned()), row(values))).collect();
    assert_eq!(report(system, "category").await, categories);

    let top = system.get("/v1/products/top?by=revenue&limit=5").send().await.expect(200).json();
    let top = top.as_array().expect("rows");
    let found: Vec<(&str, &str)> =
        top.iter().map(|row| (row["sku"].as_str().expect("a sku"), row["revenue"].as_str().expect("money"))).collect();
    let best = expected["top_products"].as_object().expect("products");
    let best: Vec<(&str, &str)> =
        best.iter().map(|(sku, revenue)| (sku.as_str(), revenue.as_str().expect("money"))).collect();
    assert_eq!(found, best);

    let confirmed = list_orders(system.reader(), "&status=confirmed").await;
    assert_eq!(confirmed.len() as u64, expected["confirmed"]);
    assert_eq!(list_orders(system.reader(), "&status=draft").await.len() as u64, expected["left_draft_empty"]);
    let customers: std::collections::BTreeSet<&str> =
        confirmed.values().filter_map(|order| order["customer_id"].as_str()).collect();
    assert!(
        customers.len() as u64 + 1 >= expected["customers"].as_u64().expect("a number"),
        "{} customers",
        customers.len()
    );
    let largest = system.get("/v1/orders?sort=-total&limit=1").send().await.expect(200).json();
    assert_eq!(largest["items"][0]["total"], expected["largest_order"]["total"]);
    assert_eq!(largest["items"][0]["order_id"], expected["largest_order"]["order_ref"]);
}
