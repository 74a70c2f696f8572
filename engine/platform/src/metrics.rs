//! Metrics of the process and its HTTP server, and the endpoint `/metrics`. Other crates create their instruments with
//! `opentelemetry::global::meter("docket")` after `start`; instruments created earlier record nothing.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::MetricExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use crate::request_id;
use crate::telemetry::sink::Sink;

/// Histogram buckets of durations, in seconds: from a cache hit to the time after which clients give up.
pub const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

static REGISTRY: OnceLock<Registry> = OnceLock::new();
static DURATION: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    global::meter("docket")
        .f64_histogram("http.server.request.duration")
        .with_unit("s")
        .with_description("Time until the response began, by method, route and status.")
        .with_boundaries(SECONDS.to_vec())
        .build()
});
/// Number of requests in progress.
static ACTIVE: AtomicI64 = AtomicI64::new(0);
// Set by `start`, not lazily: the meter provider logs while it is being installed, and a log line must not access the
// provider at that moment.
static OTLP_FAILURES: OnceLock<Counter<u64>> = OnceLock::new();
static REFUSED_CONNECTIONS: OnceLock<Counter<u64>> = OnceLock::new();
static REFUSED_TOKENS: OnceLock<Counter<u64>> = OnceLock::new();
/// Number of banned subjects.
static BANS: AtomicI64 = AtomicI64::new(0);
static LINES: OnceLock<Counter<u64>> = OnceLock::new();

/// Starts metrics for `/metrics` and, with a `sender`, for OTLP. Returns `None` if metrics have been started before or
/// if the exporter cannot be created.
pub(crate) fn start(resource: Resource, sender: Option<PeriodicReader<MetricExporter>>) -> Option<SdkMeterProvider> {
    let registry = Registry::new();
    let page = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .scope_info_enabled(false)
        .build()
        .inspect_err(|error| tracing::error!(%error, "Could not create the Prometheus exporter; metrics are disabled."))
        .ok()?;
    REGISTRY.set(registry).ok()?;
    let mut builder = SdkMeterProvider::builder().with_reader(page).with_resource(resource);
    if let Some(sender) = sender {
        builder = builder.with_reader(sender);
    }
    let provider = builder.build();
    global::set_meter_provider(provider.clone());
    watch_process();
    let lines =
        global::meter("docket").u64_counter("docket.log.lines").with_description("Log lines, by level.").build();
    let _ = LINES.set(lines);
    let from_zero = |name, description| {
        let counter = global::meter("docket").u64_counter(name).with_description(description).build();
        counter.add(0, &[]);
        counter
    };
    let failures = "Batches of traces, logs or metrics that could not be sent to the OTLP receiver.";
    let _ = OTLP_FAILURES.set(from_zero("docket.otlp.failures", failures));
    let _ = REFUSED_CONNECTIONS
        .set(from_zero("docket.http.turned_away", "Connections refused because of the connection limit."));
    let refused = global::meter("docket")
        .u64_counter("docket.auth.tokens_refused")
        .with_description("Refused tokens, by reason.")
        .build();
    for reason in REFUSALS {
        refused.add(0, &[KeyValue::new("reason", *reason)]);
    }
    let _ = REFUSED_TOKENS.set(refused);
    global::meter("docket")
        .i64_observable_gauge("docket.auth.bans")
        .with_description("Banned subjects.")
        .with_callback(|observer| observer.observe(BANS.load(Relaxed), &[]))
        .build();
    Some(provider)
}

/// Reasons for which tokens are refused.
const REFUSALS: &[&str] = &["invalid-token", "token-expired", "token-revoked", "unknown-key", "subject-banned"];

/// Counts a refused token; the reason is the slug of its problem.
pub(crate) fn count_refused_token(reason: &'static str) {
    if let Some(counter) = REFUSED_TOKENS.get() {
        counter.add(1, &[KeyValue::new("reason", reason)]);
    }
}

/// Records the number of banned subjects.
pub(crate) fn record_bans(bans: usize) {
    BANS.store(bans as i64, Relaxed);
}

/// Counts a connection that was refused because the connection limit was reached.
pub(crate) fn count_refused_connection() {
    if let Some(counter) = REFUSED_CONNECTIONS.get() {
        counter.add(1, &[]);
    }
}

/// Returns the route `GET /metrics`, in Prometheus's text format.
pub fn router() -> Router {
    Router::new().route("/metrics", get(page))
}

