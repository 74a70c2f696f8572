//! The read models of orders.

pub mod customers;
pub mod details;
pub mod metrics;
pub mod products;
pub mod sales;
pub mod summaries;
pub mod view;

use projection_engine::projection::AnyProjection;

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
