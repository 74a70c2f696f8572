//! The public interface of the store.

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
use crate::recent_events::RecentEvents;
use crate::settings::Settings;
use crate::sqlite::Access;
use crate::subscription::{Batching, Subscription};

/// Opens the store and brings its schema up to date.
///
/// `settings.database_url` selects SQLite or PostgreSQL. `settings.nats_url` decides whether events are also published
/// to JetStream. `migrations` are embedded by the caller. The tasks of the store run on `tracker` and end after `stop`.
///
/// # Errors
/// The settings are invalid, the database is unavailable or in use, or the NATS server is too old.
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

/// Opens the store for a CLI command, whether or not a server is running. The caller may read the log and read and
/// write read models, but must not append.
///
/// # Errors
/// The errors of [`open`]. Also fails when the database has no schema, or the schema of an older release.
pub async fn open_without_appender(
    settings: Settings,
    migrations: Migrations,
    upcasters: Upcasters,
) -> Result<Store, Error> {
    settings.check()?;
    let file = settings.database_url.strip_prefix("sqlite:").map(|path| path.trim_start_matches("//"));
    if let Some(file) = file.filter(|file| !std::path::Path::new(file).exists()) {
        return Err(Error::Settings(format!(
            "there is no database {file}: check the working directory, --data and database_url"
        )));
    }
    match Log::open(&settings, upcasters.clone(), Access::Owner).await {
        Ok((log, db)) => log.ensure_schema(&db, migrations).await?,
        Err(Error::InUse(_)) => {}
        Err(error) => return Err(error),
    }
    let (log, db) = Log::open(&settings, upcasters, Access::NonAppending).await?;
    // No process waits on the bus for the work of a CLI command.
    let settings = Settings { nats_url: String::new(), ..settings };
    start(log, db, settings, CancellationToken::new(), TaskTracker::new()).await
}

/// Connects to the database and checks whether a server could work with it. Changes nothing. Returns advice for the
/// operator, one sentence for each finding.
///
/// # Errors
/// The reason why a server would not start, or that the database has no schema or the schema of an older release.
pub async fn check_database(settings: &Settings, migrations: Migrations) -> Result<Vec<String>, Error> {
    settings.check()?;
    if let Some(path) = settings.database_url.strip_prefix("sqlite:") {
        return crate::sqlite::check(std::path::Path::new(path.trim_start_matches("//"))).await;
    }
    let (log, _) = crate::postgres::Log::open(&settings.database_url, settings.connections_max).await?;
    let advice = log.primary.advice(crate::postgres::connections(settings.connections_max)).await?;
    log.is_migrated(migrations).await?;
    Ok(advice)
}

/// Connects to each server of `nats_url` and checks that it has JetStream. Returns the address of each server, without
/// its credentials, with the outcome.
///
/// # Errors
/// An outcome is the reason why a server could not use this NATS server.
pub async fn check_nats(settings: &Settings) -> Vec<(String, Result<(), Error>)> {
    let urls = settings.nats_urls().filter(|url| !url.is_empty());
    let outcomes = urls.map(|url| async move {
        let one = Settings { nats_url: url.to_owned(), ..settings.clone() };
        let outcome = async { Bus::connect(&one, String::new()).await?.check().await };
        (url.rsplit(['@', '/']).next().unwrap_or_default().to_owned(), outcome.await)
    });
    futures::future::join_all(outcomes).await
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
    let recent = RecentEvents::default();
    let bus = match settings.nats_url.as_str() {
        "" => None,
        _ => Some(Bus::connect(&settings, incarnation.clone()).await?),
    };
    let appender = Appender::start(log.clone(), &settings, head.clone(), recent.clone(), &tracker)
        .map_err(|error| Error::Settings(format!("cannot start the appender: {error}")))?;
    if let Database::Sqlite(log) = &log.database {
        tracker.spawn(log.disk.clone().watch(stop.clone()));
    }
    let log_db = log.db(&db);
    let follows_heads = AtomicBool::new(false);
    let inner = Inner { log, db, log_db, bus, appender, head, recent, follows_heads, incarnation, settings };
    Ok(Store { inner: Arc::new(inner), stop, tracker })
}

/// The log, its subscriptions, and the read models' database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

struct Inner {
    log: Log,
    db: Db,
    /// The log's database, for its other tables than `events`.
    log_db: Db,
    bus: Option<Bus>,
    appender: Appender,
    head: watch::Sender<i64>,
    recent: RecentEvents,
    /// Whether this process is notified of the heads of other processes, and so does not need the JetStream stream.
    follows_heads: AtomicBool,
    incarnation: String,
    settings: Settings,
}

