//! What an aggregate is: pure traits and types, which every other crate of the engine and every context builds on.
//!
//! The crate never awaits, opens a file or a socket, or reads a clock. It knows no business term.
//!
//! - [`aggregate`]: the trait of aggregates, and those of their events, commands and refusals.
//! - [`process`]: the trait of process managers.
//! - [`stream`]: the id of an event stream.
//! - [`upcast`]: how events of older versions become events of the present one.

pub mod aggregate;
pub mod process;
#[cfg(feature = "schemas")]
pub mod schemas;
#[cfg(feature = "stock")]
pub mod stock;
pub mod stream;
pub mod upcast;
