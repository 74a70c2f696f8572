//! PostgreSQL privileges of the role that servers use when another role owns the log. The role can append events, but
//! cannot change or remove them.

use sqlx::postgres::PgConnection;

use crate::error::{Error, is_denied};
use crate::log::Database;
use crate::store::Store;
use crate::table::Table;

/// Privileges that a server needs on the tables that migrations create. The server's role owns the tables of read
/// models.
const GRANTS: &[(&str, &str)] = &[
    ("events", "select, insert"),
    ("log_head", "select, update"),
    ("idempotency", "select, insert, delete"),
    ("snapshots", "select, insert, update"),
    ("reactor_checkpoints", "select, insert, update, delete"),
    ("reactor_backlog", "select, insert, update, delete"),
    ("process_deadlines", "select, insert, update, delete"),
    ("bans", "select, insert, update, delete"),
    ("checkpoints", "select, insert, update, delete"),
    ("dead_letters", "select, insert, update, delete"),
    ("tickets", "select, insert, delete"),
    ("revocations", "select, insert, update"),
    ("_sqlx_migrations", "select"),
];

/// The function with which a server appends. It runs with the privileges of its caller.
const APPEND: &str = "docket_append";

impl Store {
    /// Grants a role the privileges that a server needs, revokes all others, and makes the role the owner of the
    /// existing tables and views of read models. The caller must own the log.
    ///
    /// # Errors
    /// [`Error::Settings`]: the database is SQLite, which has no roles; the role does not exist, is the caller itself,
    /// or could still change events; or the caller may not transfer the ownership.
    pub async fn grant_to(&self, role: &str, read_models: &[&Table]) -> Result<(), Error> {
        let Database::Postgres(log) = &self.log().database else {
            return Err(Error::Settings("SQLite has no roles: omit `--grant-to`, which is for PostgreSQL only".into()));
        };
        let mut tx = log.pool.begin().await?;
        let known: Option<(String, String, bool)> = sqlx::query_as(
            "select quote_ident(rolname), quote_ident(current_schema()), rolname = current_user from pg_roles where rolname = $1",
        )
        .bind(role)
        .fetch_optional(&mut *tx)
        .await?;
        let (name, schema, is_own) = known.ok_or_else(|| {
            Error::Settings(format!("there is no role {role}: create it first with `create role … login password '…'`"))
        })?;
        if is_own {
            return Err(Error::Settings(format!(
                "this command runs as the role {role}: name the role that servers connect as"
            )));
        }
        run(&mut tx, &format!("grant usage, create on schema {schema} to {name}")).await?;
        run(&mut tx, "revoke insert, update, delete, truncate, references, trigger on events from public").await?;
        for (table, privileges) in GRANTS {
            run(&mut tx, &format!("revoke all on {table} from {name}")).await?;
            run(&mut tx, &format!("grant {privileges} on {table} to {name}")).await?;
        }
        run(&mut tx, &format!("grant execute on function {APPEND} to {name}")).await?;
        check(&mut tx, role).await?;
        transfer_ownership(&mut tx, role, &name, read_models).await?;
        Ok(tx.commit().await?)
    }
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), Error> {
    Ok(sqlx::query(sql).execute(connection).await.map(drop)?)
}

/// Makes the role the owner of the read models that other roles own.
async fn transfer_ownership(tx: &mut PgConnection, role: &str, name: &str, tables: &[&Table]) -> Result<(), Error> {
    let names: Vec<_> = tables.iter().map(|table| table.name).collect();
    let foreign: Vec<(String, String)> = sqlx::query_as(
        "select quote_ident(relname), quote_ident(pg_get_userbyid(relowner)) from pg_class
         where relnamespace = current_schema()::regnamespace and relkind in ('r', 'v')
         and relowner <> (select oid from pg_roles where rolname = $1) and relname ~ $2",
    )
    .bind(role)
    .bind(format!("^({})(_g[0-9]+)?$", names.join("|")))
    .fetch_all(&mut *tx)
    .await?;
    for (table, owner) in foreign {
        run(tx, &format!("alter table {table} owner to {name}")).await.map_err(|error| match error {
            Error::Database(error) if is_denied(&error) => Error::Settings(format!(
                "cannot change the owner of {table} from {owner} to {name} ({error}). Have an administrator run `grant {name} \
                 to {owner}` once, and repeat the command"
            )),
            other => other,
        })?;
    }
    Ok(())
}

/// Checks that the role has no way to change or remove stored events.
async fn check(tx: &mut PgConnection, role: &str) -> Result<(), Error> {
    let (can,): (bool,) = sqlx::query_as(
        "select pg_has_role($1::name, relowner, 'member')
                or has_table_privilege($1::name, oid, 'update, delete, truncate, trigger')
                or has_any_column_privilege($1::name, oid, 'update')
         from pg_class where oid = 'events'::regclass",
    )
    .bind(role)
    .fetch_one(tx)
    .await?;
    match can {
        false => Ok(()),
        true => Err(Error::Settings(format!(
            "the role {role} could still change or remove events: it is a superuser, or a member of a role with such \
             privileges. Name a role without them"
        ))),
    }
}
