//! Connections to PostgreSQL. All of them lead to the primary, the one server that accepts writes, and have the session
//! settings that durability and correctness depend on.
//!
//! A server that was demoted keeps its connections open and returns old rows. Therefore this module checks the server
//! regularly over a separate connection, refuses read-only servers, and closes every connection that was opened before
//! the primary changed. It also counts the opened connections: while the count stays the same, the server has not
//! crashed, and commits that did not wait for the disk are not lost.

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

/// Maximum time for one server to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Maximum time for a request to wait for a pooled connection.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(5);
/// Idle time after which a pooled connection is tested before its next use, and maximum time of the test. A server
/// cannot crash and restart within that idle time.
const TEST_AFTER: Duration = Duration::from_millis(50);
const TEST_WITHIN: Duration = Duration::from_secs(1);
/// Interval at which the server's role is checked, and maximum time for its answer.
const WATCH_EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Time for which a reserved connection is attempted while the server refuses more connections, and the pause between
/// two attempts.
const FREE_WITHIN: Duration = Duration::from_secs(5);
const FREE_PAUSE: Duration = Duration::from_millis(100);
/// Oldest supported version of PostgreSQL: it has every session setting that this module uses.
const VERSION_MIN: i32 = 14;

/// The purpose of a connection. It determines the session settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Purpose {
    /// Appends to the log.
    Append,
    /// Reads the log, loads aggregates, looks up idempotency keys.
    Log,
    /// Reads read models.
    Views,
    /// Writes read models. These commits do not wait for the disk: a power loss that loses a commit also loses the
    /// checkpoint in it, so the events are projected again.
    Project,
    /// Holds leader locks for the life of a process, which checks them every few seconds.
    Lead,
    /// Holds a leader lock while a CLI command runs.
    CliLock,
    /// Changes the schema.
    Migrate,
}

impl Purpose {
    /// Returns the session settings, with values as PostgreSQL prints them. All are set explicitly, because the
    /// defaults of the server, the database or the role may differ.
    fn settings(self, schema: &str) -> Vec<(&'static str, Cow<'static, str>)> {
        let (statement, idle_in_transaction, lock) = match self {
            Self::Migrate => ("0", "0", "0"),
            // If another transaction holds the log's lock for longer, the append fails and the command is answered 503.
            Self::Append => ("30s", "15s", "10s"),
            // The server must not hold locks for a process that vanished.
            Self::Log | Self::Views | Self::Project | Self::Lead | Self::CliLock => ("30s", "15s", "0"),
        };
        // If a process vanishes or hangs, the server releases its leader locks after this time, even if a proxy keeps
        // the connection open.
        let idle = if self == Self::Lead { "15s" } else { "0" };
        let name = match self {
            Self::Append => "docket append",
            Self::Log => "docket log",
            Self::Views => "docket views",
            Self::Project => "docket project",
            Self::Lead => "docket lead",
            Self::CliLock => "docket hold",
            Self::Migrate => "docket migrate",
        };
        let mut settings: Vec<(_, Cow<_>)> = vec![
            ("application_name", name.into()),
            // Lets the server detect a process that vanished.
            ("tcp_keepalives_idle", "10".into()),
            ("tcp_keepalives_interval", "5".into()),
            ("tcp_keepalives_count", "3".into()),
            ("tcp_user_timeout", "30s".into()),
            // Each statement must see everything that was committed before it: the append function depends on this.
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
            // During a long snapshot the log's head and the checkpoints have many dead versions, which only an index
            // scan avoids.
            settings.push(("enable_seqscan", "off".into()));
            // With that setting a plan without an index has a cost so high that PostgreSQL compiles it, which takes
            // tens of milliseconds for each statement.
            settings.push(("jit", "off".into()));
        }
        if self == Self::Append {
            // The appender passes arrays, whose values do not affect the plan. So one plan serves every call.
            settings.push(("plan_cache_mode", "force_generic_plan".into()));
        }
        if !schema.is_empty() {
            settings.push(("search_path", quoted(schema).into()));
        }
        settings
    }
}

