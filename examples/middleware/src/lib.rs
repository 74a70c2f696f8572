//! Custom middleware, in the four forms that Express users know. Each file shows one form with its test. A module wraps
//! its own routes in the functions that it gives as `commands` and `queries`; the routes of other modules are not
//! affected.
//!
//! - [`pipeline`]: several layers in a fixed order.
//! - [`decorate`]: a layer around one handler.
//! - [`unless`]: a layer that some requests skip.
//! - [`first_of`]: the first of several alternatives that succeeds.
//!
//! The engine provides a decorator that caches responses in memory: `push::cache::ResponseCache`.

pub mod decorate;
pub mod first_of;
pub mod pipeline;
pub mod unless;
