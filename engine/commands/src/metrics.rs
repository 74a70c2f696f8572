//! What the command API counts.

use std::sync::LazyLock;

use opentelemetry::metrics::Counter;
use opentelemetry::{KeyValue, global};

use crate::outcome::{Executed, Rejected};

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

struct Metrics {
    commands: Counter<u64>,
    retries: Counter<u64>,
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
