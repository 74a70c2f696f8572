//! The tables of generations: each generation of a read model has tables of its own, behind views that queries read.

use futures::TryStreamExt;
use sqlx::postgres::PgDatabaseError;

use crate::db::{Tx, postgres_arguments, sqlite_arguments, values};
use crate::error::Error;
use crate::table::{Column, Merge, Table, Value};

impl Tx {
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
    /// taken for one of the projection where its name is the projection's, or that and `_` and more, unless it may be one
    /// of another projection by the same rule.
    ///
    /// # Errors
    /// [`Error::Dependents`] where something depends on one of them.
    pub async fn remove_undeclared(&mut self, projection: &str, generation: i64, others: &[&str]) -> Result<(), Error> {
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
            let belongs_to = |projection: &str| {
                name.strip_prefix(projection).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
            };
            if belongs_to(projection) && !others.iter().any(|other| belongs_to(other)) {
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
}

/// What keeps PostgreSQL from dropping something.
fn dependents(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    (error.code() == "2BP01").then(|| error.detail().unwrap_or(error.message()).replace('\n', ", "))
}
