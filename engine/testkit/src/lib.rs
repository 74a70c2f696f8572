//! Shared by the in-process tests of the engine crates: an aggregate, and a store on a temporary SQLite file.
//!
//! - [`counter`]: an aggregate that adds numbers, with commands that can be refused.
//! - [`store`]: opens a store in a temporary folder and appends events to it.

pub mod counter;
pub mod store;
