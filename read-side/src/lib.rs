//! The queries of the contexts, and what operators ask.
//!
//! The read side writes neither events nor rows of read models. What it answers comes from read models or is folded from
//! the log. It keeps the revocations of tokens.

pub mod admin;
pub mod customers;
pub mod orders;
pub mod reports;
pub mod revocations;
