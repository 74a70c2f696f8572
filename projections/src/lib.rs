//! Read models, folded from the log: exactly once, in order, and the same again when rebuilt.
//!
//! Each model is one file: its table, its rows, how it is asked. [`projection::all`] is the list of them. Projections
//! never write events and never read each other's tables.

pub mod customers;
pub mod dead_letters;
pub mod error;
mod fold;
pub mod generation;
mod metrics;
pub mod order;
pub mod order_details;
pub mod order_summaries;
pub mod products;
pub mod progress;
pub mod projection;
pub mod pump;
pub mod rebuild;
pub mod sales;
pub mod settings;
pub mod verify;
