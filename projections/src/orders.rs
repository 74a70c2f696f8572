//! The read models of orders.

pub mod customers;
pub mod details;
pub mod metrics;
pub mod products;
pub mod sales;
pub mod summaries;
pub mod view;

use domain::order::Order;
use projection_engine::projection::{AnyAggregate, AnyProjection, aggregate_type_of};

/// Returns the aggregate types of the read models of orders.
pub fn aggregates() -> Vec<&'static dyn AnyAggregate> {
    vec![aggregate_type_of::<Order>()]
}

/// Returns the projections of orders.
pub fn projections() -> Vec<&'static dyn AnyProjection> {
    vec![
        &summaries::PROJECTION,
        &details::PROJECTION,
        &customers::PROJECTION,
        &sales::PROJECTION,
        &sales::QUARTERS_PROJECTION,
        &products::PROJECTION,
    ]
}
