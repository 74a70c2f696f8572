//! One PostgreSQL and one nats-server for a whole test run.
//!
//! The first test that needs them starts the program `shared-servers`. That program stops both servers when the process
//! that runs the tests has ended, also after a crash.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{POLL, lock_file, profile_directory, start_time, target_directory};

const START_DEADLINE: Duration = Duration::from_secs(90);

/// The shared servers, which listen on 127.0.0.1.
pub struct Servers {
    /// Port of PostgreSQL.
    pub postgres_port: u16,
    /// Port of nats-server.
    pub nats_port: u16,
}

/// Returns the shared servers of this test run. Starts them if they do not run.
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
        Err(_) => {
            let id = std::process::id();
            (format!("process-{id}-{}", start_time(id).unwrap_or_default()), id)
        }
    };
    assert!(runner > 1, "the process that runs the tests has ended");
    let folder = target_directory().join("tmp/shared-servers");
    let _lock = lock_file(&folder.join(format!("{run}.lock")));
    let file = folder.join(format!("{run}.json"));
    let log_path = folder.join(format!("{run}.log"));
    let mut starting = None;
    // Servers that were killed leave the file behind.
    if read_ports(&file).is_none_or(|servers| TcpStream::connect(("127.0.0.1", servers.postgres_port)).is_err()) {
        let _ = fs::remove_file(&file);
        let program = profile_directory().join("shared-servers");
        assert!(program.is_file(), "{} is missing; build it with: cargo build -p tests --bins", program.display());
        let log = File::create(&log_path).expect("the target directory is writable");
        let mut command = Command::new(program);
        command.arg(&file).arg(runner.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // The program gets its own process group, because the test runner kills the process group of a test.
        starting = Some(command.process_group(0).spawn().expect("the shared servers start"));
    }
    let started = Instant::now();
    while !file.exists() {
        let failed = starting.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_some()));
        if failed || started.elapsed() > START_DEADLINE {
            panic!("the shared servers did not start: {}", fs::read_to_string(&log_path).unwrap_or_default());
        }
        std::thread::sleep(POLL);
    }
    read_ports(&file).expect("the file is renamed into place when it is complete")
}

fn read_ports(file: &Path) -> Option<Servers> {
    let value: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let port = |name: &str| u16::try_from(value[name].as_u64()?).ok();
    Some(Servers { postgres_port: port("postgres_port")?, nats_port: port("nats_port")? })
}
