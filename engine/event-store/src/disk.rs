//! Watches the file systems of an SQLite store: free space, and whether they can be written. Commands are refused
//! before SQLite fails in the middle of one, and are accepted again without an operator when the disk has room.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platform::files::{self, folder_of};
use rustix::fs::{StatVfsMountFlags, statvfs};
use tokio_util::sync::CancellationToken;

/// Interval between two checks of the file systems.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Number of bytes that a probe writes: about as many as a commit.
const PROBE_BYTES: usize = 64 * 1024;

/// Monitor of the file systems of an SQLite store. Clones share their state.
#[derive(Clone)]
pub struct Disk(Arc<Inner>);

struct Inner {
    /// The database files; they may be on different file systems.
    databases: Vec<PathBuf>,
    /// Free bytes below which commands are refused; 0 means no limit.
    free_bytes_min: u64,
    /// Reason why commands are refused, according to the last check; `None` while they are accepted.
    problem: Mutex<Option<String>>,
}

impl Disk {
    /// Creates the monitor and checks the file systems of these databases.
    pub(crate) fn new(databases: Vec<PathBuf>, free_bytes_min: u64) -> Self {
        let disk = Self(Arc::new(Inner { databases, free_bytes_min, problem: Mutex::default() }));
        disk.check();
        disk
    }

    /// Returns the reason why commands are refused; `None` while they are accepted. At most about a second old.
    pub fn problem(&self) -> Option<String> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes a file beside each database and removes it again. This finds faults that the regular check does not:
    /// missing permissions, quotas, broken disks.
    ///
    /// # Errors
    /// The reason why the store cannot be written now.
    pub async fn probe(&self) -> Result<(), String> {
        let disk = self.clone();
        let probe = move || {
            disk.check();
            match disk.problem() {
                Some(problem) => Err(problem),
                None => disk.0.databases.iter().try_for_each(|database| {
                    write_probe(database)
                        .map_err(|error| format!("the folder {} cannot be written: {error}", folder(database)))
                }),
            }
        };
        tokio::task::spawn_blocking(probe).await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Checks the file systems every second, until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            let disk = self.clone();
            // On a blocking thread, because a network file system may answer slowly.
            let _ = tokio::task::spawn_blocking(move || disk.check()).await;
        }
    }

    fn check(&self) {
        let now = self.0.databases.iter().find_map(|database| self.find_problem(database));
        let mut known = self.0.problem.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*known, &now) {
            (None, Some(problem)) => {
                tracing::error!(trouble = problem, "Commands are refused until the disk problem is solved.")
            }
            (Some(_), None) => tracing::info!("Commands are accepted again: the disk has room and can be written."),
            _ => {}
        }
        *known = now;
    }

    fn find_problem(&self, database: &Path) -> Option<String> {
        // If the file system cannot be inspected, SQLite reports its own errors.
        let about = statvfs(folder_of(database)).ok()?;
        let (free, min) = (about.f_bavail.saturating_mul(about.f_frsize), self.0.free_bytes_min);
        if about.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Some(format!("the file system of {} is read-only", folder(database)));
        }
        (free < min).then(|| {
            format!(
                "the disk of {} has less than disk_free_bytes_min ({min}) bytes free: free some space, or lower the setting",
                folder(database)
            )
        })
    }
}

fn folder(database: &Path) -> std::path::Display<'_> {
    folder_of(database).display()
}

fn write_probe(database: &Path) -> io::Result<()> {
    let path = database.with_extension("probe");
    let written = files::create(&path)?.write_all(&[0; PROBE_BYTES]);
    std::fs::remove_file(&path)?;
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_with_too_little_room_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("store.db");
        let disk = |free_bytes_min| Disk::new(vec![database.clone()], free_bytes_min);
        assert_eq!((disk(0).problem(), disk(1).problem()), (None, None));
        disk(1).probe().await.unwrap();
        let full = disk(u64::MAX);
        let problem = full.problem().unwrap();
        assert!(
            problem.contains("disk_free_bytes_min") && problem.contains(folder.path().to_str().unwrap()),
            "{problem}"
        );
        assert_eq!(full.probe().await, Err(problem));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a probe leaves no file");
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_fails_the_probe() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(vec![folder.path().join("gone/store.db")], 0);
        assert!(disk.probe().await.unwrap_err().contains("gone cannot be written"));
        // The probe file's name is already used by a folder.
        std::fs::create_dir(folder.path().join("store.probe")).unwrap();
        assert!(Disk::new(vec![folder.path().join("store.db")], 0).probe().await.is_err());
    }
}
