//! The log in SQLite: one writer, `synchronous=FULL`, and the read models in a file of their own beside it.

mod append;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use platform::files::{self, folder_of};
use sqlx::Connection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use crate::db::Db;
use crate::disk::Disk;
use crate::error::Error;
use crate::event::RecordedEvent;
use crate::idempotency::{IDEMPOTENCY_RECORD, IdempotencyRecord};
use crate::migrations::Migrations;
use crate::settings::Settings;
use crate::snapshots::{Snapshot, WaitingSnapshots};
use crate::table::sqlite_chunks;

const EVENT: &str = "select position, aggregate_type, aggregate_id, sequence, event_type, event_version, \
                     payload, metadata, coalesce(recorded_at, 0) from events";

/// No position.
const UNKNOWN: i64 = -1;
/// Symbolic links that are followed on the way to a database.
const SYMLINKS_MAX: usize = 40;
/// How long a connection is waited for.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Log {
    /// Reads, and loads of aggregates.
    pub(crate) read: SqlitePool,
    /// The one writer.
    write: SqlitePool,
    /// The log's head as the last append of this process left it; a guess, checked by the statement that relies on it.
    head: Arc<AtomicI64>,
    /// Whether the last append found no room on the disk.
    failing: Arc<AtomicBool>,
    /// The log's database: the one path that every other path to it leads to.
    file: Arc<Path>,
    pub(crate) disk: Disk,
    /// Snapshots that the next append writes.
    pub(crate) snapshots: WaitingSnapshots,
    /// Held by the one process that appends: one lock for the log, one for the read models.
    _lock: Option<Arc<[File; 2]>>,
}

/// How a process stands to the files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Access {
    /// It alone appends to the log: a second one is refused.
    Owner,
    /// It reads the log and writes read models, beside the owner or alone.
    Beside,
}

impl Log {
    pub(crate) async fn open(path: &str, settings: &Settings, access: Access) -> Result<(Self, Db), Error> {
        if path.is_empty() || path.contains(":memory:") {
            return Err(Error::Settings(
                "database_url `sqlite:PATH` needs the path of a file: a log in memory would not be durable".into(),
            ));
        }
        let (file, views) = databases(Path::new(path))?;
        let lock = match access {
            Access::Owner => {
                let locks = (lock(&file, "lock")?, lock(&views, "lock")?);
                let (Some(log), Some(views)) = locks else { return Err(Error::InUse(path.to_owned())) };
                Some(Arc::new([log, views]))
            }
            Access::Beside => None,
        };
        for database in [&file, &views] {
            create(database, access)?;
        }
        let (write, read) = pools(&file, SqliteSynchronous::Full, settings.connections_max).await?;
        // Read models follow the log: a commit lost with the machine is projected again from the checkpoint lost with it.
        let (views_write, views_read) = pools(&views, SqliteSynchronous::Normal, settings.connections_max).await?;
        let durable = pool(1).connect_lazy_with(options(&views, SqliteSynchronous::Full));
        let disk = Disk::new(vec![file.clone(), views], settings.disk_free_bytes_min);
        let head = Arc::new(AtomicI64::new(UNKNOWN));
        let log = Self {
            read,
            write,
            head,
            failing: Arc::default(),
            file: file.into(),
            disk,
            snapshots: WaitingSnapshots::default(),
            _lock: lock,
        };
        Ok((log, Db::Sqlite { write: views_write, durable, read: views_read }))
    }

    /// Its database, for what is kept beside the events.
    pub(crate) fn db(&self) -> Db {
        Db::Sqlite { write: self.write.clone(), durable: self.write.clone(), read: self.read.clone() }
    }

    /// Takes a role's lock file; `None` while another process, or another task of this one, has it.
    pub(crate) fn try_lead(&self, role: &str) -> Result<Option<File>, Error> {
        lock(&self.file, &format!("{role}.lock"))
    }

    pub(crate) async fn migrate(&self, db: &Db, migrations: Migrations) -> Result<(), Error> {
        migrations.sqlite_log.run(&self.write).await?;
        if let Db::Sqlite { write, .. } = db {
            migrations.sqlite_read.run(write).await?;
        }
        Ok(())
    }

