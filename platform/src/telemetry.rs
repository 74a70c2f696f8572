//! Logs: structured events on stderr. Stdout belongs to the data of a command.

use std::io::{IsTerminal, stderr};
use std::panic::PanicHookInfo;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How the process logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The form of a line.
    pub log_format: Format,
    /// What to log, in the directives of `tracing_subscriber::EnvFilter`: `info`, `info,http=debug`.
    pub log_filter: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { log_format: Format::Auto, log_filter: "info".to_owned() }
    }
}

impl Settings {
    /// The filter that `log_filter` means.
    ///
    /// # Errors
    /// A bad directive.
    pub fn filter(&self) -> Result<EnvFilter, Error> {
        EnvFilter::try_new(&self.log_filter).map_err(|source| Error::Filter { filter: self.log_filter.clone(), source })
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `Pretty` when stderr is a terminal, else `Json`.
    #[default]
    Auto,
    /// For people: a line an event, coloured unless `NO_COLOR` is set.
    Pretty,
    /// For machines: a JSON object an event.
    Json,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter has a bad directive.
    #[error("log_filter {filter:?}: {source}; try \"info\" or \"info,http=debug\"")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was started before.
    #[error("logging runs already")]
    Running,
}

/// Starts logging for the whole process, panics included. Call it once, before any thread is started.
///
/// # Errors
/// A bad filter, or a second call.
pub fn init(settings: &Settings) -> Result<(), Error> {
    let filter = settings.filter()?;
    let terminal = stderr().is_terminal();
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let pretty = match settings.log_format {
        Format::Auto => terminal,
        Format::Pretty => true,
        Format::Json => false,
    };
    match pretty {
        true => builder.with_ansi(colour).try_init(),
        false => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    }
    .map_err(|_| Error::Running)?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// A panic is an event like any other, so that it carries the request id of the span it happened in.
fn log_panic(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(location, message = info.payload_as_str().unwrap_or("panic without a message"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_named() {
        let settings = Settings { log_filter: "info,http=loud".to_owned(), ..Settings::default() };
        let error = init(&settings).unwrap_err();
        assert!(error.to_string().contains("info,http=loud"), "{error}");
    }

    #[test]
    fn settings_refuse_what_they_do_not_know() {
        let settings: Settings = serde_json::from_str(r#"{"log_format":"json"}"#).unwrap();
        assert_eq!((settings.log_format, settings.log_filter.as_str()), (Format::Json, "info"));
        assert!(serde_json::from_str::<Settings>(r#"{"log_level":"info"}"#).is_err());
    }
}
