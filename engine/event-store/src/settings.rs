//! Where the log lives and how much of it is in flight.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Commands or events in memory before they are in the log, whatever the settings say.
const WAITING_MAX: usize = 1_000_000;

/// Settings of the store, the relay and the stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `sqlite:PATH` (embedded) or `postgres://…` (scaled).
    pub database_url: String,
    /// `nats://host:port`, several separated by commas; empty: the stream runs in process, read from the log.
    pub nats_url: String,
    /// Name of the JetStream stream, and first token of its subjects.
    pub nats_stream: String,
    /// Servers of the NATS cluster that keep the JetStream stream: 1 to 5.
    pub nats_replicas: usize,
    /// Bytes that the JetStream stream may keep; readers that come later read the log.
    pub nats_stream_bytes_max: i64,
    /// Events in one append transaction, at most (one command's events always stay together).
    pub append_batch_events_max: usize,
    /// Commands that may wait for the appender, half of them of one principal; more are answered 503.
    pub append_queue_max: usize,
    /// How long a command may be expected to wait for the appender or for its order, in milliseconds; else it is answered
    /// 503 at once.
    pub append_wait_ms_max: u64,
    /// Connections for queries (PostgreSQL) or readers (SQLite).
    pub connections_max: u32,
    /// Aggregates of a type kept in memory on the write side.
    pub cache_aggregates_max: usize,
    /// A snapshot is written each time a stream has grown by so many events.
    pub snapshot_every_events: i64,
    /// How long an idempotency key is kept, in hours; at least 24.
    pub idempotency_hours: i64,
    /// Free bytes on the disk of an SQLite store, below which no command is taken; 0: no limit.
    pub disk_free_bytes_min: u64,
}

impl Settings {
    /// How long a command may be expected to wait.
    pub fn append_wait_max(&self) -> Duration {
        Duration::from_millis(self.append_wait_ms_max)
    }

    /// Whether they can work, as far as that can be told without trying.
    ///
    /// # Errors
    /// The first setting that cannot.
    pub fn check(&self) -> Result<(), Error> {
        let refused = |reason: String| Err(Error::Settings(reason));
        let path = self.database_url.strip_prefix("sqlite:").map(|path| path.trim_start_matches("//"));
        if path.is_some_and(|path| path.is_empty() || path.contains(":memory:")) {
            return refused(
                "database_url: `sqlite:PATH` needs the path of a file; nothing in memory is durable".into(),
            );
        }
        let schemes = ["postgres://", "postgresql://"];
        if path.is_none() && !schemes.iter().any(|scheme| self.database_url.starts_with(scheme)) {
            return refused("database_url must be `sqlite:PATH` or `postgres://…`".into());
        }
        let is_nats = |url: &str| ["nats://", "tls://"].iter().any(|scheme| url.starts_with(scheme));
        if !self.nats_url.is_empty() && !self.nats_urls().all(is_nats) {
            return refused(
                "nats_url must be `nats://HOST:PORT` or `tls://HOST:PORT`, several separated by commas, or empty"
                    .into(),
            );
        }
        if !(1..=5).contains(&self.nats_replicas) {
            return refused("nats_replicas must be 1 to 5".into());
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if self.nats_stream.is_empty() || !self.nats_stream.bytes().all(is_name) {
            return refused("nats_stream must be a name of A-Z a-z 0-9 _ -".into());
        }
        if self.nats_stream_bytes_max < 1 << 20 {
            return refused("nats_stream_bytes_max must be at least 1048576".into());
        }
        let at_least_one = [
            ("append_batch_events_max", self.append_batch_events_max as i64),
            ("append_queue_max", self.append_queue_max as i64),
            ("append_wait_ms_max", i64::try_from(self.append_wait_ms_max).unwrap_or(i64::MAX)),
            ("connections_max", self.connections_max.into()),
            ("snapshot_every_events", self.snapshot_every_events),
        ];
        let most =
            [("append_batch_events_max", self.append_batch_events_max), ("append_queue_max", self.append_queue_max)];
        if let Some((name, _)) = most.iter().find(|(_, value)| *value > WAITING_MAX) {
            return Err(Error::Settings(format!("{name} must be at most {WAITING_MAX}")));
        }
        if let Some((name, _)) = at_least_one.iter().find(|(_, value)| *value < 1) {
            return Err(Error::Settings(format!("{name} must be at least 1")));
        }
        if !(24..=24 * 3_660).contains(&self.idempotency_hours) {
            return Err(Error::Settings("idempotency_hours must be 24 to 87840 (ten years)".into()));
        }
        Ok(())
    }
}

impl Settings {
    /// Each URL of `nats_url`.
    pub(crate) fn nats_urls(&self) -> impl Iterator<Item = &str> {
        self.nats_url.split(',').map(str::trim)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            database_url: "sqlite:data/docket.db".into(),
            nats_url: String::new(),
            nats_stream: "docket".into(),
            nats_replicas: 1,
            nats_stream_bytes_max: 1 << 30,
            append_batch_events_max: 4_000,
            append_queue_max: 8_192,
            append_wait_ms_max: 700,
            connections_max: 8,
            cache_aggregates_max: 10_000,
            snapshot_every_events: 200,
            idempotency_hours: 48,
            disk_free_bytes_min: 128 << 20,
        }
    }
}