    /// Whether an append would be written now. It is rolled back, unless the last append failed: then only a commit shows
    /// whether there is room again.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        let mut tx = self.write.begin_with("begin immediate").await.map_err(failed)?;
        sqlx::query("update log_head set position = position").execute(&mut *tx).await.map_err(failed)?;
        if !self.failing.load(Ordering::Relaxed) {
            return Ok(tx.rollback().await?);
        }
        tx.commit().await.map_err(failed)?;
        self.failing.store(false, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) async fn restore(&self, events: &[RecordedEvent]) -> Result<(), sqlx::Error> {
        let (Some(first), Some(last)) = (events.first(), events.last()) else { return Ok(()) };
        let mut tx = self.write.begin_with("begin immediate").await?;
        let moved = sqlx::query("update log_head set position = $1 where position = $2")
            .bind(last.position)
            .bind(first.position - 1)
            .execute(&mut *tx);
        if moved.await?.rows_affected() != 1 {
            return Err(sqlx::Error::Protocol(format!("position {} does not follow the head", first.position)));
        }
        let rows: Vec<_> = events
            .iter()
            .map(|event| Row {
                aggregate_type: &event.aggregate_type,
                aggregate_id: &event.aggregate_id,
                sequence: event.sequence,
                event_type: &event.event_type,
                event_version: &event.event_version,
                payload: &event.payload,
                metadata: &event.metadata,
                position: event.position,
                recorded_at: event.recorded_at,
            })
            .collect();
        insert(&mut tx, &rows).await?;
        tx.commit().await
    }

    pub(crate) async fn head(&self) -> Result<(i64, String), sqlx::Error> {
        sqlx::query_as("select position, incarnation from log_head").fetch_one(&self.read).await
    }

    pub(crate) async fn rename(&self, incarnation: &str) -> Result<(), sqlx::Error> {
        sqlx::query("update log_head set incarnation = $1").bind(incarnation).execute(&self.write).await.map(drop)
    }

    pub(crate) async fn read(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        sqlx::query_as(&format!("{EVENT} where position > $1 order by position limit $2"))
            .bind(after)
            .bind(limit)
            .fetch_all(&self.read)
            .await
    }

    pub(crate) async fn read_positions(&self, positions: &[i64]) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        sqlx::query_as(&format!("{EVENT} where position in (select value from json_each($1)) order by position"))
            .bind(serde_json::to_string(positions).unwrap_or_default())
            .fetch_all(&self.read)
            .await
    }

    pub(crate) async fn read_stream(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        after: i64,
        to: i64,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        sqlx::query_as(&format!(
            "{EVENT} where aggregate_type = $1 and aggregate_id = $2 and sequence > $3 and sequence <= $4
             order by sequence limit $5"
        ))
        .bind(aggregate_type)
        .bind(aggregate_id)
        .bind(after)
        .bind(to)
        .bind(limit)
        .fetch_all(&self.read)
        .await
    }

    pub(crate) async fn read_streams(
        &self,
        aggregate_type: &str,
        aggregate_ids: &[String],
        before: i64,
    ) -> Result<Vec<RecordedEvent>, sqlx::Error> {
        sqlx::query_as(&format!(
            "{EVENT} where aggregate_type = $1 and aggregate_id in (select value from json_each($2)) and position < $3
             order by aggregate_id, sequence"
        ))
        .bind(aggregate_type)
        .bind(serde_json::to_string(aggregate_ids).unwrap_or_default())
        .bind(before)
        .fetch_all(&self.read)
        .await
    }

    pub(crate) async fn idempotency_record(
        &self,
        scope: &str,
        key: &str,
    ) -> Result<Option<IdempotencyRecord>, sqlx::Error> {
        sqlx::query_as(IDEMPOTENCY_RECORD).bind(scope).bind(key).fetch_optional(&self.read).await
    }

    pub(crate) async fn purge_idempotency_before(&self, created_at: i64) -> Result<u64, sqlx::Error> {
        let done = sqlx::query(
            "delete from idempotency where (scope, key) in
                 (select scope, key from idempotency where created_at < $1 limit 5000)",
        )
        .bind(created_at)
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected())
    }

    pub(crate) async fn snapshot(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        state_version: i64,
    ) -> Result<Option<(String, i64)>, sqlx::Error> {
        sqlx::query_as(
            "select payload, last_sequence from snapshots
             where aggregate_type = $1 and aggregate_id = $2 and state_version = $3 and state_sequence = last_sequence",
        )
        .bind(aggregate_type)
        .bind(aggregate_id)
        .bind(state_version)
        .fetch_optional(&self.read)
        .await
    }
}

