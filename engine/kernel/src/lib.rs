//! Traits and types of aggregates and process managers. All other crates of the engine and all contexts depend on them.
//!
//! The code is pure: it never awaits, opens a file or a socket, or reads a clock. It contains no business terms.
//!
//! - [`aggregate`]: the traits of aggregates, events, commands and refusals.
//! - [`id`]: the rule for ids.
//! - [`process`]: the trait of process managers.
//! - [`stream`]: the id of an event stream.
//! - [`upcast`]: upcasters, which convert events of older versions to the current version.

pub mod aggregate;
pub mod id;
pub mod process;
#[cfg(feature = "schemas")]
pub mod schemas;
#[cfg(feature = "stock")]
pub mod stock;
pub mod stream;
pub mod upcast;
