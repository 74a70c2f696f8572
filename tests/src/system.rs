//! A whole Docket: one process on SQLite, or processes by role on PostgreSQL and NATS.

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

/// How long the read models may stand still on their way to the head of the log.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
/// How long a process may take until it is ready.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a process may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(40);
/// How long a command of the CLI may take.
const CLI_DEADLINE: Duration = Duration::from_secs(300);

/// Pauses and grace times that stories would otherwise wait for.
const SHORT_WAITS: [(&str, &str); 3] = [
    ("DOCKET_RETRY_DELAY_MS", "50"),
    ("DOCKET_PUSH_PRESENCE_GRACE_SECONDS", "3"),
    ("DOCKET_PUSH_TOKEN_GRACE_SECONDS", "2"),
];

/// Which of the two ways to run Docket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// SQLite, the stream in process, one process.
    Embedded,
    /// PostgreSQL and NATS JetStream.
    Scaled,
}

/// What a system is made of, before it starts.
pub struct Builder {
    mode: Mode,
    durable: bool,
    standby: bool,
    own_servers: bool,
    processes: Vec<String>,
    settings: Vec<(String, String)>,
    /// Role of PostgreSQL that Docket connects as.
    role: String,
    /// Bytes of the disk that the process has for itself.
    disk: Option<u64>,
    /// Variables that it does not get.
    without: Vec<String>,
    /// Folder of a kept store that it begins with.
    store: Option<PathBuf>,
    /// Name of the program.
    program: String,
}

impl Builder {
    /// Makes PostgreSQL wait for the disk at each commit.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self.own_servers()
    }

    /// Starts a PostgreSQL and a NATS for this system alone, which the story may stop, kill and configure. Other systems
    /// share the servers of the test run, with a database and a stream each.
    #[must_use]
    pub fn own_servers(mut self) -> Self {
        self.own_servers = true;
        self
    }

    /// Gives PostgreSQL a synchronous standby, and puts a proxy before both that [`TestSystem::fail_over`] switches.
    #[must_use]
    pub fn standby(mut self) -> Self {
        self.standby = true;
        self.own_servers()
    }

    /// One process for each of these role lists, such as `["write", "project,read"]`.
    #[must_use]
    pub fn processes(mut self, roles: &[&str]) -> Self {
        self.processes = roles.iter().map(|&role| role.to_owned()).collect();
        self
    }

    /// Connects as another role of PostgreSQL than its superuser. The story makes it before Docket starts.
    #[must_use]
    pub fn database_role(mut self, role: &str) -> Self {
        self.role = role.to_owned();
        self.own_servers()
    }

    /// Gives an embedded process a file system of so many bytes in place of the folder of its data; it is empty at each
    /// start, and no other process sees it.
    ///
    /// # Panics
    /// Where neither root nor a user may mount one.
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

    /// A `DOCKET_…` variable for every process.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Takes back a `DOCKET_…` variable that every test system has.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.without.push(name.to_owned());
        self
    }

    /// Runs another program than `docket`, from the same folder.
    #[must_use]
    pub fn program(mut self, name: &str) -> Self {
        self.program = name.to_owned();
        self
    }

    /// Begins with a copy of a kept store: `docket.db` and `docket-read.db` of a folder, or its `docket.sql`.
    #[must_use]
    pub fn store(mut self, folder: PathBuf) -> Self {
        self.store = Some(folder);
        self
    }

    /// Starts the servers that Docket needs, but not Docket: [`TestSystem::start`] does.
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
            // The page that a browser shows comes from a port of its own.
            ("DOCKET_ALLOWED_ORIGINS".to_owned(), "loopback".to_owned()),
            ("NO_COLOR".to_owned(), "1".to_owned()),
        ];
        environment.extend(SHORT_WAITS.map(|(name, value)| (name.to_owned(), value.to_owned())));
        environment.extend(nats.as_ref().map(|nats| ("DOCKET_NATS_URL".to_owned(), nats.url())));
        environment.extend(nats.as_ref().map(|nats| ("DOCKET_NATS_STREAM".to_owned(), nats.stream().to_owned())));
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

    /// Starts everything and waits until each process is ready.
    pub async fn start(self) -> TestSystem {
        let mut system = self.stopped().await;
        system.start().await;
        system
    }
}

/// A running system with data of its own. Dropping it ends its processes; after a failure it prints their logs first.
pub struct TestSystem {
    /// How it runs.
    pub mode: Mode,
    /// The Docket processes, in the order that the builder was given. Dropped before the servers they use.
    pub dockets: Vec<Docket>,
    /// The NATS server of a scaled system.
    pub nats: Option<Nats>,
    /// The PostgreSQL server of a scaled system.
    pub postgres: Option<Postgres>,
    /// Its synchronous standby, while there is one.
    pub standby: Option<Postgres>,
    /// The proxy that `DOCKET_DATABASE_URL` names, where the system was built with a standby.
    pub database: Option<Proxy>,
    binary: PathBuf,
    environment: Vec<(String, String)>,
    database_url: String,
    directory: TempDir,
}

