//! Limits of what requests to `POST /v1/commands` may hold: for each principal, and for all principals together.

use crate::problems::{BULK_LIMIT, TOO_MANY_BULK_REQUESTS};
use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use platform::problem::Problem;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::settings::Settings;

/// The largest number of commands in progress at the same time, of one principal and of all. More commands would only
/// wait for the appender.
const COMMANDS_PER_PRINCIPAL_MAX: usize = 128;
const COMMANDS_MAX: usize = 512;
/// How long a line waits for bytes of the shared limit.
const SHARED_WITHIN: Duration = Duration::from_secs(10);
/// A principal may hold this fraction of the bytes: one quarter.
const PRINCIPALS_PART: usize = 4;

/// The limits that all requests share, and their use.
pub(crate) struct Budget {
    settings: Settings,
    /// Folders for results that do not fit into memory. The first one in which a file can be created is used.
    folders: Vec<PathBuf>,
    all: Share,
    principals: Mutex<HashMap<String, Arc<Share>>>,
}

/// What one principal, or all principals together, hold.
struct Share {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    commands: Arc<Semaphore>,
    results: Bytes,
}

/// A counter of bytes on disk with a limit.
struct Bytes {
    held: AtomicU64,
    max: u64,
}

impl Bytes {
    fn reserve(&self, bytes: u64) -> bool {
        let fits = |held: u64| held.checked_add(bytes).filter(|held| *held <= self.max);
        self.held.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    fn release(&self, bytes: u64) {
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

/// The slot of one request in the budget. Dropping it returns everything that the request holds.
pub(crate) struct BulkSlot {
    budget: Arc<Budget>,
    subject: String,
    principal: Arc<Share>,
    _requests: [OwnedSemaphorePermit; 2],
}

/// The permits that a command holds until its result is in the spool.
pub(crate) type Permits = [OwnedSemaphorePermit; 2];

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

    /// Reserves a slot for a request.
    ///
    /// # Errors
    /// 429 when the principal has its maximum number of requests in progress, 503 when the process has its maximum.
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
            Problem::new(TOO_MANY_BULK_REQUESTS).retry_after(1).detail(format!(
                "You have {} requests to /v1/commands in progress, which is the maximum. Try again when one of them \
                 has ended, or send more commands in each request.",
                settings.bulk_requests_per_principal_max
            ))
        })?;
        let of_all = self.all.requests.clone().try_acquire_owned().map_err(|_| {
            Problem::new(BULK_LIMIT).retry_after(1).detail(
                "This process has its maximum number of requests to /v1/commands in progress. Try again shortly.",
            )
        })?;
        principals.entry(subject.to_owned()).or_insert_with(|| principal.clone());
        drop(principals);
        Ok(BulkSlot { budget: self.clone(), subject: subject.to_owned(), principal, _requests: [of_principal, of_all] })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Share>>> {
        self.principals.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for BulkSlot {
    fn drop(&mut self) {
        let mut principals = self.budget.lock();
        // Two references: the map and this slot. No other request of the principal is in progress.
        if Arc::strong_count(&self.principal) == 2 {
            principals.remove(&self.subject);
        }
    }
}

impl BulkSlot {
    /// Waits until the budget has room for a command's bytes. The wait for the principal's bytes has no limit; the wait
    /// for the shared bytes ends after 10 s.
    ///
    /// # Errors
    /// 503 when the shared bytes are in use for longer than that.
    pub(crate) async fn bytes(&self, bytes: usize) -> Result<Permits, Problem> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The semaphores are never closed.
        let of_principal = self.principal.bytes.clone().acquire_many_owned(bytes).await.expect("an open semaphore");
        let of_all = self.budget.all.bytes.clone().acquire_many_owned(bytes);
        let of_all = tokio::time::timeout(SHARED_WITHIN, of_all).await.map_err(|_| {
            Problem::new(BULK_LIMIT).retry_after(1).detail(
                "This process holds its maximum of command bytes. This line and the lines after it were not read. Send \
                 them again shortly.",
            )
        })?;
        Ok([of_principal, of_all.expect("an open semaphore")])
    }

    /// Waits until the command may run.
    pub(crate) async fn command(&self) -> Permits {
        let of_principal = self.principal.commands.clone().acquire_owned().await.expect("an open semaphore");
        let of_all = self.budget.all.commands.clone().acquire_owned().await.expect("an open semaphore");
        [of_principal, of_all]
    }

    /// Reserves bytes on disk for results; false when the limit of the principal or of the process is reached.
    pub(crate) fn reserve_result_bytes(&self, bytes: u64) -> bool {
        if !self.principal.results.reserve(bytes) {
            return false;
        }
        let reserved = self.budget.all.results.reserve(bytes);
        if !reserved {
            self.principal.results.release(bytes);
        }
        reserved
    }

    /// Releases reserved bytes on disk.
    pub(crate) fn release_result_bytes(&self, bytes: u64) {
        self.principal.results.release(bytes);
        self.budget.all.results.release(bytes);
    }

    /// The largest number of bytes on disk that this request may hold: half of its principal's limit.
    pub(crate) fn results_max(&self) -> u64 {
        self.principal.results.max / 2
    }

    /// Creates a file without a name. The operating system removes the file when it is closed, also after a crash.
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

    /// A slot of a budget with this limit of bytes on disk.
    pub(crate) fn slot(bulk_results_bytes_max: u64, folders: Vec<PathBuf>) -> BulkSlot {
        let settings = Settings { bulk_results_bytes_max, ..Settings::default() };
        Arc::new(Budget::new(settings, folders)).enter("me").unwrap()
    }

    #[test]
    fn requests_are_limited_per_principal_and_in_total() {
        let settings = Settings { bulk_requests_max: 3, bulk_requests_per_principal_max: 2, ..Settings::default() };
        let budget = Arc::new(Budget::new(settings, vec![]));
        let mine = [budget.enter("me").unwrap(), budget.enter("me").unwrap()];
        assert_eq!(budget.enter("me").err().unwrap().status(), 429);
        let yours = budget.enter("you").unwrap();
        assert_eq!(budget.enter("you").err().unwrap().status(), 503);
        assert_eq!(budget.enter("third").err().unwrap().status(), 503);
        drop((mine, yours));
        assert!(budget.lock().is_empty(), "principals without a request are removed");
        assert!(budget.enter("me").is_ok());
    }

    #[test]
    fn results_on_disk_are_limited_per_principal_and_in_total() {
        let settings = Settings { bulk_results_bytes_max: 400, ..Settings::default() };
        let budget = Arc::new(Budget::new(settings, vec![]));
        let (me, again) = (budget.enter("me").unwrap(), budget.enter("me").unwrap());
        assert!(me.reserve_result_bytes(60) && !again.reserve_result_bytes(60) && again.reserve_result_bytes(40));
        let others: Vec<_> = (0..3).map(|n| budget.enter(&format!("other-{n}")).unwrap()).collect();
        assert!(others.iter().all(|slot| slot.reserve_result_bytes(100)));
        let last = budget.enter("last").unwrap();
        assert!(!last.reserve_result_bytes(1), "the shared bytes are used up");
        me.release_result_bytes(60);
        assert!(last.reserve_result_bytes(60));
    }
}
