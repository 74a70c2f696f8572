//! What the role of a server may do in PostgreSQL, where another role owns the log: it can append events, and neither
//! change nor remove them.

use sqlx::postgres::PgConnection;

use crate::error::{Error, is_denied};
use crate::log::Database;
use crate::store::Store;
use crate::table::Table;

/// What a server needs of each table that migrations make. Tables of read models are its own.
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

/// The function through which a server appends. It runs with the rights of its caller.
const APPEND: &str = "docket_append";

impl Store {
    /// Gives a role what a server needs, takes everything else from it, and makes it the owner of the tables and views of
    /// read models that are there. To be called by the owner of the log.
    ///
    /// # Errors
    /// SQLite, which has no roles; a role that does not exist or could change events all the same; an owner that may not
    /// do this.
    pub async fn grant_to(&self, role: &str, read_models: &[&Table]) -> Result<(), Error> {
        let Database::Postgres(log) = &self.log().database else {
            return Err(Error::Settings("SQLite has no roles: leave out `--grant-to`, which is for PostgreSQL".into()));
        };
        let mut tx = log.pool.begin().await?;
        let known: Option<(String, String, bool)> = sqlx::query_as(
            "select quote_ident(rolname), quote_ident(current_schema()), rolname = current_user from pg_roles where rolname = $1",
        )
        .bind(role)
        .fetch_optional(&mut *tx)
        .await?;
        let (name, schema, is_own) = known.ok_or_else(|| {
            Error::Settings(format!("there is no role {role}: make it first, with `create role … login password '…'`"))
        })?;
        if is_own {
            return Err(Error::Settings(format!(
                "{role} is the role that this runs as: name the role that servers connect as"
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
        hand_over(&mut tx, role, &name, read_models).await?;
        Ok(tx.commit().await?)
    }
}

async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), Error> {
    Ok(sqlx::query(sql).execute(connection).await.map(drop)?)
}

/// Makes the role the owner of read models that others have made.
async fn hand_over(tx: &mut PgConnection, role: &str, name: &str, tables: &[&Table]) -> Result<(), Error> {
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
                "{table} cannot be handed over from {owner} to {name} ({error}). Have an administrator run `grant {name} to \
                 {owner}` once, and repeat this"
            )),
            other => other,
        })?;
    }
    Ok(())
}

/// Makes sure that the role cannot change what has happened, by any way.
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
            "{role} could still change or remove events: it is a superuser, or a member of a role that may. Name a role \
             without such rights"
        ))),
    }
}
