//! Metrics of the projections.

use std::sync::LazyLock;

use opentelemetry::global;
use opentelemetry::metrics::{Counter, Gauge, Histogram};

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub(crate) struct Metrics {
    pub(crate) position: Gauge<i64>,
    pub(crate) lag_events: Gauge<i64>,
    pub(crate) lag_seconds: Gauge<f64>,
    pub(crate) failed: Gauge<u64>,
    pub(crate) events: Counter<u64>,
    pub(crate) batch: Histogram<f64>,
    pub(crate) dead_letters: Gauge<u64>,
    pub(crate) oldest: Gauge<f64>,
}

impl Metrics {
    fn new() -> Self {
        let meter = global::meter("docket");
        Self {
            position: meter
                .i64_gauge("docket.projection.position")
                .with_description("Position of the last event in the read model.")
                .build(),
            lag_events: meter
                .i64_gauge("docket.projection.lag.events")
                .with_description("Events of the log that the read model does not contain.")
                .build(),
            lag_seconds: meter
                .f64_gauge("docket.projection.lag")
                .with_unit("s")
                .with_description("Age of the oldest event that the read model does not contain.")
                .build(),
            failed: meter
                .u64_gauge("docket.projection.failed")
                .with_description("1 while the read model cannot be updated because of an error; otherwise 0.")
                .build(),
            events: meter
                .u64_counter("docket.projection.events")
                .with_description("Events projected by this process.")
                .build(),
            batch: meter
                .f64_histogram("docket.projection.batch.duration")
                .with_unit("s")
                .with_description("Time to fold a batch of events and commit it.")
                .with_boundaries(vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0])
                .build(),
            dead_letters: meter
                .u64_gauge("docket.dead_letters")
                .with_description("Dead letters: events that could not be projected, by state.")
                .build(),
            oldest: meter
                .f64_gauge("docket.dead_letters.oldest.age")
                .with_unit("s")
                .with_description("Age of the oldest dead letter that is not discarded; 0 when there is none.")
                .build(),
        }
    }
}
