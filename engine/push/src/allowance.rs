//! How much of the past may be folded for a customer who comes back: it costs a server far more than who asks for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use platform::auth::Principal;

/// Events of one channel that are folded to resume it, at most.
pub const FOLDED_MAX: i64 = 10_000;
/// Events that a customer may have folded at once, and how many more a second.
const AT_ONCE: f64 = 20_000.0;
const PER_SECOND: f64 = 2_000.0;
/// Customers that are remembered before those with a full allowance are forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// What customers have left; cheap to clone. Staff and admins are not counted.
#[derive(Clone, Default)]
pub struct Allowance(Arc<Mutex<HashMap<String, (f64, Instant)>>>);

impl Allowance {
    /// Takes the folding of so many events off what somebody may have; false where that is not left.
    pub fn take(&self, principal: &Principal, events: i64) -> bool {
        if principal.is_staff() || events == 0 {
            return true;
        }
        let now = Instant::now();
        let left = |(left, at): (f64, Instant)| (left + (now - at).as_secs_f64() * PER_SECOND).min(AT_ONCE);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED_MAX {
            known.retain(|_, counted| left(*counted) < AT_ONCE);
        }
        let left = known.get(&principal.subject).map_or(AT_ONCE, |counted| left(*counted)) - events as f64;
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
    fn a_customer_has_so_much_and_staff_are_not_counted() {
        let who = |subject: &str, role| Principal {
            subject: subject.into(),
            role,
            token_id: None,
            issued_at: 0,
            expires_at: i64::MAX,
        };
        let (ada, bob, clerk) = (who("ada", Role::Customer), who("bob", Role::Customer), who("clerk", Role::Staff));
        let allowance = Allowance::default();
        let times = |who: &Principal| (0..20).filter(|_| allowance.take(who, 9_000)).count();
        assert_eq!((times(&ada), times(&bob), times(&clerk)), (2, 2, 20));
        assert!(allowance.take(&ada, 500), "what is small still goes");
    }
}
