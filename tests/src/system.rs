//! A complete Docket system: one process on SQLite, or processes by role on PostgreSQL and NATS.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{Client, JWT_SECRET, Request, token};
use crate::nats::Nats;
use crate::ports::free_port;
use crate::postgres::{Postgres, is_root};
use crate::process::{POLL, Process, clean_command, profile_directory};
use crate::proxy::Proxy;

/// Longest time without progress while the read models catch up with the log.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
/// Time limit for a process to become ready.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Time limit for a process to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(40);
/// Time limit of a CLI command.
const CLI_DEADLINE: Duration = Duration::from_secs(300);

/// Shorter values of settings for pauses and grace times, because stories wait for them.
const SHORT_WAITS: [(&str, &str); 3] = [
    ("DOCKET_RETRY_DELAY_MS", "50"),
    ("DOCKET_PUSH_PRESENCE_GRACE_SECONDS", "3"),
    ("DOCKET_PUSH_TOKEN_GRACE_SECONDS", "2"),
];

/// The two ways to run Docket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// One process on SQLite; the event stream is in the process.
    Embedded,
    /// One or more processes on PostgreSQL and NATS JetStream.
    Scaled,
}

/// Configuration of a system that is not started.
pub struct Builder {
    mode: Mode,
    durable: bool,
    standby: bool,
    own_servers: bool,
    processes: Vec<String>,
    settings: Vec<(String, String)>,
    /// PostgreSQL role with which Docket connects.
    role: String,
    /// Size of the process's own file system, in bytes.
    disk: Option<u64>,
    /// Names of environment variables that are not set.
    without: Vec<String>,
    /// Folder with the stored data that the system starts with.
    store: Option<PathBuf>,
    /// Name of the executable.
    program: String,
}

