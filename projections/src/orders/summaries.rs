//! The read model of the order list, with filters and keyset cursors.

use std::collections::BTreeSet;

use domain::order::Order;
use domain::values::{Currency, format_minor};
use event_store::db::Read;
use event_store::error::Error;
use event_store::table::{Merge, Table, Value, int, text};
use serde::{Deserialize, Serialize};

use crate::orders::view::OrderStatus;
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
        // In thousandths of the major unit, so that orders of different currencies can be sorted together.
        int("total_milli", Merge::Set),
        int("quantity", Merge::Set),
        int("line_count", Merge::Set),
        // Each category is between two line feeds, so that a whole category can be searched for.
        text("categories", Merge::Set),
        // Order id, customer id, SKUs and product names, in lower case.
        text("search", Merge::Set),
        text("store_id", Merge::Set).nullable(),
        int("placed_at", Merge::Set),
        int("updated_at", Merge::Set),
        int("version", Merge::Set),
        int("position", Merge::Set),
    ],
    indexes: &["placed_at, order_id", "total_milli, order_id", "customer_id, placed_at, order_id"],
};

/// The projection that fills the table `order_summaries`.
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

/// Returns the number of thousandths of the major unit in one minor unit. No currency has more than three decimals.
fn milli_per_minor(currency: Currency) -> i64 {
    10_i64.pow(3_u32.saturating_sub(currency.minor_digits().into()))
}

/// An order of the list.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct OrderSummary {
    /// Id of the order.
    pub order_id: String,
    /// Id of the customer who owns the order.
    pub customer_id: String,
    /// Status of the order.
    #[schema(value_type = OrderStatus)]
    pub status: String,
    /// Currency, as an ISO 4217 code.
    pub currency: String,
    /// Total as a decimal string in the major unit.
    pub total: String,
    /// Sum of the quantities of all lines.
    pub quantity: i64,
    /// Number of lines.
    pub line_count: i64,
    /// Time at which the order was created, in RFC 3339.
    pub placed_at: String,
    /// Time of the last change, in RFC 3339.
    pub updated_at: String,
    /// Version of the order.
    pub version: i64,
    /// Position of the order's last event.
    pub position: i64,
}

/// The column by which the list is sorted. Orders with equal values are sorted by id.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Sort {
    /// Time at which the order was created.
    #[serde(rename = "placed_at")]
    PlacedAt,
    /// Total, compared as a number without regard to the currency.
    #[serde(rename = "total")]
    Total,
    /// Time of the last change.
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

/// The end of a page. The next page starts after this row, even if rows were written in between.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// Sort column of the list.
    pub sort: Sort,
    /// Whether the largest values come first.
    pub descending: bool,
    /// Value of the sort column in the last row of the page.
    pub value: i64,
    /// Id of the order in the last row of the page.
    pub order_id: String,
}

/// The filters, the sort order and the page of a list. Times are in microseconds since 1970, amounts in thousandths of
/// the major unit. Filters that are `None` do not apply.
#[derive(Debug, Clone)]
pub struct Query {
    /// Only orders in this status.
    pub status: Option<String>,
    /// Only orders of this customer.
    pub customer_id: Option<String>,
    /// Only orders with a line of this category.
    pub category: Option<String>,
    /// Only orders placed at or after this time.
    pub placed_from: Option<i64>,
    /// Only orders placed before this time.
    pub placed_to: Option<i64>,
    /// Only orders with at least this total.
    pub min_total: Option<i64>,
    /// Only orders with at most this total.
    pub max_total: Option<i64>,
    /// Only orders that contain this text in the order id, the customer id, a SKU or a product name. Case is ignored.
    pub q: Option<String>,
    /// Sort column.
    pub sort: Sort,
    /// Whether the largest values come first.
    pub descending: bool,
    /// Maximum number of rows in the page.
    pub limit: i64,
    /// Cursor after which the page starts; `None` for the first page.
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

/// Returns a page of orders, and the cursor of the next page if there is one.
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

/// Returns the number of orders in each status.
pub async fn by_status(mut from: impl Read) -> Result<Vec<(String, i64)>, Error> {
    from.rows("select status, count(*) as orders from order_summaries group by status", vec![]).await
}

/// Returns the ids of a customer's orders that changed after a position, at most `limit`.
pub async fn changed(mut from: impl Read, customer_id: &str, after: i64, limit: i64) -> Result<Vec<String>, Error> {
    let sql = "select order_id from order_summaries where customer_id = $1 and position > $2 limit $3";
    let rows: Vec<(String,)> = from.rows(sql, vec![customer_id.into(), after.into(), limit.into()]).await?;
    Ok(rows.into_iter().map(|(order_id,)| order_id).collect())
}

/// Returns the lengths and the last positions of the streams of orders, as far as they are projected.
pub async fn lengths(mut from: impl Read, ids: &[String]) -> Result<Vec<Length>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let places: Vec<_> = (1..=ids.len()).map(|number| format!("${number}")).collect();
    let sql =
        format!("select order_id, version, position from order_summaries where order_id in ({})", places.join(", "));
    from.rows(&sql, ids.iter().map(|id| id.as_str().into()).collect()).await
}

/// The projected length of an order's stream.
#[derive(Debug, Clone, sqlx_macros::FromRow)]
pub struct Length {
    /// Id of the order.
    pub order_id: String,
    /// Version of the order: the number of events in its stream.
    pub version: i64,
    /// Position of the last event.
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

/// Returns a `like` pattern that finds a text anywhere. The characters `%`, `_` and `\` of the text are escaped.
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
