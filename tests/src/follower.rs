//! Unmodified third-party clients of the push layer, each run by a small program of `clients/` that prints a JSON line for
//! each thing that the client reports.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::process::{find_on_path, target_directory};

/// How long a client may report nothing.
const LINE_DEADLINE: Duration = Duration::from_secs(60);

/// Which client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `centrifuge` of npm, on `/ws`.
    Npm,
    /// `centrifuge-python` of PyPI, on `/ws`.
    Python,
    /// `eventsource` of npm, on `/v1/live`.
    EventSource,
    /// A page in Chromium with the browser's own EventSource, on `/v1/live`.
    Browser,
}

/// A running client; ends when dropped.
pub struct Follower {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Follower {
    /// Starts a client of the process at `base`. `tokens` are separated by commas: the first one, and those that are handed
    /// out when the client asks for a fresh one.
    ///
    /// # Panics
    /// If the client is not installed, with the line that installs it.
    pub fn start(kind: Kind, base: &str, tokens: &str, channels: &[&str]) -> Self {
        let (ws, live) = (format!("{}/ws", base.replacen("http", "ws", 1)), format!("{base}/v1/live"));
        let node = || program(&["node"]);
        let (program, script, before) = match kind {
            Kind::Npm => (node(), "follow.mjs", vec![ws]),
            Kind::Python => (program(&["python3"]), "follow.py", vec![ws]),
            Kind::EventSource => (node(), "stream.mjs", vec![live]),
            Kind::Browser => {
                let browser = program(&["chromium", "chromium-browser", "google-chrome"]);
                (node(), "browser.mjs", vec![browser.display().to_string(), live])
            }
        };
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
        let python = target_directory().join("tools/python");
        for folder in [directory.join("node_modules/eventsource"), python.join("centrifuge")] {
            assert!(folder.is_dir(), "{} is missing; install it with: tests/run install", folder.display());
        }
        let mut command = Command::new(program);
        command.arg(directory.join(script)).args(before).arg(tokens).args(channels).env("PYTHONPATH", python);
        // A script that has a child of its own ends it when its standard input ends.
        let mut child = command
            .stdout(Stdio::piped())
            .stdin(Stdio::piped())
            .kill_on_drop(kind != Kind::Browser)
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { _child: child, lines }
    }

    /// The next thing that it reports: `event` is `snapshot`, `recovered`, `pub`, `token`, or what went wrong.
    ///
    /// # Panics
    /// If nothing comes for a minute.
    pub async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(LINE_DEADLINE, self.lines.next_line()).await.expect("a report in a minute");
        let mut line: Value = serde_json::from_str(&line.expect("it runs").expect("it runs on")).expect("JSON");
        let event = match line["event"].as_str() {
            Some("subscribed") if line["recovered"] == true => "recovered",
            Some("subscribed") => "snapshot",
            Some("publication") => "pub",
            _ => return line,
        };
        line["event"] = json!(event);
        line
    }
}

fn program(names: &[&str]) -> std::path::PathBuf {
    let found = names.iter().find_map(|name| find_on_path(name));
    found.unwrap_or_else(|| panic!("{} is missing; install it with: tests/run install", names[0]))
}
