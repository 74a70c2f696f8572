//! The programs around Docket in production, with the files of `deploy/`: nginx in front, Prometheus beside it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::client::Client;
use crate::ports::free_port;
use crate::process::{Process, find_on_path, target_directory};
use crate::system::Docket;

const START_DEADLINE: Duration = Duration::from_secs(30);

/// A running nginx or Prometheus; it ends when the value is dropped.
pub struct SupportProgram {
    /// Client of the program.
    pub client: Client,
    _process: Process,
    _folder: TempDir,
}

/// Starts nginx with `deploy/nginx/nginx.conf` in front of these processes.
///
/// # Panics
/// If nginx is not installed; the message contains the command that installs it.
pub async fn nginx(dockets: &[Docket]) -> SupportProgram {
    nginx_with(dockets, "").await
}

/// Starts nginx as [`nginx`] does, with more directives in its server block.
pub async fn nginx_with(dockets: &[Docket], directives: &str) -> SupportProgram {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let port = free_port();
    fs::copy(deploy("nginx/nginx.conf"), folder.path().join("nginx.conf")).expect("deploy/nginx/nginx.conf exists");
    let upstream = |role: &str| {
        let has = |docket: &&Docket| docket.roles.split(',').any(|have| have == role);
        let servers: Vec<_> =
            dockets.iter().filter(has).map(|docket| format!("server {};", docket.address())).collect();
        format!("upstream {role} {{ {} keepalive 16; keepalive_timeout 5s; }}\n", servers.join(" "))
    };
    fs::write(folder.path().join("upstreams.conf"), upstream("write") + &upstream("read"))
        .expect("the directory is writable");
    fs::write(folder.path().join("listen.conf"), format!("listen 127.0.0.1:{port};\naccess_log off;\n{directives}\n"))
        .expect("the directory is writable");
    let prefix = format!("{}/", folder.path().display());
    let own = folder.path().join("nginx.conf").display().to_string();
    let arguments = ["-e", "stderr", "-p", &prefix, "-c", &own, "-g", "daemon off; master_process off;"];
    start("nginx", "usr/sbin", &arguments.map(str::to_owned), port, "/health/proxy", folder).await
}

/// Starts Prometheus with the alerts of `deploy/prometheus`. It scrapes these processes each second.
///
/// # Panics
/// If Prometheus is not installed; the message contains the command that installs it.
pub async fn prometheus(dockets: &[Docket]) -> SupportProgram {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let port = free_port();
    let target = |docket: &Docket| {
        format!("{{targets: ['{}'], labels: {{service: '{}'}}}}", docket.metrics_address(), docket.roles)
    };
    let targets: Vec<_> = dockets.iter().map(target).collect();
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n  \
         - {{job_name: docket, static_configs: [{}]}}\n",
        deploy("prometheus/alerts.yml").display(),
        targets.join(", ")
    );
    let own = folder.path().join("prometheus.yml");
    fs::write(&own, text).expect("the directory is writable");
    let arguments = [
        format!("--config.file={}", own.display()),
        format!("--storage.tsdb.path={}", folder.path().join("data").display()),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    start("prometheus", "usr/bin", &arguments, port, "/-/ready", folder).await
}

impl SupportProgram {
    /// Runs a Prometheus query and returns the labels and the value of each series.
    pub async fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.client.get(&format!("/api/v1/query?query={escaped}")).anonymous().send().await.expect(200);
        let answer = answer.json();
        let series = answer["data"]["result"].as_array().expect("a vector").clone();
        let value = |one: &Value| one["value"][1].as_str().and_then(|text| text.parse().ok()).expect("a number");
        series.iter().map(|one| (one["metric"].clone(), value(one))).collect()
    }
}

/// Checks the text of a `/metrics` response with `promtool check metrics`.
///
/// # Errors
/// The findings of promtool.
pub fn lint(metrics: &str) -> Result<(), String> {
    let mut tool = std::process::Command::new(program("promtool", "usr/bin"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    tool.stdin
        .take()
        .expect("standard input is piped")
        .write_all(metrics.as_bytes())
        .expect("promtool reads its input");
    let output = tool.wait_with_output().expect("promtool ends");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() && text.is_empty() { Ok(()) } else { Err(text) }
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file).canonicalize().expect("a file of deploy/ exists")
}

/// Returns the path of a program: from the folder that `tests/run install` fills, else from `/usr/sbin`, where Debian
/// installs daemons and which is not on every user's `PATH`, else from `PATH`.
fn program(name: &str, unpacked: &str) -> PathBuf {
    let places = [target_directory().join("tools/debian").join(unpacked), PathBuf::from("/usr/sbin")];
    let found = places.map(|place| place.join(name)).into_iter().find(|path| path.is_file());
    let found = found.or_else(|| find_on_path(name));
    found.unwrap_or_else(|| panic!("{name} is missing; install it with: tests/run install"))
}

async fn start(
    name: &str,
    unpacked: &str,
    arguments: &[String],
    port: u16,
    ready: &str,
    folder: TempDir,
) -> SupportProgram {
    let program = program(name, unpacked);
    let log = folder.path().join("output.log");
    let mut process = Process::new(name, program, log).args(arguments.to_vec()).drop_signal("TERM");
    process.start();
    let client = Client::new(format!("http://127.0.0.1:{port}"));
    let is_ready = || async { client.get(ready).anonymous().try_send().await.is_ok_and(|answer| answer.status == 200) };
    process.wait_until(START_DEADLINE, is_ready).await;
    SupportProgram { client, _process: process, _folder: folder }
}
