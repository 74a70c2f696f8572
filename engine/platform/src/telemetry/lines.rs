//! Formats tracing events as log lines for all sinks, with the request id and trace of the current request, and without
//! secrets.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use jiff::Timestamp;
use opentelemetry::logs::{LogRecord, Logger, Severity};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::logs::SdkLogger;
use serde::Serialize;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::metrics;
use crate::request_id;
use crate::telemetry::redact::{HIDDEN, is_secret, redact};
use crate::telemetry::sink::Sink;

/// Target of the access log, and name of its level.
pub const HTTP: &str = "http";

/// The sinks, by the lines that they receive.
#[derive(Default)]
pub struct Sinks {
    /// Readable lines. The flag is true when lines are coloured.
    pub pretty: Option<(Sink, bool)>,
    /// JSON lines.
    pub json: Vec<Sink>,
    /// JSON lines, errors only.
    pub errors: Option<Sink>,
    /// The access log as JSON, if it has its own file. No other file and no console receives it then.
    pub access: Option<Sink>,
    /// Export over OTLP, if enabled.
    pub otlp: OnceLock<SdkLogger>,
}

/// A tracing event, ready to be formatted.
pub struct Record {
    at: Timestamp,
    level: &'static str,
    target: String,
    message: String,
    fields: Vec<(&'static str, Value)>,
    request_id: Option<String>,
    trace: Option<SpanContext>,
}

/// Layer that sends events to the sinks.
pub struct Lines(pub Arc<Sinks>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let meta = event.metadata();
        let mut record = Record::new(level_of(meta.level(), meta.target()), meta.target());
        event.record(&mut Fields(&mut record));
        record.send(&self.0, *meta.level());
    }
}

