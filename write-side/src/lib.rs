//! The commands of every context, one file per context: routes, request bodies and bulk lines.
//!
//! The write side never reads a read model and never waits for one.

pub mod orders;
