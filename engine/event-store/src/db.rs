//! The read models' database: queries, and transactions that write.

use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{Arguments, FromRow, Postgres, Sqlite, Transaction};

use crate::error::Error;
use crate::postgres::primary::Primary;
use crate::table::{Column, Table, Value, sqlite_chunks};

/// A row type that can be read from both databases; derive it with `#[derive(sqlx_macros::FromRow)]`.
pub trait Row: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}
impl<T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin> Row for T {}

/// The read models' database.
#[derive(Debug, Clone)]
pub enum Db {
    /// A database file beside the log's, with its own writer, so that projections and appends do not wait for each
    /// other.
    Sqlite {
        /// The only writer.
        write: SqlitePool,
        /// A writer whose commits wait for the disk. Connects on first use.
        durable: SqlitePool,
        /// Read-only connections.
        read: SqlitePool,
    },
    /// Tables in the log's database.
    Postgres {
        /// Connections for queries.
        read: PgPool,
        /// Connections for write transactions. They have their own pool, so that a burst of queries cannot use them up.
        write: PgPool,
        /// The server that all connections lead to.
        primary: Primary,
    },
}

/// A source of rows: the current state of the database, or the state that a transaction sees.
pub trait Read: Send {
    /// Runs a query. `sql` has `$1`-style placeholders and is valid in both databases.
    fn rows<T: Row>(&mut self, sql: &str, values: Vec<Value>) -> impl Future<Output = Result<Vec<T>, Error>> + Send;
}

impl Read for &Db {
    async fn rows<T: Row>(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Error> {
        self.fetch_all(sql, values).await
    }
}

impl Read for &mut Tx {
    async fn rows<T: Row>(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Error> {
        self.fetch_all(sql, values).await
    }
}

impl Db {
    /// Runs a query. `sql` has `$1`-style placeholders and is valid in both databases.
    pub async fn fetch_all<T: Row>(&self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Error> {
        Ok(match self {
            Self::Sqlite { read, .. } => sqlx::query_as_with(sql, sqlite_arguments(values)).fetch_all(read).await?,
            Self::Postgres { read, primary, .. } => {
                primary.run_until_failover(sqlx::query_as_with(sql, postgres_arguments(values)).fetch_all(read)).await?
            }
        })
    }

    /// Begins a write transaction.
    pub async fn begin(&self) -> Result<Tx, Error> {
        Ok(match self {
            Self::Sqlite { write, .. } => Tx::Sqlite(write.begin_with("begin immediate").await?),
            Self::Postgres { write, primary, .. } => {
                let begun = begin_whole(write.clone(), "begin");
                Tx::Postgres(primary.run_until_failover(begun).await?, primary.clone())
            }
        })
    }

    /// Begins a write transaction whose commit survives a power loss: for data that cannot be derived from the log.
    pub async fn begin_durably(&self) -> Result<Tx, Error> {
        Ok(match self {
            Self::Sqlite { durable, .. } => Tx::Sqlite(durable.begin_with("begin immediate").await?),
            Self::Postgres { .. } => {
                let mut tx = self.begin().await?;
                tx.execute("set local synchronous_commit = on", vec![]).await?;
                tx
            }
        })
    }

    /// Returns a number that changes whenever the database may have lost commits that did not wait for the disk.
    /// PostgreSQL closes every connection when it crashes, so the number grows with each connection that is opened.
    pub fn connections_opened(&self) -> u64 {
        match self {
            // SQLite loses commits only when the machine crashes, and that also ends this process.
            Self::Sqlite { .. } => 0,
            Self::Postgres { primary, .. } => primary.connections_opened(),
        }
    }

    /// Begins a read-only transaction that sees one state of the database until it ends.
    pub async fn snapshot(&self) -> Result<Tx, Error> {
        Ok(match self {
            Self::Sqlite { read, .. } => Tx::Sqlite(read.begin().await?),
            Self::Postgres { read, primary, .. } => {
                let begun = begin_whole(read.clone(), "begin isolation level repeatable read read only");
                let mut tx = Tx::Postgres(primary.run_until_failover(begun).await?, primary.clone());
                // The caller may keep the transaction open for a long time while it processes the rows.
                for setting in ["idle_in_transaction_session_timeout", "statement_timeout"] {
                    tx.execute(&format!("set local {setting} = 0"), vec![]).await?;
                }
                tx
            }
        })
    }
}

/// A transaction. If dropped without [`Tx::commit`], it is rolled back.
pub enum Tx {
    /// A transaction in SQLite.
    Sqlite(Transaction<'static, Sqlite>),
    /// A transaction in PostgreSQL.
    Postgres(Transaction<'static, Postgres>, Primary),
}

impl Tx {
    /// Runs a statement that is valid in both databases. Returns the number of changed rows.
    pub async fn execute(&mut self, sql: &str, values: Vec<Value>) -> Result<u64, Error> {
        Ok(match self {
            Self::Sqlite(tx) => {
                sqlx::query_with(sql, sqlite_arguments(values)).execute(&mut **tx).await?.rows_affected()
            }
            Self::Postgres(tx, primary) => {
                let executed = sqlx::query_with(sql, postgres_arguments(values)).execute(&mut **tx);
                primary.run_until_failover(executed).await?.rows_affected()
            }
        })
    }

    /// Runs a query inside the transaction.
    pub async fn fetch_all<T: Row>(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Error> {
        Ok(match self {
            Self::Sqlite(tx) => sqlx::query_as_with(sql, sqlite_arguments(values)).fetch_all(&mut **tx).await?,
            Self::Postgres(tx, primary) => {
                primary
                    .run_until_failover(sqlx::query_as_with(sql, postgres_arguments(values)).fetch_all(&mut **tx))
                    .await?
            }
        })
    }

    /// Writes rows into a generation of a table. A row whose key exists is merged into the existing row. Keys must be
    /// distinct within one call.
    pub async fn write(&mut self, table: &Table, generation: i64, rows: Vec<Vec<Value>>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        match self {
            Self::Sqlite(tx) => {
                for chunk in sqlite_chunks(&rows) {
                    let values = chunk.iter().flatten().cloned().collect();
                    sqlx::query_with(&table.sqlite_sql(generation, chunk.len()), sqlite_arguments(values))
                        .execute(&mut **tx)
                        .await?;
                }
            }
            Self::Postgres(tx, primary) => {
                let (sql, arrays) = (table.postgres_sql(generation), postgres_arrays(table, rows));
                primary.run_until_failover(sqlx::query_with(&sql, arrays).execute(&mut **tx)).await?;
            }
        }
        Ok(())
    }

    /// Locks the checkpoints against changes by others until this transaction ends. Waits up to 10 s for transactions
    /// that have changed them.
    pub async fn lock_checkpoints(&mut self) -> Result<(), Error> {
        // SQLite allows one write transaction at a time.
        if let Self::Postgres(..) = self {
            self.execute("set local lock_timeout = '10s'", vec![]).await?;
            self.execute("lock table checkpoints in exclusive mode", vec![]).await?;
        }
        self.disable_statement_timeout().await
    }

    /// Removes the time limit of this transaction's statements.
    pub(crate) async fn disable_statement_timeout(&mut self) -> Result<(), Error> {
        if let Self::Postgres(..) = self {
            self.execute("set local statement_timeout = 0", vec![]).await?;
        }
        Ok(())
    }

    /// Commits the transaction.
    pub async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx, primary) => primary.run_until_failover(tx.commit()).await?,
        }
        Ok(())
    }
}

/// Begins a transaction, to the end even if the caller is cancelled. A cancelled `begin` of sqlx leaves the transaction
/// open on the connection, and the pool does not know it. Later queries on that connection would then see the database
/// as it was, for as long as they keep coming.
async fn begin_whole(pool: PgPool, statement: &'static str) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let begun = tokio::spawn(async move { pool.begin_with(statement).await });
    begun.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
}

/// Reads a row of a read model's table.
pub(crate) fn values<'r, R: sqlx::Row>(table: &Table, row: &'r R) -> Result<Vec<Value>, sqlx::Error>
where
    usize: sqlx::ColumnIndex<R>,
    Option<i64>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    Option<String>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    let value = |(at, column): (usize, &Column)| match column.int {
        true => row.try_get(at).map(Value::Int),
        false => row.try_get(at).map(Value::Text),
    };
    table.columns.iter().enumerate().map(value).collect()
}

pub(crate) fn sqlite_arguments<'q>(values: Vec<Value>) -> SqliteArguments<'q> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        match value {
            Value::Text(text) => arguments.add(text),
            Value::Int(number) => arguments.add(number),
        }
        .expect("text and integers always encode");
    }
    arguments
}

