//! The read model of products: confirmed sales by product, for the list of best sellers.

use std::collections::HashMap;

use domain::order::{Line, Order};
use domain::values::{Currency, format_minor};
use event_store::db::Db;
use event_store::error::Error;
use event_store::table::{Merge, Table, int, text};
use serde::{Deserialize, Serialize};

use crate::orders::sales::Sum;
use projection_engine::change::{Change, Rows};
use projection_engine::projection::{Fold, Projection};

static TABLE: Table = Table {
    name: "products",
    columns: &[
        text("sku", Merge::Key),
        text("currency", Merge::Key),
        // Name and category come from the order that was confirmed last. `Latest` is needed because the rows of a
        // parked order are written late.
        text("name", Merge::Latest("position")).nullable(),
        text("category", Merge::Latest("position")).nullable(),
        int("orders", Merge::Add),
        int("quantity", Merge::Add),
        int("revenue", Merge::Add),
        int("position", Merge::Max),
    ],
    indexes: &["revenue", "quantity"],
};

/// The projection that fills the table `products`.
pub static PROJECTION: Projection<Order> =
    Projection { name: "products", version: 2, tables: &[&TABLE], fold: Fold::OfState(fold) };

fn fold(changes: &[Change<Order>]) -> Vec<Rows> {
    let mut sums: HashMap<(&str, Currency), (Sum, i64, &Line)> = HashMap::new();
    for Change { before, after } in changes {
        if !after.state.is_confirmed() || before.as_ref().is_some_and(|before| before.state.is_confirmed()) {
            continue;
        }
        for line in &after.state.lines {
            let key = (line.sku.as_str(), after.state.currency);
            let (sum, position, latest) = sums.entry(key).or_insert_with(|| (Sum::default(), after.position, line));
            let quantity = i64::from(line.quantity);
            sum.orders += 1;
            sum.quantity += quantity;
            sum.revenue = sum.revenue.saturating_add(line.total());
            // The line of the order with the highest position wins, so that the row does not depend on how events are
            // divided into batches: a rebuild must give the same row.
            if after.position >= *position {
                (*position, *latest) = (after.position, line);
            }
        }
    }
    let rows = sums.into_iter().map(|((sku, currency), (sum, position, line))| {
        vec![
            sku.into(),
            currency.to_string().into(),
            line.name.as_ref().map(|name| name.as_str().to_owned()).into(),
            line.category.as_ref().map(|category| category.as_str().to_owned()).into(),
            sum.orders.into(),
            sum.quantity.into(),
            sum.revenue.into(),
            position.into(),
        ]
    });
    vec![(&TABLE, rows.collect())]
}

/// The column by which the list of best sellers is sorted, largest value first.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Revenue in minor units.
    Revenue,
    /// Quantity sold.
    Quantity,
}

/// A product and its sales in confirmed orders.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Product {
    /// SKU of the product.
    pub sku: String,
    /// Name of the product in the order that was confirmed last.
    pub name: Option<String>,
    /// Category of the product in the order that was confirmed last.
    pub category: Option<String>,
    /// Currency, as an ISO 4217 code.
    pub currency: String,
    /// Number of confirmed orders with this product.
    pub orders: i64,
    /// Quantity sold.
    pub quantity: i64,
    /// Revenue as a decimal string in the major unit.
    pub revenue: String,
}

#[derive(sqlx_macros::FromRow)]
struct Row {
    sku: String,
    name: Option<String>,
    category: Option<String>,
    currency: String,
    orders: i64,
    quantity: i64,
    revenue: i64,
}

/// Returns the best sellers, at most `limit`.
pub async fn top(db: &Db, by: By, limit: i64) -> Result<Vec<Product>, Error> {
    let column = match by {
        By::Revenue => "revenue",
        By::Quantity => "quantity",
    };
    let sql = format!(
        "select sku, name, category, currency, orders, quantity, revenue from products
         order by {column} desc, sku, currency limit $1"
    );
    let rows: Vec<Row> = db.fetch_all(&sql, vec![limit.into()]).await?;
    Ok(rows
        .into_iter()
        .map(|row| Product {
            revenue: format_minor(row.revenue, row.currency.parse().unwrap_or_default()),
            sku: row.sku,
            name: row.name,
            category: row.category,
            currency: row.currency,
            orders: row.orders,
            quantity: row.quantity,
        })
        .collect())
}
