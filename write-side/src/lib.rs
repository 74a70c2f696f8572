//! The command API: a request becomes a command, the command events, the events an answer.
//!
//! The write side never reads a read model and never waits for one.

pub mod bulk;
pub mod call;
pub mod dispatch;
mod in_flight;
mod metrics;
pub mod orders;
pub mod settings;
