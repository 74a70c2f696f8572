//! Export of traces, logs and metrics over OTLP (HTTP with protobuf). Data is batched and sent in the background. While
//! the receiver is unavailable, queued data is lost; the process is not affected otherwise.

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

/// Timeout of a request to the receiver.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a response of the receiver, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long the end of the process waits for unsent data.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Maximum number of queued log lines, as for log files. The SDK drops further lines and logs the loss when it shuts
/// down.
const LINES_WAITING_MAX: usize = 65_536;

/// Minimum time between two log lines about a failing receiver.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The exporters of traces, logs and metrics that are enabled.
#[derive(Default)]
pub struct Exporters {
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
    metrics: Option<SdkMeterProvider>,
}

impl Exporters {
    /// Starts the exporters that the settings enable. Metrics for `/metrics` do not need an OTLP endpoint.
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

    /// Sends all queued data and stops the exporters, within 2 s.
    pub fn stop(&mut self) {
        let Self { traces, logs, metrics } = std::mem::take(self);
        let (stopped, wait) = std::sync::mpsc::channel();
        let stop = |work: Box<dyn FnOnce() + Send>| {
            let stopped = stopped.clone();
            // A receiver that accepts the connection and does not respond can block the exporter longer than its
            // timeout, so each exporter is stopped on its own thread.
            std::thread::spawn(move || {
                work();
                drop(stopped);
            });
        };
        stop(Box::new(move || drop(traces.map(|traces| traces.shutdown_with_timeout(STOP_TIMEOUT)))));
        stop(Box::new(move || drop(logs.map(|logs| logs.shutdown_with_timeout(STOP_TIMEOUT)))));
        stop(Box::new(move || drop(metrics.map(|metrics| metrics.shutdown_with_timeout(STOP_TIMEOUT)))));
        drop(stopped);
        // No message is sent. The channel closes when all threads have dropped their sender.
        let _: Result<(), _> = wait.recv_timeout(STOP_TIMEOUT);
    }
}

/// Builds the exporter of one signal. A macro, because the three exporter types share no trait.
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

/// Parses the setting `otlp_headers`.
///
/// # Errors
/// Describes the first part that is not `name=value`, or that has an invalid header name or value.
pub fn headers(text: &str) -> Result<HashMap<String, String>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => {
                let (name, value) = (name.trim(), value.trim());
                HeaderName::try_from(name).map_err(|_| format!("otlp_headers has the invalid header name `{name}`"))?;
                HeaderValue::try_from(value)
                    .map_err(|_| format!("otlp_headers contains an invalid value of the header {name}"))?;
                Ok((name.to_owned(), value.to_owned()))
            }
            None => Err("otlp_headers must have the form name=value, separated by commas".to_owned()),
        })
        .collect()
}

/// Counts a failed request to the receiver, and logs it at most once per [`LOG_INTERVAL`].
fn failed(why: &str) {
    static LAST_LOGGED: Mutex<Option<Instant>> = Mutex::new(None);
    metrics::otlp_failed();
    let mut last_logged = LAST_LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if last_logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
        *last_logged = Some(Instant::now());
        drop(last_logged);
        tracing::warn!(why, "Could not send to the OTLP receiver. Check otlp_endpoint: a base URL without /v1/traces.");
    }
}

/// HTTP client that sends on the runtime of the server, because the exporters call it from their own threads.
struct Client {
    http: reqwest::Client,
    runtime: Handle,
}

impl Client {
    fn new() -> Result<Self, String> {
        let redirects = reqwest::redirect::Policy::none();
        let http = reqwest::Client::builder()
            .timeout(SEND_TIMEOUT)
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
                    return Err("the response is too large for an OTLP receiver".into());
                }
                body.extend_from_slice(&piece);
            }
            Ok::<_, HttpError>(response.body(body.into())?)
        });
        let sent = sent.await?;
        match &sent {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => failed(&format!("{} at {place}", answer.status())),
            // Redacted, because the error contains the URL, and the URL may contain a key.
            Err(error) => failed(&redact(&format!("{place}: {error}"))),
        }
        sent
    }
}