/// Writes a snapshot, unless a newer one of the same shape is there.
async fn save_snapshot(tx: &mut SqliteConnection, snapshot: &Snapshot) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into snapshots (aggregate_type, aggregate_id, last_sequence, current_snapshot, payload, state_version,
                                state_sequence)
         values ($1, $2, $3, 1, $4, $5, $3)
         on conflict (aggregate_type, aggregate_id) do update
         set last_sequence = excluded.last_sequence, current_snapshot = current_snapshot + 1,
             payload = excluded.payload, state_version = excluded.state_version,
             state_sequence = excluded.state_sequence
         where last_sequence < excluded.last_sequence or state_version <> excluded.state_version
            or state_sequence <> last_sequence",
    )
    .bind(&*snapshot.stream.aggregate_type)
    .bind(&*snapshot.stream.aggregate_id)
    .bind(snapshot.version)
    .bind(&snapshot.payload)
    .bind(snapshot.state_version)
    .execute(tx)
    .await?;
    Ok(())
}

/// The log's database and that of the read models beside it, each by the one path that every other path to it leads to:
/// locks and journals have their names.
fn databases(path: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let read_models =
        |log: &Path| log.with_file_name(format!("{}-read.db", log.file_stem().unwrap_or_default().to_string_lossy()));
    let log = resolve(path)?;
    let views = resolve(&read_models(&log))?;
    // Earlier releases had them beside a symbolic link, and only they know what was revoked.
    let beside_link = read_models(path);
    if !views.exists() && beside_link.exists() {
        return Err(Error::Settings(format!(
            "{} leads to {}, whose read models belong beside it: move {} to {} (with its -wal file, if there is one) and \
             start again",
            path.display(),
            log.display(),
            beside_link.display(),
            views.display()
        )));
    }
    Ok((log, views))
}

/// Follows symbolic links, also to a file that does not exist yet, and makes the folder that it is in.
fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let refused = |what: String| Error::Settings(format!("{}: {what}", path.display()));
    let mut file = path.to_owned();
    for _ in 0..SYMLINKS_MAX {
        let folder = folder_of(&file).to_owned();
        match std::fs::read_link(&file) {
            Ok(target) => file = folder.join(target),
            Err(_) => {
                let name = file.file_name().ok_or_else(|| refused("this is no path of a file".into()))?;
                let made = files::create_folder(&folder).and_then(|()| folder.canonicalize());
                let folder = made.map_err(|e| refused(format!("cannot make the folder {}: {e}", folder.display())))?;
                return Ok(folder.join(name));
            }
        }
    }
    Err(refused("there are too many symbolic links on the way to it".into()))
}

/// Makes a database that does not exist, for its owner only: SQLite gives its journals the same permissions. One that
/// exists must have no second name, and keeps its permissions.
fn create(database: &Path, access: Access) -> Result<(), Error> {
    let shown = database.display();
    match files::private().write(true).create_new(true).open(database) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made.map(drop).map_err(|e| Error::Settings(format!("cannot make {shown}: {e}"))),
    }
    let about = |path: &Path| path.metadata().map_err(|e| Error::Settings(format!("cannot read {shown}: {e}")));
    let (file, folder) = (about(database)?, about(folder_of(database))?);
    if file.nlink() > 1 {
        return Err(Error::Settings(format!(
            "{shown} has {} names (hard links). SQLite's journal belongs to one name, so a server for each name would \
             destroy the database. Find the others with `find FOLDER -samefile {shown}` and remove them; to copy the \
             database, use `sqlite3 {shown} \".backup 'COPY'\"`",
            file.nlink()
        )));
    }
    if access == Access::Owner && file.mode() & 0o004 != 0 && folder.mode() & 0o001 != 0 {
        tracing::warn!(
            file = %shown,
            "every user of this machine may read the database: `chmod 600` it, its -wal and its -shm, or `chmod 700` the folder"
        );
    }
    Ok(())
}

