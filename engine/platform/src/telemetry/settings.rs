//! What operators set of logs, traces and metrics.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How the process tells what it does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where it runs; it chooses what is left on `auto`.
    pub environment: Environment,
    /// The form of a line on the console.
    pub log_format: Format,
    /// How much: `error`, `warn`, `info`, `http` (info and the access log), `debug`, `trace`, or `auto`.
    pub log_level: String,
    /// Directives of `tracing_subscriber::EnvFilter` that go before the level: `http=off,event_store=debug`.
    pub log_filter: String,
    /// A file for all lines, as JSON; none where it is empty.
    pub log_file: PathBuf,
    /// A file for errors only, as JSON; none where it is empty.
    pub log_error_file: PathBuf,
    /// Bytes of a log file after which the next one begins; 0 is no limit. A day begins one, too.
    pub log_file_bytes_max: u64,
    /// Rotated files to keep; 0 is no limit.
    pub log_files_max: usize,
    /// Days to keep rotated files; 0 is no limit.
    pub log_days_max: u64,
    /// Format of the access log: `auto`, `off`, `tiny`, `dev`, `short`, `common`, `combined`, `json`, or tokens.
    pub access_log: String,
    /// A file of its own for the access log; where it is empty, lines go where the others go.
    pub access_log_file: PathBuf,
    /// Beginnings of paths that the access log leaves out, separated by commas.
    pub access_log_skip: String,
    /// Base URL of an OTLP receiver over HTTP, e.g. `http://127.0.0.1:4318`; none where it is empty.
    pub otlp_endpoint: String,
    /// Headers for the receiver, `name=value`, separated by commas; where a vendor wants a key.
    pub otlp_headers: String,
    /// Send traces there.
    pub otlp_traces: bool,
    /// Send logs there.
    pub otlp_logs: bool,
    /// Send metrics there, as well as at `/metrics`.
    pub otlp_metrics: bool,
    /// Count at all; without it `/metrics` is not found.
    pub metrics: bool,
    /// Part of the requests that are traced, from 0 to 1, where the caller has not decided already.
    pub trace_ratio: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            environment: Environment::Production,
            log_format: Format::Auto,
            log_level: "auto".to_owned(),
            log_filter: String::new(),
            log_file: PathBuf::new(),
            log_error_file: PathBuf::new(),
            log_file_bytes_max: 100 * 1024 * 1024,
            log_files_max: 30,
            log_days_max: 30,
            access_log: "auto".to_owned(),
            access_log_file: PathBuf::new(),
            access_log_skip: "/health,/metrics".to_owned(),
            otlp_endpoint: String::new(),
            otlp_headers: String::new(),
            otlp_traces: true,
            otlp_logs: false,
            otlp_metrics: false,
            metrics: true,
            trace_ratio: 0.1,
        }
    }
}

/// Where the process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Environment {
    /// At a desk: level `http`, a line for people.
    Development,
    /// Level `http`, JSON.
    Staging,
    /// Level `info`, JSON.
    #[default]
    Production,
}

/// The form of a line on the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `Pretty` on a terminal and in development, else `Json`.
    #[default]
    Auto,
    /// For people: a line an event, coloured on a terminal unless `NO_COLOR` is set.
    Pretty,
    /// For machines: a JSON object an event.
    Json,
    /// Nothing on the console.
    Off,
}
