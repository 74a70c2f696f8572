//! One leader a role among processes: a PostgreSQL advisory lock, freed by the server when its holder dies.
//!
//! Leadership saves work; it is not what correctness rests on. The relay is guarded by the stream's sequence, and a
//! projector's writes by the epoch of its checkpoints.

use std::time::Duration;

use sqlx::{Connection, PgConnection, PgPool};

use crate::error::Error;
use crate::log::Log;

/// How often a process that does not lead asks again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How long the server may take to say that the lock's connection stands.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Held while this process leads. The lock belongs to its connection, which is none of the pool's.
pub struct Leadership {
    connection: Option<PgConnection>,
}

impl Leadership {
    /// Waits until this process leads. Embedded, the log's file lock has made it the only one.
    pub(crate) async fn win(log: &Log, role: &str) -> Self {
        let Log::Postgres(log) = log else { return Self { connection: None } };
        loop {
            match lock(&log.pool, role).await {
                Ok(connection) => return Self { connection: Some(connection) },
                Err(error) => tracing::warn!(%error, role, "cannot ask for leadership"),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Whether the lock is still held: its connection answers.
    pub async fn check(&mut self) -> Result<(), Error> {
        if let Some(connection) = &mut self.connection {
            let silent = |_| sqlx::Error::Protocol(format!("no answer from PostgreSQL for {ANSWER_WITHIN:?}"));
            tokio::time::timeout(ANSWER_WITHIN, connection.ping()).await.map_err(silent)??;
        }
        Ok(())
    }
}

async fn lock(pool: &PgPool, role: &str) -> Result<PgConnection, sqlx::Error> {
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
    loop {
        let (won,): (bool,) = sqlx::query_as("select pg_try_advisory_lock(hashtextextended('docket ' || $1, 0))")
            .bind(role)
            .fetch_one(&mut connection)
            .await?;
        if won {
            return Ok(connection);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
