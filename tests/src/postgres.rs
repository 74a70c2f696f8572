//! PostgreSQL for tests: a database on the shared server of the test run, or a server for one test.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::{POLL, Process, find_on_path, is_alive, lock_file, process_state, run_to_end, target_directory};
use crate::shared;

const NOT_OWN: &str = "the story stops or configures PostgreSQL: build its system with own_servers()";
const MISSING: &str = "no PostgreSQL server found; install it with: apt-get install -y postgresql";
/// Password in connection strings. The server trusts local connections and does not check it. No log may contain it.
pub const PASSWORD: &str = "canary-postgres";
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Time limit for a standby to follow its primary, and for a promotion.
const FOLLOW_DEADLINE: Duration = Duration::from_secs(30);
/// Application name of the standby, by which the primary identifies it.
const STANDBY: &str = "standby";

/// A database on the shared server, or a server for one test that stops, kills or configures it.
pub struct Postgres {
    port: u16,
    database: String,
    server: Option<Server>,
}

/// A server that belongs to one test.
struct Server {
    process: Process,
    durable: bool,
    frozen: bool,
    /// Contains the data and the socket. Dropped after the process.
    _directory: TempDir,
}

/// Number of databases that this test process has created on the shared server.
static DATABASES: AtomicUsize = AtomicUsize::new(0);

impl Postgres {
    /// Creates an empty database on the shared server. It is removed when the value is dropped.
    pub async fn shared() -> Self {
        let port = shared::servers().await.postgres_port;
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let database = format!("story_{}_{number}", std::process::id());
        let create = format!("create database {database}");
        run_to_end(psql(port, "docket").args(["-c", &create]));
        Self { port, database, server: None }
    }

    /// Starts a server for one test, with an empty database. Without `durable` it runs with `fsync=off`: committed data
    /// survives a killed process, but not a power loss.
    pub async fn start(durable: bool) -> Self {
        let directory = scratch("docket-pg-");
        run_to_end(Command::new("cp").arg("-a").arg(template(&programs())).arg(directory.path().join("data")));
        Self::run(directory, durable).await
    }

