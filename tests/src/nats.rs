//! NATS JetStream for tests: a stream on the shared server of the test run, or a server for one test.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::ports::free_port;
use crate::process::{Process, find_on_path, target_directory};
use crate::shared;

/// Name of the only user that the server accepts.
const USER: &str = "docket";
/// Password of the user. It has characters that must be encoded in a URL. No log may contain it.
pub const PASSWORD: &str = "canary-nats@/";
const ENCODED: &str = "canary-nats%40%2F";

const NOT_OWN: &str = "the story stops NATS: build its system with own_servers()";
const MISSING: &str = "no nats-server found in $NATS_SERVER, target/tools or PATH; install it with: tests/run install";

/// Name of the stream on a server for one test: Docket's default.
const STREAM: &str = "docket";

/// A JetStream stream on the shared server, or a server for one test.
pub struct Nats {
    port: u16,
    stream: String,
    server: Option<Server>,
}

/// A server that belongs to one test.
struct Server {
    process: Process,
    /// Dropped after the process.
    directory: TempDir,
}

/// Number of stream names that this test process has used on the shared server.
static STREAMS: AtomicUsize = AtomicUsize::new(0);

impl Nats {
    /// Chooses a new stream name on the shared server. The stream is removed when the value is dropped.
    pub async fn shared() -> Self {
        let port = shared::servers().await.nats_port;
        let number = STREAMS.fetch_add(1, Ordering::Relaxed);
        Self { port, stream: format!("story_{}_{number}", std::process::id()), server: None }
    }

    /// Starts a server for one test, with an empty store.
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("docket-nats-").tempdir().expect("a temporary directory");
        let port = free_port();
        let store = directory.path().join("store").display().to_string();
        let listen = ["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd", &store].map(str::to_owned);
        let users = ["--user", USER, "--pass", PASSWORD].map(str::to_owned);
        let arguments = [listen.as_slice(), &users].concat();
        let process = Process::new("nats-server", program(), directory.path().join("log")).args(arguments);
        let mut nats = Self { port, stream: STREAM.to_owned(), server: Some(Server { process, directory }) };
        nats.restart().await;
        nats
    }

    /// Returns the port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the name of the JetStream stream.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    fn own_mut(&mut self) -> &mut Server {
        self.server.as_mut().expect(NOT_OWN)
    }

    /// Returns the URL of the server, with user and password.
    pub fn url(&self) -> String {
        format!("nats://{USER}:{ENCODED}@127.0.0.1:{}", self.port)
    }

    /// Kills the server with SIGKILL.
    pub fn kill9(&mut self) {
        self.own_mut().process.kill9();
    }

    /// Sends a signal by name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        self.server.as_ref().expect(NOT_OWN).process.signal(name);
    }

    /// Kills the server if it runs, starts it again, and waits until JetStream is available.
    pub async fn restart(&mut self) {
        let port = self.port;
        let process = &mut self.own_mut().process;
        process.kill9();
        process.start();
        process.wait_until(Duration::from_secs(30), || greets_with_jetstream(port)).await;
    }

    /// Removes everything that the server has stored.
    ///
    /// # Panics
    /// If the server runs.
    pub fn wipe(&mut self) {
        let Server { process, directory } = self.own_mut();
        assert!(process.id().is_none(), "stop nats-server before its store is removed");
        let _ = std::fs::remove_dir_all(directory.path().join("store"));
    }

    /// Connects to the server, and returns a JetStream client.
    pub async fn jetstream(&self) -> async_nats::jetstream::Context {
        let options = async_nats::ConnectOptions::with_user_and_password(USER.to_owned(), PASSWORD.to_owned());
        async_nats::jetstream::new(options.connect(format!("127.0.0.1:{}", self.port)).await.expect("nats-server runs"))
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if self.server.is_none() {
            // JetStream reserves the maximum size of each stream, so streams that remain would fill the server.
            let _ = delete_stream(self.port, &self.stream);
        }
    }
}

/// Deletes a stream. Uses the text protocol of NATS, because `drop` cannot await an async client:
/// <https://docs.nats.io/reference/reference-protocols/nats-protocol>.
fn delete_stream(port: u16, stream: &str) -> std::io::Result<()> {
    use std::io::{Read, Write};
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut connection = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    let connect = format!(r#"{{"verbose":false,"pedantic":false,"user":"{USER}","pass":"{PASSWORD}"}}"#);
    let subject = format!("$JS.API.STREAM.DELETE.{stream}");
    write!(connection, "CONNECT {connect}\r\nSUB deleted 1\r\nPUB {subject} deleted 0\r\n\r\n")?;
    let (mut answer, mut bytes) = (Vec::new(), [0; 4096]);
    // The first message is the answer: the stream was deleted, or does not exist.
    while !answer.windows(5).any(|part| part == b"\nMSG ") {
        match connection.read(&mut bytes)? {
            0 => break,
            count => answer.extend_from_slice(&bytes[..count]),
        }
    }
    Ok(())
}

/// Returns whether the greeting line of the server announces JetStream.
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