impl Builder {
    /// Starts PostgreSQL with `fsync=on`, so that commits survive a power loss.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self.own_servers()
    }

    /// Starts a PostgreSQL and a NATS server for this system only. The story may stop, kill and configure them. Other
    /// systems share the servers of the test run, where each has its own database and stream.
    #[must_use]
    pub fn own_servers(mut self) -> Self {
        self.own_servers = true;
        self
    }

    /// Starts a synchronous standby of PostgreSQL, and a proxy in front of both servers. [`TestSystem::fail_over`]
    /// switches the proxy to the standby.
    #[must_use]
    pub fn standby(mut self) -> Self {
        self.standby = true;
        self.own_servers()
    }

    /// Runs one process for each of these role lists, such as `["write", "project,read"]`.
    #[must_use]
    pub fn processes(mut self, roles: &[&str]) -> Self {
        self.processes = roles.iter().map(|&role| role.to_owned()).collect();
        self
    }

    /// Connects with this PostgreSQL role instead of the superuser. The story must create it before Docket starts.
    #[must_use]
    pub fn database_role(mut self, role: &str) -> Self {
        self.role = role.to_owned();
        self.own_servers()
    }

    /// Mounts a file system of this size over the data folder of an embedded process. It is empty at each start, and
    /// other processes do not see it.
    ///
    /// # Panics
    /// If this user may not mount a file system.
    #[must_use]
    pub fn disk(mut self, bytes: u64) -> Self {
        let mut mount = clean_command(Path::new("unshare"));
        mount.args(unshare()).args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"]).stdin(Stdio::null());
        assert!(
            mount.output().is_ok_and(|output| output.status.success()),
            "a small disk needs root with CAP_SYS_ADMIN, or user namespaces for everybody \
             (sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)"
        );
        self.disk = Some(bytes);
        self
    }

    /// Sets a `DOCKET_…` variable for every process.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Removes a `DOCKET_…` variable that test systems set by default.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.without.push(name.to_owned());
        self
    }

    /// Runs another executable than `docket`, from the same folder.
    #[must_use]
    pub fn program(mut self, name: &str) -> Self {
        self.program = name.to_owned();
        self
    }

    /// Starts with the data in a folder: with copies of `docket.db` and `docket-read.db` when embedded, with the dump
    /// `docket.sql` when scaled.
    #[must_use]
    pub fn store(mut self, folder: PathBuf) -> Self {
        self.store = Some(folder);
        self
    }

    /// Starts the servers that Docket needs, but not Docket itself. [`TestSystem::start`] starts Docket.
    pub async fn stopped(self) -> TestSystem {
        let binary = profile_directory().join(&self.program);
        assert!(
            binary.is_file(),
            "{} is missing; build it with: cargo build --release --workspace --bins",
            binary.display()
        );
        let directory = tempfile::Builder::new().prefix("docket-test-").tempdir().expect("a temporary directory");
        let (postgres, nats) = match self.mode {
            Mode::Embedded => (None, None),
            Mode::Scaled if self.own_servers => (Some(Postgres::start(self.durable).await), Some(Nats::start().await)),
            Mode::Scaled => (Some(Postgres::shared().await), Some(Nats::shared().await)),
        };
        match (&self.store, &postgres) {
            (Some(folder), Some(postgres)) => postgres.load(&folder.join("docket.sql")).await,
            (Some(folder), None) => copy_files(folder, directory.path(), &["docket.db", "docket-read.db"]),
            (None, _) => {}
        }
        let (standby, database) = match &postgres {
            Some(postgres) if self.standby => {
                (Some(Postgres::start_standby(postgres).await), Some(Proxy::start(&postgres.address()).await))
            }
            _ => (None, None),
        };
        let database_url = match (&postgres, &database) {
            (Some(postgres), Some(proxy)) => postgres.url_as(&self.role).replace(&postgres.address(), &proxy.address()),
            (Some(postgres), None) => postgres.url_as(&self.role),
            (None, _) => format!("sqlite:{}", directory.path().join("docket.db").display()),
        };
        let mut environment = vec![
            ("DOCKET_DATABASE_URL".to_owned(), database_url.clone()),
            ("DOCKET_DATA".to_owned(), directory.path().display().to_string()),
            ("DOCKET_JWT_SECRET".to_owned(), JWT_SECRET.to_owned()),
            // The browser loads its page from another port, which is another origin.
            ("DOCKET_ALLOWED_ORIGINS".to_owned(), "loopback".to_owned()),
            ("NO_COLOR".to_owned(), "1".to_owned()),
        ];
        environment.extend(SHORT_WAITS.map(|(name, value)| (name.to_owned(), value.to_owned())));
        environment.extend(nats.as_ref().map(|nats| ("DOCKET_NATS_URL".to_owned(), nats.url())));
        environment.extend(nats.as_ref().map(|nats| ("DOCKET_NATS_STREAM".to_owned(), nats.stream().to_owned())));
        if !self.own_servers {
            // The shared NATS reserves this for each stream, also for one of a test that was killed.
            environment.push(("DOCKET_NATS_STREAM_BYTES_MAX".to_owned(), (64 << 20).to_string()));
        }
        environment.extend(self.settings);
        environment.retain(|(name, _)| !self.without.contains(name));
        let dockets = self
            .processes
            .iter()
            .map(|roles| Docket::new(&binary, &directory, roles, &environment, self.disk))
            .collect();
        TestSystem {
            mode: self.mode,
            dockets,
            nats,
            postgres,
            standby,
            database,
            binary,
            environment,
            database_url,
            directory,
        }
    }

    /// Starts the servers and Docket, and waits until each process is ready.
    pub async fn start(self) -> TestSystem {
        let mut system = self.stopped().await;
        system.start().await;
        system
    }
}

/// A system with its own data. When it is dropped, its processes end; if the test failed, their logs are printed first.
pub struct TestSystem {
    /// Whether the system is embedded or scaled.
    pub mode: Mode,
    /// The Docket processes, in the order given to [`Builder::processes`]. Dropped before the servers that they use.
    pub dockets: Vec<Docket>,
    /// The NATS server of a scaled system.
    pub nats: Option<Nats>,
    /// The PostgreSQL server of a scaled system.
    pub postgres: Option<Postgres>,
    /// The synchronous standby of PostgreSQL, if there is one.
    pub standby: Option<Postgres>,
    /// The proxy to which `DOCKET_DATABASE_URL` points, if the system was built with a standby.
    pub database: Option<Proxy>,
    binary: PathBuf,
    environment: Vec<(String, String)>,
    database_url: String,
    directory: TempDir,
}

impl TestSystem {
    /// Starts one process on SQLite and waits until it is ready.
    pub async fn embedded() -> Self {
        Self::builder(Mode::Embedded).start().await
    }

    /// Starts one process with all roles on PostgreSQL and NATS, and waits until it is ready.
    pub async fn scaled() -> Self {
        Self::builder(Mode::Scaled).start().await
    }

