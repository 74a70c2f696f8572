//! The query API and the push layer.
//!
//! The read side never writes: neither events nor rows. What it answers comes from read models or is folded from the log.

pub mod admin;
pub mod consistency;
pub mod customers;
pub mod orders;
pub mod push;
pub mod reports;
pub mod state;
