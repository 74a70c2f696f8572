//! The store's front door.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kernel::upcast::Upcasters;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::append::{Append, Appended};
use crate::appender::Appender;
use crate::db::Db;
use crate::disk::Disk;
use crate::error::{AppendError, Error};
use crate::event::RecordedEvent;
use crate::idempotency::IdempotencyRecord;
use crate::jetstream::Bus;
use crate::leader::Leadership;
use crate::log::{Database, Log};
use crate::metrics::METRICS;
use crate::migrations::Migrations;
use crate::now_us;
use crate::settings::Settings;
use crate::sqlite::Access;
use crate::subscription::{Pace, Subscription};
use crate::tail::Tail;

/// Opens the store and brings its schema up to date. `settings.database_url` chooses SQLite or PostgreSQL,
/// `settings.nats_url` chooses whether the stream goes over JetStream. The caller embeds the migrations. Tasks run on `tracker` and end after `stop`.
///
/// # Errors
/// Settings that cannot work, a database that is away, a NATS server that is too old.
pub async fn open(
    settings: Settings,
    migrations: Migrations,
    upcasters: Upcasters,
    stop: CancellationToken,
    tracker: TaskTracker,
) -> Result<Store, Error> {
    settings.check()?;
    let (log, db) = Log::open(&settings, upcasters, Access::Owner).await?;
    log.migrate(&db, migrations).await?;
    start(log, db, settings, stop, tracker).await
}

/// Opens the store beside a server, which may be running or not: to read the log, to read and write read models, never
/// to append.
///
/// # Errors
/// As [`open`]; a database without a schema, or with that of an older release.
pub async fn open_without_appender(
    settings: Settings,
    migrations: Migrations,
    upcasters: Upcasters,
) -> Result<Store, Error> {
    settings.check()?;
    let file = settings.database_url.strip_prefix("sqlite:").map(|path| path.trim_start_matches("//"));
    if let Some(file) = file.filter(|file| !std::path::Path::new(file).exists()) {
        return Err(Error::Settings(format!("there is no database {file}: is it the right folder, or database_url?")));
    }
    match Log::open(&settings, upcasters.clone(), Access::Owner).await {
        Ok((log, db)) => log.ensure_schema(&db, migrations).await?,
        Err(Error::InUse(_)) => {}
        Err(error) => return Err(error),
    }
    let (log, db) = Log::open(&settings, upcasters, Access::Beside).await?;
    // What is done here nobody waits for over the bus.
    let settings = Settings { nats_url: String::new(), ..settings };
    start(log, db, settings, CancellationToken::new(), TaskTracker::new()).await
}

/// Connects to the database and to NATS and looks whether a server could work with them. Gives what an operator should
/// know, a sentence each; nothing is changed.
///
/// # Errors
/// What keeps a server from starting.
pub async fn check(settings: &Settings, migrations: Migrations) -> Result<Vec<String>, Error> {
    settings.check()?;
    let mut notes = Vec::new();
    if !settings.database_url.starts_with("sqlite:") {
        let (log, _) = crate::postgres::Log::open(&settings.database_url, settings.connections_max).await?;
        if let Err(Error::Settings(reason)) = log.is_migrated(migrations).await {
            notes.push(format!("Not ready to serve: {reason}."));
        }
        notes.extend(log.primary.notes(crate::postgres::connections(settings.connections_max)).await?);
    }
    if !settings.nats_url.is_empty() {
        Bus::connect(settings, String::new()).await?.check().await?;
    }
    Ok(notes)
}

