//! Live updates over WebSocket, server-sent events and long polls, and the parts that queries share with them. The
//! contexts define the channels, their access rules and their contents; this crate contains no business term. It writes
//! no events and no rows of read models.
//!
//! Every change that a client sees, and everything that a client needs to resume, is in the log. So any process can
//! serve any client.
//!
//! - [`api`]: the [`api::Channel`]s that a context provides, and the [`api::QueryApi`] that it receives.
//! - [`publisher`], [`publication`]: a context's code that turns an aggregate's events into publications.
//! - [`feed`]: moves events from the log to the hub, one task per checkpoint group.
//! - [`hub`], [`queue`], [`batch`], [`frames`]: move publications from the hub to connections.
//! - [`session`], [`recovery`], [`merge`], [`cursor`]: open channels, and resume them from a position.
//! - [`centrifuge`], [`live`]: the transports.
//! - [`connections`], [`access`], [`presence`], [`quota`]: authentication of clients, presence and limits.
//! - [`consistency`]: reading one's own writes.
//! - [`cache`]: answers of queries in memory.
//! - [`asyncapi`]: the AsyncAPI document of live updates.

pub mod access;
pub mod api;
pub mod asyncapi;
pub mod batch;
pub mod cache;
pub mod centrifuge;
pub mod connections;
pub mod consistency;
pub mod cursor;
pub mod feed;
pub mod frames;
pub mod hub;
pub mod live;
pub mod merge;
pub mod metrics;
pub mod presence;
pub mod problems;
pub mod publication;
pub mod publisher;
pub mod queue;
pub mod quota;
pub mod recovery;
pub mod session;
pub mod settings;
#[cfg(test)]
mod testing;
pub mod tokens;
