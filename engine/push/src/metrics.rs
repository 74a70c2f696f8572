//! Metrics of live updates.

use std::sync::LazyLock;

use event_store::event::RecordedEvent;
use event_store::now_us;
use opentelemetry::metrics::{Counter, Gauge, Histogram, UpDownCounter};
use opentelemetry::{KeyValue, global};

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub(crate) struct Metrics {
    connections: UpDownCounter<i64>,
    pub(crate) channels: Gauge<u64>,
    pub(crate) subscriptions: UpDownCounter<i64>,
    changes: Counter<u64>,
    pub(crate) deliveries: Counter<u64>,
    closed: Counter<u64>,
    recoveries: Counter<u64>,
    delay: Histogram<f64>,
}

/// Transport of a connection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Transport {
    /// `/ws`.
    WebSocket,
    /// `/v1/live`.
    Sse,
    /// `/v1/poll`.
    Poll,
}

impl Transport {
    fn label(self) -> KeyValue {
        KeyValue::new(
            "transport",
            match self {
                Self::WebSocket => "websocket",
                Self::Sse => "sse",
                Self::Poll => "poll",
            },
        )
    }
}

impl Metrics {
    fn new() -> Self {
        let meter = global::meter("docket");
        let metrics = Self {
            connections: meter
                .i64_up_down_counter("docket.push.connections")
                .with_description("Open connections, by transport.")
                .build(),
            channels: meter
                .u64_gauge("docket.push.channels")
                .with_description("Channels with subscribers in this process.")
                .build(),
            subscriptions: meter
                .i64_up_down_counter("docket.push.subscriptions")
                .with_description("Subscriptions of all connections.")
                .build(),
            changes: meter.u64_counter("docket.push.changes").with_description("Published changes.").build(),
            deliveries: meter
                .u64_counter("docket.push.deliveries")
                .with_description("Changes queued to subscribers, counted once per subscriber.")
                .build(),
            closed: meter
                .u64_counter("docket.push.closed")
                .with_description("Connections closed by the server or by their clients, by reason.")
                .build(),
            recoveries: meter
                .u64_counter("docket.push.recoveries")
                .with_description("Channels resumed from a position, from the log or with a snapshot.")
                .build(),
            delay: meter
                .f64_histogram("docket.push.delay")
                .with_unit("s")
                .with_description("Time from the recording of an event until it is queued to subscribers.")
                .with_boundaries(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
                .build(),
        };
        metrics.closed.add(0, &[KeyValue::new("reason", "slow")]);
        metrics
    }

    /// Registers the metrics, so that counters are exported with 0 before the first connection.
    pub(crate) fn begin() {
        LazyLock::force(&METRICS);
    }

    /// Counts a new connection.
    pub(crate) fn opened(&self, transport: Transport) {
        self.connections.add(1, &[transport.label()]);
    }

    /// Removes an ended connection from the gauge.
    pub(crate) fn gone(&self, transport: Transport) {
        self.connections.add(-1, &[transport.label()]);
    }

    /// Counts an ended socket or stream by its reason.
    pub(crate) fn closed(&self, reason: &'static str) {
        self.closed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// Counts a channel that was resumed from a position: from the log, or with a snapshot.
    pub(crate) fn resumed(&self, is_recovered: bool) {
        let result = if is_recovered { "recovered" } else { "snapshot" };
        self.recoveries.add(1, &[KeyValue::new("result", result)]);
    }

    /// Counts published events, and records the delay of each.
    pub(crate) fn published<'a>(&self, events: impl Iterator<Item = &'a RecordedEvent>) {
        let now = now_us();
        let mut count = 0;
        for event in events {
            count += 1;
            self.delay.record((now - event.recorded_at).max(0) as f64 / 1e6, &[]);
        }
        self.changes.add(count, &[]);
    }
}
