//! A real nats-server with JetStream on throw-away data.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::ports::free_port;
use crate::process::{Process, find_on_path, target_directory};

/// Who may connect: every test shows that Docket says so.
const USER: &str = "docket";
/// Their password, with what has to be encoded in a URL; no log may show it.
pub const PASSWORD: &str = "canary-nats@/";
const ENCODED: &str = "canary-nats%40%2F";

const MISSING: &str = "no nats-server found in $NATS_SERVER, target/tools or PATH; install it with: tests/run install";

/// A nats-server with JetStream.
pub struct Nats {
    process: Process,
    port: u16,
    /// Removed when the test ends, so it must be dropped after the process.
    directory: TempDir,
}

impl Nats {
    /// Starts a server with an empty store.
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("docket-nats-").tempdir().expect("a temporary directory");
        let port = free_port();
        let store = directory.path().join("store").display().to_string();
        let listen = ["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd", &store].map(str::to_owned);
        let users = ["--user", USER, "--pass", PASSWORD].map(str::to_owned);
        let arguments = [listen.as_slice(), &users].concat();
        let process = Process::new("nats-server", program(), directory.path().join("log")).args(arguments);
        let mut nats = Self { process, port, directory };
        nats.restart().await;
        nats
    }

    /// The address for clients.
    pub fn url(&self) -> String {
        format!("nats://{USER}:{ENCODED}@127.0.0.1:{}", self.port)
    }

    /// Kills the server without warning.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Starts the server again (ending it first where it runs) and waits until JetStream is there.
    pub async fn restart(&mut self) {
        self.process.kill9();
        self.process.start();
        let port = self.port;
        self.process.wait_until(Duration::from_secs(30), || greets_with_jetstream(port)).await;
    }

    /// Removes everything that the server has stored.
    ///
    /// # Panics
    /// If the server runs: end it first.
    pub fn wipe(&mut self) {
        assert!(self.process.id().is_none(), "nats-server is wiped only while it does not run");
        let _ = std::fs::remove_dir_all(self.directory.path().join("store"));
    }

    /// A JetStream client of the test's own.
    pub async fn jetstream(&self) -> async_nats::jetstream::Context {
        let options = async_nats::ConnectOptions::with_user_and_password(USER.to_owned(), PASSWORD.to_owned());
        async_nats::jetstream::new(options.connect(format!("127.0.0.1:{}", self.port)).await.expect("nats-server runs"))
    }
}

/// Whether the greeting line of the server names JetStream.
async fn greets_with_jetstream(port: u16) -> bool {
    let attempt = async {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        BufReader::new(stream).lines().next_line().await.ok()?
    };
    let greeting = tokio::time::timeout(Duration::from_secs(5), attempt).await.ok().flatten();
    greeting.is_some_and(|line| line.contains("\"jetstream\":true"))
}

fn program() -> PathBuf {
    let named = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let installed = Some(target_directory().join("tools/nats-server"));
    let found = [named, installed].into_iter().flatten().find(|path| path.is_file());
    found.or_else(|| find_on_path("nats-server")).expect(MISSING)
}
