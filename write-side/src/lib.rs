//! The commands of every context, a file a context: routes, bodies, and lines in bulk.
//!
//! The write side never reads a read model and never waits for one.

pub mod orders;
