//! A store on a SQLite file in a temporary folder.

use event_store::append::{Append, StreamWrite};
use event_store::event::NewEvent;
use event_store::migrations::Migrations;
use event_store::settings::Settings;
use event_store::store::{Store, open};
use kernel::stream::StreamId;
use sqlx::migrate::Migrator;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

static LOG: Migrator = sqlx_macros::migrate!("../../migrations/sqlite/log");
static READ: Migrator = sqlx_macros::migrate!("../../migrations/sqlite/read");

/// A store and the folder that holds it, which is removed on drop.
pub struct TestStore {
    /// The store.
    pub store: Store,
    _folder: TempDir,
}

impl TestStore {
    /// Opens an empty store.
    ///
    /// # Panics
    /// If the store cannot be opened.
    pub async fn open() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let database_url = format!("sqlite:{}", folder.path().join("store.db").display());
        let settings = Settings { database_url, disk_free_bytes_min: 0, ..Settings::default() };
        // PostgreSQL is never opened here.
        let migrations = Migrations { sqlite_log: &LOG, sqlite_read: &READ, postgres_log: &LOG, postgres_read: &READ };
        let store = open(settings, migrations, Default::default(), CancellationToken::new(), TaskTracker::new());
        Self { store: store.await.expect("the store opens"), _folder: folder }
    }

    /// Appends events to the end of a stream. Returns the position of the last one.
    ///
    /// # Panics
    /// If the append fails.
    pub async fn append(&self, aggregate_type: &str, id: &str, events: Vec<NewEvent>) -> i64 {
        let version = self.store.read_stream(aggregate_type, id, 0, i64::MAX, i64::MAX).await.expect("a stream");
        let stream = StreamId::new(aggregate_type, id);
        let expected_version = version.len() as i64;
        let write = StreamWrite { stream, expected_version, events, lineage: None };
        let append = Append { writes: vec![write], ..Append::default() };
        self.store.append(append).await.expect("the append commits").position
    }
}
