//! The query API and the push layer.
//!
//! The read side writes neither events nor rows of read models. What it answers comes from read models or is folded from
//! the log. It keeps the tickets and the revocations of tokens.

pub mod admin;
pub mod consistency;
pub mod customers;
pub mod orders;
pub mod push;
pub mod reports;
pub mod revocations;
pub mod state;
