//! A real PostgreSQL of the test's own: a copied template directory, a free port, unix socket beside it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::{Process, find_on_path, lock_file, run_to_end, target_directory};

const MISSING: &str = "no PostgreSQL server found; install it with: apt-get install -y postgresql";
/// Nobody asks for it; no log may show it.
pub const PASSWORD: &str = "canary-postgres";
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A PostgreSQL server with the empty database `docket`.
pub struct Postgres {
    process: Process,
    port: u16,
    /// Holds data and socket; removed when the test ends, so it must be dropped after the process.
    _directory: TempDir,
}

impl Postgres {
    /// Starts a server on throw-away data. Without `durable` it does not wait for the disk (`fsync=off`), which
    /// a killed process survives and only a power loss does not.
    pub async fn start(durable: bool) -> Self {
        let programs = programs();
        let directory = tempfile::Builder::new().prefix("docket-pg-").tempdir().expect("a temporary directory");
        let data = directory.path().join("data");
        run_to_end(Command::new("cp").arg("-a").arg(template(&programs)).arg(&data));
        own(directory.path());
        let port = free_port();
        let sync = if durable { "on" } else { "off" };
        let settings = [
            format!("port={port}"),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", directory.path().display()),
            format!("fsync={sync}"),
            format!("full_page_writes={sync}"),
            "max_connections=200".to_owned(),
            "shared_buffers=64MB".to_owned(),
            "max_wal_size=256MB".to_owned(),
            "log_min_messages=warning".to_owned(),
        ];
        let (program, mut arguments) = as_postgres(&programs.join("postgres"));
        arguments.extend(["-D".to_owned(), data.display().to_string()]);
        arguments.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        // SIGQUIT ends the backends too and frees the shared memory.
        let process =
            Process::new("postgres", program, directory.path().join("log")).args(arguments).drop_signal("QUIT");
        let mut postgres = Self { process, port, _directory: directory };
        postgres.restart().await;
        postgres
    }

    /// The connection string of the database `docket`.
    pub fn url(&self) -> String {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/docket", self.port)
    }

    /// Kills the server without warning.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts the server again (ending it first where it runs) and waits until it answers.
    pub async fn restart(&mut self) {
        self.process.kill9();
        // Backends of a killed server end by themselves a moment later; until then a new one refuses to start.
        let started = std::time::Instant::now();
        self.process.start();
        while !answers(self.port).await {
            assert!(started.elapsed() < START_DEADLINE, "postgres does not answer{}", self.process.log_tail());
            if self.process.exited().is_some() {
                self.process.kill9();
                self.process.start();
            }
            tokio::time::sleep(crate::process::POLL).await;
        }
    }
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
    let scratch = tempfile::Builder::new().prefix("docket-initdb-").tempdir().expect("a temporary directory");
    own(scratch.path());
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

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
