//! The list of orders, with its filters and keyset cursors.

use std::collections::BTreeSet;

use domain::order::Order;
use domain::values::{Currency, format_minor};
use event_store::db::Read;
use event_store::error::Error;
use event_store::table::{Merge, Table, Value, int, text};
use serde::{Deserialize, Serialize};

use projection_engine::change::{Change, Rows};
use projection_engine::projection::{Fold, Projection};
use projection_engine::state::{Versioned, rfc3339};

static TABLE: Table = Table {
    name: "order_summaries",
    columns: &[
        text("order_id", Merge::Key),
        text("customer_id", Merge::Set),
        text("status", Merge::Set),
        text("currency", Merge::Set),
        // Thousandths of the major unit, so that currencies sort together.
        int("total_milli", Merge::Set),
        int("quantity", Merge::Set),
        int("line_count", Merge::Set),
        // Each between two line feeds, so that one can be searched for.
        text("categories", Merge::Set),
        // Ids, SKUs and product names in lower case.
        text("search", Merge::Set),
        text("store_id", Merge::Set).nullable(),
        int("placed_at", Merge::Set),
        int("updated_at", Merge::Set),
        int("version", Merge::Set),
        int("position", Merge::Set),
    ],
    indexes: &["placed_at, order_id", "total_milli, order_id", "customer_id, placed_at, order_id"],
};

/// The projection.
pub static PROJECTION: Projection<Order> =
    Projection { name: "order_summaries", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold) };

fn fold(changes: &[Change<Order>]) -> Vec<Rows> {
    vec![(&TABLE, changes.iter().map(|change| row(&change.after)).collect())]
}

fn row(versioned: &Versioned<Order>) -> Vec<Value> {
    let order = &versioned.state;
    let categories: BTreeSet<_> =
        order.lines.iter().filter_map(|line| line.category.as_ref()).map(|category| category.as_str()).collect();
    let mut search = format!("{}\n{}", versioned.id, order.owner());
    for line in &order.lines {
        search.push('\n');
        search.push_str(line.sku.as_str());
        if let Some(name) = &line.name {
            search.push('\n');
            search.push_str(name.as_str());
        }
    }
    vec![
        versioned.id.to_string().into(),
        order.owner().into(),
        order.status.as_str().into(),
        order.currency.to_string().into(),
        order.total.saturating_mul(milli_per_minor(order.currency)).into(),
        order.quantity().into(),
        (order.lines.len() as i64).into(),
        categories.iter().fold("\n".to_owned(), |all, category| all + category + "\n").into(),
        search.to_lowercase().into(),
        order.store_id().map(str::to_owned).into(),
        versioned.created_at.into(),
        versioned.updated_at.into(),
        versioned.version.into(),
        versioned.position.into(),
    ]
}

/// Thousandths of the major unit in a minor unit: no currency has more than three decimals.
fn milli_per_minor(currency: Currency) -> i64 {
    10_i64.pow(3_u32.saturating_sub(currency.minor_digits().into()))
}

/// An order in the list.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct OrderSummary {
    /// The order.
    pub order_id: String,
    /// Its owner.
    pub customer_id: String,
    /// `draft`, `confirmed` or `cancelled`.
    pub status: String,
    /// ISO 4217 code.
    pub currency: String,
    /// Decimal string.
    pub total: String,
    /// Pieces in all lines.
    pub quantity: i64,
    /// Number of lines.
    pub line_count: i64,
    /// When it was created, RFC 3339.
    pub placed_at: String,
    /// When it last changed, RFC 3339.
    pub updated_at: String,
    /// Its version.
    pub version: i64,
    /// Position of its last event.
    pub position: i64,
}

/// What the list may be ordered by; ties are broken by the order's id.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Sort {
    /// When the order was created.
    #[serde(rename = "placed_at")]
    PlacedAt,
    /// What it costs, across currencies by number.
    #[serde(rename = "total")]
    Total,
    /// When it last changed.
    #[serde(rename = "updated_at")]
    UpdatedAt,
}

impl Sort {
    fn column(self) -> &'static str {
        match self {
            Self::PlacedAt => "placed_at",
            Self::Total => "total_milli",
            Self::UpdatedAt => "updated_at",
        }
    }
}

/// Where a page ends: the next one begins after it, whatever has been written in between.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// The order of the list it belongs to.
    pub sort: Sort,
    /// Whether the largest come first.
    pub descending: bool,
    /// Value of the sort column.
    pub value: i64,
    /// The order's id.
    pub order_id: String,
}

/// Which orders to list. Times are microseconds since 1970, money is in thousandths of the major unit.
#[derive(Debug, Clone)]
pub struct Query {
    /// In this status.
    pub status: Option<String>,
    /// Of this customer.
    pub customer_id: Option<String>,
    /// With a line of this category.
    pub category: Option<String>,
    /// Placed at or after.
    pub placed_from: Option<i64>,
    /// Placed before.
    pub placed_to: Option<i64>,
    /// Costing at least.
    pub min_total: Option<i64>,
    /// Costing at most.
    pub max_total: Option<i64>,
    /// With this text in its id, its customer's, a SKU or a product's name; case does not matter.
    pub q: Option<String>,
    /// The order of the list.
    pub sort: Sort,
    /// Largest first.
    pub descending: bool,
    /// Rows in the page.
    pub limit: i64,
    /// After which row.
    pub after: Option<Cursor>,
}

