//! The read model of customers: numbers of orders and money spent, by currency.

use std::collections::HashMap;

use domain::order::{Order, Status};
use domain::values::{Currency, format_minor};
use event_store::db::Read;
use event_store::error::Error;
use event_store::table::{Merge, Table, int, text};
use serde::Serialize;

use projection_engine::change::{Change, Rows};
use projection_engine::projection::{Fold, Projection};
use projection_engine::state::rfc3339;

static TABLE: Table = Table {
    name: "customers",
    columns: &[
        text("customer_id", Merge::Key),
        text("currency", Merge::Key),
        int("orders", Merge::Add),
        int("confirmed", Merge::Add),
        int("cancelled", Merge::Add),
        // Total of the confirmed orders, in minor units.
        int("spend", Merge::Add),
        int("first_order_at", Merge::Min),
        int("last_order_at", Merge::Max),
    ],
    indexes: &[],
};

/// The projection that fills the table `customers`.
pub static PROJECTION: Projection<Order> =
    Projection { name: "customers", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold) };

#[derive(Default)]
struct Delta {
    orders: i64,
    confirmed: i64,
    cancelled: i64,
    spend: i64,
    first: i64,
    last: i64,
}

fn fold(changes: &[Change<Order>]) -> Vec<Rows> {
    let mut deltas: HashMap<(&str, Currency), Delta> = HashMap::new();
    for Change { before, after } in changes {
        let was = before.as_ref().map_or(Status::Absent, |before| before.state.status);
        let became = |status| i64::from(was != status && after.state.status == status);
        let delta = deltas.entry((after.state.owner(), after.state.currency)).or_insert_with(|| Delta {
            first: after.created_at,
            last: after.created_at,
            ..Delta::default()
        });
        delta.orders += i64::from(before.is_none());
        delta.confirmed += became(Status::Confirmed);
        delta.cancelled += became(Status::Cancelled);
        delta.spend = delta.spend.saturating_add(became(Status::Confirmed) * after.state.total);
        delta.first = delta.first.min(after.created_at);
        delta.last = delta.last.max(after.created_at);
    }
    let rows = deltas.into_iter().map(|((customer_id, currency), delta)| {
        vec![
            customer_id.into(),
            currency.to_string().into(),
            delta.orders.into(),
            delta.confirmed.into(),
            delta.cancelled.into(),
            delta.spend.into(),
            delta.first.into(),
            delta.last.into(),
        ]
    });
    vec![(&TABLE, rows.collect())]
}

/// A customer, as returned by `GET /v1/customers/{id}`.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Customer {
    /// Id of the customer.
    pub customer_id: String,
    /// Number of orders created, in any status.
    pub orders: i64,
    /// Number of orders confirmed.
    pub confirmed: i64,
    /// Number of orders cancelled.
    pub cancelled: i64,
    /// Total of the confirmed orders, by currency.
    pub spend: Vec<Spend>,
    /// Time at which the first order was placed, in RFC 3339.
    pub first_order_at: String,
    /// Time at which the last order was placed, in RFC 3339.
    pub last_order_at: String,
}

/// Money spent in one currency.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Spend {
    /// Currency, as an ISO 4217 code.
    pub currency: String,
    /// Amount as a decimal string in the major unit.
    pub amount: String,
}

#[derive(sqlx_macros::FromRow)]
struct Row {
    currency: String,
    orders: i64,
    confirmed: i64,
    cancelled: i64,
    spend: i64,
    first_order_at: i64,
    last_order_at: i64,
}

/// Returns a customer; `None` if the customer has no order.
pub async fn find(mut from: impl Read, customer_id: &str) -> Result<Option<Customer>, Error> {
    let sql = "select currency, orders, confirmed, cancelled, spend, first_order_at, last_order_at
               from customers where customer_id = $1 order by currency";
    let rows: Vec<Row> = from.rows(sql, vec![customer_id.into()]).await?;
    let (Some(first), Some(last)) =
        (rows.iter().map(|row| row.first_order_at).min(), rows.iter().map(|row| row.last_order_at).max())
    else {
        return Ok(None);
    };
    Ok(Some(Customer {
        customer_id: customer_id.to_owned(),
        orders: rows.iter().map(|row| row.orders).sum(),
        confirmed: rows.iter().map(|row| row.confirmed).sum(),
        cancelled: rows.iter().map(|row| row.cancelled).sum(),
        first_order_at: rfc3339(first),
        last_order_at: rfc3339(last),
        spend: rows
            .into_iter()
            .map(|row| Spend {
                amount: format_minor(row.spend, row.currency.parse().unwrap_or_default()),
                currency: row.currency,
            })
            .collect(),
    }))
}
