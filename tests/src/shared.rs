//! One PostgreSQL and one nats-server for a whole test run.
//!
//! The first test that needs them starts the program `shared-servers`. It stops both servers when the process that runs
//! the tests has ended, however that ended.

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::nats::Nats;
use crate::postgres::Postgres;
use crate::process::{POLL, is_alive, lock_file, profile_directory, target_directory};

const START_DEADLINE: Duration = Duration::from_secs(90);

/// The shared servers, which listen on 127.0.0.1.
pub struct Servers {
    /// Port of PostgreSQL.
    pub postgres_port: u16,
    /// Port of nats-server.
    pub nats_port: u16,
}

/// The servers of this test run. Starts them when no test has.
///
/// # Panics
/// If they cannot be started.
pub async fn servers() -> Servers {
    tokio::task::spawn_blocking(find_or_start).await.expect("the shared servers start")
}

fn find_or_start() -> Servers {
    // With `cargo test` a run is one test executable; with nextest it is every test that the parent process starts.
    let (run, runner) = match std::env::var("NEXTEST_RUN_ID") {
        Ok(run) => (run, parent_id()),
        Err(_) => (format!("process-{}", std::process::id()), std::process::id()),
    };
    let folder = target_directory().join("tmp/shared-servers");
    let _lock = lock_file(&folder.join(format!("{run}.lock")));
    let file = folder.join(format!("{run}.json"));
    if !file.exists() {
        let program = profile_directory().join("shared-servers");
        assert!(program.is_file(), "{} is missing; build it with: cargo build -p tests --bins", program.display());
        let log = File::create(folder.join(format!("{run}.log"))).expect("the target directory is writable");
        let mut command = Command::new(program);
        command.arg(&file).arg(runner.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // In a process group of its own, because the test runner signals the group of a test.
        command.process_group(0).spawn().expect("the shared servers start");
    }
    let started = Instant::now();
    while !file.exists() {
        assert!(started.elapsed() < START_DEADLINE, "the shared servers do not start; see {run}.log in {folder:?}");
        std::thread::sleep(POLL);
    }
    let text = fs::read(&file).expect("the file was just there");
    let value: Value = serde_json::from_slice(&text).expect("the file is renamed into place when it is complete");
    let port = |name: &str| u16::try_from(value[name].as_u64().expect("a port")).expect("a port");
    Servers { postgres_port: port("postgres_port"), nats_port: port("nats_port") }
}

/// Starts the servers, writes their ports to a file, and stops them when the process `runner` has ended.
pub async fn serve(file: PathBuf, runner: u32) {
    let (postgres, nats) = tokio::join!(Postgres::start(false), Nats::start());
    let ports = json!({"postgres_port": postgres.port(), "nats_port": nats.port()});
    let staged = file.with_extension("new");
    fs::write(&staged, ports.to_string()).expect("the target directory is writable");
    fs::rename(&staged, &file).expect("the target directory is writable");
    while is_alive(runner) {
        tokio::time::sleep(POLL * 10).await;
    }
    for extension in ["json", "lock", "log"] {
        let _ = fs::remove_file(file.with_extension(extension));
    }
}
