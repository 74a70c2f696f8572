//! Read models, folded from the log: exactly once, in order, and the same again when rebuilt.
//!
//! Which read models there are is for the contexts to say; this crate knows no business term. Projections never write
//! events and never read each other's tables.
//!
//! - [`state`]: an aggregate as its recorded events leave it.
//! - [`projection`]: what a read model is.
//! - [`registry`]: the read models of a program, in groups that fail and are rebuilt apart from each other.
//! - [`change`], `fold`, `group_fold`: from events to changes and rows, shared by pump, rebuild and verification.
//! - [`generation`]: the tables and checkpoints of each build of a read model.
//! - [`pump`]: follows the log, a task for each group.
//! - [`rebuild`], [`verify`]: builds a read model again beside the one that serves; compares one with the log.
//! - [`dead_letters`], [`exclusions`]: what could not be projected, and what operators decide about it.
//! - [`progress`]: how far the read models have come, as every process knows it.

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
