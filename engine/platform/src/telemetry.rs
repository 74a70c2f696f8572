//! Logs, traces and metrics, and their destinations. Logs go to stderr, because stdout is reserved for the output of
//! commands. They also go to files and to OTLP if configured.

pub mod access;
pub mod level;
mod lines;
mod otlp;
pub mod redact;
pub mod rotate;
pub mod settings;
pub mod sink;

use std::io::{self, IsTerminal, stderr};
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::telemetry::access::Access;
use crate::telemetry::lines::{Lines, Sinks};
use crate::telemetry::otlp::Exporters;
use crate::telemetry::rotate::{Limits, RotatingFile};
use crate::telemetry::settings::{Environment, Format, Settings};
use crate::telemetry::sink::{Sink, Target};

/// The crates to which the level `debug` applies. Debug lines of libraries would be too many.
const DOCKET_CRATES: &[&str] = &[
    "command_engine",
    "docket",
    "domain",
    "event_store",
    "log",
    "panic",
    "platform",
    "projection_engine",
    "projections",
    "push",
    "reactors",
    "read_side",
    "server",
    "write_side",
];

/// Filter directives for libraries that log too much at level `info`.
const LIBRARY_DIRECTIVES: &str = ",opentelemetry=warn,sqlx::postgres::notice=warn,async_nats=warn";

/// Errors of starting or changing logging.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is unknown.
    #[error("the log level `{0}` is unknown: use error, warn, info, http, debug, trace or auto")]
    Level(String),
    /// The filter contains an invalid directive.
    #[error(
        "the log filter `{filter}` is invalid: {reason}; use for example `http=off` or `event_store=debug,sqlx=warn`"
    )]
    Filter {
        /// The filter.
        filter: String,
        /// Why the filter is invalid.
        reason: String,
    },
    /// The format of the access log is invalid.
    #[error("access_log: {0}")]
    Access(String),
    /// A setting has an invalid value.
    #[error("{0}")]
    Value(String),
    /// A log file or the console cannot be opened for writing.
    #[error("could not open the log file {}: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The OTLP endpoint is invalid, or the exporter cannot be created.
    #[error("could not set up the export over OTLP: {0}")]
    Otlp(String),
    /// Logging has already been started.
    #[error("logging has already been started")]
    Running,
}

impl Settings {
    /// Checks all values.
    ///
    /// # Errors
    /// Returns the first invalid value.
    pub fn check(&self) -> Result<(), Error> {
        self.filter()?;
        if let Some(format) = self.access_format(false) {
            Access::new(format, None, "", false).map_err(Error::Access)?;
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err(Error::Value(format!("trace_ratio must be from 0 to 1, not {}", self.trace_ratio)));
        }
        if !(self.otlp_endpoint.is_empty() || self.otlp_endpoint.starts_with("http")) {
            let got = &self.otlp_endpoint;
            return Err(Error::Value(format!(
                "otlp_endpoint must be a URL such as http://127.0.0.1:4318, not `{got}`"
            )));
        }
        otlp::headers(&self.otlp_headers).map_err(Error::Value)?;
        Ok(())
    }

    /// Returns the filter that results from level, filter and access log settings.
    fn filter(&self) -> Result<EnvFilter, Error> {
        let level = match (self.log_level.as_str(), self.environment) {
            ("auto", Environment::Production) => "info",
            ("auto", _) => "http",
            (level, _) => level,
        };
        let own = |level| DOCKET_CRATES.iter().map(|own| format!(",{own}={level}")).collect::<String>();
        // The levels `error`, `warn` and `info` disable the access log, whose target is `http`.
        let base = match level {
            "error" | "warn" => format!("{level},http=off"),
            "info" => format!("info{LIBRARY_DIRECTIVES},http=off"),
            "http" => format!("info{LIBRARY_DIRECTIVES}"),
            "debug" => format!("info{LIBRARY_DIRECTIVES}{}", own("debug")),
            // Below level `info` the NATS client logs the password of its URL.
            "trace" => "trace,async_nats=info".to_owned(),
            _ => return Err(Error::Level(self.log_level.clone())),
        };
        // With its own file, the access log is written at every level.
        let own_file = if self.access_log_file.as_os_str().is_empty() { "" } else { ",http=info" };
        let directives = format!("{base}{own_file},{}", self.log_filter);
        // Regular expressions are disabled, because some need unbounded memory.
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

    /// Returns the format of the access log; `None` if the access log is off.
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

/// Guard of the running telemetry. Dropping it writes and sends all queued data.
pub struct Telemetry {
    sinks: Vec<Sink>,
    exporters: Exporters,
}

/// State of the running telemetry that can change after the start.
struct Running {
    filter: reload::Handle<EnvFilter, Registry>,
    settings: Mutex<Settings>,
    files: Vec<Sink>,
    access: Option<Access>,
}

static RUNNING: OnceLock<Running> = OnceLock::new();

/// Starts logs, traces and metrics for the whole process, and logs panics. `roles` is an attribute of all exported
/// signals.
///
/// # Errors
/// Fails with invalid settings, with a file that cannot be opened, and on a second call.
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
    // Text lines go to their own file or unchanged to the console. JSON lines go to their own file or, like all events,
    // to every sink.
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

/// Returns the access log, if it is on.
pub(crate) fn access_log() -> Option<&'static Access> {
    RUNNING.get()?.access.as_ref()
}

/// Returns the current level and filter; `None` before the start.
pub fn level() -> Option<(String, String)> {
    let settings = RUNNING.get()?.settings.lock().unwrap_or_else(PoisonError::into_inner);
    Some((settings.log_level.clone(), settings.log_filter.clone()))
}

/// Changes level and filter of this process until the next change or the end of the process.
///
/// # Errors
/// Fails with an invalid level or filter, and then changes nothing.
pub fn set_level(level: &str, filter: &str) -> Result<(), Error> {
    let running = RUNNING.get().ok_or_else(|| Error::Level(level.to_owned()))?;
    let mut settings = running.settings.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = Settings { log_level: level.to_owned(), log_filter: filter.to_owned(), ..settings.clone() };
    let directives = wanted.filter()?;
    running.filter.reload(directives).map_err(|_| Error::Level(level.to_owned()))?;
    *settings = wanted;
    tracing::info!(log.level = level, log.filter = filter, "Log level changed.");
    Ok(())
}

/// Reopens the log files after another program has moved them.
pub fn reopen_files() {
    if let Some(running) = RUNNING.get() {
        running.files.iter().for_each(Sink::reopen);
    }
}

/// Logs a panic as an event, so that the log line contains the request id.
fn log_panic(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(target: "panic", location, message = info.payload_as_str().unwrap_or("Panic without a message."));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_settings_are_named_in_the_error() {
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
    fn log_levels_select_the_expected_targets() {
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
    fn unknown_settings_are_refused() {
        let settings: Settings = serde_json::from_str(r#"{"log_format":"json","environment":"staging"}"#).unwrap();
        assert_eq!((settings.log_format, settings.environment), (Format::Json, Environment::Staging));
        assert!(serde_json::from_str::<Settings>(r#"{"log_colour":"red"}"#).is_err());
    }
}
