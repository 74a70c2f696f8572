//! Settings of the projections.

use serde::{Deserialize, Serialize};

/// How much is projected at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Aggregates of each kind kept in memory between batches; others are folded again from the log when they change.
    pub aggregates_in_memory_max: usize,
    /// Wait after a failure, before the same events are tried again, in milliseconds; it doubles each time.
    pub retry_delay_ms: u64,
    /// How often an event is tried before its stream is parked.
    pub attempts_max: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { aggregates_in_memory_max: 10_000, retry_delay_ms: 500, attempts_max: 3 }
    }
}
