//! Live updates, and what queries share with them. Which channels there are, who may listen and what they show is for the
//! contexts to say; this crate knows no business term. It writes no events and no rows of read models.
//!
//! What listeners are shown, and how a listener that was away goes on, is in the log; so any process can serve any
//! listener.
//!
//! - [`api`]: what a context gives, its [`api::Channel`]s, and what it gets, the [`api::QueryApi`].
//! - [`publisher`], [`publication`]: what a context makes of an aggregate's changes.
//! - [`feed`]: from the log to the hub, a task for each checkpoint group.
//! - [`hub`], [`queue`], [`batch`], [`frames`]: from the hub to connections.
//! - [`session`], [`recovery`], [`merge`], [`cursor`]: how a listener begins, and goes on where it was.
//! - [`centrifuge`], [`live`]: the transports.
//! - [`connections`], [`access`], [`presence`], [`quota`]: who listens, and how much.
//! - [`consistency`]: reading one's own writes.
//! - [`cache`]: answers of queries in memory.
//! - [`asyncapi`]: the document of live updates.

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
