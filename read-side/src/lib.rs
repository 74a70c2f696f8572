//! The query API and the push layer.
//!
//! The read side writes neither events nor rows of read models. What it answers comes from read models or is folded from
//! the log. It keeps the tickets and the revocations of tokens.

use utoipa_axum::router::OpenApiRouter;

use crate::state::ReadSide;

pub mod admin;
pub mod consistency;
pub mod customers;
pub mod orders;
pub mod push;
pub mod reports;
pub mod revocations;
pub mod state;

/// The queries of orders.
pub fn orders_router() -> OpenApiRouter<ReadSide> {
    OpenApiRouter::new().merge(orders::router()).merge(customers::router()).merge(reports::router())
}

/// What operators ask.
pub fn operations_router() -> OpenApiRouter<ReadSide> {
    OpenApiRouter::new().merge(admin::router()).merge(revocations::router())
}
