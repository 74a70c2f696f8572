//! A real PostgreSQL: a database on the server that a test run shares, or a server of the test's own.

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
/// Nobody asks for it; no log may show it.
pub const PASSWORD: &str = "canary-postgres";
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long a standby may take to follow its primary.
const FOLLOW_DEADLINE: Duration = Duration::from_secs(30);
/// The name by which a primary knows its standby.
const STANDBY: &str = "standby";

/// An empty database, and a server of its own where the test stops, kills or configures it.
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
    /// Holds data and socket. Dropped after the process.
    _directory: TempDir,
}

/// Number of databases that this test process has created on the shared server.
static DATABASES: AtomicUsize = AtomicUsize::new(0);

impl Postgres {
    /// Creates a database on the shared server; it is removed on drop.
    pub async fn shared() -> Self {
        let port = shared::servers().await.postgres_port;
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let database = format!("story_{}_{number}", std::process::id());
        let create = format!("create database {database}");
        run_to_end(psql(port, "docket").args(["-c", &create]));
        Self { port, database, server: None }
    }

    /// Starts a server on temporary data. Without `durable` it runs with `fsync=off`: committed data survives a killed
    /// process, but not a power loss.
    pub async fn start(durable: bool) -> Self {
        let directory = scratch("docket-pg-");
        run_to_end(Command::new("cp").arg("-a").arg(template(&programs())).arg(directory.path().join("data")));
        Self::run(directory, durable).await
    }

