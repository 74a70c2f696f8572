//! The log in SQLite: one writer with `synchronous=FULL`, and the read models in a separate database file beside the
//! log's.

mod append;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use platform::files::{self, folder_of};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};

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

/// Value of `head` when the position is not known.
const UNKNOWN: i64 = -1;
/// Maximum number of symbolic links that are followed to a database.
const SYMLINKS_MAX: usize = 40;
/// Maximum time to wait for a connection.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Log {
    /// Connections for reading the log and loading aggregates.
    pub(crate) read: SqlitePool,
    /// The only writer.
    write: SqlitePool,
    /// The log's head after the last append of this process. It may be outdated, so the statement that uses it also
    /// checks it.
    head: Arc<AtomicI64>,
    /// Whether the last append failed because the disk was full or could not be written.
    failing: Arc<AtomicBool>,
    /// Canonical path of the log's database.
    file: Arc<Path>,
    pub(crate) disk: Disk,
    /// Snapshots that the next append writes.
    pub(crate) snapshots: WaitingSnapshots,
    /// Lock files of the log and of the read models, held by the one process that appends.
    _lock: Option<Arc<[File; 2]>>,
}

/// The kind of access that a process has to the database files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Access {
    /// Appends to the log. A second process with this access is refused.
    Owner,
    /// Reads the log and writes read models, with or without an owner running.
    NonAppending,
}

impl Log {
    pub(crate) async fn open(path: &str, settings: &Settings, access: Access) -> Result<(Self, Db), Error> {
        if path.is_empty() || path.contains(":memory:") {
            return Err(Error::Settings(
                "database_url: `sqlite:PATH` needs the path of a file; a database in memory is not durable".into(),
            ));
        }
        let (file, views) = databases(Path::new(path))?;
        let lock = match access {
            Access::Owner => {
                let locks = (lock(&file, "lock")?, lock(&views, "lock")?);
                let (Some(log), Some(views)) = locks else { return Err(Error::InUse(path.to_owned())) };
                Some(Arc::new([log, views]))
            }
            Access::NonAppending => None,
        };
        for database in [&file, &views] {
            create(database, access)?;
        }
        let (write, read) = pools(&file, SqliteSynchronous::Full, settings.connections_max).await?;
        // A power loss that loses a commit of the read models also loses the checkpoint in it, so the events are
        // projected again.
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

    /// Returns the log's database, for its other tables than `events`.
    pub(crate) fn db(&self) -> Db {
        Db::Sqlite { write: self.write.clone(), durable: self.write.clone(), read: self.read.clone() }
    }

    /// Locks the lock file of a role; `None` while another process, or another task of this process, holds it.
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

    /// Checks that an append would be written now. The check is rolled back, unless the last append failed: then it
    /// commits, because only a commit shows whether the disk has room again.
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

/// Writes a snapshot, unless a newer one with the same state version exists.
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

/// Returns the canonical paths of the log's database and of the read models' database beside it. The names of lock
/// files and journals are derived from these paths.
fn databases(path: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let read_models =
        |log: &Path| log.with_file_name(format!("{}-read.db", log.file_stem().unwrap_or_default().to_string_lossy()));
    let log = resolve(path)?;
    let views = resolve(&read_models(&log))?;
    // Earlier releases kept the read models beside a symbolic link. That file must not be replaced by an empty one,
    // because only it contains the revocations.
    let beside_link = read_models(path);
    if !views.exists() && beside_link.exists() {
        return Err(Error::Settings(format!(
            "the path {} leads to {}, and the read models must be beside that file: move {} to {} (with its -wal file, if it \
             has one) and start again",
            path.display(),
            log.display(),
            beside_link.display(),
            views.display()
        )));
    }
    Ok((log, views))
}

/// Follows symbolic links, even to a file that does not exist, and creates the folder of the file.
fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let refused = |what: String| Error::Settings(format!("the database path {}: {what}", path.display()));
    let mut file = path.to_owned();
    for _ in 0..SYMLINKS_MAX {
        let folder = folder_of(&file).to_owned();
        match std::fs::read_link(&file) {
            Ok(target) => file = folder.join(target),
            Err(_) => {
                let name = file.file_name().ok_or_else(|| refused("it does not name a file".into()))?;
                let made = files::create_folder(&folder).and_then(|()| folder.canonicalize());
                let folder =
                    made.map_err(|e| refused(format!("cannot create the folder {}: {e}", folder.display())))?;
                return Ok(folder.join(name));
            }
        }
    }
    Err(refused("it has too many symbolic links".into()))
}

/// Creates a missing database that only its owner can read; SQLite gives its journals the same permissions. An existing
/// database must have no second name (hard link) and keeps its permissions.
fn create(database: &Path, access: Access) -> Result<(), Error> {
    let shown = database.display();
    match files::private().write(true).create_new(true).open(database) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made.map(drop).map_err(|e| Error::Settings(format!("cannot create {shown}: {e}"))),
    }
    let about = |path: &Path| path.metadata().map_err(|e| Error::Settings(format!("cannot read {shown}: {e}")));
    let (file, folder) = (about(database)?, about(folder_of(database))?);
    if !file.is_file() {
        return Err(not_a_file(database));
    }
    if file.nlink() > 1 {
        return Err(Error::Settings(format!(
            "the database {shown} has {} names (hard links). The journal of SQLite belongs to one name, so servers that use \
             different names would destroy the database. Find the other names with `find FOLDER -samefile {shown}` and remove \
             them. To copy the database, use `sqlite3 {shown} \".backup 'COPY'\"`",
            file.nlink()
        )));
    }
    if access == Access::Owner && file.mode() & 0o004 != 0 && folder.mode() & 0o001 != 0 {
        tracing::warn!(
            file = %shown,
            "Every user of this machine can read the database. Run `chmod 600` on the file, its -wal and its -shm, or `chmod 700` on the folder."
        );
    }
    Ok(())
}

