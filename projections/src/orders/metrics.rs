//! Business metrics of orders.

use std::sync::LazyLock;

use domain::order::Order;
use event_store::db::Db;
use event_store::error::Error;
use event_store::store::Store;
use futures::FutureExt;
use futures::future::BoxFuture;
use opentelemetry::metrics::{Gauge, Histogram};
use opentelemetry::{KeyValue, global};
use projection_engine::change::Change;
use projection_engine::projection::Observer;

use crate::orders::summaries;

/// Bucket boundaries for the value of an order, in major units of its currency.
const VALUES: &[f64] = &[1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 10_000.0, 100_000.0];
/// Bucket boundaries for the number of items in an order.
const ITEMS: &[f64] = &[1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1_000.0];

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Names and descriptions of the metrics.
pub const DOCS: &[(&str, &str)] = &[
    ("docket.orders", "Number of orders, by status."),
    ("docket.order.value", "Value of confirmed orders, in major units of their currency."),
    ("docket.order.items", "Number of items in confirmed orders: the sum of the quantities of their lines."),
];

/// Records value and items of newly confirmed orders.
pub static OBSERVER: Observer<Order> = Observer(confirmed);

struct Metrics {
    orders: Gauge<i64>,
    value: Histogram<f64>,
    items: Histogram<u64>,
}

impl Metrics {
    fn new() -> Self {
        let meter = global::meter("docket");
        Self {
            orders: meter.i64_gauge("docket.orders").with_description("Number of orders, by status.").build(),
            value: meter
                .f64_histogram("docket.order.value")
                .with_description("Value of confirmed orders, in major units of their currency.")
                .with_boundaries(VALUES.to_vec())
                .build(),
            items: meter
                .u64_histogram("docket.order.items")
                .with_description("Number of items in confirmed orders: the sum of the quantities of their lines.")
                .with_boundaries(ITEMS.to_vec())
                .build(),
        }
    }
}

fn confirmed(changes: &[Change<Order>]) {
    for Change { before, after } in changes {
        let order = &after.state;
        if !order.is_confirmed() || before.as_ref().is_some_and(|before| before.state.is_confirmed()) {
            continue;
        }
        let units = order.total as f64 / 10f64.powi(order.currency.minor_digits().into());
        METRICS.value.record(units, &[KeyValue::new("currency", order.currency.as_str())]);
        METRICS.items.record(order.quantity().try_into().unwrap_or(0), &[]);
    }
}

/// Counts the orders of each status and records the counts. The query reads all orders, so it should not run often.
///
/// # Errors
/// The database is unavailable.
pub fn measure(store: Store) -> BoxFuture<'static, Result<(), Error>> {
    async move { count(store.db()).await }.boxed()
}

async fn count(db: &Db) -> Result<(), Error> {
    let counts = summaries::by_status(db).await?;
    for status in ["draft", "confirmed", "cancelled"] {
        let count = counts.iter().find(|(known, _)| known == status).map_or(0, |(_, count)| *count);
        METRICS.orders.record(count, &[KeyValue::new("status", status)]);
    }
    Ok(())
}
