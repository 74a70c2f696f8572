//! Settings of logs, traces and metrics.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of logs, traces and metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The environment of the process: `development`, `staging` or `production`. It selects the values of settings that
    /// are `auto`. In `docket dev` the default is `development`.
    pub environment: Environment,
    /// Format of the lines on the console (stderr): `pretty`, `json`, `off`, or `auto`: `pretty` on a terminal and in
    /// development, else `json`.
    pub log_format: Format,
    /// Log level: `error`, `warn`, `info`, `http` (info and the access log), `debug`, `trace`, or `auto`: `info` in
    /// production, else `http`.
    pub log_level: String,
    /// Directives by target that take precedence over the level, for example `http=off,event_store=debug`. The syntax is
    /// that of `tracing_subscriber::EnvFilter`.
    pub log_filter: String,
    /// Path of a file for all lines, as JSON; empty for no file.
    pub log_file: PathBuf,
    /// Path of a file for errors only, as JSON; empty for no file.
    pub log_error_file: PathBuf,
    /// Maximum size of a log file in bytes; 0 means no limit. A file is rotated at this size and at the end of a day
    /// (UTC).
    pub log_file_bytes_max: u64,
    /// Number of rotated files to keep; 0 means no limit.
    pub log_files_max: usize,
    /// Number of days to keep rotated files; 0 means no limit.
    pub log_days_max: u64,
    /// Format of the access log: `off`, `tiny`, `dev`, `short`, `common`, `combined`, `json`, a format of tokens, or
    /// `auto`: `dev` when lines are pretty, `combined` in a file of its own, else `json`.
    pub access_log: String,
    /// Path of a separate file for the access log, which is then written at any `log_level`. If empty, text lines go to
    /// the console, and JSON lines to all log destinations.
    pub access_log_file: PathBuf,
    /// Path prefixes that the access log omits, separated by commas.
    pub access_log_skip: String,
    /// Base URL of an OTLP receiver over HTTP, e.g. `http://127.0.0.1:4318`; empty for no export.
    pub otlp_endpoint: String,
    /// Headers of the requests to the receiver, `name=value`, separated by commas. For example an API key.
    #[schemars(extend("writeOnly" = true))]
    pub otlp_headers: String,
    /// Whether traces are sent to the OTLP receiver.
    pub otlp_traces: bool,
    /// Whether logs are sent to the OTLP receiver.
    pub otlp_logs: bool,
    /// Whether metrics are sent to the OTLP receiver, in addition to `/metrics`.
    pub otlp_metrics: bool,
    /// Whether metrics are collected. If false, `/metrics` returns 404.
    pub metrics: bool,
    /// Ratio of requests that are traced, from 0 to 1. A sampling decision of the caller takes precedence.
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

/// The environment of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Environment {
    /// A developer's machine: level `http`, readable lines.
    Development,
    /// Level `http`, JSON lines.
    Staging,
    /// Level `info`, JSON lines.
    #[default]
    Production,
}

/// Format of the lines on the console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `Pretty` on a terminal and in development, else `Json`.
    #[default]
    Auto,
    /// Readable lines, coloured on a terminal unless `NO_COLOR` is set.
    Pretty,
    /// One JSON object per line.
    Json,
    /// No console output.
    Off,
}
