//! Metrics of the store. They are recorded only after the process has set a meter provider.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use opentelemetry::metrics::{Counter, Gauge, Histogram};
use opentelemetry::{KeyValue, global};

const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const COMMANDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Counted for each command; plain atomics are the cheapest counters.
pub(crate) static HITS: AtomicU64 = AtomicU64::new(0);
pub(crate) static MISSES: AtomicU64 = AtomicU64::new(0);

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub(crate) struct Metrics {
    pub(crate) batch_size: Histogram<u64>,
    pub(crate) wait: Histogram<f64>,
    pub(crate) commit: Histogram<f64>,
    pub(crate) events: Counter<u64>,
    pub(crate) conflicts: Counter<u64>,
    pub(crate) failures: Counter<u64>,
    pub(crate) queue: Gauge<u64>,
    pub(crate) log_position: Gauge<i64>,
    pub(crate) relay_position: Gauge<i64>,
    pub(crate) relay_published: Counter<u64>,
    pub(crate) relay_failures: Counter<u64>,
    pub(crate) stream_position: Gauge<i64>,
    pub(crate) nats_connected: Gauge<u64>,
    pub(crate) leader: Gauge<u64>,
}

impl Metrics {
    fn new() -> Self {
        let meter = global::meter("docket");
        let seconds = |name, text| {
            let boundaries = SECONDS.to_vec();
            meter.f64_histogram(name).with_unit("s").with_description(text).with_boundaries(boundaries).build()
        };
        let counter = |name, text| meter.u64_counter(name).with_description(text).build();
        let position = |name, text| meter.i64_gauge(name).with_description(text).build();
        let gauge = |name, text| meter.u64_gauge(name).with_description(text).build();
        let metrics = Self {
            batch_size: meter
                .u64_histogram("docket.append.batch.size")
                .with_description("Number of commands in one append transaction.")
                .with_boundaries(COMMANDS.to_vec())
                .build(),
            wait: seconds("docket.append.wait", "Time from queueing an append to its answer."),
            commit: seconds("docket.append.commit.duration", "Duration of an append transaction."),
            events: counter("docket.append.events", "Events appended."),
            conflicts: counter("docket.append.conflicts", "Appends refused because a stream had changed."),
            failures: counter("docket.append.failures", "Append transactions that failed."),
            queue: gauge("docket.append.queue", "Appends that wait in the queue."),
            log_position: position(
                "docket.log.position",
                "Position of the log's last event, when this process last read it.",
            ),
            relay_position: position(
                "docket.relay.position",
                "Last position that this process published to JetStream.",
            ),
            relay_published: counter("docket.relay.published", "Events published to JetStream."),
            relay_failures: counter(
                "docket.relay.failures",
                "Failures after which the relay started again from the end of the JetStream stream.",
            ),
            stream_position: position(
                "docket.stream.position",
                "Last sequence of the JetStream stream, when the relay last read it.",
            ),
            nats_connected: gauge("docket.nats.connected", "1 while connected to NATS."),
            leader: gauge("docket.leader", "1 while this process leads in the role."),
        };
        meter
            .u64_observable_counter("docket.aggregate.lookups")
            .with_description("Lookups of aggregates in the cache, by result: hit or miss.")
            .with_callback(|observer| {
                for (result, count) in [("hit", &HITS), ("miss", &MISSES)] {
                    observer.observe(count.load(Relaxed), &[KeyValue::new("result", result)]);
                }
            })
            .build();
        // Counters start at 0 instead of being absent, because alerts use their growth.
        for counter in
            [&metrics.events, &metrics.conflicts, &metrics.failures, &metrics.relay_published, &metrics.relay_failures]
        {
            counter.add(0, &[]);
        }
        metrics
    }
}