pub(crate) fn postgres_arguments(values: Vec<Value>) -> PgArguments {
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Value::Text(text) => arguments.add(text),
            Value::Int(number) => arguments.add(number),
        }
        .expect("text and integers always encode");
    }
    arguments
}

fn postgres_arrays(table: &Table, rows: Vec<Vec<Value>>) -> PgArguments {
    let mut columns: Vec<Vec<Value>> = table.columns.iter().map(|_| Vec::with_capacity(rows.len())).collect();
    for row in rows {
        debug_assert_eq!(row.len(), columns.len(), "{}: a row must have one value per column", table.name);
        for (column, value) in columns.iter_mut().zip(row) {
            column.push(value);
        }
    }
    let mut arguments = PgArguments::default();
    for (column, values) in table.columns.iter().zip(columns) {
        if column.int {
            arguments.add(values.into_iter().map(|v| if let Value::Int(n) = v { n } else { None }).collect::<Vec<_>>())
        } else {
            arguments.add(values.into_iter().map(|v| if let Value::Text(t) = v { t } else { None }).collect::<Vec<_>>())
        }
        .expect("text and integers always encode");
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Merge, int, text};

    const TABLE: Table = Table {
        name: "t",
        columns: &[
            text("k", Merge::Key),
            int("n", Merge::Add),
            int("first", Merge::Min),
            text("name", Merge::Latest("first")).nullable(),
        ],
        indexes: &["first, k"],
    };

    #[test]
    fn rows_are_split_into_chunks_of_few_lengths() {
        let rows: Vec<usize> = (0..150).collect();
        let chunks: Vec<_> = sqlite_chunks(&rows).collect();
        assert_eq!(chunks.iter().map(|chunk| chunk.len()).collect::<Vec<_>>(), [64, 64, 16, 4, 2]);
        assert_eq!(chunks.concat(), rows);
    }

    #[test]
    fn a_row_merges_column_by_column() {
        let tail = |sum: &str| {
            format!(
                "on conflict (k) do update set n = {sum}, \
                 first = case when excluded.first < t_g2.first then excluded.first else t_g2.first end, \
                 name = case when excluded.first >= t_g2.first then excluded.name else t_g2.name end"
            )
        };
        assert_eq!(
            TABLE.sqlite_sql(2, 2),
            format!(
                "insert into t_g2 (k, n, first, name) values (?, ?, ?, ?), (?, ?, ?, ?) {}",
                tail("cast(t_g2.n + excluded.n as integer)")
            )
        );
        assert_eq!(
            TABLE.postgres_sql(2),
            format!(
                "insert into t_g2 (k, n, first, name) select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) {}",
                tail("least(t_g2.n::numeric + excluded.n, 9223372036854775807)::bigint")
            )
        );
    }
}
