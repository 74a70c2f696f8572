//! The read models of orders.

pub mod customers;
pub mod details;
pub mod metrics;
pub mod products;
pub mod sales;
pub mod summaries;
pub mod view;

use domain::order::Order;
use projection_engine::projection::{AnyAggregate, AnyProjection, kind_of};

/// Their kinds of aggregates.
pub fn aggregates() -> Vec<&'static dyn AnyAggregate> {
    vec![kind_of::<Order>()]
}

/// Every read model.
pub fn projections() -> Vec<&'static dyn AnyProjection> {
    vec![
        &summaries::PROJECTION,
        &details::PROJECTION,
        &customers::PROJECTION,
        &sales::PROJECTION,
        &products::PROJECTION,
    ]
}