/// Locks a file beside another; `None` where it is locked. The system frees it when its holder dies.
fn lock(file: &Path, extension: &str) -> Result<Option<File>, Error> {
    let path = file.with_extension(extension);
    let lock = files::private()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| Error::Settings(format!("cannot write {}: {e}", path.display())))?;
    Ok(lock.try_lock().is_ok().then_some(lock))
}

fn options(file: &Path, synchronous: SqliteSynchronous) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .busy_timeout(Duration::from_secs(10))
        // Rows cross from the connection's thread in pieces of this size; each piece wakes somebody.
        .row_buffer_size(2_048)
        // As in PostgreSQL.
        .pragma("case_sensitive_like", "on")
        .pragma("temp_store", "memory")
        // A page written again before the checkpoint is copied once: 32 MiB of journal, in place of 4.
        .pragma("wal_autocheckpoint", "8192")
        .pragma("journal_size_limit", "67108864")
}

fn pool(connections_max: u32) -> SqlitePoolOptions {
    // After a full disk SQLite has rolled back by itself, and sqlx believes that it has not: such a connection is of no
    // more use.
    let usable = |connection: &mut SqliteConnection| !connection.is_in_transaction();
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_WITHIN)
        .test_before_acquire(false)
        .after_release(move |connection, _| Box::pin(std::future::ready(Ok(usable(connection)))))
}

/// Why an append failed: no connection came free, or SQLite could not write and has rolled back.
fn failed(error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    match (code, error) {
        (_, sqlx::Error::PoolTimedOut) => Error::Silent(ACQUIRE_WITHIN),
        // SQLITE_FULL, SQLITE_READONLY; of SQLITE_IOERR those of a write, which a quota causes, and of the journal's
        // index. After one of a sync the outcome is unknown.
        (Some(code), error) if matches!(code & 0xff, 8 | 13) || matches!(code, 778 | 4_874) => {
            Error::Storage(format!("the disk is full or cannot be written: {error}"))
        }
        (_, other) => other.into(),
    }
}

/// A file's one writer and its readers.
async fn pools(file: &Path, synchronous: SqliteSynchronous, readers: u32) -> Result<(SqlitePool, SqlitePool), Error> {
    let options = options(file, synchronous);
    let write = pool(1).connect_with(options.clone().pragma("cache_size", "-65536")).await?;
    // A reader's cache is dropped at every commit of the writer: pages are kept by the system.
    let read = pool(readers).connect_with(options.pragma("cache_size", "-4096").pragma("query_only", "on")).await?;
    Ok((write, read))
}

/// An event as it is written.
struct Row<'a> {
    aggregate_type: &'a str,
    aggregate_id: &'a str,
    sequence: i64,
    event_type: &'a str,
    event_version: &'a str,
    payload: &'a str,
    metadata: &'a str,
    position: i64,
    recorded_at: i64,
}

async fn insert(tx: &mut SqliteConnection, rows: &[Row<'_>]) -> Result<(), sqlx::Error> {
    for chunk in sqlite_chunks(rows) {
        let sql = format!(
            "insert or fail into events (aggregate_type, aggregate_id, sequence, event_type, event_version, payload,
                                         metadata, position, recorded_at) values {}",
            vec!["(?, ?, ?, ?, ?, ?, ?, ?, ?)"; chunk.len()].join(", ")
        );
        let mut query = sqlx::query(&sql);
        for row in chunk {
            query = query
                .bind(row.aggregate_type)
                .bind(row.aggregate_id)
                .bind(row.sequence)
                .bind(row.event_type)
                .bind(row.event_version)
                .bind(row.payload)
                .bind(row.metadata)
                .bind(row.position)
                .bind(row.recorded_at);
        }
        query.execute(&mut *tx).await?;
    }
    Ok(())
}