impl TestSystem {
    /// One process on SQLite, ready.
    pub async fn embedded() -> Self {
        Self::builder(Mode::Embedded).start().await
    }

    /// One process with all roles on PostgreSQL and NATS, ready.
    pub async fn scaled() -> Self {
        Self::builder(Mode::Scaled).start().await
    }

    /// One process with all roles, to be changed.
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

    /// Brings the schema up to date, as an operator does, and starts every process.
    pub async fn start(&mut self) {
        self.cli(&["migrate"]).await;
        for docket in &mut self.dockets {
            docket.start().await;
        }
    }

    /// Sets a `DOCKET_…` variable for commands, and for every process at its next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self.dockets.iter_mut().for_each(|docket| docket.process.set_env(name, value));
    }

    /// Takes another program for commands, and for every process at its next start.
    pub fn run_program(&mut self, name: &str) {
        self.binary = profile_directory().join(name);
        self.dockets.iter_mut().for_each(|docket| docket.process.set_program(self.binary.clone()));
    }

    /// Kills every Docket process without warning.
    pub fn kill9(&mut self) {
        self.dockets.iter_mut().for_each(Docket::kill9);
    }

    /// Starts every Docket process again (ending it first where it runs) at its old address.
    pub async fn restart(&mut self) {
        for docket in &mut self.dockets {
            docket.restart().await;
        }
    }

    /// Sends SIGTERM to every process, one after the other; the exit status and the time that each took.
    pub async fn terminate(&mut self) -> Vec<(ExitStatus, Duration)> {
        let mut ends = vec![];
        for docket in &mut self.dockets {
            ends.push(docket.terminate().await);
        }
        ends
    }

    /// Makes the standby the primary, as an operator or a failover manager does, and hands back the old primary: read-only
    /// where it still answers, and with the connections that it has. New connections go to the new primary.
    ///
    /// ```ignore
    /// let mut system = TestSystem::builder(Mode::Scaled).standby().start().await;
    /// let old = system.fail_over().await; // or before it: system.postgres.as_mut().unwrap().kill_all(), or freeze()
    /// system.post("/v1/orders").json(order).send().await.expect(201);
    /// drop(old); // its connections end only now
    /// system.add_standby().await; // for the next time
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

    /// Gives the primary a standby again.
    pub async fn add_standby(&mut self) {
        self.standby = Some(Postgres::start_standby(self.postgres.as_ref().expect("a scaled system")).await);
    }

    /// A client of the first process that takes commands.
    pub fn writer(&self) -> &Client {
        self.with_role("write")
    }

    /// A client of the first process that answers queries.
    pub fn reader(&self) -> &Client {
        self.with_role("read")
    }

    fn with_role(&self, role: &str) -> &Client {
        let found = self.dockets.iter().find(|docket| docket.roles.split(',').any(|have| have == role));
        &found.unwrap_or_else(|| panic!("no process has the role {role}")).client
    }

    /// Begins a command.
    pub fn post(&self, path: &str) -> Request {
        self.writer().post(path)
    }

    /// Begins a command.
    pub fn put(&self, path: &str) -> Request {
        self.writer().put(path)
    }

    /// Begins a command.
    pub fn delete(&self, path: &str) -> Request {
        self.writer().delete(path)
    }

    /// Begins a query.
    pub fn get(&self, path: &str) -> Request {
        self.reader().get(path)
    }

    /// The connection string that Docket got.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// The folder of its data.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The same as the first process sees it, which has a disk of its own.
    ///
    /// # Panics
    /// If it does not run.
    pub fn disk(&self) -> PathBuf {
        let id = self.dockets[0].process.id().expect("it runs");
        let inside = self.directory.path().strip_prefix("/").expect("an absolute path");
        Path::new("/proc").join(id.to_string()).join("root").join(inside)
    }

    /// Runs a subcommand of `docket` with the system's settings; what it printed on stdout.
    ///
    /// # Panics
    /// With its output, if it fails.
    pub async fn cli(&self, arguments: &[&str]) -> String {
        let output = self.try_cli(arguments).await;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "docket {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
        stdout.into_owned()
    }

    /// Runs a subcommand of `docket` to its end, whatever that is.
    pub async fn try_cli(&self, arguments: &[&str]) -> Output {
        let output = tokio::time::timeout(CLI_DEADLINE, self.spawn_cli(arguments).wait_with_output()).await;
        output.unwrap_or_else(|_| panic!("docket {arguments:?} runs for {CLI_DEADLINE:?}")).expect("docket runs")
    }

    /// Runs a subcommand of `docket` as an operator whose database URL is another one.
    pub async fn try_cli_on(&self, database_url: &str, arguments: &[&str]) -> Output {
        self.try_cli_with(&[("DOCKET_DATABASE_URL", database_url)], arguments).await
    }

    /// Runs a subcommand of `docket` with `DOCKET_…` variables of its own.
    pub async fn try_cli_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = tokio::time::timeout(CLI_DEADLINE, command.output()).await;
        output.unwrap_or_else(|_| panic!("docket {arguments:?} runs for {CLI_DEADLINE:?}")).expect("docket runs")
    }

    /// Sends a file of orders by `docket import`; how that ended.
    pub async fn import(&self, file: &Path) -> Output {
        let (url, admin) = (self.writer().base(), token("import", "admin"));
        self.try_cli(&["import", file.to_str().expect("UTF-8"), "--url", url, "--token", &admin]).await
    }

    /// Imports the 2,000 real orders of `tests/data`: some 25,000 events.
    pub async fn import_sample(&self) {
        let output = self.import(&sample("csv")).await;
        assert_eq!(output.status.code(), Some(3), "some lines are refused, and the exit code says so");
    }

    /// Starts a subcommand of `docket`; dropped, it is killed.
    pub fn spawn_cli(&self, arguments: &[&str]) -> tokio::process::Child {
        self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("docket starts")
    }

    /// A subcommand of `docket` with the system's settings, to be started; dropped, it is killed.
    pub fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::from(clean_command(&self.binary));
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Waits until every projection stands at the head of the log; the head.
    pub async fn settled(&self) -> u64 {
        settled(self.reader()).await
    }
}

