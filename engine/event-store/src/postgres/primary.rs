//! Connections to PostgreSQL: all of them to the one server that takes writes, each with the settings that durability
//! and correctness rest on.
//!
//! A server that was demoted keeps its connections open and answers them with old rows. So this module watches the server
//! over a connection of its own, refuses servers that are read-only, and closes every connection that was opened before
//! the server changed. It also counts the connections that were opened: while that count stays the same, the server has
//! not crashed, and what was committed without waiting for the disk is still there.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection, Error};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::Error as StoreError;

/// How long one server may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long a request may wait for a pooled connection.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(5);
/// A pooled connection that was idle longer is tested before it is used, and how long the test may take. No server is
/// killed and back in less.
const TEST_AFTER: Duration = Duration::from_millis(50);
const TEST_WITHIN: Duration = Duration::from_secs(1);
/// How often the server's role is checked, and how long it may take to answer.
const WATCH_EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long a reserved connection is tried for when the server refuses more connections, and the pause between two tries.
const FREE_WITHIN: Duration = Duration::from_secs(5);
const FREE_PAUSE: Duration = Duration::from_millis(100);
/// Oldest server that has every setting used here.
const VERSION_MIN: i32 = 14;

/// What a connection is for. Its session settings follow from that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Purpose {
    /// Appends to the log.
    Append,
    /// Reads the log, loads aggregates, looks up idempotency keys.
    Log,
    /// Reads read models.
    Views,
    /// Writes read models. A commit that is lost with the machine is projected again from the checkpoint that is lost with
    /// it, so these commits do not wait for the disk.
    Project,
    /// Holds an advisory lock for the life of a process, which asks every few seconds whether it still does.
    Lead,
    /// Holds an advisory lock as long as a command runs.
    Hold,
    /// Changes the schema.
    Migrate,
}

impl Purpose {
    /// Session settings, as PostgreSQL spells their values back. The server's own defaults are not trusted: a database or
    /// role may have been given any.
    fn settings(self, schema: &str) -> Vec<(&'static str, Cow<'static, str>)> {
        let (statement, idle_in_transaction, lock) = match self {
            Self::Migrate => ("0", "0", "0"),
            // A foreign transaction that holds the log's lock for too long costs a 503.
            Self::Append => ("30s", "15s", "10s"),
            // The server must not hold locks for a process that vanished.
            Self::Log | Self::Views | Self::Project | Self::Lead | Self::Hold => ("30s", "15s", "0"),
        };
        // A lead whose process vanished or hangs is free again after that time, also where a proxy keeps its connection.
        let idle = if self == Self::Lead { "15s" } else { "0" };
        let name = match self {
            Self::Append => "docket append",
            Self::Log => "docket log",
            Self::Views => "docket views",
            Self::Project => "docket project",
            Self::Lead => "docket lead",
            Self::Hold => "docket hold",
            Self::Migrate => "docket migrate",
        };
        let mut settings: Vec<(_, Cow<_>)> = vec![
            ("application_name", name.into()),
            // The server notices a process that vanished.
            ("tcp_keepalives_idle", "10".into()),
            ("tcp_keepalives_interval", "5".into()),
            ("tcp_keepalives_count", "3".into()),
            ("tcp_user_timeout", "30s".into()),
            // Each statement of a transaction sees what was committed before it: the append rests on it.
            ("default_transaction_isolation", "read committed".into()),
            ("statement_timeout", statement.into()),
            ("idle_in_transaction_session_timeout", idle_in_transaction.into()),
            ("idle_session_timeout", idle.into()),
            ("lock_timeout", lock.into()),
            ("TimeZone", "UTC".into()),
            ("client_encoding", "UTF8".into()),
        ];
        if self == Self::Project {
            settings.push(("synchronous_commit", "off".into()));
        }
        if matches!(self, Self::Append | Self::Log | Self::Project) {
            // Under a long snapshot the log's head and the checkpoints have many dead versions; only an index leads past
            // them.
            settings.push(("enable_seqscan", "off".into()));
        }
        if self == Self::Append {
            // The appender passes arrays, which change no plan: no call plans again.
            settings.push(("plan_cache_mode", "force_generic_plan".into()));
        }
        if !schema.is_empty() {
            settings.push(("search_path", quoted(schema).into()));
        }
        settings
    }
}

/// A name as SQL takes it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The server that takes writes, found again after each failover. Clones share it.
#[derive(Clone)]
pub struct Primary(Arc<Inner>);

