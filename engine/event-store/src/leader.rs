//! Leader election: at most one process leads in a role. The role is a PostgreSQL advisory lock or a locked file, which
//! is released when its holder dies.
//!
//! Leadership avoids duplicate work; correctness does not depend on it. The sequence of the JetStream stream protects
//! the relay, and the fence of its checkpoints protects a projector's writes.

use std::fs::File;
use std::time::{Duration, Instant};

use opentelemetry::KeyValue;
use tokio::runtime::Handle;

use crate::error::Error;
use crate::log::{Database, Log};
use crate::metrics::METRICS;
use crate::postgres::locks::{Locks, try_lock};
use crate::postgres::primary::{Primary, Purpose, Reserved};
use crate::sqlite;

/// Interval between two attempts of a process that does not lead.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Minimum interval between two log lines about failed attempts.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// Maximum time for the server to answer one attempt.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The leadership of this process in a role. Dropping it releases the role.
pub struct Leadership {
    role: String,
    lock: Lock,
}

/// The lock that represents the role.
enum Lock {
    /// An advisory lock on a separate connection, outside the pools.
    Connection(Reserved, Primary),
    /// An advisory lock on the connection that all leaderships of the process share, and the generation of that
    /// connection.
    Shared(Locks, Primary, u64),
    /// A locked file beside the log.
    #[expect(dead_code, reason = "kept open for its lock and never read")]
    File(File),
}

impl Leadership {
    /// Waits until this process leads.
    pub(crate) async fn acquire(log: &Log, role: &str) -> Self {
        lead(role, false);
        let mut last_logged: Option<Instant> = None;
        let mut log_now = || {
            let due = last_logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
            last_logged = if due { Some(Instant::now()) } else { last_logged };
            due
        };
        loop {
            match tokio::time::timeout(ANSWER_WITHIN, Self::try_acquire_shared(log, role)).await {
                Ok(Ok(Some(leadership))) => return leadership,
                Ok(Ok(None)) => {}
                // Dropping the attempt also closed its connection, so the next attempt opens another one.
                Err(_) if log_now() => tracing::warn!(role, "An attempt to become leader timed out. Trying again."),
                Err(_) => {}
                Ok(Err(error)) => {
                    if log_now() {
                        tracing::warn!(%error, role, "An attempt to become leader failed. Trying again.");
                    }
                }
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Tries once to lead. Uses a separate connection, because the leadership lasts only as long as a CLI command.
    pub(crate) async fn try_acquire(log: &Log, role: &str) -> Result<Option<Self>, Error> {
        let log = match &log.database {
            Database::Sqlite(log) => return Self::of_file(log, role),
            Database::Postgres(log) => log,
        };
        let mut reserved = log.primary.connect(Purpose::CliLock).await?;
        let won = try_lock(&mut reserved, &lock_name(log.primary.schema(), role)).await?;
        Ok(won.then(|| Self::new(role, Lock::Connection(reserved, log.primary.clone()))))
    }

    fn new(role: &str, lock: Lock) -> Self {
        lead(role, true);
        Self { role: role.to_owned(), lock }
    }

    fn of_file(log: &sqlite::Log, role: &str) -> Result<Option<Self>, Error> {
        Ok(log.try_lead(role)?.map(|file| Self::new(role, Lock::File(file))))
    }

    /// Tries once to lead, over the connection that all leaderships of the process share.
    async fn try_acquire_shared(log: &Log, role: &str) -> Result<Option<Self>, Error> {
        let log = match &log.database {
            Database::Sqlite(log) => return Self::of_file(log, role),
            Database::Postgres(log) => log,
        };
        let generation = log.locks.try_take(&log.primary, &lock_name(log.primary.schema(), role)).await?;
        let lock = |generation| Lock::Shared(log.locks.clone(), log.primary.clone(), generation);
        Ok(generation.map(|generation| Self::new(role, lock(generation))))
    }

    /// Checks that this process still holds the lock: the connection of the lock answers, and its server still accepts
    /// writes.
    ///
    /// # Errors
    /// The lock is lost, or the server does not answer.
    pub async fn check(&mut self) -> Result<(), Error> {
        match &mut self.lock {
            Lock::File(_) => Ok(()),
            Lock::Shared(locks, primary, generation) => {
                let (locks, primary, generation) = (locks.clone(), primary.clone(), *generation);
                // Runs in its own task, so that a caller that stops waiting does not cancel it: a cancelled check would
                // close the shared connection and release the locks of all other roles.
                let checked = tokio::spawn(async move { locks.check(&primary, generation).await });
                checked.await.map_err(|_| Error::Closing)?
            }
            Lock::Connection(reserved, primary) => {
                reserved.ping().await?;
                match reserved.is_current(primary) {
                    true => Ok(()),
                    false => Err(sqlx::Error::Protocol("the lock is on a server that accepts no writes".into()).into()),
                }
            }
        }
    }
}

/// Returns the name of a role's advisory lock. Advisory locks are per database, and a database may hold one store in
/// each schema. For the schema `public` the name is the one that earlier releases use, so that two releases agree on
/// one leader during an upgrade.
fn lock_name(schema: &str, role: &str) -> String {
    match schema {
        "public" => format!("docket {role}"),
        schema => format!("docket {schema} {role}"),
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        lead(&self.role, false);
        if let (Lock::Shared(locks, primary, generation), Ok(runtime)) = (&self.lock, Handle::try_current()) {
            let (locks, generation, name) = (locks.clone(), *generation, lock_name(primary.schema(), &self.role));
            runtime.spawn(async move { locks.give_back(generation, &name).await });
        }
    }
}

/// Records in the metrics whether this process leads. Only the roles `relay` and `projections` are recorded.
fn lead(role: &str, leads: bool) {
    if matches!(role, "relay" | "projections") {
        METRICS.leader.record(leads.into(), &[KeyValue::new("role", role.to_owned())]);
    }
}
