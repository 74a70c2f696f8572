//! The event log and its stream: the only crate that knows which database and which bus run.
//!
//! It carries JSON and metadata and never a business type: what an event means is for the domain, what a read model
//! makes of it for the projections.

pub mod aggregates;
pub mod append;
mod appender;
pub mod db;
pub mod disk;
pub mod error;
pub mod event;
mod generations;
pub mod idempotency;
mod jetstream;
pub mod leader;
mod log;
mod metrics;
pub mod migrations;
mod plan;
mod postgres;
mod privileges;
mod queue;
pub mod reactions;
pub mod settings;
mod snapshots;
mod sqlite;
pub mod store;
pub mod subscription;
pub mod table;
mod tail;
pub mod trace;
mod upcast;

/// Microseconds since 1970, as the log stamps its events.
pub fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
