//! The read models' database, so that a projection is written once: rows are text and integers, SQL is what PostgreSQL
//! and SQLite share, and the two ways to write many rows at once stand side by side here.

use futures::TryStreamExt;
use sqlx::postgres::{PgArguments, PgDatabaseError, PgPool, PgRow};
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{Arguments, FromRow, Postgres, Sqlite, Transaction};

use crate::error::Error;
use crate::postgres::primary::Primary;

/// A column's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// Is added, up to the largest integer.
    Add,
    /// The smaller stays.
    Min,
    /// The larger stays.
    Max,
    /// Replaces, unless the row that is there has the larger value in this integer column: it came later, whatever the
    /// order of writing.
    Latest(&'static str),
}

/// A column of a read model's table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name in both databases.
    pub name: &'static str,
    /// What a written row does to it.
    pub merge: Merge,
    int: bool,
    nullable: bool,
}

/// A text column.
pub const fn text(name: &'static str, merge: Merge) -> Column {
    Column { name, merge, int: false, nullable: false }
}

/// An integer column.
pub const fn int(name: &'static str, merge: Merge) -> Column {
    Column { name, merge, int: true, nullable: false }
}

impl Column {
    /// The same column, which may be null.
    pub const fn nullable(self) -> Self {
        Self { nullable: true, ..self }
    }
}

/// A read model's table. Each generation has a table of its own behind one view, which has the table's name and is what
/// queries read.
#[derive(Debug, Clone, Copy)]
pub struct Table {
    /// Its name in both databases.
    pub name: &'static str,
    /// Its columns, in the order of a row's values.
    pub columns: &'static [Column],
    /// The columns of each index besides the primary key, as SQL.
    pub indexes: &'static [&'static str],
}

impl Table {
    /// Name of the table that holds a generation.
    fn of(&self, generation: i64) -> String {
        format!("{}_g{generation}", self.name)
    }

    fn key(&self) -> String {
        let key: Vec<_> = self.columns.iter().filter(|c| c.merge == Merge::Key).map(|c| c.name).collect();
        key.join(", ")
    }

    fn create_sql(&self, generation: i64, int: &str, tail: &str) -> String {
        let columns: Vec<_> = self
            .columns
            .iter()
            .map(|c| {
                let null = if c.nullable { "" } else { " not null" };
                format!("{} {}{null}", c.name, if c.int { int } else { "text" })
            })
            .collect();
        format!("create table {} ({}, primary key ({})){tail}", self.of(generation), columns.join(", "), self.key())
    }

    fn on_conflict(&self, generation: i64, sqlite: bool) -> String {
        let sets: Vec<_> = self
            .columns
            .iter()
            .filter(|c| c.merge != Merge::Key)
            .map(|Column { name, merge, .. }| {
                let table = self.of(generation);
                match merge {
                    // SQLite adds in floating point where integers end, and the cast stops at the largest.
                    Merge::Add if sqlite => format!("{name} = cast({table}.{name} + excluded.{name} as integer)"),
                    Merge::Add => {
                        format!("{name} = least({table}.{name}::numeric + excluded.{name}, {})::bigint", i64::MAX)
                    }
                    Merge::Min => {
                        format!("{name} = case when excluded.{name} < {table}.{name} then excluded.{name} else {table}.{name} end")
                    }
                    Merge::Max => {
                        format!("{name} = case when excluded.{name} > {table}.{name} then excluded.{name} else {table}.{name} end")
                    }
                    Merge::Latest(by) => {
                        format!("{name} = case when excluded.{by} >= {table}.{by} then excluded.{name} else {table}.{name} end")
                    }
                    Merge::Set | Merge::Key => format!("{name} = excluded.{name}"),
                }
            })
            .collect();
        format!("on conflict ({}) do update set {}", self.key(), sets.join(", "))
    }

    fn column_names(&self) -> String {
        self.columns.iter().map(|c| c.name).collect::<Vec<_>>().join(", ")
    }

    /// One array a column: PostgreSQL plans the statement once, whatever the number of rows.
    fn postgres_sql(&self, generation: i64) -> String {
        let arrays: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, c)| format!("${}::{}[]", at + 1, if c.int { "bigint" } else { "text" }))
            .collect();
        let (name, columns) = (self.of(generation), self.column_names());
        let merge = self.on_conflict(generation, false);
        format!("insert into {name} ({columns}) select * from unnest({}) {merge}", arrays.join(", "))
    }

    /// Many rows of placeholders: SQLite has no arrays.
    fn sqlite_sql(&self, generation: i64, rows: usize) -> String {
        let row = format!("({})", vec!["?"; self.columns.len()].join(", "));
        let (name, columns) = (self.of(generation), self.column_names());
        format!(
            "insert into {name} ({columns}) values {} {}",
            vec![row; rows].join(", "),
            self.on_conflict(generation, true)
        )
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
        /// A writer whose commits wait for the disk; opened when it is needed.
        durable: SqlitePool,
        /// Readers.
        read: SqlitePool,
    },
    /// Tables beside the log's.
    Postgres {
        /// For queries.
        read: PgPool,
        /// For transactions that write: a burst of queries does not take their place.
        write: PgPool,
        /// Where the connections lead.
        primary: Primary,
    },
}

