//! What the command API counts.

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
                .with_description(
                    "Commands, by what became of them: accepted, refused, conflict, overloaded, unavailable.",
                )
                .build(),
            retries: meter
                .u64_counter("docket.command.retries")
                .with_description("Times that a command was decided again because its stream had changed.")
                .build(),
            reactions: meter
                .u64_counter("docket.reactions")
                .with_description("Inputs of a reactor, by what became of them: done, waiting, retried, parked.")
                .build(),
            reaction_latency: meter
                .f64_histogram("docket.reaction.latency")
                .with_unit("s")
                .with_boundaries(platform::metrics::SECONDS.to_vec())
                .with_description("From the recording of an event until what a reactor made of it is durable.")
                .build(),
            reactor_lag: meter
                .i64_gauge("docket.reactor.lag.events")
                .with_description("Events that a reactor has not taken.")
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
                .with_description("Keys in the backlog of a reactor that wait for an operator.")
                .build(),
            backlog_oldest: meter
                .f64_gauge("docket.reactor.backlog.oldest")
                .with_unit("s")
                .with_description("Age of the oldest event in the backlog of a reactor.")
                .build(),
            deadlines: meter
                .i64_gauge("docket.process.deadlines")
                .with_description("Deadlines that processes of a type have set.")
                .build(),
            deadlines_late: meter
                .f64_gauge("docket.process.deadlines.late")
                .with_unit("s")
                .with_description("How long the earliest deadline of a process type has been due; 0: it is not.")
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

/// Counts a command.
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

/// Counts another try.
pub(crate) fn retried() {
    METRICS.retries.add(1, &[]);
}
