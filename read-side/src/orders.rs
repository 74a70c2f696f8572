//! Orders: how they are queried, their channels, and what is published of their changes.

pub mod channels;
pub mod publications;
pub mod queries;
