//! One leader a role among processes: a PostgreSQL advisory lock or a locked file, freed when its holder dies.
//!
//! Leadership saves work; it is not what correctness rests on. The relay is guarded by the stream's sequence, and a
//! projector's writes by the epoch of its checkpoints.

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

/// How often a process that does not lead asks again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How often it is said that nobody answers.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// How long the server may take to say that the lock's connection stands.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Held while this process leads.
pub struct Leadership {
    role: String,
    hold: Hold,
}

/// What frees the role when its holder dies.
enum Hold {
    /// The lock belongs to this connection, which is none of the pool's.
    Connection(Reserved, Primary),
    /// The lock belongs to the connection that all leaderships of a process share.
    Shared(Locks, Primary, u64),
    /// A locked file beside the log.
    #[expect(dead_code, reason = "held, never read")]
    File(File),
}

impl Leadership {
    /// Waits until this process leads.
    pub(crate) async fn win(log: &Log, role: &str) -> Self {
        lead(role, false);
        let mut said: Option<Instant> = None;
        let mut say_now = || {
            let due = said.is_none_or(|at| at.elapsed() >= SAY_EVERY);
            said = if due { Some(Instant::now()) } else { said };
            due
        };
        loop {
            match tokio::time::timeout(ANSWER_WITHIN, Self::ask(log, role)).await {
                Ok(Ok(Some(leadership))) => return leadership,
                Ok(Ok(None)) => {}
                // The connection went with the question.
                Err(_) if say_now() => tracing::warn!(role, "no answer to the question for leadership"),
                Err(_) => {}
                Ok(Err(error)) => {
                    if say_now() {
                        tracing::warn!(%error, role, "cannot ask for leadership");
                    }
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Leads, if nobody else does, over a connection of its own: for as long as a command lasts.
    pub(crate) async fn try_win(log: &Log, role: &str) -> Result<Option<Self>, Error> {
        let log = match &log.database {
            Database::Sqlite(log) => return Self::of_file(log, role),
            Database::Postgres(log) => log,
        };
        let mut reserved = log.primary.connect(Purpose::Hold).await?;
        let won = try_lock(&mut reserved, &lock_name(log.primary.schema(), role)).await?;
        Ok(won.then(|| Self::new(role, Hold::Connection(reserved, log.primary.clone()))))
    }

    fn new(role: &str, hold: Hold) -> Self {
        lead(role, true);
        Self { role: role.to_owned(), hold }
    }

    fn of_file(log: &sqlite::Log, role: &str) -> Result<Option<Self>, Error> {
        Ok(log.try_lead(role)?.map(|file| Self::new(role, Hold::File(file))))
    }

    /// Asks once, over the connection that all leaderships of the process share.
    async fn ask(log: &Log, role: &str) -> Result<Option<Self>, Error> {
        let log = match &log.database {
            Database::Sqlite(log) => return Self::of_file(log, role),
            Database::Postgres(log) => log,
        };
        let generation = log.locks.try_take(&log.primary, &lock_name(log.primary.schema(), role)).await?;
        let hold = |generation| Hold::Shared(log.locks.clone(), log.primary.clone(), generation);
        Ok(generation.map(|generation| Self::new(role, hold(generation))))
    }

    /// Whether the lock is still held: its connection answers, and leads to the server that takes writes.
    pub async fn check(&mut self) -> Result<(), Error> {
        match &mut self.hold {
            Hold::File(_) => Ok(()),
            Hold::Shared(locks, primary, generation) => {
                let (locks, primary, generation) = (locks.clone(), primary.clone(), *generation);
                // In a task of its own: given up in the middle, it would take the locks of others with it.
                let checked = tokio::spawn(async move { locks.check(&primary, generation).await });
                checked.await.map_err(|_| Error::Closing)?
            }
            Hold::Connection(reserved, primary) => {
                reserved.ping().await?;
                match reserved.is_current(primary) {
                    true => Ok(()),
                    false => Err(sqlx::Error::Protocol("the lock is held on a server that was replaced".into()).into()),
                }
            }
        }
    }
}

/// Advisory locks belong to the database, and a database may hold a store in each of its schemas. The lock of the schema
/// `public` has the name that earlier releases take, so that both releases of an upgrade agree on one leader.
fn lock_name(schema: &str, role: &str) -> String {
    match schema {
        "public" => format!("docket {role}"),
        schema => format!("docket {schema} {role}"),
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        lead(&self.role, false);
        if let (Hold::Shared(locks, primary, generation), Ok(runtime)) = (&self.hold, Handle::try_current()) {
            let (locks, generation, name) = (locks.clone(), *generation, lock_name(primary.schema(), &self.role));
            runtime.spawn(async move { locks.give_back(generation, &name).await });
        }
    }
}

/// Says whether this process leads. Other roles than these last as long as a command.
fn lead(role: &str, leads: bool) {
    if matches!(role, "relay" | "projections") {
        METRICS.leader.record(leads.into(), &[KeyValue::new("role", role.to_owned())]);
    }
}
