//! Live updates and the query API's common part: one hub fed from the stream, three transports over it, and reading your
//! own writes. What listeners are shown, and how a listener that was away goes on, is in the log; so any process can serve
//! any listener.

pub mod access;
pub mod allowance;
pub mod api;
pub mod asyncapi;
pub mod centrifuge;
pub mod channels;
pub mod connections;
pub mod consistency;
pub mod feed;
pub mod hub;
pub mod live;
pub mod metrics;
pub mod presence;
pub mod publication;
pub mod session;
