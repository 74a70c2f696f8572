//! Settings of the projection engine.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of the cache and of the retries.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Maximum number of aggregates of each type that are kept in memory between batches. The states of other
    /// aggregates are read from the log again when they change.
    pub aggregates_in_memory_max: usize,
    /// Delay in milliseconds before failed events are tried again; it doubles with each attempt, up to 64 times this
    /// value.
    pub retry_delay_ms: u64,
    /// Number of attempts to project an event before its stream is parked.
    pub attempts_max: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { aggregates_in_memory_max: 10_000, retry_delay_ms: 500, attempts_max: 3 }
    }
}
