//! The event log and its publication to NATS JetStream.
//!
//! Only this crate depends on which database and which message bus are in use. It handles events as JSON with metadata
//! and contains no business types: the domain interprets events, and projections turn them into read models.

pub mod aggregates;
pub mod append;
mod appender;
pub mod bans;
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
mod recent_events;
pub mod settings;
mod snapshots;
mod sqlite;
pub mod store;
pub mod subscription;
pub mod table;
pub mod trace;
mod upcast;

/// Returns the current time in microseconds since 1970, the unit of `recorded_at`.
pub fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
