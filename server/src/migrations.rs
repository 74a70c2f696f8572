//! The schema migrations, embedded in the binary as SQL files.

use event_store::migrations::Migrations;
use sqlx::migrate::Migrator;

static SQLITE_LOG: Migrator = sqlx_macros::migrate!("../migrations/sqlite/log");
static SQLITE_READ: Migrator = sqlx_macros::migrate!("../migrations/sqlite/read");
static POSTGRES_LOG: Migrator = sqlx_macros::migrate!("../migrations/postgres/log");
static POSTGRES_READ: Migrator = sqlx_macros::migrate!("../migrations/postgres/read");

/// The migrations of this release.
pub const MIGRATIONS: Migrations = Migrations {
    sqlite_log: &SQLITE_LOG,
    sqlite_read: &SQLITE_READ,
    postgres_log: &POSTGRES_LOG,
    postgres_read: &POSTGRES_READ,
};
