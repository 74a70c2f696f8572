//! Metrics of the command API.

use std::sync::LazyLock;

use opentelemetry::metrics::{Counter, Gauge, Histogram};
use opentelemetry::{KeyValue, global};

use crate::outcome::{Executed, Rejected};

pub(crate) static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

pub(crate) struct Metrics {
    commands: Counter<u64>,
    retries: Counter<u64>,
    pub(crate) reactions: Counter<u64>,
    pub(crate) reaction_latency: Histogram<f64>,
    pub(crate) reactor_leader: Gauge<i64>,
    pub(crate) reactor_lag: Gauge<i64>,
    pub(crate) reactor_held: Gauge<i64>,
    pub(crate) backlog_events: Gauge<i64>,
    pub(crate) backlog_parked: Gauge<i64>,
    pub(crate) backlog_oldest: Gauge<f64>,
    pub(crate) deadlines: Gauge<i64>,
    pub(crate) deadlines_late: Gauge<f64>,
}

impl Metrics {
    fn new() -> Self {
        let meter = global::meter("docket");
        let metrics = Self {
            commands: meter
                .u64_counter("docket.commands")
                .with_description("Commands, by result: accepted, refused, conflict, overloaded, unavailable.")
                .build(),
            retries: meter
                .u64_counter("docket.command.retries")
                .with_description("Decisions that were repeated because the stream of a command had changed.")
                .build(),
            reactions: meter
                .u64_counter("docket.reactions")
                .with_description("Inputs of a reactor, by result: done, waiting, retried, parked.")
                .build(),
            reaction_latency: meter
                .f64_histogram("docket.reaction.latency")
                .with_unit("s")
                .with_boundaries(platform::metrics::SECONDS.to_vec())
                .with_description("Time from the recording of an event until the effects of its reaction are durable.")
                .build(),
            reactor_lag: meter
                .i64_gauge("docket.reactor.lag.events")
                .with_description("Events after the checkpoint of a reactor.")
                .build(),
            reactor_held: meter
                .i64_gauge("docket.reactor.held")
                .with_description("Whether an operator or a restore holds a reactor: 1 or 0.")
                .build(),
            backlog_events: meter
                .i64_gauge("docket.reactor.backlog.events")
                .with_description("Events in the backlog of a reactor.")
                .build(),
            backlog_parked: meter
                .i64_gauge("docket.reactor.backlog.parked")
                .with_description("Parked keys in the backlog of a reactor, which wait for an operator.")
                .build(),
            backlog_oldest: meter
                .f64_gauge("docket.reactor.backlog.oldest")
                .with_unit("s")
                .with_description("Age of the oldest event in the backlog of a reactor.")
                .build(),
            deadlines: meter
                .i64_gauge("docket.process.deadlines")
                .with_description("Open deadlines of a process type.")
                .build(),
            deadlines_late: meter
                .f64_gauge("docket.process.deadlines.late")
                .with_unit("s")
                .with_description(
                    "Time for which the earliest deadline of a process type has been due; 0 when none is due.",
                )
                .build(),
            reactor_leader: meter
                .i64_gauge("docket.reactor.leader")
                .with_description("Whether this process leads a reactor: 1 or 0.")
                .build(),
        };
        metrics.retries.add(0, &[]);
        metrics
    }
}

/// Counts an executed command by its result.
pub(crate) fn executed(command: &'static str, outcome: &Result<Executed, Rejected>) {
    let result = match outcome {
        Ok(_) => "accepted",
        Err(Rejected::KeyUsed) => "conflict",
        Err(Rejected::Problem(problem)) if problem.slug() == "overloaded" => "overloaded",
        Err(Rejected::Problem(problem)) => match problem.status().as_u16() {
            409 | 412 => "conflict",
            500.. => "unavailable",
            _ => "refused",
        },
    };
    METRICS.commands.add(1, &[KeyValue::new("command", command), KeyValue::new("result", result)]);
}

/// Counts a repeated decision.
pub(crate) fn retried() {
    METRICS.retries.add(1, &[]);
}
