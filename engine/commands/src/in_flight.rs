//! Idempotency keys of requests in progress.

use crate::problems::REQUEST_IN_FLIGHT;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use platform::problem::Problem;

/// The idempotency keys whose first request is in progress in this process.
#[derive(Default)]
pub(crate) struct InFlight(Arc<Mutex<HashSet<(String, String)>>>);

/// Releases the key when dropped.
pub(crate) struct Entered {
    all: Arc<Mutex<HashSet<(String, String)>>>,
    key: (String, String),
}

impl InFlight {
    /// Reserves a key.
    ///
    /// # Errors
    /// 409 while another request holds the key.
    pub(crate) fn enter(&self, scope: &str, key: &str) -> Result<Entered, Problem> {
        let key = (scope.to_owned(), key.to_owned());
        let mut all = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match all.insert(key.clone()) {
            true => Ok(Entered { all: self.0.clone(), key }),
            false => Err(request_in_flight()),
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).remove(&self.key);
    }
}

/// Returns 409: the first request with this key is in progress, and its answer can be read with the same key later.
pub(crate) fn request_in_flight() -> Problem {
    Problem::new(REQUEST_IN_FLIGHT)
        .detail("Wait for the answer of the first request, or try again in a moment with the same Idempotency-Key.")
        .retry_after(1)
}