async fn start(
    log: Log,
    db: Db,
    settings: Settings,
    stop: CancellationToken,
    tracker: TaskTracker,
) -> Result<Store, Error> {
    if let Database::Postgres(log) = &log.database {
        tracker.spawn(log.primary.clone().watch(stop.clone()));
    }
    let (position, incarnation) = log.head().await?;
    let (head, _) = watch::channel(position);
    let tail = Tail::default();
    let bus = match settings.nats_url.as_str() {
        "" => None,
        _ => Some(Bus::connect(&settings, incarnation.clone()).await?),
    };
    let appender = Appender::start(log.clone(), &settings, head.clone(), tail.clone(), &tracker)
        .map_err(|error| Error::Settings(format!("the appender cannot start: {error}")))?;
    if let Database::Sqlite(log) = &log.database {
        tracker.spawn(log.disk.clone().watch(stop.clone()));
    }
    let log_db = log.db(&db);
    let follows_heads = AtomicBool::new(false);
    let inner = Inner { log, db, log_db, bus, appender, head, tail, follows_heads, incarnation, settings };
    Ok(Store { inner: Arc::new(inner), stop, tracker })
}

/// The log, its stream, and the read models' database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

struct Inner {
    log: Log,
    db: Db,
    /// The log's database, for what is kept beside the log.
    log_db: Db,
    bus: Option<Bus>,
    appender: Appender,
    head: watch::Sender<i64>,
    tail: Tail,
    /// Whether this process learns of what others append without the stream.
    follows_heads: AtomicBool,
    incarnation: String,
    settings: Settings,
}

