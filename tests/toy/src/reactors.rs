//! Reactors: idle ones, and one that acts outside the log.

use std::io::Write;

use command_engine::reactions::reactor::{Acts, Cause, Input, Outcome, Reactor, Subscription};
use command_engine::reactions::scope::Scope;
use futures::FutureExt;
use futures::future::BoxFuture;

/// Variable with the number of idle reactors. The benchmark measures their cost.
const IDLE: &str = "TOY_IDLE_REACTORS";
/// Variable with the path of the file that [`Calls`] writes to.
const CALLS: &str = "TOY_CALLS";

/// Returns the reactors of the program.
pub fn all() -> Vec<&'static dyn Reactor> {
    let idle: u32 = std::env::var(IDLE).ok().and_then(|number| number.parse().ok()).unwrap_or_default();
    let idle = (0..idle).map(|number| {
        let name: &'static str = format!("toy-idle-{number}").leak();
        Box::leak(Box::new(Idle(name))) as &dyn Reactor
    });
    [&Calls as &dyn Reactor].into_iter().chain(idle).collect()
}

/// Receives readings of meters and does nothing.
struct Idle(&'static str);

impl Reactor for Idle {
    fn name(&self) -> &'static str {
        self.0
    }

    fn subscriptions(&self) -> &'static [Subscription] {
        &[Subscription { aggregate_type: "meter", events: &[] }]
    }

    fn react<'a>(&'a self, _: &'a Input, _: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        std::future::ready(Outcome::Done(Vec::new())).boxed()
    }
}

/// Simulates a call of an external system for each new counter: it writes a line to a file, with the id of the event as
/// the idempotency key of the call.
struct Calls;

impl Reactor for Calls {
    fn name(&self) -> &'static str {
        "toy-calls"
    }

    fn subscriptions(&self) -> &'static [Subscription] {
        &[Subscription { aggregate_type: "counter", events: &["CounterCreated"] }]
    }

    fn acts(&self) -> Acts {
        Acts::Outside
    }

    fn react<'a>(&'a self, input: &'a Input, _: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        let called = || -> std::io::Result<()> {
            let (Ok(file), Cause::Event(event)) = (std::env::var(CALLS), &input.cause) else { return Ok(()) };
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
            file.write_all(format!("{} {}\n", event.aggregate_id, event.id()).as_bytes())
        };
        let outcome = called().map_or_else(|error| Outcome::Retry(error.to_string()), |()| Outcome::Done(Vec::new()));
        std::future::ready(outcome).boxed()
    }
}
