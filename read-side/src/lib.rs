//! The queries of the contexts, and what operators ask.
//!
//! The read side writes neither events nor rows of read models. What it answers comes from read models or is folded from
//! the log. It keeps the revocations of tokens.

use push::api::QueryApi;
use utoipa_axum::router::OpenApiRouter;

pub mod admin;
pub mod customers;
pub mod orders;
pub mod reports;
pub mod revocations;

/// The queries of orders.
pub fn orders_router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().merge(orders::router()).merge(customers::router()).merge(reports::router())
}

/// What operators ask.
pub fn operations_router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().merge(admin::router()).merge(revocations::router())
}