/// Where rows are read: the database as it is, or one state of it.
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
                primary.answered(sqlx::query_as_with(sql, postgres_arguments(values)).fetch_all(read)).await?
            }
        })
    }

    /// Opens a transaction to write in.
    pub async fn begin(&self) -> Result<Tx, Error> {
        Ok(match self {
            Self::Sqlite { write, .. } => Tx::Sqlite(write.begin_with("begin immediate").await?),
            Self::Postgres { write, primary, .. } => {
                Tx::Postgres(primary.answered(write.begin()).await?, primary.clone())
            }
        })
    }

    /// Opens a transaction to write in, whose commit survives the machine: for what cannot be made again from the log.
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

    /// Changes whenever the database may have lost commits that did not wait for the disk: PostgreSQL ends every connection
    /// when it crashes, so a new number is given with each connection that is opened.
    pub fn epoch(&self) -> u64 {
        match self {
            // A crash of the machine ends this process too.
            Self::Sqlite { .. } => 0,
            Self::Postgres { primary, .. } => primary.epoch(),
        }
    }

    /// Opens a transaction that sees one state of the database throughout, and writes nothing.
    pub async fn snapshot(&self) -> Result<Tx, Error> {
        Ok(match self {
            Self::Sqlite { read, .. } => Tx::Sqlite(read.begin().await?),
            Self::Postgres { read, primary, .. } => {
                let begun = read.begin_with("begin isolation level repeatable read read only");
                let mut tx = Tx::Postgres(primary.answered(begun).await?, primary.clone());
                // However long its owner works on what it has read.
                for setting in ["idle_in_transaction_session_timeout", "statement_timeout"] {
                    tx.execute(&format!("set local {setting} = 0"), vec![]).await?;
                }
                tx
            }
        })
    }
}

/// A transaction; dropped without [`Tx::commit`], it is rolled back.
pub enum Tx {
    /// In SQLite.
    Sqlite(Transaction<'static, Sqlite>),
    /// In PostgreSQL.
    Postgres(Transaction<'static, Postgres>, Primary),
}

impl Tx {
    /// Runs a statement valid in both databases; gives the number of rows it changed.
    pub async fn execute(&mut self, sql: &str, values: Vec<Value>) -> Result<u64, Error> {
        Ok(match self {
            Self::Sqlite(tx) => {
                sqlx::query_with(sql, sqlite_arguments(values)).execute(&mut **tx).await?.rows_affected()
            }
            Self::Postgres(tx, primary) => {
                let executed = sqlx::query_with(sql, postgres_arguments(values)).execute(&mut **tx);
                primary.answered(executed).await?.rows_affected()
            }
        })
    }

    /// Runs a query inside the transaction.
    pub async fn fetch_all<T: Row>(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Error> {
        Ok(match self {
            Self::Sqlite(tx) => sqlx::query_as_with(sql, sqlite_arguments(values)).fetch_all(&mut **tx).await?,
            Self::Postgres(tx, primary) => {
                primary.answered(sqlx::query_as_with(sql, postgres_arguments(values)).fetch_all(&mut **tx)).await?
            }
        })
    }

    /// Writes rows into a generation, each merged into the row that has its key. Keys must be distinct within one call.
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
                primary.answered(sqlx::query_with(&sql, arrays).execute(&mut **tx)).await?;
            }
        }
        Ok(())
    }

    /// Makes the table of a generation, without its indexes: it fills faster so.
    pub async fn create(&mut self, table: &Table, generation: i64) -> Result<(), Error> {
        let sql = match self {
            Self::Sqlite(_) => table.create_sql(generation, "integer", " strict, without rowid"),
            Self::Postgres(..) => table.create_sql(generation, "bigint", ""),
        };
        self.execute(&sql, vec![]).await.map(drop)
    }

    /// Makes the indexes of a generation, where they are not there.
    pub async fn index(&mut self, table: &Table, generation: i64) -> Result<(), Error> {
        let name = table.of(generation);
        self.patiently().await?;
        for (columns, number) in table.indexes.iter().zip(1..) {
            let sql = format!("create index if not exists {name}_{number} on {name} ({columns})");
            self.execute(&sql, vec![]).await?;
        }
        Ok(())
    }