/// Quotes a name for SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The server that accepts writes. After a failover it is found again. Clones share the state.
#[derive(Clone)]
pub struct Primary(Arc<Inner>);

struct Inner {
    hosts: Vec<PgConnectOptions>,
    /// Index of the host in use.
    host: AtomicUsize,
    /// The schema that holds the store. Once it is set, every new connection uses it.
    schema: OnceLock<String>,
    /// Identifies the server process of the last connection: its start time and address.
    server: Mutex<String>,
    /// Connections that were opened before this time are closed instead of being used again.
    valid_from: Mutex<Instant>,
    opened: AtomicU64,
    /// Changes when operations on older connections must stop waiting.
    stale_cancelled: watch::Sender<()>,
    /// Whether the server syncs its commits to the disk.
    durable: AtomicBool,
    pools: Mutex<Pools>,
}

#[derive(Default)]
struct Pools {
    /// Pools that shrink when the server has no room for a reserved connection.
    shared: Vec<PgPool>,
    /// Pools that always keep one connection.
    reserved: Vec<PgPool>,
}

impl std::fmt::Debug for Primary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The options are left out because they contain the password.
        f.debug_struct("Primary").field("schema", &self.schema()).finish_non_exhaustive()
    }
}

/// A connection outside the pools.
pub(crate) struct Reserved {
    pub(crate) connection: PgConnection,
    opened: Instant,
}