    /// Returns the default configuration: one process with all roles.
    pub fn builder(mode: Mode) -> Builder {
        Builder {
            mode,
            durable: false,
            standby: false,
            own_servers: false,
            processes: vec!["write,react,project,read".to_owned()],
            settings: vec![],
            role: "postgres".into(),
            disk: None,
            without: vec![],
            store: None,
            program: "docket".to_owned(),
        }
    }

    /// Runs `docket migrate`, then starts every process.
    pub async fn start(&mut self) {
        self.cli(&["migrate"]).await;
        for docket in &mut self.dockets {
            docket.start().await;
        }
    }

    /// Sets a `DOCKET_…` variable for CLI commands, and for every process at its next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self.dockets.iter_mut().for_each(|docket| docket.process.set_env(name, value));
    }

    /// Uses another executable for CLI commands, and for every process at its next start.
    pub fn run_program(&mut self, name: &str) {
        self.binary = profile_directory().join(name);
        self.dockets.iter_mut().for_each(|docket| docket.process.set_program(self.binary.clone()));
    }

    /// Kills every Docket process with SIGKILL.
    pub fn kill9(&mut self) {
        self.dockets.iter_mut().for_each(Docket::kill9);
    }

    /// Kills every Docket process that runs, and starts each again at the same address.
    pub async fn restart(&mut self) {
        for docket in &mut self.dockets {
            docket.restart().await;
        }
    }

    /// Ends the processes with SIGTERM, one after the other. Returns the exit status of each, and how long it took.
    pub async fn terminate(&mut self) -> Vec<(ExitStatus, Duration)> {
        let mut ends = vec![];
        for docket in &mut self.dockets {
            ends.push(docket.terminate().await);
        }
        ends
    }

    /// Promotes the standby to primary, and returns the old primary. If the old primary still runs, it becomes
    /// read-only and keeps its open connections. New connections go to the new primary.
    ///
    /// ```ignore
    /// let mut system = TestSystem::builder(Mode::Scaled).standby().start().await;
    /// let old = system.fail_over().await; // or first: system.postgres.as_mut().unwrap().kill_all(), or freeze()
    /// system.post("/v1/orders").json(order).send().await.expect(201);
    /// drop(old); // closes its connections
    /// system.add_standby().await; // for the next failover
    /// ```
    pub async fn fail_over(&mut self) -> Postgres {
        let standby = self.standby.take().expect("a system with a standby");
        let old = self.postgres.as_ref().expect("a scaled system");
        if old.answers().await {
            old.set_read_only().await;
        }
        standby.promote().await;
        self.database.as_ref().expect("a system with a standby").switch(standby.address());
        self.postgres.replace(standby).expect("a scaled system")
    }

    /// Starts a new standby of the primary.
    pub async fn add_standby(&mut self) {
        self.standby = Some(Postgres::start_standby(self.postgres.as_ref().expect("a scaled system")).await);
    }

    /// Returns the client of the first process with the role `write`.
    pub fn writer(&self) -> &Client {
        self.with_role("write")
    }

    /// Returns the client of the first process with the role `read`.
    pub fn reader(&self) -> &Client {
        self.with_role("read")
    }

    fn with_role(&self, role: &str) -> &Client {
        let found = self.dockets.iter().find(|docket| docket.roles.split(',').any(|have| have == role));
        &found.unwrap_or_else(|| panic!("no process has the role {role}")).client
    }

    /// Begins a POST to a process with the role `write`.
    pub fn post(&self, path: &str) -> Request {
        self.writer().post(path)
    }

    /// Begins a PUT to a process with the role `write`.
    pub fn put(&self, path: &str) -> Request {
        self.writer().put(path)
    }

    /// Begins a DELETE to a process with the role `write`.
    pub fn delete(&self, path: &str) -> Request {
        self.writer().delete(path)
    }

    /// Begins a GET to a process with the role `read`.
    pub fn get(&self, path: &str) -> Request {
        self.reader().get(path)
    }

    /// Returns the `DOCKET_DATABASE_URL` of the system.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// Returns the data folder of the system.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the data folder as the first process sees it, for a process with its own file system.
    ///
    /// # Panics
    /// If the process does not run.
    pub fn disk(&self) -> PathBuf {
        let id = self.dockets[0].process.id().expect("it runs");
        let inside = self.directory.path().strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(id.to_string()).join("root").join(inside)
    }

    /// Runs a subcommand of `docket` with the system's settings, and returns its standard output.
    ///
    /// # Panics
    /// If the command fails. The message contains its output.
    pub async fn cli(&self, arguments: &[&str]) -> String {
        let output = self.try_cli(arguments).await;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "docket {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
        stdout.into_owned()
    }

    /// Runs a subcommand of `docket`, and returns its exit status and output.
    pub async fn try_cli(&self, arguments: &[&str]) -> Output {
        let output = tokio::time::timeout(CLI_DEADLINE, self.spawn_cli(arguments).wait_with_output()).await;
        output.unwrap_or_else(|_| panic!("docket {arguments:?} runs for {CLI_DEADLINE:?}")).expect("docket runs")
    }

    /// Runs a subcommand of `docket` with another database URL.
    pub async fn try_cli_on(&self, database_url: &str, arguments: &[&str]) -> Output {
        self.try_cli_with(&[("DOCKET_DATABASE_URL", database_url)], arguments).await
    }

    /// Runs a subcommand of `docket` with additional `DOCKET_…` variables, which override the system's.
    pub async fn try_cli_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = tokio::time::timeout(CLI_DEADLINE, command.output()).await;
        output.unwrap_or_else(|_| panic!("docket {arguments:?} runs for {CLI_DEADLINE:?}")).expect("docket runs")
    }

    /// Imports a file of orders with `docket import --partial`, and returns the exit status and output.
    pub async fn import(&self, file: &Path) -> Output {
        let (url, admin) = (self.writer().base(), token("import", "admin"));
        self.try_cli(&["import", file.to_str().expect("UTF-8"), "--partial", "--url", url, "--token", &admin]).await
    }

    /// Imports the 2,000 real orders of `tests/data`: about 25,000 events.
    pub async fn import_sample(&self) {
        let output = self.import(&sample("csv")).await;
        assert_eq!(output.status.code(), Some(3), "some lines are refused, so the exit code must be 3");
    }

    /// Starts a subcommand of `docket`. It is killed when the value is dropped.
    pub fn spawn_cli(&self, arguments: &[&str]) -> tokio::process::Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("docket starts")
    }

    /// Returns a subcommand of `docket` with the system's settings, not started. The process is killed when it is
    /// dropped.
    pub fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::from(clean_command(&self.binary));
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Waits until every projection is at the head of the log, and returns the head.
    pub async fn settled(&self) -> u64 {
        settled(self.reader(), 0).await
    }

    /// Does the same as [`Self::settled`], but waits until the log has reached `position` too. Use it after a failover:
    /// for up to a second a reader may still ask the old primary, where everything is settled without the last commands.
    pub async fn settled_at(&self, position: u64) -> u64 {
        settled(self.reader(), position).await
    }
}

