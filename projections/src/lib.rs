//! The read models of the business contexts, one module per context: tables, folds and queries.
//!
//! Projections never write events and never read each other's tables.

pub mod orders;