#[derive(sqlx_macros::FromRow)]
struct Row {
    order_id: String,
    customer_id: String,
    status: String,
    currency: String,
    total_milli: i64,
    quantity: i64,
    line_count: i64,
    placed_at: i64,
    updated_at: i64,
    version: i64,
    position: i64,
}

/// A page of orders, and the cursor of the next one if there is one.
pub async fn list(mut from: impl Read, query: &Query) -> Result<(Vec<OrderSummary>, Option<Cursor>), Error> {
    let (sql, values) = select(query);
    let mut rows: Vec<Row> = from.rows(&sql, values).await?;
    let more = rows.len() as i64 > query.limit;
    rows.truncate(query.limit as usize);
    let next = rows.last().filter(|_| more).map(|row| Cursor {
        sort: query.sort,
        descending: query.descending,
        value: match query.sort {
            Sort::PlacedAt => row.placed_at,
            Sort::Total => row.total_milli,
            Sort::UpdatedAt => row.updated_at,
        },
        order_id: row.order_id.clone(),
    });
    Ok((rows.into_iter().map(summary).collect(), next))
}

/// How many orders there are of each status.
pub async fn by_status(mut from: impl Read) -> Result<Vec<(String, i64)>, Error> {
    from.rows("select status, count(*) as orders from order_summaries group by status", vec![]).await
}

/// Orders of a customer that changed after a position, at most `limit`.
pub async fn changed(mut from: impl Read, customer_id: &str, after: i64, limit: i64) -> Result<Vec<String>, Error> {
    let sql = "select order_id from order_summaries where customer_id = $1 and position > $2 limit $3";
    let rows: Vec<(String,)> = from.rows(sql, vec![customer_id.into(), after.into(), limit.into()]).await?;
    Ok(rows.into_iter().map(|(order_id,)| order_id).collect())
}

/// How long the streams of orders are, and the positions at which they end, as far as they are projected.
pub async fn lengths(mut from: impl Read, ids: &[String]) -> Result<Vec<Length>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let places: Vec<_> = (1..=ids.len()).map(|number| format!("${number}")).collect();
    let sql =
        format!("select order_id, version, position from order_summaries where order_id in ({})", places.join(", "));
    from.rows(&sql, ids.iter().map(|id| id.as_str().into()).collect()).await
}

/// How long an order's stream is.
#[derive(Debug, Clone, sqlx_macros::FromRow)]
pub struct Length {
    /// The order.
    pub order_id: String,
    /// Its events.
    pub version: i64,
    /// Position of the last one.
    pub position: i64,
}

fn select(query: &Query) -> (String, Vec<Value>) {
    let mut conditions = Vec::new();
    let mut values: Vec<Value> = Vec::new();
    let mut given = |condition: &str, value: Option<Value>| {
        if let Some(value) = value {
            values.push(value);
            conditions.push(condition.replace('?', &format!("${}", values.len())));
        }
    };
    given("status = ?", query.status.clone().map(Value::from));
    given("customer_id = ?", query.customer_id.clone().map(Value::from));
    given("categories like ? escape '\\'", query.category.as_deref().map(|c| like(&format!("\n{c}\n"))));
    given("placed_at >= ?", query.placed_from.map(Value::from));
    given("placed_at < ?", query.placed_to.map(Value::from));
    given("total_milli >= ?", query.min_total.map(Value::from));
    given("total_milli <= ?", query.max_total.map(Value::from));
    given("search like ? escape '\\'", query.q.as_deref().map(|q| like(&q.to_lowercase())));
    let column = query.sort.column();
    let (than, direction) = if query.descending { ("<", "desc") } else { (">", "asc") };
    if let Some(after) = &query.after {
        values.push(after.value.into());
        values.push(after.order_id.clone().into());
        conditions.push(format!("({column}, order_id) {than} (${}, ${})", values.len() - 1, values.len()));
    }
    let conditions = if conditions.is_empty() { "true".into() } else { conditions.join(" and ") };
    values.push((query.limit + 1).into());
    let sql = format!(
        "select order_id, customer_id, status, currency, total_milli, quantity, line_count, placed_at, updated_at,
                version, position
         from order_summaries where {conditions} order by {column} {direction}, order_id {direction} limit ${}",
        values.len()
    );
    (sql, values)
}

/// A pattern that finds a text anywhere; what the text itself says with `%` and `_` is taken literally.
fn like(text: &str) -> Value {
    let literal = text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_");
    format!("%{literal}%").into()
}

fn summary(row: Row) -> OrderSummary {
    let currency: Currency = row.currency.parse().unwrap_or_default();
    OrderSummary {
        total: format_minor(row.total_milli / milli_per_minor(currency), currency),
        order_id: row.order_id,
        customer_id: row.customer_id,
        status: row.status,
        currency: row.currency,
        quantity: row.quantity,
        line_count: row.line_count,
        placed_at: rfc3339(row.placed_at),
        updated_at: rfc3339(row.updated_at),
        version: row.version,
        position: row.position,
    }
}