/// Waits until the log has reached `position` and every projection of a system is at the head of the log. Returns the
/// head.
///
/// # Panics
/// If there is no progress for a minute. The message contains the projections that are behind.
pub async fn settled(reader: &Client, position: u64) -> u64 {
    let (mut moved, mut positions) = (Instant::now(), 0);
    loop {
        let answer = reader.get("/v1/projections").send().await;
        // After a failover, requests fail until the process has replaced its connections to the old primary.
        if answer.status == 503 && moved.elapsed() < SETTLE_DEADLINE {
            tokio::time::sleep(POLL).await;
            continue;
        }
        let answer = answer.expect(200).json();
        let head = answer["head"].as_u64().unwrap_or_else(|| panic!("no head in {answer}"));
        let items = answer["items"].as_array().unwrap_or_else(|| panic!("no items in {answer}"));
        assert!(!items.is_empty(), "there are no projections");
        let behind: Vec<&Value> = items.iter().filter(|item| item["position"].as_u64() != Some(head)).collect();
        if behind.is_empty() && head >= position {
            return head;
        }
        let now = head + behind.iter().filter_map(|item| item["position"].as_u64()).sum::<u64>();
        if now != positions {
            (moved, positions) = (Instant::now(), now);
        }
        assert!(
            moved.elapsed() < SETTLE_DEADLINE,
            "for {SETTLE_DEADLINE:?} the head is {head} of {position}: {behind:#?}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Returns the path of the sample file with real orders (`csv`), or of the results that another program computed from
/// it (`expected.json`).
pub fn sample(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/grocery-orders-sample.{kind}"))
}

/// Copies the contents of files, but not their permissions: the copies are always writable.
fn copy_files(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        let content = std::fs::read(from.join(name)).unwrap_or_else(|error| panic!("{name} of {from:?}: {error}"));
        std::fs::write(to.join(name), content).expect("a temporary directory");
    }
}

/// Returns arguments of `unshare` with which this user can mount a file system that only one process sees.
fn unshare() -> Vec<&'static str> {
    let own = is_root().then_some(vec!["--mount"]);
    own.unwrap_or_else(|| vec!["--user", "--map-root-user", "--mount"])
}

/// One Docket process at its own address.
pub struct Docket {
    /// Roles of the process, separated by commas.
    pub roles: String,
    /// Client of this process.
    pub client: Client,
    metrics: Client,
    process: Process,
}

impl Docket {
    fn new(
        binary: &Path,
        directory: &TempDir,
        roles: &str,
        environment: &[(String, String)],
        disk: Option<u64>,
    ) -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        let name = format!("docket-{}", roles.replace(',', "-"));
        let metrics = format!("127.0.0.1:{}", free_port());
        let own = [
            ("DOCKET_LISTEN".to_owned(), listen.clone()),
            ("DOCKET_METRICS_LISTEN".to_owned(), metrics.clone()),
            ("DOCKET_ROLES".to_owned(), roles.to_owned()),
        ];
        let log = directory.path().join(format!("{name}.log"));
        let process = match disk {
            None => Process::new(name, binary.to_owned(), log).args(["serve"]),
            Some(bytes) => {
                let (binary, folder) = (binary.display().to_string(), directory.path().display().to_string());
                let mount = format!("mount -t tmpfs -o size={bytes},mode=700 tmpfs \"$1\" && exec \"$0\" serve");
                let command = ["sh".to_owned(), "-c".to_owned(), mount, binary, folder];
                Process::new(name, "unshare".into(), log).args(unshare()).args(command)
            }
        };
        let process = process.envs(environment).envs(&own);
        let (client, metrics) = (Client::new(format!("http://{listen}")), Client::new(format!("http://{metrics}")));
        Self { roles: roles.to_owned(), client, metrics, process }
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(&mut self) {
        self.process.start();
        let client = self.client.clone();
        let ready = || async {
            client.get("/health/ready").anonymous().try_send().await.is_ok_and(|answer| answer.status == 200)
        };
        self.process.wait_until(START_DEADLINE, ready).await;
    }

    /// Returns the address of the process as `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.client.base().trim_start_matches("http://")
    }

    /// Returns the address of `/metrics` as `127.0.0.1:PORT`.
    pub fn metrics_address(&self) -> &str {
        self.metrics.base().trim_start_matches("http://")
    }

    /// Returns the metrics of the process in Prometheus's text format.
    pub async fn metrics(&self) -> String {
        let answer = self.metrics.get("/metrics").anonymous().send().await.expect(200);
        String::from_utf8_lossy(&answer.body).into_owned()
    }

    /// Returns the value of one metric. `sample` is the line up to the space before the value, with the labels.
    pub async fn metric(&self, sample: &str) -> Option<f64> {
        let text = self.metrics().await;
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
    }

    /// Returns the processor time that the process has used.
    ///
    /// # Panics
    /// If the process does not run.
    pub fn cpu_time(&self) -> Duration {
        let id = self.process.id().expect("it runs");
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("Linux has /proc/PID/stat");
        // The fields utime and stime are the 12th and 13th after the name in parentheses, in ticks of 10 ms.
        let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
        let ticks = |field: usize| fields[field].parse::<u64>().expect("ticks");
        Duration::from_millis(10 * (ticks(11) + ticks(12)))
    }

    /// Returns the resident memory of the process, in KiB.
    ///
    /// # Panics
    /// If the process does not run.
    pub fn memory_kib(&self) -> u64 {
        let id = self.process.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("Linux has /proc/PID/status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next());
        resident.and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB")
    }

    /// Returns the console log of the process.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Sends a signal by name, such as `HUP`.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Kills the process with SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Kills the process if it runs, and starts it again at the same address.
    pub async fn restart(&mut self) {
        self.process.kill9();
        self.start().await;
    }

    /// Ends the process with SIGTERM. Returns its exit status and how long it took to end.
    pub async fn terminate(&mut self) -> (ExitStatus, Duration) {
        self.process.stop("TERM", STOP_DEADLINE).await
    }
}
