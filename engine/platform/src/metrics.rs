//! Metrics: what the process and its HTTP server do, and the page `/metrics`. Other crates make their instruments by
//! `opentelemetry::global::meter("docket")`, once [`start`] has run; without it they count nothing.

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

/// Buckets of durations, in seconds: from what a cache answers to what a client gives up on.
pub const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

static REGISTRY: OnceLock<Registry> = OnceLock::new();
static DURATION: LazyLock<Histogram<f64>> = LazyLock::new(|| {
    global::meter("docket")
        .f64_histogram("http.server.request.duration")
        .with_unit("s")
        .with_description("Time until a request's answer began, by method, route and status.")
        .with_boundaries(SECONDS.to_vec())
        .build()
});
/// Requests being answered.
static ACTIVE: AtomicI64 = AtomicI64::new(0);
/// Sendings over OTLP that failed.
static OTLP_FAILURES: OnceLock<Counter<u64>> = OnceLock::new();
/// There once metrics run: the provider itself logs while it is set, and must not be asked for by that.
static TURNED_AWAY: OnceLock<Counter<u64>> = OnceLock::new();
static LINES: OnceLock<Counter<u64>> = OnceLock::new();

/// Starts counting, for `/metrics` and, where there is a sender, for OTLP. `None` when it runs already.
pub(crate) fn start(resource: Resource, sender: Option<PeriodicReader<MetricExporter>>) -> Option<SdkMeterProvider> {
    let registry = Registry::new();
    let page = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .scope_info_enabled(false)
        .build()
        .inspect_err(|error| tracing::error!(%error, "no metrics"))
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
    let failures = "Batches of traces, logs or metrics that the OTLP receiver did not take.";
    let _ = OTLP_FAILURES.set(from_zero("docket.otlp.failures", failures));
    let _ = TURNED_AWAY.set(from_zero("docket.http.turned_away", "Connections for which there was no place."));
    Some(provider)
}

/// Counts a connection for which there was no place.
pub(crate) fn turned_away() {
    if let Some(counter) = TURNED_AWAY.get() {
        counter.add(1, &[]);
    }
}

/// `GET /metrics`, in Prometheus's text format.
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
            tracing::error!(%error, "metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A request that is being answered; counted until dropped.
pub(crate) struct Active(Method, Instant);

impl Active {
    pub(crate) fn begin(method: &Method) -> Self {
        ACTIVE.fetch_add(1, Relaxed);
        Self(method.clone(), Instant::now())
    }

    /// Counts the answer, unless it is the beginning of a stream or was asked to wait. Call it within the request's scope.
    pub(crate) fn end(&self, route: Option<&str>, response: &Response) {
        let streams = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
        let status = response.status();
        if streams || status == StatusCode::SWITCHING_PROTOCOLS || request_id::waits() {
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

/// A client may send any word as a method.
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

/// Counts what the OTLP receiver did not take.
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

/// Tells how many lines each sink has dropped.
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

/// What the system knows of this process, and tokio of its tasks.
fn watch_process() {
    let meter = global::meter("docket");
    meter
        .i64_observable_gauge("http.server.active_requests")
        .with_description("Requests being answered.")
        .with_callback(|observer| observer.observe(ACTIVE.load(Relaxed), &[]))
        .build();
    let started = Instant::now();
    meter
        .f64_observable_gauge("process.uptime")
        .with_unit("s")
        .with_description("Time since the start.")
        .with_callback(move |observer| observer.observe(started.elapsed().as_secs_f64(), &[]))
        .build();
    meter
        .f64_observable_counter("process.cpu.time")
        .with_unit("s")
        .with_description("Processor time, of the user and of the system.")
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
        .with_description("Threads of the runtime.")
        .with_callback(move |observer| observer.observe(of.num_workers() as u64, &[]))
        .build();
    let of = runtime.metrics();
    meter
        .u64_observable_gauge("tokio.tasks")
        .with_description("Tasks that live.")
        .with_callback(move |observer| observer.observe(of.num_alive_tasks() as u64, &[]))
        .build();
    let of = runtime.metrics();
    meter
        .u64_observable_gauge("tokio.queue.depth")
        .with_description("Tasks that wait for a thread in the shared queue.")
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
