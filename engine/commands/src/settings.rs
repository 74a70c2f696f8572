//! Limits of `POST /v1/commands`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Limits of all concurrent requests to `POST /v1/commands`. One principal may use a quarter of the bytes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Concurrent requests to `POST /v1/commands` of all principals. A further request is answered 503 `bulk-limit`.
    pub bulk_requests_max: usize,
    /// Concurrent requests to `POST /v1/commands` of one principal. A further request is answered 429
    /// `too-many-bulk-requests`.
    pub bulk_requests_per_principal_max: usize,
    /// Bytes of memory for commands of bulk requests in progress; one principal may use a quarter. While they are used
    /// up, no further line is read.
    pub bulk_bytes_max: usize,
    /// Bytes on disk for results of bulk requests that clients have not read; one principal may use a quarter, one
    /// request an eighth. While they are used up, no further line is read. 0 disables results on disk.
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

/// The quarter of one principal must have room for the longest line.
const BULK_BYTES_MIN: usize = 32 << 20;
/// The semaphore that counts the bytes is acquired with a `u32`.
const BULK_BYTES_MAX: usize = 1 << 32;

impl Settings {
    /// Checks the limits.
    ///
    /// # Errors
    /// Names the first invalid setting and its valid range.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("bulk_requests_max", self.bulk_requests_max),
            ("bulk_requests_per_principal_max", self.bulk_requests_per_principal_max),
        ] {
            if !(1..=10_000).contains(&value) {
                return Err(format!("{name} must be 1 to 10000"));
            }
        }
        if !(BULK_BYTES_MIN..=BULK_BYTES_MAX).contains(&self.bulk_bytes_max) {
            return Err(format!("bulk_bytes_max must be {BULK_BYTES_MIN} (32 MiB) to {BULK_BYTES_MAX} (4 GiB)"));
        }
        Ok(())
    }
}
