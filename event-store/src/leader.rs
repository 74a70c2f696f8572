//! One leader a role among processes: a PostgreSQL advisory lock, freed by the server when its holder dies.
//!
//! Leadership saves work; it is not what correctness rests on. The relay is guarded by the stream's sequence, and a
//! projector's writes by the epoch of its checkpoints.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

use crate::error::Error;
use crate::log::Log;

/// How often a process that does not lead asks again.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Held while this process leads.
pub struct Leadership {
    connection: Option<PoolConnection<Postgres>>,
}

impl Leadership {
    /// Waits until this process leads. Embedded, the log's file lock has made it the only one.
    pub(crate) async fn win(log: &Log, role: &str) -> Self {
        let Log::Postgres(log) = log else { return Self { connection: None } };
        loop {
            match try_lock(&log.pool, role).await {
                Ok(Some(connection)) => return Self { connection: Some(connection) },
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, role, "cannot ask for leadership"),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Whether the lock is still held: its connection answers.
    pub async fn check(&mut self) -> Result<(), Error> {
        if let Some(connection) = &mut self.connection {
            sqlx::query("select 1").execute(&mut **connection).await?;
        }
        Ok(())
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        // Closed, not given back to the pool: the lock belongs to the session.
        if let Some(connection) = self.connection.take() {
            drop(connection.detach());
        }
    }
}

async fn try_lock(pool: &PgPool, role: &str) -> Result<Option<PoolConnection<Postgres>>, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let (won,): (bool,) = sqlx::query_as("select pg_try_advisory_lock(hashtextextended('docket ' || $1, 0))")
        .bind(role)
        .fetch_one(&mut *connection)
        .await?;
    Ok(won.then_some(connection))
}