    /// Copies a running primary, and starts a synchronous standby of it. From then on a commit on the primary returns
    /// only when the standby has also written it to disk. When the standby does not run, commits on the primary wait.
    pub async fn start_standby(primary: &Self) -> Self {
        let directory = scratch("docket-pg-");
        let (program, mut arguments) = as_postgres(&programs().join("pg_basebackup"));
        let source = format!("host=127.0.0.1 port={} user=postgres application_name={STANDBY}", primary.port);
        arguments
            .extend(["-X", "stream", "-c", "fast", "--no-sync", "-R", "-d", &source, "-D", "data"].map(str::to_owned));
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory.path());
        tokio::task::spawn_blocking(move || run_to_end(&mut command)).await.expect("pg_basebackup copies the primary");
        let standby = Self::run(directory, primary.own().durable).await;
        primary.sql(&[&format!("alter system set synchronous_standby_names = '{STANDBY}'"), RELOAD]).await;
        let started = Instant::now();
        while primary.sql(&["select sync_state from pg_stat_replication"]).await.trim() != "sync" {
            assert!(started.elapsed() < FOLLOW_DEADLINE, "the standby does not follow{}", standby.log_tail());
            tokio::time::sleep(POLL).await;
        }
        standby
    }

    async fn run(directory: TempDir, durable: bool) -> Self {
        let port = free_port();
        let sync = if durable { "on" } else { "off" };
        let settings = [
            format!("port={port}"),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", directory.path().display()),
            format!("fsync={sync}"),
            format!("full_page_writes={sync}"),
            "max_connections=400".to_owned(),
            "shared_buffers=64MB".to_owned(),
            "max_wal_size=256MB".to_owned(),
            // Shortens the promotion of a standby whose primary no longer runs.
            "wal_retrieve_retry_interval=100ms".to_owned(),
            "log_min_messages=warning".to_owned(),
        ];
        let (program, mut arguments) = as_postgres(&programs().join("postgres"));
        arguments.extend(["-D".to_owned(), directory.path().join("data").display().to_string()]);
        arguments.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        // SIGQUIT also ends the backends, and frees the shared memory.
        let process =
            Process::new("postgres", program, directory.path().join("log")).args(arguments).drop_signal("QUIT");
        let server = Server { process, durable, frozen: false, _directory: directory };
        let mut postgres = Self { port, database: "docket".to_owned(), server: Some(server) };
        postgres.restart().await;
        postgres
    }

    /// Returns the port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn own(&self) -> &Server {
        self.server.as_ref().expect(NOT_OWN)
    }

    fn own_mut(&mut self) -> &mut Server {
        self.server.as_mut().expect(NOT_OWN)
    }

    fn log_tail(&self) -> String {
        self.server.as_ref().map(|server| server.process.log_tail()).unwrap_or_default()
    }

    /// Returns the connection string of the database, for the superuser.
    pub fn url(&self) -> String {
        self.url_as("postgres")
    }

    /// Returns the connection string of the database, for this role.
    pub fn url_as(&self, role: &str) -> String {
        format!("postgres://{role}:{PASSWORD}@127.0.0.1:{}/{}", self.port, self.database)
    }

    /// Returns the address of the server as `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns whether the server accepts connections.
    pub async fn answers(&self) -> bool {
        let runs = self.server.as_ref().is_none_or(|server| !server.frozen && server.process.id().is_some());
        runs && answers(self.port).await
    }

    /// Runs statements as the superuser, each in its own transaction. Returns the rows of all statements as text.
    ///
    /// # Panics
    /// If a statement fails.
    pub async fn sql(&self, statements: &[&str]) -> String {
        self.psql(statements.iter().flat_map(|statement| ["-c", statement])).await
    }

    /// Runs a file of statements, such as a dump, as the superuser.
    ///
    /// # Panics
    /// If a statement fails.
    pub async fn load(&self, file: &Path) {
        self.psql(["-f", file.to_str().expect("UTF-8")]).await;
    }

    /// Runs psql on the database. Returns what it prints.
    async fn psql(&self, arguments: impl IntoIterator<Item = &str>) -> String {
        let mut psql = tokio::process::Command::from(psql(self.port, &self.database));
        psql.args(arguments);
        let output = psql.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("psql starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{psql:?}: {error}{}", self.log_tail());
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Kills the postmaster with SIGKILL. The backends notice this and end shortly afterwards.
    pub fn kill9(&mut self) {
        if self.own().frozen {
            self.thaw();
        }
        self.own_mut().process.kill9();
    }

    /// Kills every process of the server at the same time, as a crash of the machine does. The latest commits with
    /// `synchronous_commit=off` may be lost.
    pub fn kill_all(&mut self) {
        // The postmaster is stopped first, so that it starts no process while its processes are listed.
        self.own().process.signal("STOP");
        let children = self.children();
        send_signal("KILL", &children);
        self.own_mut().process.kill9();
        let started = Instant::now();
        while children.iter().any(|child| is_alive(*child)) {
            assert!(started.elapsed() < STOP_DEADLINE, "processes of a killed server still run");
            std::thread::sleep(POLL);
        }
        self.own_mut().frozen = false;
    }

    /// Stops the server as `pg_ctl stop -m immediate` does: without a checkpoint, so the next start runs recovery.
    pub async fn stop_immediate(&mut self) {
        self.own_mut().process.stop("QUIT", STOP_DEADLINE).await;
    }

    /// Stops the server as `pg_ctl stop -m fast` does: sessions end, and a checkpoint is written.
    pub async fn stop_fast(&mut self) {
        self.own_mut().process.stop("INT", STOP_DEADLINE).await;
    }

    /// Suspends every process of the server with SIGSTOP. Connections stay open and get no answer.
    pub fn freeze(&mut self) {
        self.own().process.signal("STOP");
        send_signal("STOP", &self.children());
        self.own_mut().frozen = true;
    }

    /// Resumes a server that [`Self::freeze`] suspended.
    pub fn thaw(&mut self) {
        send_signal("CONT", &self.children());
        self.own().process.signal("CONT");
        self.own_mut().frozen = false;
    }

    /// Makes new transactions read-only, as on an old primary that still runs after a failover. Transactions that have
    /// begun can still write.
    pub async fn set_read_only(&self) {
        self.sql(&["alter system set default_transaction_read_only = on", RELOAD]).await;
    }

    /// Promotes a standby to a primary that has no standby itself.
    pub async fn promote(&self) {
        // The query does not wait for the promotion: its snapshot could block the replay that the promotion needs.
        self.sql(&["alter system reset synchronous_standby_names", RELOAD, "select pg_promote(false)"]).await;
        let started = Instant::now();
        while self.sql(&["select pg_is_in_recovery()"]).await.trim() != "f" {
            assert!(started.elapsed() < FOLLOW_DEADLINE, "the standby is not promoted{}", self.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns the ids of all processes whose parent is the postmaster.
    fn children(&self) -> Vec<u32> {
        let Some(postmaster) = self.own().process.id() else { return vec![] };
        let processes = std::fs::read_dir("/proc").expect("Linux lists processes").flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id| process_state(*id).is_some_and(|(_, parent)| parent == postmaster)).collect()
    }

    /// Kills the server if it runs, starts it again, and waits until it accepts connections.
    pub async fn restart(&mut self) {
        self.kill9();
        // Backends of a killed server end shortly after the postmaster. Until then a new postmaster refuses to start.
        let started = Instant::now();
        let port = self.port;
        let process = &mut self.own_mut().process;
        process.start();
        while !answers(port).await {
            assert!(started.elapsed() < START_DEADLINE, "postgres does not answer{}", process.log_tail());
            if process.exited().is_some() {
                process.kill9();
                process.start();
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A suspended process handles no signal except SIGKILL, and only the postmaster would receive that.
        match &self.server {
            Some(server) if server.frozen => self.thaw(),
            Some(_) => {}
            // Connections of killed processes may still be open.
            None => {
                let drop = format!("drop database if exists {} with (force)", self.database);
                let _ = psql(self.port, "docket").args(["-c", &drop]).stdin(Stdio::null()).output();
            }
        }
    }
}

/// Returns a psql command that connects as the superuser and ends at the first error.
fn psql(port: u16, database: &str) -> Command {
    let mut psql = Command::new(programs().join("psql"));
    psql.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres", "-d", database, "-XAtq"]);
    psql.args(["-v", "ON_ERROR_STOP=1"]).env("PGCONNECT_TIMEOUT", "10");
    psql
}

const RELOAD: &str = "select pg_reload_conf()";

/// Sends a signal to the given processes. Processes that have ended are ignored.
fn send_signal(name: &str, processes: &[u32]) {
    let ids = processes.iter().map(u32::to_string);
    let _ = Command::new("kill").arg(format!("-{name}")).args(ids).stderr(Stdio::null()).status();
}

/// Creates a temporary directory that PostgreSQL's user owns.
fn scratch(prefix: &str) -> TempDir {
    let directory = tempfile::Builder::new().prefix(prefix).tempdir().expect("a temporary directory");
    own(directory.path());
    directory
}

/// Returns whether the server accepts connections. A server that is starting answers with the error 57P03 instead.
async fn answers(port: u16) -> bool {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let attempt = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let parameters = b"user\0postgres\0database\0docket\0\0";
        let length = u32::try_from(8 + parameters.len()).ok()?;
        let packet = [&length.to_be_bytes()[..], &0x0003_0000_u32.to_be_bytes(), parameters].concat();
        stream.write_all(&packet).await.ok()?;
        stream.read_u8().await.ok()
    };
    // 'R' is AuthenticationOk: the server has started and trusts the connection.
    tokio::time::timeout(Duration::from_secs(5), attempt).await.ok().flatten() == Some(b'R')
}

/// Returns the directory of `initdb` and `postgres`: from `PATH`, else the newest version among Debian's packages.
fn programs() -> PathBuf {
    let on_path = find_on_path("initdb").and_then(|path| path.canonicalize().ok()?.parent().map(Path::to_owned));
    let debian = || {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
        let version = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        versions.flatten().map(|entry| entry.path()).max_by_key(version).map(|path| path.join("bin"))
    };
    let found = on_path.filter(|path| path.join("postgres").is_file()).or_else(debian);
    found.filter(|path| path.join("initdb").is_file()).expect(MISSING)
}

/// Returns a data directory to copy. It is created once for each version of PostgreSQL.
fn template(programs: &Path) -> PathBuf {
    let version = Command::new(programs.join("postgres")).arg("--version").output().expect(MISSING).stdout;
    let version = String::from_utf8_lossy(&version);
    let version = version.split_whitespace().nth(2).expect("postgres (PostgreSQL) 15.1 …");
    let home = target_directory().join("tmp");
    let template = home.join(format!("postgres-template-{version}"));
    let _lock = lock_file(&home.join("postgres-template.lock"));
    if template.exists() {
        return template;
    }
    // It is created elsewhere and then copied, because the user postgres may have no access to the target directory.
    let scratch = scratch("docket-initdb-");
    let data = scratch.path().join("data");
    let run = |program: &str, arguments: &[&str]| {
        let (wrapper, before) = as_postgres(&programs.join(program));
        run_to_end(Command::new(wrapper).args(before).args(arguments).current_dir(scratch.path()));
    };
    let data_text = data.to_str().expect("temporary paths are UTF-8");
    run(
        "initdb",
        &[
            "-D",
            data_text,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--wal-segsize=4",
        ],
    );
    let sql = scratch.path().join("create.sql");
    std::fs::write(&sql, "create database docket\n").expect("a temporary file");
    let (wrapper, before) = as_postgres(&programs.join("postgres"));
    let single = ["--single", "-F", "-D", data_text, "postgres"];
    let input = std::fs::File::open(&sql).expect("just written");
    let output = Command::new(wrapper).args(before).args(single).stdin(input).output();
    assert!(output.is_ok_and(|output| output.status.success()), "the database docket could not be created");
    let staged = home.join("postgres-template.new");
    let _ = std::fs::remove_dir_all(&staged);
    run_to_end(Command::new("cp").arg("-a").arg(&data).arg(&staged));
    std::fs::rename(&staged, &template).expect("both paths are in the target directory");
    template
}

/// Returns the command that runs a program of PostgreSQL. PostgreSQL refuses to run as root, so root runs it as the
/// user postgres with `setpriv`, which keeps the process id.
fn as_postgres(program: &Path) -> (PathBuf, Vec<String>) {
    if !is_root() {
        return (program.to_owned(), vec![]);
    }
    let setpriv = find_on_path("setpriv").expect("setpriv comes with util-linux");
    let arguments = ["--reuid=postgres", "--regid=postgres", "--clear-groups"].map(str::to_owned);
    (setpriv, [arguments.to_vec(), vec![program.display().to_string()]].concat())
}

fn own(directory: &Path) {
    if is_root() {
        run_to_end(Command::new("chown").arg("postgres:postgres").arg(directory));
    }
}

/// Returns whether the tests run as root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
