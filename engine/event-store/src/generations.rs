//! Tables of the generations of read models. Each generation has its own tables. Queries read a view, which shows the
//! serving generation.

use futures::TryStreamExt;
use sqlx::postgres::PgDatabaseError;

use crate::db::{Tx, postgres_arguments, sqlite_arguments, values};
use crate::error::Error;
use crate::table::{Column, Merge, Table, Value};

impl Tx {
    /// Creates the table of a generation. Its indexes are created later, because a table without indexes fills faster.
    pub async fn create(&mut self, table: &Table, generation: i64) -> Result<(), Error> {
        let sql = match self {
            Self::Sqlite(_) => table.create_sql(generation, "integer", " strict, without rowid"),
            Self::Postgres(..) => table.create_sql(generation, "bigint", ""),
        };
        self.execute(&sql, vec![]).await.map(drop)
    }

    /// Creates the missing indexes of a generation.
    pub async fn index(&mut self, table: &Table, generation: i64) -> Result<(), Error> {
        let name = table.generation_table(generation);
        self.disable_statement_timeout().await?;
        for (columns, number) in table.indexes.iter().zip(1..) {
            let sql = format!("create index if not exists {name}_{number} on {name} ({columns})");
            self.execute(&sql, vec![]).await?;
        }
        Ok(())
    }

    /// Switches queries to this generation when the transaction commits. In PostgreSQL, operators' grants on the view
    /// and the objects that depend on it are kept.
    ///
    /// # Errors
    /// [`Error::Dependents`]: the view's columns change in a way that requires a new view, and another object depends
    /// on the view.
    pub async fn serve(&mut self, table: &Table, generation: i64) -> Result<(), Error> {
        let (view, columns) = (table.name, table.column_names());
        let definition = format!("view {view} as select {columns} from {}", table.generation_table(generation));
        if let Self::Sqlite(_) = self {
            // SQLite has no grants, and objects that depend on the view refer to it by name.
            self.drop("view", view).await?;
            return self.execute(&format!("create {definition}"), vec![]).await.map(drop);
        }
        // If this statement waited for a long transaction that reads the view, all other queries would wait behind it.
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

    /// Returns whether PostgreSQL can replace the view in place: its columns must stay, and new ones may only follow
    /// them. True when there is no view.
    async fn has_columns_of(&mut self, table: &Table) -> Result<bool, Error> {
        let sql = "select attname::text, format_type(atttypid, atttypmod) from pg_attribute
                   where attrelid = to_regclass(quote_ident(current_schema()) || '.' || $1)
                   and attnum > 0 and not attisdropped order by attnum";
        let known: Vec<(String, String)> = self.fetch_all(sql, vec![table.name.into()]).await?;
        let columns = table.columns.iter().map(|column| (column.name, if column.int { "bigint" } else { "text" }));
        let mut new = columns.map(Some).chain(std::iter::repeat(None));
        Ok(known.iter().all(|(name, kind)| new.next().flatten() == Some((name.as_str(), kind.as_str()))))
    }

    /// Returns the statements that repeat other roles' grants on the view. A grant on a column is repeated if the table
    /// still has the column.
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

    /// Removes the table of a generation that no view shows.
    ///
    /// # Errors
    /// [`Error::Dependents`]: another object depends on the table.
    pub async fn remove(&mut self, table: &Table, generation: i64) -> Result<(), Error> {
        self.drop("table", &table.generation_table(generation)).await
    }

    /// Removes the tables of a generation whose declarations this program does not have, and the views in front of
    /// them. A table belongs to the projection if its name without the suffix is the projection's name, or starts with
    /// that name and `_`. A table that belongs to one of `others` by the same rule stays.
    ///
    /// # Errors
    /// [`Error::Dependents`]: another object depends on one of the tables or views.
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

    /// Drops a table or a view, unless other objects depend on it.
    async fn drop(&mut self, kind: &str, name: &str) -> Result<(), Error> {
        match self.execute(&format!("drop {kind} if exists {name}"), vec![]).await {
            Err(Error::Database(error)) => Err(match dependents(&error) {
                Some(dependents) => Error::Dependents { object: format!("{kind} {name}"), dependents },
                None => error.into(),
            }),
            dropped => dropped.map(drop),
        }
    }

    /// Returns the number of keys whose rows differ between two generations, or exist in only one of them.
    pub async fn differences(&mut self, table: &Table, a: i64, b: i64) -> Result<i64, Error> {
        let (columns, a, b) = (table.column_names(), table.generation_table(a), table.generation_table(b));
        let sql = match self {
            // Compares by primary key, the sort order of both tables. With `except`, SQLite would keep the whole result
            // in memory.
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

    /// Calls `row` with every row of a generation, in no particular order.
    pub async fn each_row(
        &mut self,
        table: &Table,
        generation: i64,
        mut row: impl FnMut(Vec<Value>),
    ) -> Result<(), Error> {
        let sql = format!("select {} from {}", table.column_names(), table.generation_table(generation));
        match self {
            Self::Sqlite(tx) => {
                let mut rows = sqlx::query(&sql).fetch(&mut **tx);
                while let Some(found) = rows.try_next().await? {
                    row(values(table, &found)?);
                }
            }
            Self::Postgres(tx, primary) => {
                let mut rows = sqlx::query(&sql).fetch(&mut **tx);
                while let Some(found) = primary.run_until_failover(rows.try_next()).await? {
                    row(values(table, &found)?);
                }
            }
        }
        Ok(())
    }

    /// Returns the row of a generation that has this key: the values of the key columns, in their order in the table.
    pub async fn row(&mut self, table: &Table, generation: i64, key: &[Value]) -> Result<Option<Vec<Value>>, Error> {
        let keys = table.columns.iter().filter(|c| c.merge == Merge::Key).zip(1..);
        let own: Vec<_> = keys.map(|(column, number)| format!("{} = ${number}", column.name)).collect();
        let (columns, name) = (table.column_names(), table.generation_table(generation));
        let sql = format!("select {columns} from {name} where {}", own.join(" and "));
        let key = key.to_vec();
        Ok(match self {
            Self::Sqlite(tx) => {
                let row = sqlx::query_with(&sql, sqlite_arguments(key)).fetch_optional(&mut **tx).await?;
                row.map(|row| values(table, &row)).transpose()?
            }
            Self::Postgres(tx, primary) => {
                let found = sqlx::query_with(&sql, postgres_arguments(key)).fetch_optional(&mut **tx);
                let row = primary.run_until_failover(found).await?;
                row.map(|row| values(table, &row)).transpose()?
            }
        })
    }
}

/// Returns the dependent objects that PostgreSQL lists when it refuses to drop an object; `None` for other errors.
fn dependents(error: &sqlx::Error) -> Option<String> {
    let error = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    (error.code() == "2BP01").then(|| error.detail().unwrap_or(error.message()).replace('\n', ", "))
}