/// Waits until every projection of a system stands at the head of the log; the head.
///
/// # Panics
/// With both positions, if one that is behind stands still for a minute.
pub async fn settled(reader: &Client) -> u64 {
    let (mut moved, mut positions) = (Instant::now(), 0);
    loop {
        let answer = reader.get("/v1/projections").send().await;
        // Just after a failover: connections of before are being given up.
        if answer.status == 503 && moved.elapsed() < SETTLE_DEADLINE {
            tokio::time::sleep(POLL).await;
            continue;
        }
        let answer = answer.expect(200).json();
        let head = answer["head"].as_u64().unwrap_or_else(|| panic!("no head in {answer}"));
        let items = answer["items"].as_array().unwrap_or_else(|| panic!("no items in {answer}"));
        assert!(!items.is_empty(), "there are no projections");
        let behind: Vec<&Value> = items.iter().filter(|item| item["position"].as_u64() != Some(head)).collect();
        if behind.is_empty() {
            return head;
        }
        let now = behind.iter().filter_map(|item| item["position"].as_u64()).sum();
        if now != positions {
            (moved, positions) = (Instant::now(), now);
        }
        assert!(moved.elapsed() < SETTLE_DEADLINE, "for {SETTLE_DEADLINE:?} the head is {head}, but: {behind:#?}");
        tokio::time::sleep(POLL).await;
    }
}

/// The file of real orders, or what another program found in it: `csv`, `expected.json`.
pub fn sample(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("data/grocery-orders-sample.{kind}"))
}

/// Copies the contents of files: the copies can be written, whatever the permissions of the originals are.
fn copy_files(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        let content = std::fs::read(from.join(name)).unwrap_or_else(|error| panic!("{name} of {from:?}: {error}"));
        std::fs::write(to.join(name), content).expect("a temporary directory");
    }
}

/// Arguments of `unshare` that let this user mount what only one process sees.
fn unshare() -> Vec<&'static str> {
    let own = is_root().then_some(vec!["--mount"]);
    own.unwrap_or_else(|| vec!["--user", "--map-root-user", "--mount"])
}

/// One Docket process at its own address.
pub struct Docket {
    /// Its roles, separated by commas.
    pub roles: String,
    /// Speaks to this process.
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

    /// Where it listens, as `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.client.base().trim_start_matches("http://")
    }

    /// Where `/metrics` is, likewise.
    pub fn metrics_address(&self) -> &str {
        self.metrics.base().trim_start_matches("http://")
    }

    /// What it counts, in Prometheus's text format.
    pub async fn metrics(&self) -> String {
        let answer = self.metrics.get("/metrics").anonymous().send().await.expect(200);
        String::from_utf8_lossy(&answer.body).into_owned()
    }

    /// One sample of it: the line's beginning up to the value.
    pub async fn metric(&self, sample: &str) -> Option<f64> {
        let text = self.metrics().await;
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
    }

    /// The processor time that it has used.
    ///
    /// # Panics
    /// If it does not run.
    pub fn cpu_time(&self) -> Duration {
        let id = self.process.id().expect("it runs");
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("Linux tells of processes");
        // After the name in parentheses: utime and stime are the 12th and 13th field, in ticks of 10 ms.
        let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
        let ticks = |field: usize| fields[field].parse::<u64>().expect("ticks");
        Duration::from_millis(10 * (ticks(11) + ticks(12)))
    }

    /// The memory that it holds now, in KiB.
    ///
    /// # Panics
    /// If it does not run.
    pub fn memory_kib(&self) -> u64 {
        let id = self.process.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("Linux tells of processes");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next());
        resident.and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB")
    }

    /// Everything that it has logged on its console.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Kills the process without warning.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts the process again (ending it first where it runs) at its old address.
    pub async fn restart(&mut self) {
        self.process.kill9();
        self.start().await;
    }

    /// Sends SIGTERM; the exit status and the time it took.
    pub async fn terminate(&mut self) -> (ExitStatus, Duration) {
        self.process.stop("TERM", STOP_DEADLINE).await
    }
}
