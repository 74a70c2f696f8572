//! Turns requests and events into new events. One decider serves the streams of every aggregate type.
//!
//! The crate contains no business term and never reads a read model. Contexts supply routes, request bodies and
//! commands; the aggregate decides.
//!
//! - [`api`]: [`api::CommandApi`], the state of the handlers.
//! - [`request`]: the parts that every command request has, and its response.
//! - [`bulk`]: many commands in one request.
//! - [`reactions`]: commands that follow from events.
//! - [`decider`]: loads, decides and appends; repeats this after a conflict.

pub mod api;
pub mod bulk;
pub mod decider;
mod in_flight;
mod metrics;
pub mod outcome;
pub mod problems;
pub mod reactions;
pub mod repositories;
pub mod request;
pub mod settings;
pub mod step;
