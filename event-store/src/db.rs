//! The read models' database, so that a projection is written once: rows are text and integers, SQL is what PostgreSQL
//! and SQLite share, and the two ways to write many rows at once stand side by side here.

use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{Arguments, FromRow, Postgres, Sqlite, Transaction};

use crate::error::Error;

/// A column's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text, or null.
    Text(Option<String>),
    /// A 64-bit integer, or null.
    Int(Option<i64>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}
impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}
impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(Some(number))
    }
}
impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        Self::Int(number)
    }
}

/// What a written row does to the row that is there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Merge {
    /// Part of the primary key.
    Key,
    /// Replaces.
    Set,
    /// Is added.
    Add,
    /// The smaller stays.
    Min,
    /// The larger stays.
    Max,
}

/// A column of a read model's table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    name: &'static str,
    int: bool,
    merge: Merge,
}

/// A text column.
pub const fn text(name: &'static str, merge: Merge) -> Column {
    Column { name, int: false, merge }
}

/// An integer column.
pub const fn int(name: &'static str, merge: Merge) -> Column {
    Column { name, int: true, merge }
}

/// A read model's table, as the pump writes it.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name in both databases.
    pub name: &'static str,
    /// Its columns, in the order of a row's values.
    pub columns: &'static [Column],
}

impl Table {
    fn on_conflict(&self) -> String {
        let names = |wanted: fn(Merge) -> bool| self.columns.iter().filter(move |c| wanted(c.merge));
        let key: Vec<_> = names(|m| m == Merge::Key).map(|c| c.name).collect();
        let sets: Vec<_> = names(|m| m != Merge::Key)
            .map(|Column { name, merge, .. }| {
                let table = self.name;
                match merge {
                    Merge::Add => format!("{name} = {table}.{name} + excluded.{name}"),
                    Merge::Min => {
                        format!("{name} = case when excluded.{name} < {table}.{name} then excluded.{name} else {table}.{name} end")
                    }
                    Merge::Max => {
                        format!("{name} = case when excluded.{name} > {table}.{name} then excluded.{name} else {table}.{name} end")
                    }
                    Merge::Set | Merge::Key => format!("{name} = excluded.{name}"),
                }
            })
            .collect();
        format!("on conflict ({}) do update set {}", key.join(", "), sets.join(", "))
    }

    fn column_names(&self) -> String {
        self.columns.iter().map(|c| c.name).collect::<Vec<_>>().join(", ")
    }

    /// One array a column: PostgreSQL plans the statement once, whatever the number of rows.
    fn postgres_sql(&self) -> String {
        let arrays: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, c)| format!("${}::{}[]", at + 1, if c.int { "bigint" } else { "text" }))
            .collect();
        let (name, columns) = (self.name, self.column_names());
        format!("insert into {name} ({columns}) select * from unnest({}) {}", arrays.join(", "), self.on_conflict())
    }

    /// Many rows of placeholders: SQLite has no arrays.
    fn sqlite_sql(&self, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        let (name, columns) = (self.name, self.column_names());
        format!("insert into {name} ({columns}) values {} {}", vec![row; rows].join(", "), self.on_conflict())
    }
}

/// Rows in one SQLite statement, at most.
const SQLITE_ROWS: usize = 64;

/// Rows cut into pieces whose lengths are powers of two, so that few different statements serve every number of rows,
/// and each is prepared once and kept.
pub(crate) fn sqlite_chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let length = match rows.len() {
            0 => return None,
            SQLITE_ROWS.. => SQLITE_ROWS,
            length => 1 << length.ilog2(),
        };
        let (chunk, rest) = rows.split_at(length);
        rows = rest;
        Some(chunk)
    })
}

/// A row type that reads from both databases; `#[derive(sqlx::FromRow)]` gives it.
pub trait Row: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}
impl<T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin> Row for T {}

/// The read models' database.
#[derive(Debug, Clone)]
pub enum Db {
    /// A file of its own beside the log: the pump and the appender each have a writer.
    Sqlite {
        /// The one writer.
        write: SqlitePool,
        /// Readers.
        read: SqlitePool,
    },
    /// Tables beside the log's.
    Postgres(PgPool),
}