struct Inner {
    hosts: Vec<PgConnectOptions>,
    /// Index of the host in use.
    host: AtomicUsize,
    /// The schema that holds the store; every connection is bound to it once it is known.
    schema: OnceLock<String>,
    /// Which server process was connected to last.
    server: Mutex<String>,
    /// Connections that were opened earlier are closed before their next use.
    valid_from: Mutex<Instant>,
    opened: AtomicU64,
    /// Changes when what is under way on older connections is given up.
    given_up: watch::Sender<()>,
    /// Whether the server syncs its commits to the disk.
    durable: AtomicBool,
    pools: Mutex<Pools>,
}

#[derive(Default)]
struct Pools {
    /// Shrink where the server has no room for a reserved connection.
    shared: Vec<PgPool>,
    /// Keep a connection at all times.
    reserved: Vec<PgPool>,
}

impl std::fmt::Debug for Primary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The options hold the password.
        f.debug_struct("Primary").field("schema", &self.schema()).finish_non_exhaustive()
    }
}

/// A connection that is not of a pool.
pub(crate) struct Reserved {
    pub(crate) connection: PgConnection,
    opened: Instant,
}

impl Primary {
    /// Connects to the first server of the URL that takes writes, and makes sure that it can hold a store.
    ///
    /// # Errors
    /// A URL that cannot be used, no server that takes writes, a server or database that Docket cannot work with.
    pub(crate) async fn find(url: &str) -> Result<Self, StoreError> {
        let inner = Inner {
            hosts: hosts(url)?,
            host: AtomicUsize::new(0),
            schema: OnceLock::new(),
            server: Mutex::default(),
            valid_from: Mutex::new(Instant::now()),
            opened: AtomicU64::new(0),
            given_up: watch::channel(()).0,
            durable: AtomicBool::new(true),
            pools: Mutex::default(),
        };
        let primary = Self(Arc::new(inner));
        let mut connection = primary.connect(Purpose::Log).await?.connection;
        let schema = check_database(&mut connection).await?;
        let _ = connection.close().await;
        let _ = primary.0.schema.set(schema);
        Ok(primary)
    }

    /// The schema that holds the store.
    pub(crate) fn schema(&self) -> &str {
        self.0.schema.get().map_or("", String::as_str)
    }

    /// Raised with each connection that is opened. While it stays the same, the server has not crashed.
    pub(crate) fn epoch(&self) -> u64 {
        self.0.opened.load(Ordering::Acquire)
    }

    /// Whether the server syncs commits to its disk: `fsync` and `full_page_writes` are on.
    pub(crate) fn is_durable(&self) -> bool {
        self.0.durable.load(Ordering::Relaxed)
    }

