//! The read model of sales: confirmed sales by day, category and store.

use std::collections::{BTreeSet, HashMap};

use domain::order::Order;
use domain::values::{Currency, format_minor};
use event_store::db::Read;
use event_store::error::Error;
use event_store::table::{Merge, Table, int, text};
use projection_engine::state::rfc3339;
use serde::{Deserialize, Serialize};

use projection_engine::change::{Change, Rows};
use projection_engine::projection::{Fold, Projection};

static TABLE: Table = Table {
    name: "sales",
    columns: &[
        // `day`, `category` or `store`. Each is stored per day, so that a report can sum a period.
        text("dimension", Merge::Key),
        // The day, category or store; empty if the order or line has none.
        text("key", Merge::Key),
        // Day on which the order was placed: YYYY-MM-DD in UTC.
        text("day", Merge::Key),
        text("currency", Merge::Key),
        int("orders", Merge::Add),
        int("quantity", Merge::Add),
        int("revenue", Merge::Add),
    ],
    indexes: &[],
};

/// The projection that fills the table `sales`.
pub static PROJECTION: Projection<Order> =
    Projection { name: "sales", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold) };

/// The dimension by which a report is grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// The day on which the order was placed, in UTC.
    Day,
    /// The category of the line.
    Category,
    /// The attribute `store_id` of the order.
    Store,
}

impl Dimension {
    fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Category => "category",
            Self::Store => "store",
        }
    }
}

/// Sums of orders, quantity and revenue in minor units.
#[derive(Default)]
pub(crate) struct Sum {
    pub(crate) orders: i64,
    pub(crate) quantity: i64,
    pub(crate) revenue: i64,
}

fn fold(changes: &[Change<Order>]) -> Vec<Rows> {
    let mut sums: HashMap<(Dimension, String, String, Currency), Sum> = HashMap::new();
    for Change { before, after } in changes {
        // `Confirmed` is a final status, so an order is counted once: in the batch that confirms it.
        if !after.state.is_confirmed() || before.as_ref().is_some_and(|before| before.state.is_confirmed()) {
            continue;
        }
        let (day, currency) = (day_of(after.created_at), after.state.currency);
        let mut add = |dimension, key: &str, quantity, revenue, orders| {
            let sum = sums.entry((dimension, key.to_owned(), day.clone(), currency)).or_default();
            sum.orders += orders;
            sum.quantity += quantity;
            sum.revenue = sum.revenue.saturating_add(revenue);
        };
        let (quantity, total) = (after.state.quantity(), after.state.total);
        add(Dimension::Day, &day, quantity, total, 1);
        add(Dimension::Store, after.state.store_id().unwrap_or_default(), quantity, total, 1);
        let mut seen = BTreeSet::new();
        for line in &after.state.lines {
            let category = line.category.as_ref().map_or("", |category| category.as_str());
            let quantity = i64::from(line.quantity);
            add(Dimension::Category, category, quantity, line.total(), i64::from(seen.insert(category)));
        }
    }
    let rows = sums.into_iter().map(|((dimension, key, day, currency), sum)| {
        vec![
            dimension.as_str().into(),
            key.into(),
            day.into(),
            currency.to_string().into(),
            sum.orders.into(),
            sum.quantity.into(),
            sum.revenue.into(),
        ]
    });
    vec![(&TABLE, rows.collect())]
}

/// Returns the day of a time in microseconds since 1970, as YYYY-MM-DD in UTC.
fn day_of(us: i64) -> String {
    rfc3339(us)[..10].to_owned()
}

/// A row of the report.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Sale {
    /// The day, category or store; null if the orders or lines have none.
    pub key: Option<String>,
    /// Currency, as an ISO 4217 code.
    pub currency: String,
    /// Number of confirmed orders that contribute to this row.
    pub orders: i64,
    /// Quantity sold.
    pub quantity: i64,
    /// Revenue as a decimal string in the major unit.
    pub revenue: String,
}

#[derive(sqlx_macros::FromRow)]
struct Row {
    key: String,
    currency: String,
    orders: i64,
    quantity: i64,
    revenue_high: i64,
    revenue_low: i64,
}

impl Row {
    /// Returns the sum of both halves, limited to the range of a 64-bit integer.
    fn revenue(&self) -> i64 {
        let sum = i128::from(self.revenue_high) * 4_294_967_296 + i128::from(self.revenue_low);
        sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}

/// Returns the report for the days from `from` to `to`, both inclusive, in the format `YYYY-MM-DD`. Rows are ordered by
/// key and currency.
pub async fn report(
    mut source: impl Read,
    by: Dimension,
    from: Option<String>,
    to: Option<String>,
) -> Result<Vec<Sale>, Error> {
    // The casts are needed because PostgreSQL sums 64-bit integers into a wider type. The revenue is summed in two
    // halves because the sum may exceed 64 bits, which both databases reject. The rows are sorted here because the
    // collations of the databases differ.
    let sql = "select key, currency, cast(sum(orders) as bigint) as orders, cast(sum(quantity) as bigint) as quantity,
                      cast(sum(revenue / 4294967296) as bigint) as revenue_high,
                      cast(sum(revenue % 4294967296) as bigint) as revenue_low
               from sales where dimension = $1 and day >= $2 and day <= $3 group by key, currency";
    let values =
        vec![by.as_str().into(), from.unwrap_or_default().into(), to.unwrap_or_else(|| "9999-12-31".into()).into()];
    let mut rows: Vec<Row> = source.rows(sql, values).await?;
    rows.sort_by(|a, b| (&a.key, &a.currency).cmp(&(&b.key, &b.currency)));
    Ok(rows
        .into_iter()
        .map(|row| Sale {
            revenue: format_minor(row.revenue(), row.currency.parse().unwrap_or_default()),
            key: (!row.key.is_empty()).then_some(row.key),
            currency: row.currency,
            orders: row.orders,
            quantity: row.quantity,
        })
        .collect())
}
