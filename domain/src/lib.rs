//! The business rules of orders, as pure synchronous functions.
//!
//! The crate never awaits, opens a file or a socket, reads a clock, draws a random number or logs. Ids, prices and
//! reasons arrive in the command, and state follows from events alone. The crate depends on neither HTTP nor a
//! database.
//!
//! - [`values`]: the validated value types (ids, money, quantities, texts). Every instance is valid.
//! - [`order`]: the order aggregate, in reading order: events, state, commands, errors, `decide`, `evolve`, tests.
//!
//! The names and fields of events are a storage format. `schemas/events` holds their schemas, and `tests/golden` holds
//! stored payloads that must decode forever. So a limit in [`values`] may be widened but never tightened.

pub mod order;
pub mod values;
