//! Live updates: one hub fed from the stream, and the sockets over it.

pub mod centrifuge;
pub mod channels;
pub mod feed;
pub mod hub;
