//! Advisory locks of a process in PostgreSQL, all held by one connection.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::primary::{Primary, Purpose, Reserved};
use crate::error::Error;

/// Maximum time for the server to release a lock. Meanwhile other tasks wait to use the connection.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(3);

/// The leader locks of a process in PostgreSQL. One connection holds all of them.
#[derive(Clone, Default)]
pub(crate) struct Locks(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    connection: Option<Reserved>,
    /// Incremented when the connection is lost, and with it every lock.
    generation: u64,
    /// Names of the held locks. PostgreSQL would grant the same session a lock a second time.
    held: HashSet<String>,
}

impl Shared {
    /// Takes the connection out of its place, or opens another one if it is lost. A caller that is cancelled therefore
    /// closes the connection.
    async fn take(&mut self, primary: &Primary) -> Result<Reserved, Error> {
        match self.connection.take() {
            Some(reserved) if reserved.is_current(primary) => Ok(reserved),
            _ => {
                self.generation += 1;
                self.held.clear();
                Ok(primary.connect(Purpose::Lead).await?)
            }
        }
    }
}

impl Locks {
    /// Tries to acquire a lock. Returns the generation of the connection, or `None` if the lock is already held.
    pub(crate) async fn try_take(&self, primary: &Primary, name: &str) -> Result<Option<u64>, Error> {
        let mut shared = self.0.lock().await;
        let mut reserved = shared.take(primary).await?;
        if shared.held.contains(name) {
            shared.connection = Some(reserved);
            return Ok(None);
        }
        let won = try_lock(&mut reserved, name).await?;
        if won {
            shared.held.insert(name.to_owned());
        }
        shared.connection = Some(reserved);
        Ok(won.then_some(shared.generation))
    }

    /// Checks that the locks of a generation are still held.
    ///
    /// # Errors
    /// The connection is lost, or does not answer.
    pub(crate) async fn check(&self, primary: &Primary, generation: u64) -> Result<(), Error> {
        let mut shared = self.0.lock().await;
        let lost = || sqlx::Error::Protocol("the connection that held the lock was lost".into());
        if shared.generation != generation || shared.connection.is_none() {
            return Err(lost().into());
        }
        let mut reserved = shared.take(primary).await?;
        if shared.generation == generation {
            reserved.ping().await?;
        }
        shared.connection = Some(reserved);
        if shared.generation == generation { Ok(()) } else { Err(lost().into()) }
    }

    /// Releases a lock, unless its connection was lost.
    pub(crate) async fn give_back(&self, generation: u64, name: &str) {
        let mut shared = self.0.lock().await;
        if shared.generation != generation || !shared.held.remove(name) {
            return;
        }
        let Some(mut reserved) = shared.connection.take() else { return };
        let sql = "select pg_advisory_unlock(hashtextextended($1, 0))";
        let unlocked = sqlx::query(sql).bind(name).execute(&mut reserved.connection);
        // If the release fails, the connection is dropped, which releases every lock.
        if let Ok(Ok(_)) = tokio::time::timeout(GIVE_BACK_WITHIN, unlocked).await {
            shared.connection = Some(reserved);
        }
    }
}

/// Tries to acquire a lock for a connection. Returns false if another session holds it.
pub(crate) async fn try_lock(reserved: &mut Reserved, name: &str) -> Result<bool, Error> {
    let sql = "select pg_try_advisory_lock(hashtextextended($1, 0))";
    let (won,): (bool,) = sqlx::query_as(sql).bind(name).fetch_one(&mut reserved.connection).await?;
    Ok(won)
}
