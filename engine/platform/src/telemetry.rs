//! Logs, traces and metrics: where they go, and how much of them. Logs go to stderr, because stdout belongs to the data
//! of a command; beside it to files and to OTLP, as settings say.

pub mod access;
pub mod level;
mod lines;
mod otlp;
pub mod redact;
pub mod rotate;
pub mod sink;

use std::io::{self, IsTerminal, stderr};
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::telemetry::access::Access;
use crate::telemetry::lines::{Lines, Sinks};
use crate::telemetry::otlp::Exporters;
use crate::telemetry::rotate::{Limits, RotatingFile};
use crate::telemetry::sink::{Sink, Target};

/// The crates whose debug lines `debug` means; those of libraries would drown them.
const OWN: &[&str] = &[
    "docket",
    "domain",
    "event_store",
    "projection_engine",
    "projections",
    "push",
    "write_side",
    "read_side",
    "platform",
    "log",
    "panic",
];

/// Libraries whose every word is no news, and what is kept of them.
const NOISY: &str = ",opentelemetry=warn,sqlx::postgres::notice=warn,async_nats=warn";

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

/// Why logging could not start, or not change.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is none.
    #[error("log_level `{0}`: take error, warn, info, http, debug, trace or auto")]
    Level(String),
    /// The filter has a bad directive.
    #[error("log_filter `{filter}`: {reason}; try `http=off` or `event_store=debug,sqlx=warn`")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The access log's format is none.
    #[error("access_log: {0}")]
    Access(String),
    /// A value out of range.
    #[error("{0}")]
    Value(String),
    /// A log file cannot be written.
    #[error("log file {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The exporter cannot be made.
    #[error("otlp_endpoint: {0}")]
    Otlp(String),
    /// Logging was started before.
    #[error("logging runs already")]
    Running,
}

impl Settings {
    /// Whether all values can be used.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(&self) -> Result<(), Error> {
        self.filter()?;
        if let Some(format) = self.access_format(false) {
            Access::new(format, None, "", false).map_err(Error::Access)?;
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err(Error::Value(format!("trace_ratio: {} is not from 0 to 1", self.trace_ratio)));
        }
        if !(self.otlp_endpoint.is_empty() || self.otlp_endpoint.starts_with("http")) {
            let got = &self.otlp_endpoint;
            return Err(Error::Otlp(format!("`{got}` must be a URL such as http://127.0.0.1:4318")));
        }
        otlp::headers(&self.otlp_headers).map_err(Error::Value)?;
        Ok(())
    }

    /// What to log.
    fn filter(&self) -> Result<EnvFilter, Error> {
        let level = match (self.log_level.as_str(), self.environment) {
            ("auto", Environment::Production) => "info",
            ("auto", _) => "http",
            (level, _) => level,
        };
        let own = |level| OWN.iter().map(|own| format!(",{own}={level}")).collect::<String>();
        // The access log is told to be on by its own name or by a level above it.
        let base = match level {
            "error" | "warn" => format!("{level},http=off"),
            "info" => format!("info{NOISY},http=off"),
            "http" => format!("info{NOISY}"),
            "debug" => format!("info{NOISY}{}", own("debug")),
            // NATS's client shows the password of its URL.
            "trace" => "trace,async_nats=info".to_owned(),
            _ => return Err(Error::Level(self.log_level.clone())),
        };
        // Its own file is for nothing else.
        let own_file = if self.access_log_file.as_os_str().is_empty() { "" } else { ",http=info" };
        let directives = format!("{base}{own_file},{}", self.log_filter);
        // No expressions: some take more memory than there is.
        EnvFilter::builder()
            .with_regex(false)
            .parse(directives.trim_end_matches(','))
            .map_err(|error| Error::Filter { filter: self.log_filter.clone(), reason: error.to_string() })
    }

    fn is_pretty(&self) -> bool {
        match self.log_format {
            Format::Auto => self.environment == Environment::Development || stderr().is_terminal(),
            format => format == Format::Pretty,
        }
    }

    /// `None` where there is no access log.
    fn access_format(&self, pretty: bool) -> Option<&str> {
        match self.access_log.as_str() {
            "off" => None,
            "auto" if !self.access_log_file.as_os_str().is_empty() => Some("combined"),
            "auto" if pretty => Some("dev"),
            "auto" => Some("json"),
            format => Some(format),
        }
    }
}

/// Logging and tracing of this process, while it runs; dropping it writes what waits.
pub struct Telemetry {
    sinks: Vec<Sink>,
    exporters: Exporters,
}

/// What may change while the process runs.
struct Running {
    filter: reload::Handle<EnvFilter, Registry>,
    settings: Mutex<Settings>,
    files: Vec<Sink>,
    access: Option<Access>,
}

static RUNNING: OnceLock<Running> = OnceLock::new();

