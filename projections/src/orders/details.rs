//! One order with its lines, kept as the JSON that clients get.

use crate::orders::view::OrderView;
use domain::order::Order;
use event_store::db::Read;
use event_store::error::Error;
use event_store::table::{Merge, Table, int, text};

use projection_engine::change::{Change, Rows};
use projection_engine::projection::{Fold, Projection};

static TABLE: Table = Table {
    name: "order_details",
    columns: &[
        text("order_id", Merge::Key),
        text("customer_id", Merge::Set),
        int("version", Merge::Set),
        int("position", Merge::Set),
        // JSON.
        text("view", Merge::Set),
    ],
    indexes: &[],
};

/// The projection.
pub static PROJECTION: Projection<Order> =
    Projection { name: "order_details", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold) };

/// An order as stored.
#[derive(Debug, Clone, sqlx_macros::FromRow)]
pub struct OrderDetails {
    /// The owner.
    pub customer_id: String,
    /// The order's version.
    pub version: i64,
    /// JSON text.
    pub view: String,
}

fn fold(changes: &[Change<Order>]) -> Vec<Rows> {
    let rows = changes.iter().map(|Change { after, .. }| {
        vec![
            after.id.to_string().into(),
            after.state.owner().into(),
            after.version.into(),
            after.position.into(),
            // A struct of strings and numbers always serializes.
            serde_json::to_string(&OrderView(after)).unwrap_or_default().into(),
        ]
    });
    vec![(&TABLE, rows.collect())]
}

/// Whose an order is.
pub async fn owner(mut from: impl Read, order_id: &str) -> Result<Option<String>, Error> {
    let sql = "select customer_id from order_details where order_id = $1";
    let rows: Vec<(String,)> = from.rows(sql, vec![order_id.into()]).await?;
    Ok(rows.into_iter().next().map(|(owner,)| owner))
}

/// One order.
pub async fn find(mut from: impl Read, order_id: &str) -> Result<Option<OrderDetails>, Error> {
    let sql = "select customer_id, version, view from order_details where order_id = $1";
    Ok(from.rows(sql, vec![order_id.into()]).await?.pop())
}