impl Store {
    /// Appends events to one or more streams. All changes commit together or not at all. When it returns `Ok`, they are
    /// durable.
    ///
    /// # Errors
    /// After [`AppendError::Store`] the outcome may be unknown. After any other error nothing was written.
    pub async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        if let Some(problem) = self.disk().and_then(Disk::problem) {
            METRICS.failures.add(1, &[]);
            return Err(Error::Storage(problem).into());
        }
        self.inner.appender.append(append).await
    }

    /// Returns whether an append of this source would be refused with [`Error::Overloaded`] now, so that a caller can
    /// skip the work that leads to the append.
    pub fn is_overloaded(&self, source: u64) -> bool {
        self.inner.appender.is_overloaded(source)
    }

    /// Returns whether answers wait for the processor rather than for the database. In that case every refusal costs
    /// processor time that is already scarce.
    pub fn is_short_of_processor(&self) -> bool {
        self.inner.appender.is_short_of_processor()
    }

    /// Returns the setting `append_wait_ms_max`: how long a command may wait for the appender, by estimate, or for its
    /// aggregate, by the clock.
    pub fn append_wait_max(&self) -> Duration {
        self.inner.settings.append_wait_max()
    }

    /// Deletes the JetStream stream if it belongs to this log, or, with `force`, in any case. Returns whether the
    /// stream existed. To be called before [`Store::renew_incarnation`].
    ///
    /// # Errors
    /// NATS is unavailable, or the stream belongs to another incarnation: to another store, or to this store before it
    /// was restored from a backup.
    pub async fn remove_stream(&self, nats_url: &str, force: bool) -> Result<bool, Error> {
        let settings = Settings { nats_url: nats_url.to_owned(), ..self.inner.settings.clone() };
        Bus::connect(&settings, self.incarnation().to_owned()).await?.remove(force).await
    }

    /// Gives a restored log another incarnation and returns it. Processes use it after they open the store again.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn renew_incarnation(&self) -> Result<String, Error> {
        let incarnation = uuid::Uuid::new_v4().to_string();
        self.inner.log.rename(&incarnation).await?;
        Ok(incarnation)
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Returns the position of the last event; 0 when the log is empty.
    pub async fn head(&self) -> Result<i64, Error> {
        Ok(self.inner.log.head().await?.0)
    }

    /// Checks that a command could be stored now: writes over the appender's own connection and rolls back.
    ///
    /// # Errors
    /// The database is unavailable or read-only, or the appender gets no connection.
    pub async fn probe(&self) -> Result<(), Error> {
        self.inner.appender.probe().await
    }

    /// Returns whether the database syncs its commits to the disk.
    pub fn is_durable(&self) -> bool {
        match &self.inner.log.database {
            Database::Sqlite(_) => true,
            Database::Postgres(log) => log.primary.is_durable(),
        }
    }

    /// Records the position of the log and the state of the NATS connection in the metrics. Returns the position.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn record_metrics(&self) -> Result<i64, Error> {
        if let Some(connected) = self.nats_connected() {
            METRICS.nats_connected.record(connected.into(), &[]);
        }
        let head = self.head().await?;
        METRICS.log_position.record(head, &[]);
        Ok(head)
    }

    /// Returns the log's incarnation. A restored or replaced log has another one.
    pub fn incarnation(&self) -> &str {
        &self.inner.incarnation
    }

    /// Returns the events with `position > after`, in order, at most `limit`, in their newest versions.
    pub async fn read(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, Error> {
        Ok(self.inner.log.read(after, limit).await?)
    }

    /// Returns the events with `position > after`, in order, at most `limit`, in their stored versions.
    pub async fn read_stored(&self, after: i64, limit: i64) -> Result<Vec<RecordedEvent>, Error> {
        Ok(self.inner.log.read_stored(after, limit).await?)
    }

    /// Writes events of another log with their positions. The first position must follow the head. Not to be called
    /// while appends are possible.
    pub async fn restore(&self, events: Vec<RecordedEvent>) -> Result<(), Error> {
        Ok(self.inner.log.restore(&events).await?)
    }

    /// Returns the events of one aggregate with `after < sequence <= to`, in order, at most `limit`.
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

    /// Returns all events of several aggregates with `position < before`, stream by stream.
    pub async fn read_streams(
        &self,
        aggregate_type: &str,
        aggregate_ids: &[String],
        before: i64,
    ) -> Result<Vec<RecordedEvent>, Error> {
        Ok(self.inner.log.read_streams(aggregate_type, aggregate_ids, before).await?)
    }

    /// Subscribes to every event after a position. Batches grow when the log is busy. A process that is notified of the
    /// heads of other processes ([`Store::start_write_tasks`], [`Store::follow_heads`]) reads the log, and takes the
    /// events that it has just appended itself from memory. Every other process reads the JetStream stream.
    pub fn subscribe(&self, after: i64) -> Subscription {
        self.subscription(after, Batching::Batched)
    }

    /// Subscribes to every event after a position, without a pause between batches: for subscribers on which other work
    /// waits.
    pub fn subscribe_without_pause(&self, after: i64) -> Subscription {
        self.subscription(after, Batching::Immediate)
    }

    fn subscription(&self, after: i64, batching: Batching) -> Subscription {
        let bus = self.inner.bus.clone().filter(|_| !self.inner.follows_heads.load(Ordering::Relaxed));
        Subscription::new(
            self.inner.log.clone(),
            self.inner.recent.clone(),
            bus,
            self.inner.head.subscribe(),
            after,
            batching,
        )
    }

    /// Returns the events at these positions, in order. Positions without an event are skipped.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn read_positions(&self, positions: &[i64]) -> Result<Vec<RecordedEvent>, Error> {
        Ok(self.inner.log.read_positions(positions).await?)
    }

    /// Returns the record of an idempotency key, if the key was used.
    pub async fn idempotency_record(&self, scope: &str, key: &str) -> Result<Option<IdempotencyRecord>, Error> {
        Ok(self.inner.log.idempotency_record(scope, key).await?)
    }

    /// Returns the read models' database.
    pub fn db(&self) -> &Db {
        &self.inner.db
    }

    /// Returns the log's database.
    pub(crate) fn log_db(&self) -> &Db {
        &self.inner.log_db
    }

    /// Returns the disk monitor of an SQLite store; `None` for PostgreSQL.
    pub fn disk(&self) -> Option<&Disk> {
        match &self.inner.log.database {
            Database::Sqlite(log) => Some(&log.disk),
            Database::Postgres(_) => None,
        }
    }

    /// Returns whether NATS is connected; `None` when NATS is not configured.
    pub fn nats_connected(&self) -> Option<bool> {
        self.inner.bus.as_ref().map(Bus::is_connected)
    }

    /// Returns the reason why events do not reach the JetStream stream; `None` while they do, or without NATS.
    pub fn nats_problem(&self) -> Option<String> {
        self.inner.bus.as_ref().and_then(Bus::problem)
    }

    /// Waits until this process leads in a role.
    pub async fn lead(&self, role: &str) -> Leadership {
        Leadership::acquire(&self.inner.log, role).await
    }

    /// Tries once to lead in a role. Returns `None` when another process leads.
    pub async fn try_lead(&self, role: &str) -> Result<Option<Leadership>, Error> {
        Leadership::try_acquire(&self.inner.log, role).await
    }

    /// Notifies all processes of a position. Delivery is not guaranteed, so receivers must also poll.
    pub async fn notify_position(&self, topic: &str, position: i64) {
        self.broadcast(topic, position.to_string().into()).await;
    }

    /// Returns the positions that processes publish on a topic. The stream never ends.
    pub async fn positions(&self, topic: &str) -> BoxStream<'static, i64> {
        let position = |message: Vec<u8>| std::str::from_utf8(&message).ok().and_then(|text| text.parse().ok());
        self.listen(topic).await.filter_map(move |message| std::future::ready(position(message))).boxed()
    }

    /// Publishes a small message to all processes, including this one. Delivery is not guaranteed. Without NATS nothing
    /// is sent.
    pub async fn broadcast(&self, topic: &str, message: Vec<u8>) {
        if let Some(bus) = &self.inner.bus {
            bus.broadcast(topic, message).await;
        }
    }

    /// Returns the messages that processes publish on a topic. The stream never ends.
    pub async fn listen(&self, topic: &str) -> BoxStream<'static, Vec<u8>> {
        if let Some(bus) = &self.inner.bus {
            match bus.listen(topic).await {
                Ok(told) => return told.chain(futures::stream::pending()).boxed(),
                Err(error) => tracing::warn!(%error, topic, "Could not subscribe to the messages of other processes."),
            }
        }
        futures::stream::pending().boxed()
    }

    /// Starts the tasks of the write role besides the appender: the relay to JetStream, and the removal of old
    /// idempotency keys.
    pub fn start_write_tasks(&self) {
        self.follow_heads();
        let store = self.clone();
        self.tracker.spawn(async move { store.sweep_idempotency().await });
        if self.inner.bus.is_some() {
            let store = self.clone();
            self.tracker.spawn(async move { store.relay().await });
        }
    }

    /// Starts to exchange heads with the other processes: each is notified at once of events that another
    /// process appends.
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
        let inner = &self.inner;
        let Some(bus) = &inner.bus else { return };
        let lead = async {
            loop {
                let mut leadership = self.lead("relay").await;
                tracing::info!("Relay started: this process is its leader.");
                let lost = async {
                    while leadership.check().await.is_ok() {
                        tokio::time::sleep(Duration::from_secs(2)).await;
                    }
                };
                tokio::select! {
                    () = bus.relay(&inner.log, &inner.recent, inner.head.subscribe(), &self.stop) => return,
                    () = lost => {
                        tracing::warn!("Relay stopped: this process lost the leadership.");
                        bus.clear_problem();
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
                Err(error) => tracing::warn!(%error, "Could not remove old idempotency keys."),
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