impl Store {
    /// Appends events to one stream or several, together or not at all. When it returns `Ok`, they are durable.
    ///
    /// # Errors
    /// After an [`AppendError::Store`] the outcome may be unknown; after any other nothing was written.
    pub async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        if let Some(trouble) = self.disk().and_then(Disk::trouble) {
            METRICS.failures.add(1, &[]);
            return Err(Error::Storage(trouble).into());
        }
        self.inner.appender.append(append).await
    }

    /// Whether an append of this source would be refused with [`Error::Overloaded`] now: what leads to one need not be
    /// done.
    pub fn is_overloaded(&self, source: u64) -> bool {
        self.inner.appender.is_overloaded(source)
    }

    /// Whether answers wait for the processor rather than for the database: then every refusal costs what is lacking.
    pub fn is_short_of_processor(&self) -> bool {
        self.inner.appender.is_short_of_processor()
    }

    /// How long an append may be expected to wait.
    pub fn append_wait_max(&self) -> Duration {
        self.inner.settings.append_wait_max()
    }

    /// Removes the JetStream stream that this log has filled, or, with `of_anybody`, whichever has the name; whether it was
    /// there. To be done before [`Store::renew`].
    ///
    /// # Errors
    /// NATS is away; a stream of another incarnation: of another store, or of this one from after the backup.
    pub async fn remove_stream(&self, nats_url: &str, of_anybody: bool) -> Result<bool, Error> {
        let settings = Settings { nats_url: nats_url.to_owned(), ..self.inner.settings.clone() };
        Bus::connect(&settings, self.incarnation().to_owned()).await?.remove(of_anybody).await
    }

    /// Gives a log that was restored another incarnation, which its next reader sees, and returns it.
    ///
    /// # Errors
    /// The database is away.
    pub async fn renew(&self) -> Result<String, Error> {
        let incarnation = uuid::Uuid::new_v4().to_string();
        self.inner.log.rename(&incarnation).await?;
        Ok(incarnation)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Position of the last event.
    pub async fn head(&self) -> Result<i64, Error> {
        Ok(self.inner.log.head().await?.0)
    }

    /// Makes sure that a command would be stored now: something is written over the appender's own connection and rolled
    /// back.
    ///
    /// # Errors
    /// The database is away, read-only, or does not give the appender a connection.
    pub async fn probe(&self) -> Result<(), Error> {
        self.inner.appender.probe().await
    }

    /// Whether the database syncs what it commits to its disk.
    pub fn is_durable(&self) -> bool {
        match &self.inner.log.database {
            Database::Sqlite(_) => true,
            Database::Postgres(log) => log.primary.is_durable(),
        }
    }

    /// Measures where the log stands, and the connection to NATS.
    ///
    /// # Errors
    /// The database is away.
    pub async fn observe(&self) -> Result<i64, Error> {
        if let Some(connected) = self.nats_connected() {
            METRICS.nats_connected.record(connected.into(), &[]);
        }
        let head = self.head().await?;
        METRICS.log_position.record(head, &[]);
        Ok(head)
    }

    /// Names this log: a restored or replaced store has another incarnation.
    pub fn incarnation(&self) -> &str {
        &self.inner.incarnation
    }

    /// Events after a position, in order, at most `limit`.
    pub async fn read(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, Error> {
        Ok(self.inner.log.read(after, limit).await?)
    }

    /// The same, as they are stored.
    pub async fn read_stored(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, Error> {
        Ok(self.inner.log.read_stored(after, limit).await?)
    }

    /// Writes events of another log with their positions, which must follow the head. Not to be called while anybody
    /// appends.
    pub async fn restore(&self, events: Vec<RecordedEvent>) -> Result<(), Error> {
        Ok(self.inner.log.restore(&events).await?)
    }

    /// One aggregate's events with `after < sequence <= to`, in order, at most `limit`.
    pub async fn read_stream(
        &self,
        aggregate_type: &str,
        aggregate_id: &str,
        after: i64,
        to: i64,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, Error> {
        Ok(self.inner.log.read_stream(aggregate_type, aggregate_id, after, to, limit).await?)
    }

    /// All events of several aggregates with `position < before`, stream by stream.
    pub async fn read_streams(
        &self,
        aggregate_type: &str,
        aggregate_ids: &[String],
        before: i64,
    ) -> Result<Vec<RecordedEvent>, Error> {
        Ok(self.inner.log.read_streams(aggregate_type, aggregate_ids, before).await?)
    }

    /// Every event after a position, for ever, in batches that a busy log makes larger. A process that follows the heads
    /// of others ([`Store::start_write_tasks`], [`Store::follow_heads`]) follows the log, whose end it has in memory where
    /// it writes itself; every other process follows the stream.
    pub fn subscribe(&self, after: i64) -> Subscription {
        self.subscription(after, Pace::Gathered)
    }

    /// The same without a pause between batches, for subscribers that are waited for.
    pub fn subscribe_at_once(&self, after: i64) -> Subscription {
        self.subscription(after, Pace::AtOnce)
    }

    fn subscription(&self, after: i64, pace: Pace) -> Subscription {
        let bus = self.inner.bus.clone().filter(|_| !self.inner.follows_heads.load(Ordering::Relaxed));
        Subscription::new(
            self.inner.log.clone(),
            self.inner.tail.clone(),
            bus,
            self.inner.head.subscribe(),
            after,
            pace,
        )
    }

    /// One event for each of these positions that the log has, in order.
    ///
    /// # Errors
    /// The database is away.
    pub async fn read_positions(&self, positions: &[i64]) -> Result<Vec<RecordedEvent>, Error> {
        Ok(self.inner.log.read_positions(positions).await?)
    }

    /// The record of an idempotency key, where it was used.
    pub async fn idempotency_record(&self, scope: &str, key: &str) -> Result<Option<IdempotencyRecord>, Error> {
        Ok(self.inner.log.idempotency_record(scope, key).await?)
    }

    /// The read models' database.
    pub fn db(&self) -> &Db {
        &self.inner.db
    }

    /// The log's database.
    pub(crate) fn log_db(&self) -> &Db {
        &self.inner.log_db
    }

    /// The disk of a store in SQLite.
    pub fn disk(&self) -> Option<&Disk> {
        match &self.inner.log.database {
            Database::Sqlite(log) => Some(&log.disk),
            Database::Postgres(_) => None,
        }
    }

    /// Whether the connection to NATS stands; `None` where the stream runs in process.
    pub fn nats_connected(&self) -> Option<bool> {
        self.inner.bus.as_ref().map(Bus::is_connected)
    }

    /// Why events do not reach the stream, if they do not.
    pub fn nats_trouble(&self) -> Option<String> {
        self.inner.bus.as_ref().and_then(Bus::trouble)
    }

    /// Waits until this process leads in a role.
    pub async fn lead(&self, role: &str) -> Leadership {
        Leadership::win(&self.inner.log, role).await
    }

    /// Leads in a role, if nobody else does.
    pub async fn try_lead(&self, role: &str) -> Result<Option<Leadership>, Error> {
        Leadership::try_win(&self.inner.log, role).await
    }

    /// Tells the other processes of a position; it may be lost, whoever listens polls as well.
    pub async fn notify_position(&self, topic: &str, position: i64) {
        self.broadcast(topic, position.to_string().into()).await;
    }

    /// Positions that processes tell of; ends never.
    pub async fn positions(&self, topic: &str) -> BoxStream<'static, i64> {
        let position = |message: Vec<u8>| std::str::from_utf8(&message).ok().and_then(|text| text.parse().ok());
        self.listen(topic).await.filter_map(move |message| std::future::ready(position(message))).boxed()
    }

    /// Tells all processes, this one too, something small that may be lost. Embedded there are none, and nothing is sent.
    pub async fn broadcast(&self, topic: &str, message: Vec<u8>) {
        if let Some(bus) = &self.inner.bus {
            bus.broadcast(topic, message).await;
        }
    }

    /// What processes tell under a topic; ends never.
    pub async fn listen(&self, topic: &str) -> BoxStream<'static, Vec<u8>> {
        if let Some(bus) = &self.inner.bus {
            match bus.listen(topic).await {
                Ok(told) => return told.chain(futures::stream::pending()).boxed(),
                Err(error) => tracing::warn!(%error, topic, "nothing is heard from other processes"),
            }
        }
        futures::stream::pending().boxed()
    }

    /// Starts what the write role needs besides the appender: the relay to JetStream, and the sweep of old idempotency keys.
    pub fn start_write_tasks(&self) {
        self.follow_heads();
        let store = self.clone();
        self.tracker.spawn(async move { store.sweep_idempotency().await });
        if self.inner.bus.is_some() {
            let store = self.clone();
            self.tracker.spawn(async move { store.relay().await });
        }
    }

    /// Has this process learn at once what others append, and tell others what it appends.
    pub fn follow_heads(&self) {
        if self.inner.follows_heads.swap(true, Ordering::Relaxed) || self.inner.bus.is_none() {
            return;
        }
        let store = self.clone();
        self.tracker.spawn(async move { store.notify_heads().await });
        let store = self.clone();
        self.tracker.spawn(async move {
            let listen = async {
                let mut heads = store.positions("head").await;
                while let Some(position) = heads.next().await {
                    store.inner.head.send_if_modified(|known| {
                        let newer = position > *known;
                        *known = position.max(*known);
                        newer
                    });
                }
            };
            tokio::select! { () = listen => {}, () = store.stop.cancelled() => {} }
        });
    }

    async fn relay(&self) {
        let Some(bus) = &self.inner.bus else { return };
        let lead = async {
            loop {
                let mut leadership = self.lead("relay").await;
                tracing::info!("relay: leading");
                let lost = async {
                    while leadership.check().await.is_ok() {
                        tokio::time::sleep(Duration::from_secs(2)).await;
                    }
                };
                tokio::select! {
                    () = bus.relay(&self.inner.log, &self.inner.tail, self.inner.head.subscribe(), &self.stop) => return,
                    () = lost => {
                        tracing::warn!("relay: leadership lost");
                        bus.out_of_trouble();
                    }
                }
            }
        };
        tokio::select! { () = lead => {}, () = self.stop.cancelled() => {} }
    }

    async fn notify_heads(&self) {
        let mut head = self.inner.head.subscribe();
        while !self.stop.is_cancelled() {
            tokio::select! {
                changed = head.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
            let position = *head.borrow_and_update();
            self.notify_position("head", position).await;
        }
    }

    async fn sweep_idempotency(&self) {
        let keep_us = self.inner.settings.idempotency_hours.max(24) * 3_600_000_000;
        loop {
            match self.inner.log.purge_idempotency_before(now_us() - keep_us).await {
                Ok(5000) => continue,
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "old idempotency keys not removed"),
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(600)) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    pub(crate) fn log(&self) -> &Log {
        &self.inner.log
    }
}
