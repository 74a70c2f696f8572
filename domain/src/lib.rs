//! The business rules of orders, as plain synchronous functions.
//!
//! The crate never awaits, opens a file or a socket, reads a clock, draws a random number or logs: ids, prices and
//! reasons arrive in the command, and state follows from events alone. It knows neither HTTP nor any database.
//!
//! - [`values`]: the checked building blocks (ids, money, quantities, texts); a value that exists is valid.
//! - [`order`]: the order aggregate, read top to bottom: events, state, commands, `decide`, `evolve`, tests.
//!
//! An event's name and fields are a storage format: `schemas/events` holds its contract, `tests/golden`
//! payloads in stored form that must decode for ever. So a limit in [`values`] may be widened, but never tightened.

pub mod order;
pub mod values;
