//! The process manager that lets the points of an order expire after a time.
//!
//! There is one process per order. It starts when points are granted, and ends when its deadline is reached.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use command_engine::reactions::process::ProcessManager;
use command_engine::reactions::reactor::{Subscription, payload};
use command_engine::step::Step;
use event_store::reactions::StartFrom;
use jiff::{SignedDuration, Timestamp};
use kernel::aggregate::{Access, Aggregate, EventType, History};
use kernel::process::{Correlation, Due, NoCommand, NoSuchProcess, Output, Process, Trigger};
use kernel::upcast::Upcaster;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account;

/// Name of the only deadline.
const EXPIRY: &str = "expiry";
/// Default of the setting `loyalty_points_last_seconds`: one year.
pub const DEFAULT_SECONDS: &str = "31536000";

static LAST_SECONDS: AtomicI64 = AtomicI64::new(31_536_000);

/// Applies the setting.
///
/// # Errors
/// The value is not a number of seconds in the valid range.
pub fn set_seconds(value: &str) -> Result<(), String> {
    let seconds = value.parse().ok().filter(|seconds| (1..=3_153_600_000).contains(seconds));
    LAST_SECONDS.store(seconds.ok_or("must be 1 to 3153600000 seconds (a century)")?, Relaxed);
    Ok(())
}

/// The events of an expiry. The id of the stream is the id of the order. The comments of variants and fields are part
/// of `schemas/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum Event {
    /// The expiry of an order's points was scheduled.
    ExpiryScheduled {
        /// The customer who owns the points.
        customer_id: String,
        /// Id of the order for which the points were granted.
        order_id: String,
        /// Time of the expiry.
        #[schemars(with = "String")]
        expires_at: Timestamp,
    },
    /// The time of the expiry was reached.
    ExpiryReached {},
}

impl EventType for Event {
    const VERSIONS: &'static [(&'static str, &'static str)] = &[("ExpiryScheduled", "1"), ("ExpiryReached", "1")];

    fn name(&self) -> &'static str {
        match self {
            Self::ExpiryScheduled { .. } => "ExpiryScheduled",
            Self::ExpiryReached {} => "ExpiryReached",
        }
    }
}

/// The expiry of the points of one order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Expiry {
    customer_id: String,
    order_id: String,
    /// Time of the expiry; `None` when the points have expired.
    expires_at: Option<Timestamp>,
}

impl Aggregate for Expiry {
    const TYPE: &'static str = "points-expiry";
    const STATE_VERSION: i64 = 1;
    const HISTORY: History = History::Bounded;
    const UPCASTERS: &'static [Upcaster] = &[];
    type Event = Event;
    type Command = NoCommand;
    type Error = NoSuchProcess;

    fn decide(&self, command: &NoCommand) -> Result<Vec<Event>, NoSuchProcess> {
        match *command {}
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::ExpiryScheduled { customer_id, order_id, expires_at } => {
                self.customer_id.clone_from(customer_id);
                self.order_id.clone_from(order_id);
                self.expires_at = Some(*expires_at);
            }
            Event::ExpiryReached {} => self.expires_at = None,
        }
    }

    fn access(&self) -> Access<'_> {
        if self.order_id.is_empty() { Access::Absent } else { Access::Staff }
    }

    fn weight(&self) -> usize {
        64
    }
}

/// The input of an expiry: points were granted for an order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Granted {
    customer_id: String,
    order_id: String,
}

impl Process for Expiry {
    type Input = Granted;
    /// Id of the customer, and the command that lets the points of an order expire.
    type Request = (String, account::Command);

    fn correlate(input: &Granted) -> Correlation {
        Correlation::Start(input.order_id.clone())
    }

    fn react(&self, trigger: &Trigger<Granted>, now: Timestamp) -> Vec<Output<Self>> {
        match trigger {
            // A second grant for the order has no effect. The module never issues one.
            Trigger::Input(_) if !self.order_id.is_empty() => Vec::new(),
            Trigger::Input(Granted { customer_id, order_id }) => vec![Output::Event(Event::ExpiryScheduled {
                customer_id: customer_id.clone(),
                order_id: order_id.clone(),
                expires_at: now + SignedDuration::from_secs(LAST_SECONDS.load(Relaxed)),
            })],
            Trigger::Deadline(_) => {
                let command = account::Command::Expire { order_id: self.order_id.clone() };
                vec![Output::Event(Event::ExpiryReached {}), Output::Request((self.customer_id.clone(), command))]
            }
            // The account never refuses the command. If it did, the deadline would remain, fail visibly for operators,
            // and be retried. A process that can continue without the command would return an event that depends on the
            // slug of the refusal.
            Trigger::Refused(_) => Vec::new(),
        }
    }

    fn deadlines(&self) -> Vec<Due> {
        self.expires_at.map(|at| Due { name: EXPIRY.into(), at }).into_iter().collect()
    }
}

/// Runs the process as a reactor.
pub static EXPIRIES: ProcessManager<Expiry> = ProcessManager {
    name: "loyalty-expiry",
    subscriptions: &[Subscription { aggregate_type: "points-account", events: &["PointsGranted"] }],
    start_from: StartFrom::Now,
    renamed_from: None,
    input: |event| payload(event).map(Some),
    request: |(customer_id, command)| Step::<account::Account>::new(customer_id, command),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_expire_once() {
        let now = Timestamp::from_second(1_000).unwrap();
        let granted = Granted { customer_id: "c-1".into(), order_id: "o-1".into() };
        let mut expiry = Expiry::default();
        let outputs = expiry.react(&Trigger::Input(granted.clone()), now);
        let [Output::Event(scheduled)] = &outputs[..] else { panic!("one event") };
        expiry.evolve(scheduled);
        let at = now + SignedDuration::from_secs(31_536_000);
        assert_eq!(expiry.deadlines(), [Due { name: EXPIRY.into(), at }]);
        assert!(expiry.react(&Trigger::Input(granted), now).is_empty(), "a repeated input has no effect");
        let outputs = expiry.react(&Trigger::Deadline(EXPIRY.into()), at);
        let [Output::Event(reached), Output::Request((customer_id, _))] = &outputs[..] else { panic!("two outputs") };
        assert_eq!(customer_id, "c-1");
        expiry.evolve(reached);
        assert!(expiry.deadlines().is_empty());
    }
}
