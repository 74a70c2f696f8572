//! The systems under load: the stock peer, and Docket embedded and scaled, started by the test harness.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tests::ports::free_port;
use tests::postgres::Postgres;
use tests::process::{POLL, Process, profile_directory};
use tests::system::{Mode, TestSystem};

/// How long to wait until the stock peer listens.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long to wait until the read models reach the head of the log.
const SETTLE_DEADLINE: Duration = Duration::from_secs(600);

/// A measured system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// An order API on stock axum, cqrs-es and postgres-es.
    Stock,
    /// Docket in one process on SQLite.
    Embedded,
    /// Docket on PostgreSQL and NATS.
    Scaled,
}

impl Peer {
    /// Returns the mode of Docket; None for stock.
    pub fn mode(self) -> Option<Mode> {
        match self {
            Self::Stock => None,
            Self::Embedded => Some(Mode::Embedded),
            Self::Scaled => Some(Mode::Scaled),
        }
    }

    /// Returns the peer's name and its mode, for a table.
    pub fn title(self) -> [String; 2] {
        let (name, mode) = match self {
            Self::Stock => ("stock", "PostgreSQL, durable"),
            Self::Embedded => ("docket", "embedded: SQLite, FULL"),
            Self::Scaled => ("docket", "scaled: PostgreSQL, durable, NATS"),
        };
        [name.to_owned(), mode.to_owned()]
    }
}

/// Restarts the program from the folder where the harness finds the binaries, and checks that temporary files are on a
/// disk.
///
/// # Errors
/// The program cannot be restarted, or the temporary folder is in memory.
pub fn prepare() -> anyhow::Result<()> {
    let executable = std::env::current_exe()?;
    let directory = executable.parent().context("the executable has no parent folder")?;
    if !directory.ends_with("deps") {
        // The harness expects the binaries in the parent of its executable's folder, as is true for a test in `deps`.
        let linked = directory.join("deps/docket-bench");
        let _ = std::fs::remove_file(&linked);
        std::fs::hard_link(&executable, &linked)
            .with_context(|| format!("cannot create the link {}", linked.display()))?;
        let error = std::process::Command::new(&linked).args(std::env::args_os().skip(1)).exec();
        bail!("Cannot run {}: {error}", linked.display());
    }
    let temporary = std::env::temp_dir().canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let kind = mounts.filter(|(point, _)| temporary.starts_with(point)).max_by_key(|(point, _)| point.len());
    ensure!(
        !kind.is_some_and(|(_, kind)| matches!(kind, "tmpfs" | "ramfs")),
        "{} is in memory, where durability costs nothing. Set TMPDIR to a folder on a disk.",
        temporary.display()
    );
    Ok(())
}

/// The stock peer with its own PostgreSQL.
pub struct Stock {
    /// Declared first, so that it is dropped before the database that it uses.
    _process: Process,
    postgres: Postgres,
    /// Address on which it listens.
    pub address: String,
    _directory: TempDir,
}

impl Stock {
    /// Starts the stock peer on an empty, durable database.
    ///
    /// # Errors
    /// The binary is missing, or the database is not durable.
    pub async fn start() -> anyhow::Result<Self> {
        let program = profile_directory().join("docket-bench-stock");
        ensure!(
            program.is_file(),
            "{} is missing. Build it with: cargo build --profile dist -p bench",
            program.display()
        );
        let postgres = Postgres::start(true).await;
        ensure_durable(&postgres.url()).await?;
        let directory = tempfile::Builder::new().prefix("docket-bench-").tempdir()?;
        let address = format!("127.0.0.1:{}", free_port());
        let variables = [("DATABASE_URL".to_owned(), postgres.url()), ("LISTEN".to_owned(), address.clone())];
        let mut process = Process::new("stock", program, directory.path().join("log")).envs(&variables);
        process.start();
        let listens = || async { tokio::net::TcpStream::connect(&address).await.is_ok() };
        process.wait_until(START_DEADLINE, listens).await;
        Ok(Self { _process: process, postgres, address, _directory: directory })
    }

    /// Returns the number of events, and the number of orders in the read model.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn counts(&self) -> anyhow::Result<(u64, u64)> {
        let mut connection = PgConnection::connect(&self.postgres.url()).await?;
        let sql = "select (select count(*) from events), (select count(*) from order_view)";
        let (events, orders): (i64, i64) = sqlx::query_as(sql).fetch_one(&mut connection).await?;
        Ok((u64::try_from(events)?, u64::try_from(orders)?))
    }
}

/// Starts Docket on empty, durable storage. `settings` are added to the settings of the harness.
///
/// # Errors
/// PostgreSQL is not durable.
pub async fn docket(mode: Mode, settings: &[(&str, String)]) -> anyhow::Result<TestSystem> {
    let builder = TestSystem::builder(mode).durable();
    let builder = settings.iter().fold(builder, |builder, (name, value)| builder.setting(name, value));
    let system = builder.start().await;
    if mode == Mode::Scaled {
        ensure_durable(system.database_url()).await?;
    }
    Ok(system)
}

async fn ensure_durable(url: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let sql = "select name, setting from pg_settings where name in ('fsync', 'synchronous_commit', 'full_page_writes')";
    let settings: Vec<(String, String)> = sqlx::query_as(sql).fetch_all(&mut connection).await?;
    ensure!(
        settings.len() == 3 && settings.iter().all(|(_, value)| value == "on"),
        "PostgreSQL is not durable: {settings:?}."
    );
    Ok(())
}

/// Waits until every projection is at the head of the log. Returns the head, and how long that took.
///
/// # Errors
/// A projection is still behind at the deadline. The text shows the states.
pub async fn settled(system: &TestSystem) -> anyhow::Result<(u64, Duration)> {
    let started = Instant::now();
    loop {
        let answer = system.get("/v1/projections").send().await.expect(200).json();
        let head = answer["head"].as_u64().context("no head in /v1/projections")?;
        let items = answer["items"].as_array().context("no items in /v1/projections")?;
        ensure!(!items.is_empty(), "There are no projections.");
        if items.iter().all(|item| item["position"].as_u64() == Some(head)) {
            return Ok((head, started.elapsed()));
        }
        ensure!(
            started.elapsed() < SETTLE_DEADLINE,
            "The read models did not reach the head within {SETTLE_DEADLINE:?}: {answer}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Returns the peak memory (`VmHWM`) of the `docket serve` that this process has started, in MiB.
///
/// # Errors
/// There is no such process.
pub fn peak_memory_mib() -> anyhow::Result<f64> {
    Ok(docket_process().and_then(peak_kib).context("no `docket serve` is running")? / 1024.0)
}

/// Returns the folder in `/proc` of a `docket serve` that this process has started.
fn docket_process() -> Option<PathBuf> {
    let own = std::process::id().to_string();
    std::fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path()).find(|process| serves(process, &own))
}

/// Whether the process in this folder of `/proc` is a `docket serve` whose parent is `parent`.
fn serves(process: &Path, parent: &str) -> bool {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim()));
    let command = std::fs::read(process.join("cmdline")).unwrap_or_default();
    let serves = command.split(|&byte| byte == 0).any(|argument| argument == b"serve");
    field("Name:") == Some("docket") && field("PPid:") == Some(parent) && serves
}

/// Returns the peak memory (`VmHWM`) of the process in this folder of `/proc`, in KiB.
pub fn peak_kib(process: impl AsRef<Path>) -> Option<f64> {
    let status = std::fs::read_to_string(process.as_ref().join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().split(' ').next()?.parse().ok()
}