    /// Copies a running primary and starts a synchronous standby of it: from now on the primary answers a commit when
    /// the standby has it on its disk, too. With the standby gone, the primary's commits wait.
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
            // A standby whose primary has died can be promoted at once.
            "wal_retrieve_retry_interval=100ms".to_owned(),
            "log_min_messages=warning".to_owned(),
        ];
        let (program, mut arguments) = as_postgres(&programs().join("postgres"));
        arguments.extend(["-D".to_owned(), directory.path().join("data").display().to_string()]);
        arguments.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        // SIGQUIT ends the backends too and frees the shared memory.
        let process =
            Process::new("postgres", program, directory.path().join("log")).args(arguments).drop_signal("QUIT");
        let server = Server { process, durable, frozen: false, _directory: directory };
        let mut postgres = Self { port, database: "docket".to_owned(), server: Some(server) };
        postgres.restart().await;
        postgres
    }

    /// The port that the server listens on.
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

    /// The connection string of the database.
    pub fn url(&self) -> String {
        self.url_as("postgres")
    }

    /// The same for another role, which must exist.
    pub fn url_as(&self, role: &str) -> String {
        format!("postgres://{role}:{PASSWORD}@127.0.0.1:{}/{}", self.port, self.database)
    }

    /// Where it listens, as `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Whether it takes connections.
    pub async fn answers(&self) -> bool {
        let runs = self.server.as_ref().is_none_or(|server| !server.frozen && server.process.id().is_some());
        runs && answers(self.port).await
    }

    /// Runs statements as the superuser, each in a transaction of its own; the rows of all.
    ///
    /// # Panics
    /// If one fails.
    pub async fn sql(&self, statements: &[&str]) -> String {
        self.psql(statements.iter().flat_map(|statement| ["-c", statement])).await
    }

    /// Runs a file of statements, such as a dump, as the superuser.
    ///
    /// # Panics
    /// If one fails.
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

    /// Kills the postmaster. Its other processes notice and end a moment later, what they have not written included.
    pub fn kill9(&mut self) {
        if self.own().frozen {
            self.thaw();
        }
        self.own_mut().process.kill9();
    }

    /// Kills every process of the server at one moment, as the end of a machine does. Commits that do not wait for the
    /// disk (`synchronous_commit=off`) are lost where they were of the last moments.
    pub fn kill_all(&mut self) {
        // Stopped first, the postmaster starts nothing while its processes are listed.
        self.own().process.signal("STOP");
        let children = self.children();
        send_signal("KILL", &children);
        self.own_mut().process.kill9();
        let started = Instant::now();
        while children.iter().any(|child| is_alive(*child)) {
            assert!(started.elapsed() < STOP_DEADLINE, "processes of a killed server live on");
            std::thread::sleep(POLL);
        }
        self.own_mut().frozen = false;
    }

    /// Stops the server as `pg_ctl stop -m immediate` does: without a checkpoint, so the next start recovers.
    pub async fn stop_immediate(&mut self) {
        self.own_mut().process.stop("QUIT", STOP_DEADLINE).await;
    }

    /// Stops the server as `pg_ctl stop -m fast` does: sessions end, all is written.
    pub async fn stop_fast(&mut self) {
        self.own_mut().process.stop("INT", STOP_DEADLINE).await;
    }

    /// Stops every process in the middle of what it does; connections stay open and get no answer.
    pub fn freeze(&mut self) {
        self.own().process.signal("STOP");
        send_signal("STOP", &self.children());
        self.own_mut().frozen = true;
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self) {
        send_signal("CONT", &self.children());
        self.own().process.signal("CONT");
        self.own_mut().frozen = false;
    }

    /// Refuses all further changes, as a primary does that was replaced and lives on. Running transactions end as they
    /// began.
    pub async fn set_read_only(&self) {
        self.sql(&["alter system set default_transaction_read_only = on", RELOAD]).await;
    }

    /// Makes a standby a primary without a standby.
    pub async fn promote(&self) {
        // Not waited for in the query: its own snapshot can hold up the replay that the promotion waits for.
        self.sql(&["alter system reset synchronous_standby_names", RELOAD, "select pg_promote(false)"]).await;
        let started = Instant::now();
        while self.sql(&["select pg_is_in_recovery()"]).await.trim() != "f" {
            assert!(started.elapsed() < FOLLOW_DEADLINE, "the standby is not promoted{}", self.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }

    /// The process ids of all but the postmaster, which is the parent of each.
    fn children(&self) -> Vec<u32> {
        let Some(postmaster) = self.own().process.id() else { return vec![] };
        let processes = std::fs::read_dir("/proc").expect("Linux lists processes").flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id| process_state(*id).is_some_and(|(_, parent)| parent == postmaster)).collect()
    }

    /// Starts the server again (ending it first where it runs) and waits until it answers.
    pub async fn restart(&mut self) {
        self.kill9();
        // Backends of a killed server end by themselves a moment later; until then a new one refuses to start.
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
        // A stopped process takes no signal but SIGKILL, and only the postmaster would get that.
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

/// psql as the superuser, ending at the first error.
fn psql(port: u16, database: &str) -> Command {
    let mut psql = Command::new(programs().join("psql"));
    psql.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres", "-d", database, "-XAtq"]);
    psql.args(["-v", "ON_ERROR_STOP=1"]);
    psql
}

const RELOAD: &str = "select pg_reload_conf()";

/// Sends a signal to those of these processes that still run.
fn send_signal(name: &str, processes: &[u32]) {
    let ids = processes.iter().map(u32::to_string);
    let _ = Command::new("kill").arg(format!("-{name}")).args(ids).stderr(Stdio::null()).status();
}

/// A new directory that PostgreSQL's user owns.
fn scratch(prefix: &str) -> TempDir {
    let directory = tempfile::Builder::new().prefix(prefix).tempdir().expect("a temporary directory");
    own(directory.path());
    directory
}

/// Whether the server takes connections: it answers a start-up packet with something other than "starting up" (57P03).
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
    // 'R' is AuthenticationOk: trusted, and past start-up.
    tokio::time::timeout(Duration::from_secs(5), attempt).await.ok().flatten() == Some(b'R')
}

/// The directory of `initdb` and `postgres`: that of `PATH`, else the newest of Debian's.
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

/// A data directory made once for each version of PostgreSQL, to be copied by every test.
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
    // Not made in place: the user postgres may not enter the target directory.
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
    assert!(output.is_ok_and(|output| output.status.success()), "the database docket can't be created");
    let staged = home.join("postgres-template.new");
    let _ = std::fs::remove_dir_all(&staged);
    run_to_end(Command::new("cp").arg("-a").arg(&data).arg(&staged));
    std::fs::rename(&staged, &template).expect("both lie in the target directory");
    template
}

/// PostgreSQL refuses to run as root, so root hands it to the user postgres, in the same process id.
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

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