async fn page() -> Response {
    let Some(registry) = REGISTRY.get() else { return StatusCode::NOT_FOUND.into_response() };
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => {
            let headers = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"), (CACHE_CONTROL, "no-store")];
            (headers, text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "Could not encode the metrics.");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A request in progress. Counted as active until dropped.
pub(crate) struct Active(Method, Instant);

impl Active {
    pub(crate) fn begin(method: &Method) -> Self {
        ACTIVE.fetch_add(1, Relaxed);
        Self(method.clone(), Instant::now())
    }

    /// Records the duration of the request. Streams, upgraded connections and long polls are not recorded, because they
    /// stay open on purpose. Must be called within the scope of the request.
    pub(crate) fn end(&self, route: Option<&str>, response: &Response) {
        let streams = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
        let status = response.status();
        if streams || status == StatusCode::SWITCHING_PROTOCOLS || request_id::is_long_poll() {
            return;
        }
        let attributes = [
            KeyValue::new("http.request.method", method_name(&self.0)),
            KeyValue::new("http.route", route.unwrap_or("none").to_owned()),
            KeyValue::new("http.response.status_code", i64::from(status.as_u16())),
        ];
        DURATION.record(self.1.elapsed().as_secs_f64(), &attributes);
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        ACTIVE.fetch_sub(1, Relaxed);
    }
}

/// Returns the method as a metric label. Clients may send any word as a method, so unknown methods share one label.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

/// Counts a batch that could not be sent to the OTLP receiver.
pub(crate) fn otlp_failed() {
    if let Some(failures) = OTLP_FAILURES.get() {
        failures.add(1, &[]);
    }
}

/// Counts a log line.
pub(crate) fn log_line(level: &'static str) {
    if let Some(lines) = LINES.get() {
        lines.add(1, &[KeyValue::new("level", level)]);
    }
}

/// Registers a counter of the lines that each sink has dropped.
pub(crate) fn watch_sinks(sinks: &[Sink]) {
    let sinks = sinks.to_vec();
    global::meter("docket")
        .u64_observable_counter("docket.log.dropped")
        .with_description("Log lines that could not be written, by sink.")
        .with_callback(move |observer| {
            for sink in &sinks {
                observer.observe(sink.dropped(), &[KeyValue::new("sink", sink.name())]);
            }
        })
        .build();
}

/// Registers gauges and counters of the process, from the operating system and from tokio.
fn watch_process() {
    let meter = global::meter("docket");
    meter
        .i64_observable_gauge("http.server.active_requests")
        .with_description("Requests in progress.")
        .with_callback(|observer| observer.observe(ACTIVE.load(Relaxed), &[]))
        .build();
    let started = Instant::now();
    meter
        .f64_observable_gauge("process.uptime")
        .with_unit("s")
        .with_description("Time since the process started.")
        .with_callback(move |observer| observer.observe(started.elapsed().as_secs_f64(), &[]))
        .build();
    meter
        .f64_observable_counter("process.cpu.time")
        .with_unit("s")
        .with_description("CPU time in user and system mode.")
        .with_callback(|observer| observer.observe(cpu_time().unwrap_or_default().as_secs_f64(), &[]))
        .build();
    meter
        .u64_observable_gauge("process.memory.usage")
        .with_unit("By")
        .with_description("Resident memory.")
        .with_callback(|observer| observer.observe(memory_bytes().unwrap_or(0), &[]))
        .build();
    meter
        .u64_observable_gauge("process.open_fds")
        .with_description("Open files and sockets.")
        .with_callback(|observer| observer.observe(open_files().unwrap_or(0), &[]))
        .build();
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let of = runtime.metrics();
    meter
        .u64_observable_gauge("tokio.workers")
        .with_description("Worker threads of the runtime.")
        .with_callback(move |observer| observer.observe(of.num_workers() as u64, &[]))
        .build();
    let of = runtime.metrics();
    meter
        .u64_observable_gauge("tokio.tasks")
        .with_description("Live tasks.")
        .with_callback(move |observer| observer.observe(of.num_alive_tasks() as u64, &[]))
        .build();
    let of = runtime.metrics();
    meter
        .u64_observable_gauge("tokio.queue.depth")
        .with_description("Tasks that wait in the shared queue for a worker thread.")
        .with_callback(move |observer| observer.observe(of.global_queue_depth() as u64, &[]))
        .build();
}

fn cpu_time() -> Option<Duration> {
    let stat = procfs::process::Process::myself().ok()?.stat().ok()?;
    Some(Duration::from_secs_f64((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64))
}

fn memory_bytes() -> Option<u64> {
    Some(procfs::process::Process::myself().ok()?.statm().ok()?.resident * procfs::page_size())
}

fn open_files() -> Option<u64> {
    Some(procfs::process::Process::myself().ok()?.fd_count().ok()? as u64)
}