impl Primary {
    /// Connects to the first server of the URL that accepts writes, and checks that it can hold a store.
    ///
    /// # Errors
    /// The URL is invalid, no server accepts writes, or the server or the database does not meet Docket's requirements.
    pub(crate) async fn find(url: &str) -> Result<Self, StoreError> {
        let inner = Inner {
            hosts: hosts(url)?,
            host: AtomicUsize::new(0),
            schema: OnceLock::new(),
            server: Mutex::default(),
            valid_from: Mutex::new(Instant::now()),
            opened: AtomicU64::new(0),
            stale_cancelled: watch::channel(()).0,
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

    /// Returns the schema that holds the store; empty until it is known.
    pub(crate) fn schema(&self) -> &str {
        self.0.schema.get().map_or("", String::as_str)
    }

    /// Returns the number of connections opened so far. While it stays the same, the server has not crashed.
    pub(crate) fn connections_opened(&self) -> u64 {
        self.0.opened.load(Ordering::Acquire)
    }

    /// Returns whether the server syncs commits to its disk: `fsync` and `full_page_writes` are on.
    pub(crate) fn is_durable(&self) -> bool {
        self.0.durable.load(Ordering::Relaxed)
    }

    /// Opens a separate connection to the server that accepts writes. If the server refuses more connections, closes
    /// one of this process's pooled connections to make room.
    ///
    /// # Errors
    /// No server of the URL accepts writes, or none has room within 5 s.
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
        self.configure_session(&mut connection, purpose).await?;
        Ok(connection)
    }

    /// Directs new connections to this host.
    fn use_host(&self, host: usize) {
        if self.0.host.swap(host, Ordering::Relaxed) != host {
            let pools = lock(&self.0.pools);
            for pool in pools.shared.iter().chain(&pools.reserved) {
                pool.set_connect_options(self.0.hosts[host].clone());
            }
            tracing::info!(
                host = self.0.hosts[host].get_host(),
                "Another PostgreSQL host accepts writes. New connections go to that host."
            );
        }
    }

    /// Creates a pool that connects on first use. It gives up connections when a reserved connection needs room.
    pub(crate) fn pool(&self, purpose: Purpose, connections_max: u32) -> PgPool {
        let pool = self.new_pool(purpose, connections_max);
        lock(&self.0.pools).shared.push(pool.clone());
        pool
    }

    /// Creates a pool that always keeps one connection.
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
            // The check in `before_acquire` replaces the ping before each use.
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let primary = preparing.clone();
                async move { primary.configure_session(connection, purpose).await }.boxed()
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
                    // Only the age is checked: a ping to a server that vanished would block.
                    std::future::ready(Ok(releasing.is_current_after(about.age))).boxed()
                }
            })
            .connect_lazy_with(self.0.hosts[self.0.host.load(Ordering::Relaxed)].clone())
    }

    /// Applies the session settings and reads them back.
    ///
    /// # Errors
    /// The server is read-only, or did not apply a setting.
    async fn configure_session(&self, connection: &mut PgConnection, purpose: Purpose) -> Result<(), Error> {
        let settings = purpose.settings(self.schema());
        let (names, values): (Vec<_>, Vec<_>) =
            settings.into_iter().map(|(name, value)| (name, value.into_owned())).unzip();
        // For connections other than those of projections, `synchronous_commit` must be `on` or stronger:
        // `remote_apply` stays, and every other value is replaced by `on`.
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
            return Err(read_only_error());
        }
        let refused = names.iter().zip(&values).zip(&applied).find(|((name, wanted), found)| {
            // A connection over a Unix socket has no TCP settings.
            wanted != found && !name.starts_with("tcp_")
        });
        if let Some(((name, wanted), found)) = refused {
            return Err(protocol(format!("the session setting {name} is {found} instead of {wanted}")));
        }
        if purpose != Purpose::Project && !["on", "remote_apply"].contains(&&*commits) {
            return Err(protocol(format!("the session setting synchronous_commit is {commits} instead of on")));
        }
        if self.0.durable.swap(durable, Ordering::Relaxed) && !durable {
            tracing::warn!(
                "PostgreSQL does not sync its commits, so a power loss can lose acknowledged commands. Turn on fsync and full_page_writes."
            );
        }
        let mut known = lock(&self.0.server);
        if *known != server {
            if !known.is_empty() {
                tracing::warn!("Another PostgreSQL server process answers. Every connection is opened again.");
                self.expire_connections();
                self.cancel_stale_operations();
            }
            *known = server;
        }
        self.0.opened.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Returns advice for the operator about the server, one sentence or two in each item. `needed` is the number of
    /// connections that one process may open.
    ///
    /// # Errors
    /// The server is unavailable.
    pub(crate) async fn advice(&self, needed: u32) -> Result<Vec<String>, Error> {
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
        let mut advice = Vec::new();
        if room < i64::from(needed) {
            advice.push(format!(
                "PostgreSQL allows this role {room} connections, but one process may open {needed}. Raise the limit, or lower connections_max."
            ));
        }
        if !self.is_durable() {
            advice.push(
                "PostgreSQL runs with fsync or full_page_writes off: a power loss can lose acknowledged commands."
                    .into(),
            );
        }
        if collation.is_some() && actual.is_some() && collation != actual {
            advice.push(
                "The collation version of the database differs from that of the operating system. Run `reindex database`, \
                 then `alter database … refresh collation version`."
                    .into(),
            );
        }
        Ok(advice)
    }

    /// Marks every open connection as expired, so that it is closed instead of being used again.
    fn expire_connections(&self) {
        *lock(&self.0.valid_from) = Instant::now();
    }

    /// Ends operations on expired connections. Otherwise they would wait forever for a server that vanished.
    fn cancel_stale_operations(&self) {
        self.0.stale_cancelled.send_replace(());
    }

    /// Runs an operation, and stops waiting for it when the server has changed since it began.
    ///
    /// # Errors
    /// The errors of the operation, and a protocol error when waiting was stopped. In this case the operation may still
    /// complete.
    pub(crate) async fn run_until_failover<T>(
        &self,
        operation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let (mut stale_cancelled, began) = (self.0.stale_cancelled.subscribe(), Instant::now());
        let mut operation = std::pin::pin!(operation);
        loop {
            tokio::select! {
                biased;
                outcome = operation.as_mut() => return outcome,
                // The sender cannot be dropped meanwhile: `self` owns it.
                _ = stale_cancelled.changed() => if !self.is_current(began) {
                    return Err(protocol("the PostgreSQL server changed before it answered".to_owned()));
                },
            }
        }
    }

    fn is_current(&self, opened: Instant) -> bool {
        opened >= *lock(&self.0.valid_from)
    }

    /// Returns whether a connection of this age is still current.
    fn is_current_after(&self, age: Duration) -> bool {
        Instant::now().checked_sub(age).is_none_or(|opened| self.is_current(opened))
    }

    /// Keeps the connections on the server that accepts writes, until `stop`.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut watched: Option<Reserved> = None;
        let mut failing = false;
        loop {
            let outcome = match &mut watched {
                Some(reserved) => reserved.check_accepts_writes().await,
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
                        tracing::info!("PostgreSQL accepts writes again.");
                        self.cancel_stale_operations();
                    }
                    self.fill_reserved().await;
                }
                Err(error) => {
                    watched = None;
                    self.expire_connections();
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "PostgreSQL is unavailable or does not accept writes. Connecting again.");
                        // Without a pause, because another server may already accept writes.
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

    /// Opens a connection in each reserved pool that has none.
    async fn fill_reserved(&self) {
        let reserved = lock(&self.0.pools).reserved.clone();
        for pool in reserved.iter().filter(|pool| pool.size() == 0) {
            if !matches!(tokio::time::timeout(WATCH_EVERY, pool.acquire()).await, Ok(Ok(_))) {
                self.close_one_pooled().await;
            }
        }
    }

    /// Closes one pooled connection, because the server refuses more connections.
    async fn close_one_pooled(&self) {
        let mut pools = lock(&self.0.pools).shared.clone();
        pools.sort_by_key(|pool| std::cmp::Reverse(pool.num_idle()));
        for pool in pools {
            // Each pool keeps one connection, so that queries continue.
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
    /// Returns whether this process still considers the connection's server the one that accepts writes.
    pub(crate) fn is_current(&self, primary: &Primary) -> bool {
        primary.is_current(self.opened)
    }

    /// Checks that the server answers.
    ///
    /// # Errors
    /// The server does not answer within 3 s.
    pub(crate) async fn ping(&mut self) -> Result<(), Error> {
        in_time(self.connection.ping()).await
    }

    /// Checks that the server accepts writes.
    ///
    /// # Errors
    /// The server is read-only, or does not answer within 3 s.
    async fn check_accepts_writes(&mut self) -> Result<(), Error> {
        let asked = sqlx::query_as("select current_setting('transaction_read_only') = 'on'");
        let (read_only,): (bool,) = in_time(asked.fetch_one(&mut self.connection)).await?;
        if read_only { Err(read_only_error()) } else { Ok(()) }
    }
}

/// Waits for an answer of the server, up to `ANSWER_WITHIN`.
async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let silent = |_| protocol(format!("PostgreSQL did not answer within {ANSWER_WITHIN:?}"));
    tokio::time::timeout(ANSWER_WITHIN, answer).await.map_err(silent)?
}