/// Starts logs, traces and metrics for the whole process, panics included. `roles` is told with each signal.
///
/// # Errors
/// Settings that cannot be used, files that cannot be written, or a second call.
pub fn init(settings: &Settings, roles: &str) -> Result<Telemetry, Error> {
    settings.check()?;
    let pretty = settings.is_pretty();
    let colour = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut sinks = Sinks::default();
    let mut files = Vec::new();
    let mut file = |name, path: &Path| -> Result<Option<Sink>, Error> {
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let failed = |source| Error::File { path: path.to_owned(), source };
        let rotating = RotatingFile::open(path, settings.limits()).map_err(failed)?;
        let (sink, _) = Sink::start(name, Target::File(rotating)).map_err(failed)?;
        files.push(sink.clone());
        Ok(Some(sink))
    };
    sinks.json.extend(file("file", &settings.log_file)?);
    sinks.errors = file("errors", &settings.log_error_file)?;
    let access_file = file("access", &settings.access_log_file)?;
    let mut all = files.clone();
    let mut console = None;
    if settings.log_format != Format::Off {
        let started = Sink::start("console", Target::Console);
        let (sink, _) = started.map_err(|source| Error::File { path: "stderr".into(), source })?;
        all.push(sink.clone());
        match pretty {
            true => sinks.pretty = Some((sink.clone(), colour)),
            false => sinks.json.push(sink.clone()),
        }
        console = Some(sink);
    }
    // A text line belongs on the console as it is; JSON goes the way of all events, to every sink, or to its own file.
    let access = settings
        .access_format(pretty)
        .map(|format| {
            let in_colour = colour && access_file.is_none();
            if format == "json" {
                sinks.access = access_file.clone();
            }
            Access::new(format, access_file.or(console), &settings.access_log_skip, in_colour)
        })
        .transpose()
        .map_err(Error::Access)?;

    let sinks = Arc::new(sinks);
    let (filter, handle) = reload::Layer::new(settings.filter()?);
    tracing_subscriber::registry().with(filter).with(Lines(sinks.clone())).try_init().map_err(|_| Error::Running)?;
    std::panic::set_hook(Box::new(log_panic));
    let exporters = Exporters::start(settings, roles, &sinks.otlp).map_err(Error::Otlp)?;
    crate::metrics::watch_sinks(&all);
    let running = Running { filter: handle, settings: Mutex::new(settings.clone()), files, access };
    RUNNING.set(running).map_err(|_| Error::Running)?;
    Ok(Telemetry { sinks: all, exporters })
}

impl Settings {
    fn limits(&self) -> Limits {
        Limits { bytes_max: self.log_file_bytes_max, files_max: self.log_files_max, days_max: self.log_days_max }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.exporters.stop();
        self.sinks.iter().for_each(Sink::flush);
    }
}

/// The access log, if there is one.
pub(crate) fn access_log() -> Option<&'static Access> {
    RUNNING.get()?.access.as_ref()
}

/// Level and filter, as they are now.
pub fn level() -> Option<(String, String)> {
    let settings = RUNNING.get()?.settings.lock().unwrap_or_else(PoisonError::into_inner);
    Some((settings.log_level.clone(), settings.log_filter.clone()))
}

/// Changes level and filter of this process, until it ends or is told otherwise.
///
/// # Errors
/// A level or filter that is none; nothing has changed then.
pub fn set_level(level: &str, filter: &str) -> Result<(), Error> {
    let running = RUNNING.get().ok_or_else(|| Error::Level(level.to_owned()))?;
    let mut settings = running.settings.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = Settings { log_level: level.to_owned(), log_filter: filter.to_owned(), ..settings.clone() };
    let directives = wanted.filter()?;
    running.filter.reload(directives).map_err(|_| Error::Level(level.to_owned()))?;
    *settings = wanted;
    tracing::info!(log.level = level, log.filter = filter, "log level changed");
    Ok(())
}

/// Opens the log files again, after a tool has moved them away.
pub fn reopen_files() {
    if let Some(running) = RUNNING.get() {
        running.files.iter().for_each(Sink::reopen);
    }
}

/// A panic is an event like any other, so that it carries the request id of where it happened.
fn log_panic(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(target: "panic", location, message = info.payload_as_str().unwrap_or("panic without a message"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_named() {
        let bad = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(bad(|settings| settings.log_level = "loud".into()).contains("`loud`"));
        assert!(bad(|settings| settings.log_filter = "http=loud".into()).contains("http=loud"));
        assert!(bad(|settings| settings.access_log = "tidy".into()).contains("tidy"));
        assert!(bad(|settings| settings.trace_ratio = 1.5).contains("1.5"));
        assert!(bad(|settings| settings.otlp_endpoint = "collector".into()).contains("collector"));
    }

    #[test]
    fn a_level_means_as_much_as_operators_expect() {
        let of = |level: &str, filter: &str| {
            let settings = Settings { log_level: level.into(), log_filter: filter.into(), ..Settings::default() };
            settings.filter().unwrap().to_string()
        };
        assert!(of("auto", "").contains("http=off"));
        assert!(!of("http", "").contains("http"));
        assert!(of("debug", "").contains("event_store=debug"));
        assert!(of("http", "http=off").contains("http=off"));
        assert!(of("warn", "event_store=debug").contains("event_store=debug"));
    }

    #[test]
    fn settings_refuse_what_they_do_not_know() {
        let settings: Settings = serde_json::from_str(r#"{"log_format":"json","environment":"staging"}"#).unwrap();
        assert_eq!((settings.log_format, settings.environment), (Format::Json, Environment::Staging));
        assert!(serde_json::from_str::<Settings>(r#"{"log_colour":"red"}"#).is_err());
    }
}
