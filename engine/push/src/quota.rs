//! Replay quota: limits the events that the server folds to resume the channels of a customer. A replay costs the
//! server far more than it costs the client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use platform::auth::Principal;

/// Most events that are folded to resume one channel.
pub const FOLDED_MAX: i64 = 10_000;
/// Full quota of a customer, in events.
const EVENTS_MAX: f64 = 20_000.0;
/// Refill rate of a quota, in events per second.
const EVENTS_PER_SECOND: f64 = 2_000.0;
/// Number of tracked customers above which customers with a full quota are dropped.
const CUSTOMERS_MAX: usize = 10_000;

/// The replay quotas of all customers. Staff and admins have no limit. Cheap to clone.
#[derive(Clone, Default)]
pub struct ReplayQuota(Arc<Mutex<HashMap<String, (f64, Instant)>>>);

impl ReplayQuota {
    /// Charges `events` to the caller's replay quota; false when it is exhausted.
    pub fn charge(&self, principal: &Principal, events: i64) -> bool {
        if principal.is_staff() || events == 0 {
            return true;
        }
        let now = Instant::now();
        let refilled =
            |(left, at): (f64, Instant)| (left + (now - at).as_secs_f64() * EVENTS_PER_SECOND).min(EVENTS_MAX);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CUSTOMERS_MAX {
            known.retain(|_, counted| refilled(*counted) < EVENTS_MAX);
        }
        let left = known.get(&principal.subject).map_or(EVENTS_MAX, |counted| refilled(*counted)) - events as f64;
        if left >= 0.0 {
            known.insert(principal.subject.clone(), (left, now));
        }
        left >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use platform::auth::Role;

    use super::*;

    #[test]
    fn customers_have_a_quota_and_staff_have_none() {
        let who = |subject: &str, role| Principal {
            subject: subject.into(),
            role,
            token_id: None,
            issued_at: 0,
            expires_at: i64::MAX,
        };
        let (ada, bob, clerk) = (who("ada", Role::Customer), who("bob", Role::Customer), who("clerk", Role::Staff));
        let quota = ReplayQuota::default();
        let times = |who: &Principal| (0..20).filter(|_| quota.charge(who, 9_000)).count();
        assert_eq!((times(&ada), times(&bob), times(&clerk)), (2, 2, 20));
        assert!(quota.charge(&ada, 500), "a small replay still fits");
    }
}
