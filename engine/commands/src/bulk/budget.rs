//! What requests to `POST /v1/commands` may hold: of each principal, and of all together.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::http::StatusCode;
use platform::problem::Problem;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::settings::Settings;

/// Commands under way at once, of one principal and of all: what is beyond it would only wait for the appender.
const COMMANDS_PER_PRINCIPAL_MAX: usize = 128;
const COMMANDS_MAX: usize = 512;
/// How long a line waits for the bytes that all share.
const SHARED_WITHIN: Duration = Duration::from_secs(10);
/// One principal may have this part of the bytes.
const PRINCIPALS_PART: usize = 4;

/// What all requests share.
pub(crate) struct Budget {
    settings: Settings,
    /// Where results wait that do not fit into memory.
    folders: Vec<PathBuf>,
    all: Share,
    principals: Mutex<HashMap<String, Arc<Share>>>,
}

/// What is held, by one principal or by all.
struct Share {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    results: Bytes,
}

/// Bytes on disk.
struct Bytes {
    held: AtomicU64,
    max: u64,
}

impl Bytes {
    fn take(&self, bytes: u64) -> bool {
        let fits = |held: u64| held.checked_add(bytes).filter(|held| *held <= self.max);
        self.held.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Relaxed);
    }
}

impl Share {
    fn new(requests: usize, bytes: usize, commands: usize, results: u64) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(requests)),
            bytes: Arc::new(Semaphore::new(bytes)),
            commands: Arc::new(Semaphore::new(commands)),
            results: Bytes { held: AtomicU64::new(0), max: results },
        }
    }
}

/// One request's place. What it takes is given back when it is dropped.
pub(crate) struct BulkSlot {
    budget: Arc<Budget>,
    subject: String,
    principal: Arc<Share>,
    _requests: [OwnedSemaphorePermit; 2],
}

/// What a command holds until its result has been kept.
pub(crate) type Held = [OwnedSemaphorePermit; 2];

impl Budget {
    pub(crate) fn new(settings: Settings, folders: Vec<PathBuf>) -> Self {
        let all = Share::new(
            settings.bulk_requests_max,
            settings.bulk_bytes_max,
            COMMANDS_MAX,
            settings.bulk_results_bytes_max,
        );
        Self { settings, folders, all, principals: Mutex::default() }
    }