    /// Makes queries read this generation, from this transaction's commit on. In PostgreSQL the view keeps what operators
    /// have granted on it, and what depends on it.
    ///
    /// # Errors
    /// [`Error::Dependents`] where the view's columns change and something depends on it.
    pub async fn serve(&mut self, table: &Table, generation: i64) -> Result<(), Error> {
        let (view, columns) = (table.name, table.column_names());
        let definition = format!("view {view} as select {columns} from {}", table.of(generation));
        if let Self::Sqlite(_) = self {
            // Nothing is granted there, and what depends on it finds it by its name.
            self.drop("view", view).await?;
            return self.execute(&format!("create {definition}"), vec![]).await.map(drop);
        }
        // Behind a transaction that reads the view for long, all other queries would wait for this one.
        self.execute("set local lock_timeout = '500ms'", vec![]).await?;
        if self.has_columns_of(table).await? {
            return self.execute(&format!("create or replace {definition}"), vec![]).await.map(drop);
        }
        let grants = self.grants(table).await?;
        self.drop("view", view).await?;
        self.execute(&format!("create {definition}"), vec![]).await?;
        for grant in grants {
            self.execute(&grant, vec![]).await?;
        }
        Ok(())
    }

    /// Whether PostgreSQL can replace the view of a table: it may get more columns, at the end. True where there is none.
    async fn has_columns_of(&mut self, table: &Table) -> Result<bool, Error> {
        let sql = "select attname::text, format_type(atttypid, atttypmod) from pg_attribute
                   where attrelid = to_regclass(quote_ident(current_schema()) || '.' || $1)
                   and attnum > 0 and not attisdropped order by attnum";
        let known: Vec<(String, String)> = self.fetch_all(sql, vec![table.name.into()]).await?;
        let columns = table.columns.iter().map(|column| (column.name, if column.int { "bigint" } else { "text" }));
        let mut new = columns.map(Some).chain(std::iter::repeat(None));
        Ok(known.iter().all(|(name, kind)| new.next().flatten() == Some((name.as_str(), kind.as_str()))))
    }

    /// The statements that give others again what they may do with a view; of columns, where the table still has them.
    async fn grants(&mut self, table: &Table) -> Result<Vec<String>, Error> {
        let to = "case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
                  || case when a.is_grantable then ' with grant option' else '' end";
        let is_of_others =
            "v.oid = to_regclass(quote_ident(current_schema()) || '.' || $1) and a.grantee <> v.relowner";
        let sql = format!(
            "select format('grant %s on %I to ', a.privilege_type, v.relname) || {to}
             from pg_class v, aclexplode(v.relacl) a where {is_of_others}
             union all
             select format('grant %s (%I) on %I to ', a.privilege_type, c.attname, v.relname) || {to}
             from pg_class v join pg_attribute c on c.attrelid = v.oid, aclexplode(c.attacl) a
             where {is_of_others} and c.attname = any(string_to_array($2, ', '))"
        );
        let rows: Vec<(String,)> = self.fetch_all(&sql, vec![table.name.into(), table.column_names().into()]).await?;
        Ok(rows.into_iter().map(|(grant,)| grant).collect())
    }

    /// Removes a generation that no view shows.
    ///
    /// # Errors
    /// [`Error::Dependents`] where something depends on the table itself.
    pub async fn remove(&mut self, table: &Table, generation: i64) -> Result<(), Error> {
        self.drop("table", &table.of(generation)).await
    }

    /// Removes the tables of a generation whose declarations are not at hand, and the views of the same names. A table is
    /// taken for one of the projection where its name is the projection's, or that and `_` and more.
    ///
    /// # Errors
    /// [`Error::Dependents`] where something depends on one of them.
    pub async fn remove_undeclared(&mut self, projection: &str, generation: i64) -> Result<(), Error> {
        let sql = match self {
            Self::Sqlite(_) => "select name from sqlite_master where type = 'table'",
            Self::Postgres(..) => {
                "select table_name::text from information_schema.tables
                 where table_schema = current_schema() and table_type = 'BASE TABLE'"
            }
        };
        let tables: Vec<(String,)> = self.fetch_all(sql, vec![]).await?;
        let suffix = format!("_g{generation}");
        for (table,) in tables {
            let Some(name) = table.strip_suffix(&suffix) else { continue };
            let is_own = name.strip_prefix(projection).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
            if is_own {
                self.drop("view", name).await?;
                self.drop("table", &table).await?;
            }
        }
        Ok(())
    }

    /// Drops a table or a view; what depends on it stays and is named.
    async fn drop(&mut self, kind: &str, name: &str) -> Result<(), Error> {
        match self.execute(&format!("drop {kind} if exists {name}"), vec![]).await {
            Err(Error::Database(error)) => Err(match dependents(&error) {
                Some(dependents) => Error::Dependents { object: format!("{kind} {name}"), dependents },
                None => error.into(),
            }),
            dropped => dropped.map(drop),
        }
    }