fn read_only_error() -> Error {
    protocol("the server is read-only: it is a standby, or it was demoted".to_owned())
}

/// Checks that the database can hold a store. Returns the schema of the store, or the one in which it will be created.
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
            "the database {database} has the encoding {encoding}, which cannot store every text. Create a database with \
             `create database {database} encoding 'UTF8' template template0`, and move the data to it"
        )));
    }
    schema.ok_or_else(|| {
        StoreError::Settings("no schema in the role's search_path exists: create one, or change search_path".into())
    })
}

/// Returns the connection options of each host: `postgres://user@one:5432,two:5432/docket` names two.
fn hosts(url: &str) -> Result<Vec<PgConnectOptions>, StoreError> {
    let bad = |reason: &str| StoreError::Settings(format!("database_url: {reason}"));
    let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it must start with `postgres://`"))?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let at = if authority.contains('@') { "@" } else { "" };
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut parameters: Vec<&str> = query.split('&').filter(|parameter| !parameter.is_empty()).collect();
    // Docket always needs a server that accepts writes, so the parameter is checked and removed.
    if let Some(place) = parameters.iter().position(|parameter| parameter.starts_with("target_session_attrs=")) {
        let wanted = parameters.remove(place);
        if !["target_session_attrs=read-write", "target_session_attrs=primary"].contains(&wanted) {
            return Err(bad(
                "target_session_attrs must be read-write or primary, because Docket needs a server that accepts writes",
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

/// Returns whether the connection limit of the server, the database or the role is reached.
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
