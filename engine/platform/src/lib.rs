//! Parts that every HTTP service needs: authentication, limits, problem details, logs, traces, metrics, health checks
//! and shutdown.
//!
//! This crate contains nothing about orders, databases or event streams, and depends on no other crate of this
//! workspace. Each configurable module has its own `Settings`; the binary combines them.

pub mod auth;
pub mod body;
mod body_memory;
pub mod client_stream;
mod compression;
pub mod conditional;
pub mod files;
pub mod health;
pub mod http;
pub mod limits;
pub mod metrics;
pub mod problem;
pub mod proxies;
pub mod request_id;
pub mod shutdown;
pub mod telemetry;
pub mod time;
pub mod trace;
