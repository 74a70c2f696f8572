//! An OTLP collector that keeps everything it receives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;

use crate::process::POLL;

/// Time limit until exported data arrives. Exporters batch for some seconds.
const DEADLINE: Duration = Duration::from_secs(30);

/// A span that the collector received.
#[derive(Debug, Clone)]
pub struct Span {
    /// Name of the operation.
    pub name: String,
    /// Id of the trace.
    pub trace_id: String,
    /// Id of the span.
    pub span_id: String,
    /// Id of the parent span; empty for a root span.
    pub parent_id: String,
    /// Roles of the process that recorded the span.
    pub roles: String,
    /// Start of the span, in nanoseconds since 1970.
    pub started: u64,
    /// Duration of the span.
    pub took: Duration,
    /// Ids of the spans that this span links to.
    pub links: Vec<String>,
    /// Attributes of the span.
    pub attributes: HashMap<String, String>,
}

#[derive(Default)]
struct Received {
    spans: Vec<Span>,
    /// Bodies and attributes of log records.
    logs: Vec<String>,
    metrics: Vec<String>,
    /// Every request body, undecoded.
    raw: Vec<Bytes>,
}

/// A running collector. Clones share what it received.
#[derive(Clone)]
pub struct Collector {
    /// URL for the setting `otlp_endpoint`.
    pub url: String,
    received: Arc<Mutex<Received>>,
}

impl Collector {
    /// Starts the collector on a free port.
    pub async fn start() -> Self {
        let received = Arc::default();
        let app = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/logs", post(logs))
            .route("/v1/metrics", post(metrics))
            .with_state(Arc::clone(&received));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("the listener has an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, received }
    }

    /// Waits until a trace has spans with all these names, and returns its spans in the order of their start.
    ///
    /// # Panics
    /// If that takes longer than 30 seconds; the message contains the spans that arrived.
    pub async fn trace(&self, trace_id: &str, names: &[&str]) -> Vec<Span> {
        let started = Instant::now();
        loop {
            let mut spans = self.lock().spans.clone();
            spans.retain(|span| span.trace_id == trace_id);
            if names.iter().all(|name| spans.iter().any(|span| span.name == *name)) {
                spans.sort_by_key(|span| span.started);
                return spans;
            }
            assert!(started.elapsed() < DEADLINE, "expected spans {names:?}, but received only {spans:#?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns every span that has arrived.
    pub fn spans(&self) -> Vec<Span> {
        self.lock().spans.clone()
    }

    /// Waits until a log record contains a text, and returns the record.
    ///
    /// # Panics
    /// If that takes longer than 30 seconds.
    pub async fn log(&self, text: &str) -> String {
        self.first(text, |received| &received.logs).await
    }

    /// Waits until a metric whose name contains `name` arrives, and returns its whole name.
    ///
    /// # Panics
    /// If that takes longer than 30 seconds.
    pub async fn metric(&self, name: &str) -> String {
        self.first(name, |received| &received.metrics).await
    }

    async fn first(&self, text: &str, of: impl Fn(&Received) -> &Vec<String>) -> String {
        let started = Instant::now();
        loop {
            if let Some(found) = of(&self.lock()).iter().find(|found| found.contains(text)) {
                return found.clone();
            }
            assert!(started.elapsed() < DEADLINE, "no received record contains {text}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether any received request body contains a text.
    pub fn holds(&self, text: &str) -> bool {
        self.lock().raw.iter().any(|body| body.windows(text.len()).any(|window| window == text.as_bytes()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Received> {
        self.received.lock().expect("the lock is not poisoned")
    }
}

type Shared = State<Arc<Mutex<Received>>>;

async fn traces(State(received): Shared, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body.clone()).expect("the body is OTLP");
    let mut received = received.lock().expect("the lock is not poisoned");
    received.raw.push(body);
    for resource in request.resource_spans {
        let of = attributes(&resource.resource.unwrap_or_default().attributes);
        let roles = of.get("docket.roles").cloned().unwrap_or_default();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            received.spans.push(Span {
                name: span.name,
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent_id: hex(&span.parent_span_id),
                roles: roles.clone(),
                started: span.start_time_unix_nano,
                took: Duration::from_nanos(span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano)),
                links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
                attributes: attributes(&span.attributes),
            });
        }
    }
}

async fn logs(State(received): Shared, body: Bytes) {
    let request = ExportLogsServiceRequest::decode(body.clone()).expect("the body is OTLP");
    let mut received = received.lock().expect("the lock is not poisoned");
    received.raw.push(body);
    let scopes = request.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
    for record in scopes.flat_map(|scope| scope.log_records) {
        let text = record.body.as_ref().map(text).unwrap_or_default();
        let trace = hex(&record.trace_id);
        received.logs.push(format!("{text} trace_id={trace} {:?}", attributes(&record.attributes)));
    }
}

async fn metrics(State(received): Shared, body: Bytes) {
    let request = ExportMetricsServiceRequest::decode(body.clone()).expect("the body is OTLP");
    let mut received = received.lock().expect("the lock is not poisoned");
    received.raw.push(body);
    let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
    received.metrics.extend(scopes.flat_map(|scope| scope.metrics).map(|metric| metric.name));
}

fn attributes(of: &[KeyValue]) -> HashMap<String, String> {
    of.iter().map(|pair| (pair.key.clone(), pair.value.as_ref().map(text).unwrap_or_default())).collect()
}

fn text(value: &AnyValue) -> String {
    match &value.value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