    /// Number of rows that are in one of two generations and not, or not the same, in the other.
    pub async fn differences(&mut self, table: &Table, a: i64, b: i64) -> Result<i64, Error> {
        let (columns, a, b) = (table.column_names(), table.of(a), table.of(b));
        let sql = match self {
            // By the primary keys, which both are sorted by: SQLite would keep what `except` finds in memory.
            Self::Sqlite(_) => {
                let same = |merge: fn(&Column) -> bool, by: &str| {
                    let columns = table.columns.iter().filter(|column| merge(column));
                    let same: Vec<_> = columns.map(|c| format!("a.{0} {by} b.{0}", c.name)).collect();
                    same.join(" and ")
                };
                let key = same(|column| column.merge == Merge::Key, "=");
                let all = same(|_| true, "is");
                format!(
                    "select (select count(*) from {a} a where not exists (select 1 from {b} b where {key} and {all}))
                          + (select count(*) from {b} b where not exists (select 1 from {a} a where {key}))"
                )
            }
            Self::Postgres(..) => {
                let only = |here: &str, there: &str| {
                    format!("select {columns} from {here} except select {columns} from {there}")
                };
                let (key, left, right) = (table.key(), only(&a, &b), only(&b, &a));
                format!("select count(*) from (select {key} from ({left}) l union select {key} from ({right}) r) k")
            }
        };
        let rows: Vec<(i64,)> = self.fetch_all(&sql, vec![]).await?;
        Ok(rows.first().map_or(0, |(count,)| *count))
    }

    /// Hands over every row of a generation, in no order.
    pub async fn each_row(
        &mut self,
        table: &Table,
        generation: i64,
        mut row: impl FnMut(Vec<Value>),
    ) -> Result<(), Error> {
        let sql = format!("select {} from {}", table.column_names(), table.of(generation));
        match self {
            Self::Sqlite(tx) => {
                let mut rows = sqlx::query(&sql).fetch(&mut **tx);
                while let Some(found) = rows.try_next().await? {
                    row(values(table, &found)?);
                }
            }
            Self::Postgres(tx, primary) => {
                let mut rows = sqlx::query(&sql).fetch(&mut **tx);
                while let Some(found) = primary.answered(rows.try_next()).await? {
                    row(values(table, &found)?);
                }
            }
        }
        Ok(())
    }

    /// One row of a generation by the values of its key.
    pub async fn row(&mut self, table: &Table, generation: i64, key: &[Value]) -> Result<Option<Vec<Value>>, Error> {
        let keys = table.columns.iter().filter(|c| c.merge == Merge::Key).zip(1..);
        let own: Vec<_> = keys.map(|(column, number)| format!("{} = ${number}", column.name)).collect();
        let (columns, name) = (table.column_names(), table.of(generation));
        let sql = format!("select {columns} from {name} where {}", own.join(" and "));
        let key = key.to_vec();
        Ok(match self {
            Self::Sqlite(tx) => {
                let row = sqlx::query_with(&sql, sqlite_arguments(key)).fetch_optional(&mut **tx).await?;
                row.map(|row| values(table, &row)).transpose()?
            }
            Self::Postgres(tx, primary) => {
                let found = sqlx::query_with(&sql, postgres_arguments(key)).fetch_optional(&mut **tx);
                let row = primary.answered(found).await?;
                row.map(|row| values(table, &row)).transpose()?
            }
        })
    }

    /// Waits for the checkpoints of others' transactions, and keeps others from moving them until this one ends.
    pub async fn lock_checkpoints(&mut self) -> Result<(), Error> {
        // In SQLite a writing transaction is the only one.
        if let Self::Postgres(..) = self {
            self.execute("set local lock_timeout = '10s'", vec![]).await?;
            self.execute("lock table checkpoints in exclusive mode", vec![]).await?;
        }
        self.patiently().await
    }

    /// Lets this transaction's statements take their time.
    async fn patiently(&mut self) -> Result<(), Error> {
        if let Self::Postgres(..) = self {
            self.execute("set local statement_timeout = 0", vec![]).await?;
        }
        Ok(())
    }

    /// Makes it so.
    pub async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx, primary) => primary.answered(tx.commit()).await?,
        }
        Ok(())
    }
}

/// What keeps PostgreSQL from dropping something.
fn dependents(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    (error.code() == "2BP01").then(|| error.detail().unwrap_or(error.message()).replace('\n', ", "))
}

fn values<'r, R: sqlx::Row>(table: &Table, row: &'r R) -> Result<Vec<Value>, sqlx::Error>
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
        columns: &[
            text("k", Merge::Key),
            int("n", Merge::Add),
            int("first", Merge::Min),
            text("name", Merge::Latest("first")).nullable(),
        ],
        indexes: &["first, k"],
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
