//! Middleware of one's own, in the four forms that Express users know. Each file is one form with its test. A module puts them
//! around its own routes, in the functions that it gives as `commands` and `queries`; routes of other modules are not touched.
//!
//! - [`pipeline`]: several layers in one order.
//! - [`decorate`]: one handler with something around it.
//! - [`unless`]: a layer that some requests pass by.
//! - [`first_of`]: the first of several that succeeds.
//!
//! Answers in memory are a decorator that the engine gives: `push::cache::ResponseCache`.

pub mod decorate;
pub mod first_of;
pub mod pipeline;
pub mod unless;
