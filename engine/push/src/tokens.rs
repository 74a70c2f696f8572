//! How long a token counts.

use std::time::Duration;

use jiff::Timestamp;
use platform::auth::{LEEWAY_SECONDS, Principal};

/// As far as timers reach, in seconds.
const TTL_MAX: i64 = 10 * 365 * 86_400;

/// How long a token is still accepted: a few seconds past its end, because clocks differ.
pub fn token_lifetime(principal: &Principal) -> Duration {
    Duration::from_secs(seconds_until(principal.expires_at + LEEWAY_SECONDS as i64))
}

/// Seconds until a token ends.
pub fn ttl(principal: &Principal) -> u64 {
    seconds_until(principal.expires_at)
}

fn seconds_until(at: i64) -> u64 {
    (at - Timestamp::now().as_second()).clamp(0, TTL_MAX) as u64
}
