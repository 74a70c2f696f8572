//! The read model: one row per account.

use event_store::db::Read;
use event_store::error::Error;
use event_store::table::{Merge, Table, int, text};
use projection_engine::change::{Change, Rows};
use projection_engine::projection::{Fold, Projection};
use projection_engine::state::Versioned;
use serde::Serialize;
use utoipa::ToSchema;

use crate::account::Account;

/// The table. Its name starts with the name of the module.
static TABLE: Table = Table {
    name: "loyalty_accounts",
    columns: &[
        text("customer_id", Merge::Key),
        int("balance", Merge::Set),
        int("granted", Merge::Set),
        int("orders", Merge::Set),
        int("version", Merge::Set),
    ],
    indexes: &[],
};

/// The projection of the current state of accounts.
pub static ACCOUNTS: Projection<Account> =
    Projection { name: "loyalty_accounts", version: 1, tables: &[&TABLE], fold: Fold::OfState(fold) };

fn fold(changes: &[Change<Account>]) -> Vec<Rows> {
    let row = |change: &Change<Account>| {
        let view = AccountView::of(&change.after);
        vec![view.customer_id.into(), view.balance.into(), view.granted.into(), view.orders.into(), view.version.into()]
    };
    vec![(&TABLE, changes.iter().map(row).collect())]
}

/// An account as clients see it.
#[derive(Debug, Clone, Serialize, ToSchema, sqlx_macros::FromRow)]
pub struct AccountView {
    /// Id of the customer.
    pub customer_id: String,
    /// Points that can be spent.
    pub balance: i64,
    /// Sum of all points ever granted.
    pub granted: i64,
    /// Number of orders that granted points.
    pub orders: i64,
    /// Version of the account.
    pub version: i64,
}

impl AccountView {
    /// Builds the view of an account. The table, the responses and the channel use the same view.
    pub fn of(account: &Versioned<Account>) -> Self {
        Self {
            customer_id: account.id.to_string(),
            balance: account.state.balance(),
            granted: account.state.granted,
            orders: account.state.orders,
            version: account.version,
        }
    }
}

/// Returns the account of a customer, if it exists.
///
/// # Errors
/// The database is unavailable.
pub async fn find(mut from: impl Read, customer_id: &str) -> Result<Option<AccountView>, Error> {
    let sql = "select customer_id, balance, granted, orders, version from loyalty_accounts where customer_id = $1";
    Ok(from.rows(sql, vec![customer_id.into()]).await?.pop())
}
