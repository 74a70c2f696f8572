//! The projection engine: folds the events of the log into read models, exactly once and in order. A rebuild gives the
//! same rows.
//!
//! The business contexts define the projections; this crate contains no business terms. Projections never write events
//! and never read each other's tables.
//!
//! - [`state`]: an aggregate's state after its recorded events.
//! - [`projection`]: the definition of a projection.
//! - [`registry`]: the projections of a program, in checkpoint groups that fail and are rebuilt independently.
//! - [`change`], `fold`, `group_fold`: turn events into changes and rows; used by the pump, rebuilds and verification.
//! - [`generation`]: the tables and the checkpoint of each build of a read model.
//! - [`pump`]: follows the log, with one task per checkpoint group.
//! - [`rebuild`]: builds a new generation of a read model beside the live one.
//! - [`verify`]: compares a read model with the log.
//! - [`dead_letters`], [`exclusions`]: events that could not be projected, and the operators' decisions about them.
//! - [`progress`]: the positions of the read models, kept up to date in every process.

pub mod change;
pub mod dead_letters;
pub mod error;
pub mod exclusions;
mod fold;
pub mod generation;
mod group_fold;
mod metrics;
pub mod progress;
pub mod projection;
pub mod pump;
pub mod rebuild;
pub mod registry;
pub mod settings;
pub mod state;
pub mod verify;
