//! An operator rebuilds every read model from history.

use serde_json::Value;
use tests::fold::{normal, read_log};
use tests::load::{Load, Shape};
use tests::system::TestSystem;
use tests::verify::{list_orders, read_models_equal_the_fold};

tests::stories![a_rebuild_gives_the_same_rows];

/// Every row that a client can read.
async fn rows(system: &TestSystem) -> Vec<(String, Value)> {
    let list = list_orders(system.reader(), "").await;
    let mut paths: Vec<String> = list.keys().map(|id| format!("/v1/orders/{id}")).collect();
    paths.extend((0..5).map(|number| format!("/v1/customers/customer-{number}")));
    paths.extend(["day", "category", "store"].map(|by| format!("/v1/reports/sales?by={by}")));
    paths.extend(["revenue", "quantity"].map(|by| format!("/v1/products/top?by={by}")));
    let mut rows: Vec<(String, Value)> = list.into_iter().collect();
    for path in paths {
        let row = system.get(&path).send().await.expect(200).json();
        rows.push((path, normal(&row)));
    }
    rows
}

async fn a_rebuild_gives_the_same_rows(mut system: TestSystem) {
    let shape = Shape { name: "replay", clients: 16, orders: 12, commands_each: 60 };
    Load::start(system.writer(), shape).finish().await;
    let log = read_models_equal_the_fold(&system).await;
    let before = rows(&system).await;
    system.terminate().await;
    system.cli(&["replay", "--all"]).await;
    system.start().await;
    system.settled().await;
    assert_eq!(rows(&system).await, before);
    assert_eq!(read_log(system.reader()).await.len(), log.len(), "a rebuild writes no events");
    read_models_equal_the_fold(&system).await;
}
