//! How much `POST /v1/commands` may hold at once.

use serde::{Deserialize, Serialize};

/// Bounds of all requests to `POST /v1/commands` together. One principal may have a quarter of the bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Requests at a time; one more is answered 503.
    pub bulk_requests_max: usize,
    /// Requests at a time of one principal; one more is answered 429.
    pub bulk_requests_per_principal_max: usize,
    /// Bytes of memory for commands that are being carried out; beyond it, requests are read no further.
    pub bulk_bytes_max: usize,
    /// Bytes on disk for results that clients have not read yet; beyond it, requests are read no further. 0: none.
    pub bulk_results_bytes_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bulk_requests_max: 64,
            bulk_requests_per_principal_max: 8,
            bulk_bytes_max: 64 << 20,
            bulk_results_bytes_max: 1 << 30,
        }
    }
}

/// So that each principal's quarter has room for the longest line.
const BULK_BYTES_MIN: usize = 32 << 20;
/// What counts bytes counts so far.
const BULK_BYTES_MOST: usize = 1 << 32;

impl Settings {
    /// Whether they can work.
    ///
    /// # Errors
    /// The first setting that cannot, and what it must be.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("bulk_requests_max", self.bulk_requests_max),
            ("bulk_requests_per_principal_max", self.bulk_requests_per_principal_max),
        ] {
            if !(1..=10_000).contains(&value) {
                return Err(format!("{name} must be 1 to 10000"));
            }
        }
        if !(BULK_BYTES_MIN..=BULK_BYTES_MOST).contains(&self.bulk_bytes_max) {
            return Err(format!("bulk_bytes_max must be {BULK_BYTES_MIN} to {BULK_BYTES_MOST}"));
        }
        Ok(())
    }
}
