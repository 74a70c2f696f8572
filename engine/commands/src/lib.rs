//! From a request or an event to events: one decider for every stream, whatever its aggregate.
//!
//! The crate knows no business term and never reads a read model. Contexts give their routes, bodies and commands; the
//! aggregate decides.
//!
//! - [`api`]: what handlers work with, [`api::CommandApi`].
//! - [`request`]: what every command request brings along, and its answer.
//! - [`bulk`]: many commands in one request.
//! - [`reactions`]: events lead to commands.
//! - [`decider`]: load, decide, append; load and decide again when somebody else was faster.

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
