//! The read model of single orders with their lines, stored as the JSON that clients receive.

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
        // The order as JSON, serialized by `OrderView`.
        text("view", Merge::Set),
    ],
    indexes: &[],
};

/// The projection that fills the table `order_details`.
pub static PROJECTION: Projection<Order> =
    Projection { name: "order_details", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold) };

/// An order with its stored JSON.
#[derive(Debug, Clone, sqlx_macros::FromRow)]
pub struct OrderDetails {
    /// Id of the customer who owns the order.
    pub customer_id: String,
    /// Version of the order.
    pub version: i64,
    /// The order as JSON text.
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

/// Returns the id of the customer who owns an order; `None` if the order does not exist.
pub async fn owner(mut from: impl Read, order_id: &str) -> Result<Option<String>, Error> {
    let sql = "select customer_id from order_details where order_id = $1";
    let rows: Vec<(String,)> = from.rows(sql, vec![order_id.into()]).await?;
    Ok(rows.into_iter().next().map(|(owner,)| owner))
}

/// Returns an order; `None` if it does not exist.
pub async fn find(mut from: impl Read, order_id: &str) -> Result<Option<OrderDetails>, Error> {
    let sql = "select customer_id, version, view from order_details where order_id = $1";
    Ok(from.rows(sql, vec![order_id.into()]).await?.pop())
}