impl Db {
    /// Runs a query. `sql` has `$1`-style placeholders and is valid in both databases.
    pub async fn fetch_all<T: Row>(&self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Error> {
        Ok(match self {
            Self::Sqlite { read, .. } => sqlx::query_as_with(sql, sqlite_arguments(values)).fetch_all(read).await?,
            Self::Postgres(pool) => sqlx::query_as_with(sql, postgres_arguments(values)).fetch_all(pool).await?,
        })
    }

    /// Opens a transaction to write in.
    pub async fn begin(&self) -> Result<Tx, Error> {
        Ok(match self {
            Self::Sqlite { write, .. } => Tx::Sqlite(write.begin_with("begin immediate").await?),
            Self::Postgres(pool) => Tx::Postgres(pool.begin().await?),
        })
    }
}

/// A transaction; dropped without [`Tx::commit`], it is rolled back.
pub enum Tx {
    /// In SQLite.
    Sqlite(Transaction<'static, Sqlite>),
    /// In PostgreSQL.
    Postgres(Transaction<'static, Postgres>),
}

impl Tx {
    /// Runs a statement valid in both databases; gives the number of rows it changed.
    pub async fn execute(&mut self, sql: &str, values: Vec<Value>) -> Result<u64, Error> {
        Ok(match self {
            Self::Sqlite(tx) => {
                sqlx::query_with(sql, sqlite_arguments(values)).execute(&mut **tx).await?.rows_affected()
            }
            Self::Postgres(tx) => {
                sqlx::query_with(sql, postgres_arguments(values)).execute(&mut **tx).await?.rows_affected()
            }
        })
    }

    /// Runs a query inside the transaction.
    pub async fn fetch_all<T: Row>(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Error> {
        Ok(match self {
            Self::Sqlite(tx) => sqlx::query_as_with(sql, sqlite_arguments(values)).fetch_all(&mut **tx).await?,
            Self::Postgres(tx) => sqlx::query_as_with(sql, postgres_arguments(values)).fetch_all(&mut **tx).await?,
        })
    }

    /// Writes rows, each merged into the row that has its key. Keys must be distinct within one call.
    pub async fn write(&mut self, table: &Table, rows: Vec<Vec<Value>>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        match self {
            Self::Sqlite(tx) => {
                for chunk in sqlite_chunks(&rows) {
                    let values = chunk.iter().flatten().cloned().collect();
                    sqlx::query_with(&table.sqlite_sql(chunk.len()), sqlite_arguments(values))
                        .execute(&mut **tx)
                        .await?;
                }
            }
            Self::Postgres(tx) => {
                sqlx::query_with(&table.postgres_sql(), postgres_arrays(table, rows)).execute(&mut **tx).await?;
            }
        }
        Ok(())
    }

    /// Makes it so.
    pub async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }
}

fn sqlite_arguments<'q>(values: Vec<Value>) -> SqliteArguments<'q> {
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

fn postgres_arguments(values: Vec<Value>) -> PgArguments {
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
        debug_assert_eq!(row.len(), columns.len(), "{}: a value a column", table.name);
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

    const TABLE: Table = Table {
        name: "t",
        columns: &[text("k", Merge::Key), int("n", Merge::Add), int("first", Merge::Min), text("name", Merge::Set)],
    };

    #[test]
    fn rows_are_cut_into_few_lengths() {
        let rows: Vec<usize> = (0..150).collect();
        let chunks: Vec<_> = sqlite_chunks(&rows).collect();
        assert_eq!(chunks.iter().map(|chunk| chunk.len()).collect::<Vec<_>>(), [64, 64, 16, 4, 2]);
        assert_eq!(chunks.concat(), rows);
    }

    #[test]
    fn a_row_merges_column_by_column() {
        let tail = "on conflict (k) do update set n = t.n + excluded.n, \
                    first = case when excluded.first < t.first then excluded.first else t.first end, name = excluded.name";
        assert_eq!(
            TABLE.sqlite_sql(2),
            format!("insert into t (k, n, first, name) values (?, ?, ?, ?), (?, ?, ?, ?) {tail}")
        );
        assert_eq!(
            TABLE.postgres_sql(),
            format!(
                "insert into t (k, n, first, name) select * from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) {tail}"
            )
        );
    }
}