/// Returns `http` for the access log, else the name of the level in lower case.
fn level_of(level: &Level, target: &str) -> &'static str {
    match *level {
        Level::INFO if target == HTTP => HTTP,
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

impl Record {
    fn new(level: &'static str, target: &str) -> Self {
        let (request_id, trace) = (request_id::current(), request_id::current_trace());
        Self {
            at: Timestamp::now(),
            level,
            target: target.to_owned(),
            message: String::new(),
            fields: Vec::new(),
            request_id,
            trace: trace.map(|trace| trace.span().span_context().clone()).filter(SpanContext::is_valid),
        }
    }

    fn send(self, sinks: &Sinks, level: Level) {
        metrics::log_line(self.level);
        let own_file = sinks.access.as_ref().filter(|_| self.level == HTTP);
        if let Some(access) = own_file {
            access.line(self.json());
        } else if !sinks.json.is_empty() || (sinks.errors.is_some() && level == Level::ERROR) {
            let line = Bytes::from(self.json());
            for sink in &sinks.json {
                sink.line(line.clone());
            }
            if let Some(errors) = sinks.errors.as_ref().filter(|_| level == Level::ERROR) {
                errors.line(line);
            }
        }
        if let Some((console, colour)) = sinks.pretty.as_ref().filter(|_| own_file.is_none()) {
            console.line(self.pretty(*colour));
        }
        // Events of the exporter itself are not exported, because that would cause an endless loop.
        let of_exporter = ["opentelemetry", "hyper", "h2", "reqwest"].iter().any(|own| self.target.starts_with(own));
        if let Some(logger) = sinks.otlp.get().filter(|_| !of_exporter) {
            self.otlp(logger, level);
        }
    }

    /// Formats the event as a JSON object: common fields first, then the fields of the event.
    fn json(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(320 + self.fields.len() * 32);
        // Errors can be ignored: writing to memory does not fail.
        let _ = write!(line, r#"{{"timestamp":"{:.6}","level":"{}","message":"#, self.at, self.level);
        push_json(&mut line, &self.message);
        line.extend_from_slice(
            concat!(r#","service":"docket","version":""#, env!("CARGO_PKG_VERSION"), r#"","target":"#).as_bytes(),
        );
        push_json(&mut line, &self.target);
        if let Some(id) = &self.request_id {
            line.extend_from_slice(br#","request_id":"#);
            push_json(&mut line, id);
        }
        if let Some(trace) = &self.trace {
            let _ = write!(line, r#","trace_id":"{}","span_id":"{}""#, trace.trace_id(), trace.span_id());
        }
        for (name, value) in &self.fields {
            line.push(b',');
            push_json(&mut line, name);
            line.push(b':');
            push_json(&mut line, value);
        }
        line.extend_from_slice(b"}\n");
        line
    }

    /// Formats the event as a readable line.
    fn pretty(&self, colour: bool) -> String {
        let time = self.at.strftime("%H:%M:%S.%3f");
        let (on, dim, off) = match (colour, self.level) {
            (false, _) => ("", "", ""),
            (true, "error") => ("\x1b[31m", "\x1b[2m", "\x1b[0m"),
            (true, "warn") => ("\x1b[33m", "\x1b[2m", "\x1b[0m"),
            (true, "info") => ("\x1b[32m", "\x1b[2m", "\x1b[0m"),
            (true, _) => ("\x1b[36m", "\x1b[2m", "\x1b[0m"),
        };
        let mut line = format!("{dim}{time}{off} {on}{:>5}{off} ", self.level);
        if self.level != HTTP {
            let _ = write!(line, "{dim}{}{off} ", self.target);
        }
        // Control characters are replaced, so that an event is always one line.
        line.extend(self.message.chars().map(|char| if char.is_control() { ' ' } else { char }));
        for (name, value) in &self.fields {
            let _ = write!(line, " {dim}{name}={off}");
            match value {
                Value::String(text) if text.chars().all(|c| c.is_ascii_graphic() && c != '"') && !text.is_empty() => {
                    line.push_str(text)
                }
                value => {
                    let _ = write!(line, "{value}");
                }
            }
        }
        if let Some(id) = &self.request_id {
            let _ = write!(line, " {dim}request_id={off}{id}");
        }
        line.push('\n');
        line
    }

    fn otlp(self, logger: &SdkLogger, level: Level) {
        let mut record = logger.create_log_record();
        record.set_timestamp(self.at.into());
        record.set_severity_text(self.level);
        record.set_severity_number(match level {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warn,
            Level::INFO => Severity::Info,
            Level::DEBUG => Severity::Debug,
            Level::TRACE => Severity::Trace,
        });
        record.set_target(self.target);
        record.set_body(self.message.into());
        if let Some(id) = self.request_id {
            record.add_attribute("request_id", id);
        }
        if let Some(trace) = self.trace {
            record.set_trace_context(trace.trace_id(), trace.span_id(), Some(trace.trace_flags()));
        }
        for (name, value) in self.fields {
            match value {
                Value::String(text) => record.add_attribute(name, text),
                Value::Bool(value) => record.add_attribute(name, value),
                Value::Number(number) if number.is_i64() => record.add_attribute(name, number.as_i64().unwrap_or(0)),
                Value::Number(number) => record.add_attribute(name, number.as_f64().unwrap_or(0.0)),
                other => record.add_attribute(name, other.to_string()),
            }
        }
        logger.emit(record);
    }
}

/// Collects the fields of an event and redacts secrets.
struct Fields<'a>(&'a mut Record);

impl Fields<'_> {
    fn text(&mut self, field: &Field, text: &str) {
        // Fields named `log.…` are source locations of events from the `log` crate.
        match field.name() {
            "message" => self.0.message = redact(text).into_owned(),
            "log.target" => self.0.target = text.to_owned(),
            name if name.starts_with("log.") => {}
            name if is_secret(name) => self.0.fields.push((name, HIDDEN.into())),
            name => self.0.fields.push((name, redact(text).into())),
        }
    }

    fn value(&mut self, field: &Field, value: Value) {
        let name = field.name();
        if !name.starts_with("log.") {
            self.0.fields.push((name, if is_secret(name) { HIDDEN.into() } else { value }));
        }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.text(field, &value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.value(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.value(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.value(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.value(field, value.into());
    }
}

fn push_json(line: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    let _ = serde_json::to_writer(line, value);
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::telemetry::rotate::{Limits, RotatingFile};
    use crate::telemetry::sink::Target;

    fn logged(work: impl FnOnce()) -> (Vec<Value>, Vec<Value>) {
        let folder = tempfile::tempdir().unwrap();
        let (all, errors) = (folder.path().join("all.log"), folder.path().join("errors.log"));
        let limits = Limits { bytes_max: 0, files_max: 0, days_max: 0 };
        let start = |name, path| Sink::start(name, Target::File(RotatingFile::open(path, limits).unwrap())).unwrap().0;
        let sinks = Arc::new(Sinks {
            json: vec![start("all", &all)],
            errors: Some(start("errors", &errors)),
            ..Sinks::default()
        });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Lines(sinks.clone())), work);
        sinks.json.iter().chain(&sinks.errors).for_each(Sink::flush);
        let read = |path| {
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        (read(&all), read(&errors))
    }

    #[test]
    fn a_line_has_the_stable_fields_and_its_own() {
        let (lines, errors) = logged(|| {
            tracing::info!(aggregate.id = "o-1", event.position = 7, "appended");
            tracing::error!(error = "boom\nsecond line", fine = true, "failed");
            tracing::info!(target: "http", "GET /");
        });
        assert_eq!((lines.len(), errors.len()), (3, 1));
        let first = &lines[0];
        assert_eq!((&first["level"], &first["message"]), (&"info".into(), &"appended".into()));
        assert_eq!((&first["aggregate.id"], &first["event.position"]), (&"o-1".into(), &7.into()));
        assert_eq!((&first["service"], &first["version"]), (&"docket".into(), &env!("CARGO_PKG_VERSION").into()));
        assert!(first["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(errors[0]["error"], "boom\nsecond line");
        assert_eq!(lines[2]["level"], "http");
    }

    #[test]
    fn secrets_are_hidden_by_name_and_by_pattern() {
        let (lines, _) = logged(|| {
            tracing::info!(jwt_secret = "canary", url = "nats://u:canary@bus", "with password=canary");
            tracing::warn!(api_key = 12_345, error = %std::io::Error::other("token=canary"));
        });
        let text = serde_json::to_string(&lines).unwrap();
        assert!(!text.contains("canary") && !text.contains("12345"), "{text}");
        assert_eq!(lines[0]["url"], "nats://u:***@bus");
    }
}
