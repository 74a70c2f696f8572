//! The read models of every context, a folder a context: its tables, its rows, how it is asked.
//!
//! Projections never write events and never read each other's tables.

pub mod orders;