    /// Takes a place for a request.
    ///
    /// # Errors
    /// 429 where the principal has as many as it may, 503 where all have.
    pub(crate) fn enter(self: &Arc<Self>, subject: &str) -> Result<BulkSlot, Problem> {
        let settings = &self.settings;
        let mut principals = self.lock();
        let principal = principals.get(subject).cloned().unwrap_or_else(|| {
            Arc::new(Share::new(
                settings.bulk_requests_per_principal_max,
                settings.bulk_bytes_max / PRINCIPALS_PART,
                COMMANDS_PER_PRINCIPAL_MAX,
                settings.bulk_results_bytes_max / PRINCIPALS_PART as u64,
            ))
        });
        let of_principal = principal.requests.clone().try_acquire_owned().map_err(|_| {
            too_many(StatusCode::TOO_MANY_REQUESTS, "too-many-bulk-requests").detail(format!(
                "You have {} requests to /v1/commands under way, which is the most. Send again when one of them has \
                 ended, or put more commands into each.",
                settings.bulk_requests_per_principal_max
            ))
        })?;
        let of_all = self.all.requests.clone().try_acquire_owned().map_err(|_| {
            too_many(StatusCode::SERVICE_UNAVAILABLE, "bulk-limit")
                .detail("This process has as many requests to /v1/commands under way as it takes. Try again shortly.")
        })?;
        principals.entry(subject.to_owned()).or_insert_with(|| principal.clone());
        drop(principals);
        Ok(BulkSlot { budget: self.clone(), subject: subject.to_owned(), principal, _requests: [of_principal, of_all] })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Share>>> {
        self.principals.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn too_many(status: StatusCode, slug: &'static str) -> Problem {
    Problem::new(status, slug, "Too many requests to /v1/commands").retry_after(1)
}

impl Drop for BulkSlot {
    fn drop(&mut self) {
        let mut principals = self.budget.lock();
        // The map and this place have it, and nobody else.
        if Arc::strong_count(&self.principal) == 2 {
            principals.remove(&self.subject);
        }
    }
}

impl BulkSlot {
    /// Waits until there is room for a command's bytes: among those of its principal for as long as it takes, among all
    /// for 10 s.
    ///
    /// # Errors
    /// 503 where all that the process may hold is held for longer.
    pub(crate) async fn bytes(&self, bytes: usize) -> Result<Held, Problem> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // Both are never closed.
        let of_principal = self.principal.bytes.clone().acquire_many_owned(bytes).await.expect("an open semaphore");
        let of_all = self.budget.all.bytes.clone().acquire_many_owned(bytes);
        let of_all = tokio::time::timeout(SHARED_WITHIN, of_all).await.map_err(|_| {
            too_many(StatusCode::SERVICE_UNAVAILABLE, "bulk-limit").detail(
                "This process holds as many bytes of commands as it may. This line and what follows were not read: send \
                 them again shortly.",
            )
        })?;
        Ok([of_principal, of_all.expect("an open semaphore")])
    }

    /// Waits until a command may be carried out.
    pub(crate) async fn command(&self) -> Held {
        let of_principal = self.principal.commands.clone().acquire_owned().await.expect("an open semaphore");
        let of_all = self.budget.all.commands.clone().acquire_owned().await.expect("an open semaphore");
        [of_principal, of_all]
    }

    /// Takes bytes on disk for results; false where there are none left.
    pub(crate) fn take_results(&self, bytes: u64) -> bool {
        if !self.principal.results.take(bytes) {
            return false;
        }
        let taken = self.budget.all.results.take(bytes);
        if !taken {
            self.principal.results.give_back(bytes);
        }
        taken
    }

    /// Gives bytes on disk back.
    pub(crate) fn give_back_results(&self, bytes: u64) {
        self.principal.results.give_back(bytes);
        self.budget.all.results.give_back(bytes);
    }

    /// Bytes on disk that this request may hold: half of what its principal may.
    pub(crate) fn results_max(&self) -> u64 {
        self.principal.results.max / 2
    }

    /// A file without a name, which is gone when it is closed, also by a crash.
    pub(crate) fn file(&self) -> std::io::Result<File> {
        let mut outcome = Err(std::io::ErrorKind::NotFound.into());
        for folder in &self.budget.folders {
            outcome = tempfile::tempfile_in(folder);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A place of a budget with these bytes on disk.
    pub(crate) fn place(bulk_results_bytes_max: u64, folders: Vec<PathBuf>) -> BulkSlot {
        let settings = Settings { bulk_results_bytes_max, ..Settings::default() };
        Arc::new(Budget::new(settings, folders)).enter("me").unwrap()
    }

    #[test]
    fn requests_are_counted_for_each_principal_and_for_all() {
        let settings = Settings { bulk_requests_max: 3, bulk_requests_per_principal_max: 2, ..Settings::default() };
        let budget = Arc::new(Budget::new(settings, vec![]));
        let mine = [budget.enter("me").unwrap(), budget.enter("me").unwrap()];
        assert_eq!(budget.enter("me").err().unwrap().status(), 429);
        let yours = budget.enter("you").unwrap();
        assert_eq!(budget.enter("you").err().unwrap().status(), 503);
        assert_eq!(budget.enter("third").err().unwrap().status(), 503);
        drop((mine, yours));
        assert!(budget.lock().is_empty(), "nobody is remembered who has no request");
        assert!(budget.enter("me").is_ok());
    }

    #[test]
    fn results_on_disk_are_counted_for_each_principal_and_for_all() {
        let settings = Settings { bulk_results_bytes_max: 400, ..Settings::default() };
        let budget = Arc::new(Budget::new(settings, vec![]));
        let (me, again) = (budget.enter("me").unwrap(), budget.enter("me").unwrap());
        assert!(me.take_results(60) && !again.take_results(60) && again.take_results(40));
        let others: Vec<_> = (0..3).map(|n| budget.enter(&format!("other-{n}")).unwrap()).collect();
        assert!(others.iter().all(|place| place.take_results(100)));
        let last = budget.enter("last").unwrap();
        assert!(!last.take_results(1), "all have all");
        me.give_back_results(60);
        assert!(last.take_results(60));
    }
}
