//! Remaining lifetime of tokens.

use std::time::Duration;

use jiff::Timestamp;
use platform::auth::{LEEWAY_SECONDS, Principal};

/// Longest lifetime that is returned, in seconds, so that timers do not overflow.
const TTL_MAX: i64 = 10 * 365 * 86_400;

/// Returns how long a token is still accepted: until a few seconds after its expiry, because clocks differ.
pub fn token_lifetime(principal: &Principal) -> Duration {
    Duration::from_secs(seconds_until(principal.expires_at + LEEWAY_SECONDS as i64))
}

/// Returns the seconds until a token expires; 0 if it has expired.
pub fn ttl(principal: &Principal) -> u64 {
    seconds_until(principal.expires_at)
}

fn seconds_until(at: i64) -> u64 {
    (at - Timestamp::now().as_second()).clamp(0, TTL_MAX) as u64
}