fn not_a_file(database: &Path) -> Error {
    Error::Settings(format!(
        "the database {} is not a file: give the path of a file in database_url",
        database.display()
    ))
}

/// Says what to do when a file is no database of SQLite.
fn not_a_database(database: &Path, error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(|error| error.code());
    // SQLITE_CORRUPT and SQLITE_NOTADB.
    match code.as_deref() {
        Some("11" | "26") => Error::Settings(format!(
            "{} is not a database of SQLite, or is damaged: give the path of another file in database_url, or restore the \
             file from a backup",
            database.display()
        )),
        _ => error.into(),
    }
}

/// Checks whether a server could open the database. Changes nothing. Returns advice for the operator.
pub(crate) async fn check(path: &Path) -> Result<Vec<String>, Error> {
    let shown = path.display();
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(vec![format!("There is no database {shown}. The first start of a server creates it.")]);
        }
        Err(error) => {
            return Err(Error::Settings(format!(
                "cannot read the database {shown}: {error}: give another path in database_url, or another folder in data"
            )));
        }
        Ok(about) if !about.is_file() => return Err(not_a_file(path)),
        Ok(_) => {}
    }
    let find = async {
        let mut connection = SqliteConnectOptions::new().filename(path).read_only(true).connect().await?;
        let select = "select count(*) from sqlite_master where name = '_sqlx_migrations'";
        let (found,): (i64,) = sqlx::query_as(select).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(found)
    };
    let found = find.await.map_err(|error| not_a_database(path, error))?;
    match found {
        0 => Err(Error::Schema(format!(
            "the database {shown} contains no store: run `docket migrate`, or correct database_url"
        ))),
        _ => Ok(Vec::new()),
    }
}

/// Locks a file beside another; `None` when it is already locked. The operating system releases the lock when its
/// holder dies.
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
        // Rows are passed from the connection's thread in batches of this size; each batch wakes the receiving task.
        .row_buffer_size(2_048)
        // PostgreSQL's `like` is case-sensitive, too.
        .pragma("case_sensitive_like", "on")
        .pragma("temp_store", "memory")
        // A page that is written several times before a checkpoint is copied only once, so a larger journal saves
        // writes: 32 MiB instead of 4.
        .pragma("wal_autocheckpoint", "8192")
        .pragma("journal_size_limit", "67108864")
}

fn pool(connections_max: u32) -> SqlitePoolOptions {
    // When the disk is full, SQLite rolls back by itself, but sqlx does not notice. Such a connection cannot be used
    // any more.
    let usable = |connection: &mut SqliteConnection| !connection.is_in_transaction();
    SqlitePoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_WITHIN)
        .test_before_acquire(false)
        .after_release(move |connection, _| Box::pin(std::future::ready(Ok(usable(connection)))))
}

/// Converts the error of a failed append: no connection became free, or SQLite could not write and has rolled back.
fn failed(error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    match (code, error) {
        (_, sqlx::Error::PoolTimedOut) => Error::Timeout(ACQUIRE_WITHIN),
        // SQLITE_FULL and SQLITE_READONLY; of SQLITE_IOERR only failed writes, for example because of a quota, and a
        // failed growth of the WAL index. After a failed sync the outcome is unknown.
        (Some(code), error) if matches!(code & 0xff, 8 | 13) || matches!(code, 778 | 4_874) => {
            Error::Storage(format!("the disk is full or cannot be written: {error}"))
        }
        (_, other) => other.into(),
    }
}

/// Opens the writer and the readers of a database file.
async fn pools(file: &Path, synchronous: SqliteSynchronous, readers: u32) -> Result<(SqlitePool, SqlitePool), Error> {
    let options = options(file, synchronous);
    let write = pool(1).connect_with(options.clone().pragma("cache_size", "-65536")).await;
    let write = write.map_err(|error| not_a_database(file, error))?;
    // The cache of a reader is cleared after every commit of the writer; the operating system keeps the pages.
    let read = pool(readers).connect_with(options.pragma("cache_size", "-4096").pragma("query_only", "on")).await?;
    Ok((write, read))
}

/// A row of the table `events`.
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
