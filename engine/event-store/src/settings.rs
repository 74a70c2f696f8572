//! Settings of the store: the databases, NATS, and the limits of the append path.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Upper limit of `append_batch_events_max` and `append_queue_max`: both bound data in memory.
const WAITING_MAX: usize = 1_000_000;

/// Settings of the store, the relay and the JetStream stream.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Database of the log: `sqlite:PATH` (embedded) or `postgres://…` (scaled). When not set: `docket.db` in the folder
    /// `data`.
    pub database_url: String,
    /// NATS servers: `nats://HOST:PORT` or `tls://HOST:PORT`, several separated by commas, each with its scheme.
    /// Credentials are written before the host: `USER:PASSWORD@` or `TOKEN@`, percent-encoded. When empty, NATS is not
    /// used and every reader reads the log.
    pub nats_url: String,
    /// Name of the JetStream stream; also the first token of its subjects.
    pub nats_stream: String,
    /// Number of servers of a NATS cluster that store the JetStream stream, 1 to 5.
    pub nats_replicas: usize,
    /// Maximum size of the JetStream stream in bytes. The oldest events are removed first; readers get them from the log.
    pub nats_stream_bytes_max: i64,
    /// Maximum number of events in one append transaction. The events of one command always stay together.
    pub append_batch_events_max: usize,
    /// Maximum number of commands that wait for the appender; one principal may have half of them. Further commands are
    /// answered 503 `overloaded`.
    pub append_queue_max: usize,
    /// How long a command may wait, in milliseconds. A command that is expected to wait longer for the appender is
    /// answered 503 `overloaded` at once; one that has waited so long for other commands to the same aggregate is
    /// answered 503.
    pub append_wait_ms_max: u64,
    /// SQLite: maximum number of reading connections. PostgreSQL: maximum number of connections for queries, and the same
    /// number for read models.
    pub connections_max: u32,
    /// Number of aggregates of one type in the write side's cache. A large aggregate counts as several.
    pub cache_aggregates_max: usize,
    /// Number of events after which another snapshot of an aggregate is saved.
    pub snapshot_every_events: i64,
    /// Time for which an idempotency key is kept, in hours; 24 to 87840.
    pub idempotency_hours: i64,
    /// SQLite: free bytes on the disk below which commands are answered 503 `disk-low`; 0 means no limit.
    pub disk_free_bytes_min: u64,
}

impl Settings {
    /// Returns the maximum expected wait of a command.
    pub fn append_wait_max(&self) -> Duration {
        Duration::from_millis(self.append_wait_ms_max)
    }

    /// Checks that the values are valid and do not contradict each other. Does not connect to any server.
    ///
    /// # Errors
    /// The first setting with an invalid value.
    pub fn check(&self) -> Result<(), Error> {
        let refused = |reason: String| Err(Error::Settings(reason));
        let path = self.database_url.strip_prefix("sqlite:").map(|path| path.trim_start_matches("//"));
        if path.is_some_and(|path| path.is_empty() || path.contains(":memory:")) {
            return refused(
                "database_url: `sqlite:PATH` needs the path of a file; a database in memory is not durable".into(),
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
            return refused("nats_stream must consist of the characters A-Z, a-z, 0-9, _ and -".into());
        }
        if self.nats_stream_bytes_max < 1 << 20 {
            return refused("nats_stream_bytes_max must be at least 1048576 (1 MiB)".into());
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
    /// Returns each URL of `nats_url`.
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
