//! Unmodified third-party clients of the push layer. A small program in `clients/` runs each one and prints a JSON line
//! for each event that the client reports.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::process::{POLL, find_on_path, target_directory};

/// Longest time without a report from a client.
const LINE_DEADLINE: Duration = Duration::from_secs(60);
/// Time limit for a client to end. One that takes longer is killed.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// A third-party client.
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

/// A running client; it ends when the value is dropped.
pub struct Follower {
    kind: Kind,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Follower {
    /// Starts a client of the process at `base`. `tokens` are separated by commas: the first one is used to connect,
    /// the others are returned when the client asks for a fresh token.
    ///
    /// # Panics
    /// If the client is not installed; the message contains the command that installs it.
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
        let mut child =
            command.stdout(Stdio::piped()).stdin(Stdio::piped()).kill_on_drop(true).spawn().expect("the client starts");
        let lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
        Self { kind, child, lines }
    }

    /// Returns the next report: `event` is `snapshot`, `recovered`, `pub`, `token`, or the name of an error.
    ///
    /// # Panics
    /// If the client reports nothing for a minute.
    pub async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(LINE_DEADLINE, self.lines.next_line())
            .await
            .expect("the client reports within a minute");
        let mut line: Value =
            serde_json::from_str(&line.expect("the output is readable").expect("the client is running"))
                .expect("a report is JSON");
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

impl Drop for Follower {
    fn drop(&mut self) {
        if self.kind == Kind::Browser {
            // The script ends when its standard input closes. It must not be killed, because it ends the browser first.
            drop(self.child.stdin.take());
        } else {
            let _ = self.child.start_kill();
        }
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && started.elapsed() < END_DEADLINE {
            std::thread::sleep(POLL);
        }
    }
}

fn program(names: &[&str]) -> std::path::PathBuf {
    let found = names.iter().find_map(|name| find_on_path(name));
    found.unwrap_or_else(|| panic!("{} is missing; install it with: tests/run install", names[0]))
}
