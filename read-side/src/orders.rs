//! The orders context: queries, channels and publications.

pub mod channels;
pub mod publications;
pub mod queries;
