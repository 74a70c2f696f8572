//! Migrations of the schema. The binary embeds the SQL files and passes them to this crate.

use sqlx::migrate::Migrator;

/// Migrations of both databases: of the log, which must never be lost, and of the tables that belong to read models,
/// such as their checkpoints.
#[derive(Debug, Clone, Copy)]
pub struct Migrations {
    /// The log in SQLite.
    pub sqlite_log: &'static Migrator,
    /// The read models' file in SQLite.
    pub sqlite_read: &'static Migrator,
    /// The log in PostgreSQL.
    pub postgres_log: &'static Migrator,
    /// The read models in PostgreSQL, in the log's database.
    pub postgres_read: &'static Migrator,
}

#[cfg(test)]
impl Migrations {
    /// Returns the migrations of this repository, for this crate's own tests.
    pub(crate) fn of_repository() -> Self {
        static SQLITE_LOG: Migrator = sqlx_macros::migrate!("../../migrations/sqlite/log");
        static SQLITE_READ: Migrator = sqlx_macros::migrate!("../../migrations/sqlite/read");
        static POSTGRES_LOG: Migrator = sqlx_macros::migrate!("../../migrations/postgres/log");
        static POSTGRES_READ: Migrator = sqlx_macros::migrate!("../../migrations/postgres/read");
        Self {
            sqlite_log: &SQLITE_LOG,
            sqlite_read: &SQLITE_READ,
            postgres_log: &POSTGRES_LOG,
            postgres_read: &POSTGRES_READ,
        }
    }
}
