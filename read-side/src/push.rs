//! Live updates: one hub fed from the stream, and three transports over it. What they show, and how a listener that was
//! away goes on, is in the log; so any process can serve any listener.

pub mod access;
pub mod allowance;
pub mod asyncapi;
pub mod centrifuge;
pub mod channels;
pub mod connections;
pub mod feed;
pub mod hub;
pub mod live;
pub mod metrics;
pub mod presence;
pub mod publication;
pub mod session;