    /// A connection of its own, to whichever server takes writes. When the server refuses more connections, one of this
    /// process's pooled connections is closed for it.
    ///
    /// # Errors
    /// No server of the URL takes writes, or none has room within 5 s.
    pub(crate) async fn connect(&self, purpose: Purpose) -> Result<Reserved, Error> {
        let started = Instant::now();
        loop {
            match self.connect_once(purpose).await {
                Err(error) if is_full(&error) && started.elapsed() < FREE_WITHIN => {
                    self.close_one_pooled().await;
                    tokio::time::sleep(FREE_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn connect_once(&self, purpose: Purpose) -> Result<Reserved, Error> {
        let first = self.0.host.load(Ordering::Relaxed);
        let mut failure = None;
        for host in (first..self.0.hosts.len()).chain(0..first) {
            match tokio::time::timeout(CONNECT_WITHIN, self.connect_to(host, purpose)).await {
                Ok(Ok(connection)) => {
                    self.use_host(host);
                    return Ok(Reserved { connection, opened: Instant::now() });
                }
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(_) => failure = failure.or(Some(protocol(format!("no connection within {CONNECT_WITHIN:?}")))),
            }
        }
        Err(failure.unwrap_or(Error::PoolTimedOut))
    }

    async fn connect_to(&self, host: usize, purpose: Purpose) -> Result<PgConnection, Error> {
        let mut connection = PgConnection::connect_with(&self.0.hosts[host]).await?;
        self.prepare(&mut connection, purpose).await?;
        Ok(connection)
    }

    /// Makes new connections go to this host.
    fn use_host(&self, host: usize) {
        if self.0.host.swap(host, Ordering::Relaxed) != host {
            let pools = lock(&self.0.pools);
            for pool in pools.shared.iter().chain(&pools.reserved) {
                pool.set_connect_options(self.0.hosts[host].clone());
            }
            tracing::info!(host = self.0.hosts[host].get_host(), "PostgreSQL: another host takes writes");
        }
    }

    /// A pool that connects when it is used. It gives connections up for those that are reserved.
    pub(crate) fn pool(&self, purpose: Purpose, connections_max: u32) -> PgPool {
        let pool = self.new_pool(purpose, connections_max);
        lock(&self.0.pools).shared.push(pool.clone());
        pool
    }

    /// A pool that keeps a connection at all times.
    pub(crate) fn reserved_pool(&self, purpose: Purpose, connections_max: u32) -> PgPool {
        let pool = self.new_pool(purpose, connections_max);
        lock(&self.0.pools).reserved.push(pool.clone());
        pool
    }

    fn new_pool(&self, purpose: Purpose, connections_max: u32) -> PgPool {
        let (preparing, checking) = (self.clone(), self.clone());
        PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(ACQUIRE_WITHIN)
            // The check below replaces the ping before each use.
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let primary = preparing.clone();
                async move { primary.prepare(connection, purpose).await }.boxed()
            })
            .before_acquire(move |connection, about| {
                let is_current = checking.is_current_after(about.age);
                async move {
                    let answers = is_current
                        && (about.idle_for < TEST_AFTER
                            || tokio::time::timeout(TEST_WITHIN, connection.ping())
                                .await
                                .is_ok_and(|ping| ping.is_ok()));
                    Ok(answers)
                }
                .boxed()
            })
            .after_release({
                let releasing = self.clone();
                move |_, about| {
                    // A test of a connection to a server that is gone would wait for it.
                    std::future::ready(Ok(releasing.is_current_after(about.age))).boxed()
                }
            })
            .connect_lazy_with(self.0.hosts[self.0.host.load(Ordering::Relaxed)].clone())
    }

    /// Applies the session settings and reads them back.
    ///
    /// # Errors
    /// The server is read-only, or did not take a setting.
    async fn prepare(&self, connection: &mut PgConnection, purpose: Purpose) -> Result<(), Error> {
        let settings = purpose.settings(self.schema());
        let (names, values): (Vec<_>, Vec<_>) =
            settings.into_iter().map(|(name, value)| (name, value.into_owned())).unzip();
        // `remote_apply` promises more than `on` and stays; whatever promises less does not.
        let (read_only, server, durable, applied, commits): (bool, String, bool, Vec<String>, String) = sqlx::query_as(
            "select current_setting('transaction_read_only') = 'on',
                    pg_postmaster_start_time()::text || coalesce(' ' || host(inet_server_addr()), ''),
                    current_setting('fsync') = 'on' and current_setting('full_page_writes') = 'on',
                    coalesce((select array_agg(set_config(name, value, false) order by place)
                              from unnest($1::text[], $2::text[]) with ordinality as s (name, value, place)), '{}'),
                    case when current_setting('synchronous_commit') = 'remote_apply' or $3
                         then current_setting('synchronous_commit')
                         else set_config('synchronous_commit', 'on', false) end",
        )
        .bind(&names)
        .bind(&values)
        .bind(purpose == Purpose::Project)
        .fetch_one(&mut *connection)
        .await?;
        if read_only {
            return Err(takes_none());
        }
        let refused = names.iter().zip(&values).zip(&applied).find(|((name, wanted), found)| {
            // A connection over a Unix socket has no TCP settings.
            wanted != found && !name.starts_with("tcp_")
        });
        if let Some(((name, wanted), found)) = refused {
            return Err(protocol(format!("the session setting {name} is {found}, not {wanted}")));
        }
        if purpose != Purpose::Project && !["on", "remote_apply"].contains(&&*commits) {
            return Err(protocol(format!("the session setting synchronous_commit is {commits}, not on")));
        }
        if self.0.durable.swap(durable, Ordering::Relaxed) && !durable {
            tracing::warn!(
                "PostgreSQL does not sync its commits: turn fsync and full_page_writes on, or a power loss takes acknowledged commands"
            );
        }
        let mut known = lock(&self.0.server);
        if *known != server {
            if !known.is_empty() {
                tracing::warn!("PostgreSQL: another server process answers, every connection is opened again");
                self.expire_connections();
                self.give_up();
            }
            *known = server;
        }
        self.0.opened.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// What an operator should know of the server, a sentence each. `needed`: the connections that a process may open.
    ///
    /// # Errors
    /// The server is away.
    pub(crate) async fn notes(&self, needed: u32) -> Result<Vec<String>, Error> {
        let mut reserved = self.connect(Purpose::Log).await?;
        let (room, limit, collation, actual): (i64, i64, Option<String>, Option<String>) = sqlx::query_as(
            "select current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint,
                    least(d.datconnlimit, r.rolconnlimit)::bigint, datcollversion,
                    pg_database_collation_actual_version(d.oid)
             from pg_database d, pg_roles r where d.datname = current_database() and r.rolname = current_user",
        )
        .fetch_one(&mut reserved.connection)
        .await?;
        let room = if limit >= 0 { room.min(limit) } else { room };
        let mut notes = Vec::new();
        if room < i64::from(needed) {
            notes.push(format!(
                "PostgreSQL gives this role {room} connections; one process may open {needed}: raise the limit, or lower connections_max."
            ));
        }
        if !self.is_durable() {
            notes.push(
                "PostgreSQL runs with fsync or full_page_writes off: a power loss takes acknowledged commands.".into(),
            );
        }
        if collation.is_some() && actual.is_some() && collation != actual {
            notes.push(
                "The collation of the database has another version than the operating system's: run `reindex database`, \
                 then `alter database … refresh collation version`."
                    .into(),
            );
        }
        Ok(notes)
    }

    /// Closes every connection that is open now before its next use.
    fn expire_connections(&self) {
        *lock(&self.0.valid_from) = Instant::now();
    }

    /// Ends what is under way: a connection whose server has vanished says nothing, for as long as somebody waits.
    fn give_up(&self) {
        self.0.given_up.send_replace(());
    }

    /// Waits for an answer of the server, unless it is given up because it began before the server changed.
    ///
    /// # Errors
    /// Those of the operation. It may have been carried out where it was given up.
    pub(crate) async fn answered<T>(&self, operation: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let (mut given_up, began) = (self.0.given_up.subscribe(), Instant::now());
        let mut operation = std::pin::pin!(operation);
        loop {
            tokio::select! {
                biased;
                outcome = operation.as_mut() => return outcome,
                // The sender lives as long as this.
                _ = given_up.changed() => if !self.is_current(began) {
                    return Err(protocol("the connection was given up: its server did not answer".to_owned()));
                },
            }
        }
    }

    fn is_current(&self, opened: Instant) -> bool {
        opened >= *lock(&self.0.valid_from)
    }

    /// The same for a connection that was opened so long ago.
    fn is_current_after(&self, age: Duration) -> bool {
        Instant::now().checked_sub(age).is_none_or(|opened| self.is_current(opened))
    }

    /// Keeps the connections on the server that takes writes, until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut watched: Option<Reserved> = None;
        let mut failing = false;
        loop {
            let outcome = match &mut watched {
                Some(reserved) => reserved.takes_writes().await,
                None => match self.connect(Purpose::Lead).await {
                    Ok(reserved) => {
                        watched = Some(reserved);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            match outcome {
                Ok(()) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("PostgreSQL takes writes again");
                        self.give_up();
                    }
                    self.fill_reserved().await;
                }
                Err(error) => {
                    watched = None;
                    self.expire_connections();
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "PostgreSQL takes no writes: connecting again");
                        // At once: another server may be there already.
                        continue;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(WATCH_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Opens the first connection of each reserved pool that has none.
    async fn fill_reserved(&self) {
        let reserved = lock(&self.0.pools).reserved.clone();
        for pool in reserved.iter().filter(|pool| pool.size() == 0) {
            if !matches!(tokio::time::timeout(WATCH_EVERY, pool.acquire()).await, Ok(Ok(_))) {
                self.close_one_pooled().await;
            }
        }
    }

    /// Makes room on a server that refuses more connections.
    async fn close_one_pooled(&self) {
        let mut pools = lock(&self.0.pools).shared.clone();
        pools.sort_by_key(|pool| std::cmp::Reverse(pool.num_idle()));
        for pool in pools {
            // One stays, so that queries go on.
            if pool.size() > 1
                && let Some(connection) = pool.try_acquire()
            {
                let _ = connection.close().await;
                return;
            }
        }
    }
}

impl Reserved {
    /// Whether the server still is the one that takes writes, as far as this process knows.
    pub(crate) fn is_current(&self, primary: &Primary) -> bool {
        primary.is_current(self.opened)
    }

    /// Whether the server answers.
    ///
    /// # Errors
    /// It does not, within 3 s.
    pub(crate) async fn ping(&mut self) -> Result<(), Error> {
        in_time(self.connection.ping()).await
    }

    /// Whether the server takes writes.
    ///
    /// # Errors
    /// It does not, or does not answer within 3 s.
    async fn takes_writes(&mut self) -> Result<(), Error> {
        let asked = sqlx::query_as("select current_setting('transaction_read_only') = 'on'");
        let (read_only,): (bool,) = in_time(asked.fetch_one(&mut self.connection)).await?;
        if read_only { Err(takes_none()) } else { Ok(()) }
    }
}

/// Waits for an answer of the server for so long as it may take.
async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let silent = |_| protocol(format!("no answer from PostgreSQL for {ANSWER_WITHIN:?}"));
    tokio::time::timeout(ANSWER_WITHIN, answer).await.map_err(silent)?
}

fn takes_none() -> Error {
    protocol("the server is read-only: it is a standby, or it was demoted".to_owned())
}

/// Makes sure that the database can hold a store; the schema that holds it, or will.
async fn check_database(connection: &mut PgConnection) -> Result<String, StoreError> {
    let (version, encoding, database, schema): (i32, String, String, Option<String>) = sqlx::query_as(
        "select current_setting('server_version_num')::int / 10000, current_setting('server_encoding'),
                current_database()::text,
                coalesce((select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                          where c.oid = to_regclass('log_head')), current_schema())::text",
    )
    .fetch_one(connection)
    .await?;
    if version < VERSION_MIN {
        return Err(StoreError::Settings(format!(
            "PostgreSQL {version} is too old: Docket needs version {VERSION_MIN} or newer"
        )));
    }
    if encoding != "UTF8" {
        return Err(StoreError::Settings(format!(
            "the database {database} has the encoding {encoding} and cannot hold every text: create one with \
             `create database {database} encoding 'UTF8' template template0`, and move the data"
        )));
    }
    schema.ok_or_else(|| {
        StoreError::Settings("no schema of the role's search_path exists: create it, or set search_path".into())
    })
}

/// One set of options a host: `postgres://user@one:5432,two:5432/docket` names two.
fn hosts(url: &str) -> Result<Vec<PgConnectOptions>, StoreError> {
    let bad = |reason: &str| StoreError::Settings(format!("database_url: {reason}"));
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it must be `postgres://…`"))?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let at = if authority.contains('@') { "@" } else { "" };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut parameters: Vec<&str> = query.split('&').filter(|parameter| !parameter.is_empty()).collect();
    // Docket writes, so there is one kind of server that it can use.
    if let Some(place) = parameters.iter().position(|parameter| parameter.starts_with("target_session_attrs=")) {
        let wanted = parameters.remove(place);
        if !["target_session_attrs=read-write", "target_session_attrs=primary"].contains(&wanted) {
            return Err(bad(
                "target_session_attrs can be read-write or primary: Docket needs a server that takes writes",
            ));
        }
    }
    let query = if parameters.is_empty() { String::new() } else { format!("?{}", parameters.join("&")) };
    let parse = |host: &str| {
        let one = format!("{scheme}://{user}{at}{host}{path}{query}");
        let options = PgConnectOptions::from_str(&one).map_err(|error| bad(&error.to_string()))?;
        Ok(options.application_name("docket"))
    };
    hosts.split(',').map(parse).collect()
}

/// Whether the server, the database or the role has as many connections as it may have.
fn is_full(error: &Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("53300"))
}

fn protocol(reason: String) -> Error {
    Error::Protocol(reason)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_name_several_hosts() {
        let url = "postgres://docket:p%40ss@one:5433,two/shop?sslmode=disable&target_session_attrs=read-write";
        let hosts = hosts(url).unwrap();
        let named: Vec<_> = hosts.iter().map(|host| (host.get_host(), host.get_port(), host.get_database())).collect();
        assert_eq!(named, [("one", 5433, Some("shop")), ("two", 5432, Some("shop"))]);
        assert!(super::hosts("postgres://one/shop?target_session_attrs=standby").is_err());
        assert_eq!(super::hosts("postgres:///shop?host=/tmp").unwrap().len(), 1);
    }

    #[test]
    fn a_schema_is_quoted() {
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
