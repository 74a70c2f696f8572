//! Traces, logs and metrics over OTLP (HTTP with protobuf), to any receiver that speaks it. They are gathered and sent
//! aside; a receiver that is away costs what waited, and nothing else.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::body::Bytes;
use axum::http::{HeaderName, HeaderValue, Request, Response};
use opentelemetry::logs::LoggerProvider;
use opentelemetry::{KeyValue, global};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::{BatchConfigBuilder, BatchLogProcessor, SdkLogger, SdkLoggerProvider};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;

use crate::telemetry::redact::redact;
use crate::telemetry::settings::Settings;
use crate::{metrics, trace};

/// How long a receiver may take to answer.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// Longest answer of a receiver that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long the end of the process waits for what is still to be sent.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Log lines that wait to be sent, as many as for any file; the SDK drops more, and says so when it ends.
const LINES_WAITING_MAX: usize = 65_536;

/// How often a failing receiver is told of.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// What sends.
#[derive(Default)]
pub struct Exporters {
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Exporters {
    /// Starts what the settings ask for; metrics are there in any case, for `/metrics`.
    pub fn start(settings: &Settings, roles: &str, logger: &OnceLock<SdkLogger>) -> Result<Self, String> {
        let resource = Resource::builder()
            .with_service_name("docket")
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
                KeyValue::new("deployment.environment.name", format!("{:?}", settings.environment).to_lowercase()),
                KeyValue::new("docket.roles", roles.to_owned()),
            ])
            .build();
        let mut exporters = Self::default();
        let on = !settings.otlp_endpoint.is_empty();
        if on && settings.otlp_traces {
            let exporter = configured!(SpanExporter, settings, "traces")?;
            let provider = SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.trace_ratio))))
                .with_resource(resource.clone())
                .build();
            global::set_text_map_propagator(TraceContextPropagator::new());
            global::set_tracer_provider(provider.clone());
            trace::enable();
            exporters.traces = Some(provider);
        }
        if on && settings.otlp_logs {
            let exporter = configured!(LogExporter, settings, "logs")?;
            let queue = BatchConfigBuilder::default().with_max_queue_size(LINES_WAITING_MAX).build();
            let processor = BatchLogProcessor::builder(exporter).with_batch_config(queue).build();
            let provider =
                SdkLoggerProvider::builder().with_log_processor(processor).with_resource(resource.clone()).build();
            let _ = logger.set(provider.logger("docket"));
            exporters.logs = Some(provider);
        }
        let sender = match on && settings.otlp_metrics {
            true => Some(PeriodicReader::builder(configured!(MetricExporter, settings, "metrics")?).build()),
            false => None,
        };
        exporters.metrics = settings.metrics.then(|| metrics::start(resource, sender)).flatten();
        Ok(exporters)
    }

    /// Sends what waits, and ends, within 2 s.
    pub fn stop(&mut self) {
        let Self { traces, logs, metrics } = std::mem::take(self);
        let (stopped, wait) = std::sync::mpsc::channel();
        let stop = |work: Box<dyn FnOnce() + Send>| {
            let stopped = stopped.clone();
            // A receiver that takes the connection and does not answer holds an exporter up beyond any timeout it is given.
            std::thread::spawn(move || {
                work();
                drop(stopped);
            });
        };
        stop(Box::new(move || drop(traces.map(|traces| traces.shutdown_with_timeout(STOP_WITHIN)))));
        stop(Box::new(move || drop(logs.map(|logs| logs.shutdown_with_timeout(STOP_WITHIN)))));
        stop(Box::new(move || drop(metrics.map(|metrics| metrics.shutdown_with_timeout(STOP_WITHIN)))));
        drop(stopped);
        // Nothing is sent: it ends when all have let go of it.
        let _: Result<(), _> = wait.recv_timeout(STOP_WITHIN);
    }
}

/// An exporter of one signal: three types that share no trait.
macro_rules! configured {
    ($exporter:ty, $settings:expr, $signal:literal) => {
        <$exporter>::builder()
            .with_http()
            .with_http_client(Client::new()?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/{}", $settings.otlp_endpoint.trim_end_matches('/'), $signal))
            .with_headers(headers(&$settings.otlp_headers)?)
            .build()
            .map_err(|error| error.to_string())
    };
}
use configured;

/// The headers that the setting names.
///
/// # Errors
/// What is no pair, no name, or no value of a header.
pub fn headers(text: &str) -> Result<HashMap<String, String>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => {
                let (name, value) = (name.trim(), value.trim());
                HeaderName::try_from(name).map_err(|_| format!("otlp_headers: `{name}` is no header's name"))?;
                HeaderValue::try_from(value)
                    .map_err(|_| format!("otlp_headers: the value of {name} cannot be sent"))?;
                Ok((name.to_owned(), value.to_owned()))
            }
            None => Err("otlp_headers: give name=value, separated by commas".to_owned()),
        })
        .collect()
}

/// What was to be sent is lost: counted each time, said now and then.
fn failed(why: &str) {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    metrics::otlp_failed();
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
        *said = Some(Instant::now());
        drop(said);
        tracing::warn!(why, "OTLP: the receiver took nothing; see otlp_endpoint, which is a URL without /v1/traces");
    }
}

/// Sends over the server's own runtime: the exporters call from threads of theirs.
struct Client {
    http: reqwest::Client,
    runtime: Handle,
}

impl Client {
    fn new() -> Result<Self, String> {
        let redirects = reqwest::redirect::Policy::none();
        let http = reqwest::Client::builder()
            .timeout(SEND_WITHIN)
            .redirect(redirects)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { http, runtime: Handle::try_current().map_err(|error| error.to_string())? })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let place = request.uri().path().to_owned();
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let mut answer = http.execute(request.try_into()?).await?;
            let mut response = Response::builder().status(answer.status());
            if let Some(headers) = response.headers_mut() {
                *headers = answer.headers().clone();
            }
            let mut body = Vec::new();
            while let Some(piece) = answer.chunk().await? {
                if body.len() + piece.len() > ANSWER_BYTES_MAX {
                    return Err("the answer is too long for an OTLP receiver's".into());
                }
                body.extend_from_slice(&piece);
            }
            Ok::<_, HttpError>(response.body(body.into())?)
        });
        let sent = sent.await?;
        match &sent {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => failed(&format!("{} at {place}", answer.status())),
            // The URL is in it, which may hold a key.
            Err(error) => failed(&redact(&format!("{place}: {error}"))),
        }
        sent
    }
}
