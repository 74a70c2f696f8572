//! What every HTTP service needs and none should write twice: identity, limits, problem details, logs, traces,
//! metrics, health, shutdown.
//!
//! This crate knows nothing of orders, of a database or of a stream, and imports no other crate of this workspace.
//! Each module that can be configured owns its `Settings`; the binary gathers them.

pub mod auth;
pub mod body;
pub mod client_stream;
pub mod conditional;
pub mod files;
pub mod health;
pub mod http;
pub mod limits;
pub mod metrics;
pub mod problem;
pub mod proxies;
mod receiving;
pub mod request_id;
pub mod shutdown;
pub mod telemetry;
pub mod trace;
