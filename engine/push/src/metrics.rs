//! What the push layer counts.

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

/// How a connection listens.
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
                .with_description("Channels that somebody listens to here.")
                .build(),
            subscriptions: meter
                .i64_up_down_counter("docket.push.subscriptions")
                .with_description("Subscriptions of all connections.")
                .build(),
            changes: meter.u64_counter("docket.push.changes").with_description("Changes that were published.").build(),
            deliveries: meter
                .u64_counter("docket.push.deliveries")
                .with_description("Changes queued to subscribers, counted for each.")
                .build(),
            closed: meter
                .u64_counter("docket.push.closed")
                .with_description("Connections closed by the server, or left by their clients, by reason.")
                .build(),
            recoveries: meter
                .u64_counter("docket.push.recoveries")
                .with_description("Channels resumed from a position: recovered from the log, or with a fresh snapshot.")
                .build(),
            delay: meter
                .f64_histogram("docket.push.delay")
                .with_unit("s")
                .with_description("Time from an event's recording to its queueing to subscribers.")
                .with_boundaries(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
                .build(),
        };
        metrics.closed.add(0, &[KeyValue::new("reason", "slow")]);
        metrics
    }

    /// Lets counters begin at 0, before anybody comes.
    pub(crate) fn begin() {
        LazyLock::force(&METRICS);
    }

    /// A connection has come.
    pub(crate) fn opened(&self, transport: Transport) {
        self.connections.add(1, &[transport.label()]);
    }

    /// It has gone.
    pub(crate) fn gone(&self, transport: Transport) {
        self.connections.add(-1, &[transport.label()]);
    }

    /// Why it went.
    pub(crate) fn closed(&self, reason: &'static str) {
        self.closed.add(1, &[KeyValue::new("reason", reason)]);
    }

    /// A channel was resumed from a position: out of the log, or with a snapshot.
    pub(crate) fn resumed(&self, is_recovered: bool) {
        let result = if is_recovered { "recovered" } else { "snapshot" };
        self.recoveries.add(1, &[KeyValue::new("result", result)]);
    }

    /// Changes were queued to those who listen.
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
