//! The trait of reactors. A reactor handles events of the log, in order for each key, and issues commands.

use std::collections::HashMap;

use compact_str::CompactString;
use event_store::append::Deadline;
use event_store::error::Error;
use event_store::event::RecordedEvent;
use event_store::reactions::{Registration, StartFrom};
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use kernel::process::Refused;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::reactions::scope::Scope;
use crate::step::AnyStep;

/// The events of one aggregate type that a reactor handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscription {
    /// Type of the aggregate.
    pub aggregate_type: &'static str,
    /// Names of the events; empty: all events of the type.
    pub events: &'static [&'static str],
}

/// Where the effects of a reactor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acts {
    /// Only in the log. The events and the checkpoint commit together, so each input takes effect exactly once.
    InTheLog,
    /// Also outside the log: calls to another system. Each event goes through the backlog to one of several workers and
    /// takes effect at least once. A call should carry an idempotency key that is the same for all attempts.
    Outside,
}

/// Handles events and issues commands. Modules list their reactors.
pub trait Reactor: Send + Sync {
    /// Returns the name of the reactor: lower-case letters, digits and hyphens, unique in a program. Its checkpoint is
    /// stored under this name.
    fn name(&self) -> &'static str;

    /// Returns the events that the reactor handles.
    fn subscriptions(&self) -> &'static [Subscription];

    /// Returns where the reactor starts in a store that has no checkpoint of it.
    fn start_from(&self) -> StartFrom {
        StartFrom::Now
    }

    /// Returns the name that the reactor had in an earlier release.
    fn renamed_from(&self) -> Option<&'static str> {
        None
    }

    /// Returns where the effects of the reactor are.
    fn acts(&self) -> Acts {
        Acts::InTheLog
    }

    /// Returns the type of the process whose deadlines the reactor handles.
    fn process(&self) -> Option<&'static str> {
        None
    }

    /// Whether the reactor is called again with the refusals of its commands. Otherwise a refusal is a failure.
    fn handles_refusals(&self) -> bool {
        false
    }

    /// Returns the ordering key of an event: the event waits while an earlier event with the same key waits. The
    /// default is the id of the aggregate.
    fn key(&self, event: &RecordedEvent) -> CompactString {
        event.aggregate_id.clone()
    }

    /// Reacts to an input. A call fails when it does not return within ten seconds ([`Acts::InTheLog`]) or one minute
    /// ([`Acts::Outside`]), or when it panics.
    fn react<'a>(&'a self, input: &'a Input, scope: &'a mut Scope) -> BoxFuture<'a, Outcome>;

    /// Returns the deadlines of the process with this id, derived from its state. They restore the deadlines from the
    /// log.
    ///
    /// # Errors
    /// The state of the process cannot be loaded.
    fn deadlines_of<'a>(&'a self, id: &'a str, scope: &'a mut Scope) -> BoxFuture<'a, Result<Vec<Deadline>, Error>> {
        let _ = (id, scope);
        std::future::ready(Ok(Vec::new())).boxed()
    }
}

/// An input of a reactor.
#[derive(Debug, Clone)]
pub struct Input {
    /// Why the reactor is called.
    pub cause: Cause,
    /// How often this input has failed before.
    pub attempt: i64,
    /// The time on the clock of the process that leads the reactor.
    pub now: Timestamp,
    /// Refusals of the commands that the previous call for this input issued; see [`Reactor::handles_refusals`].
    pub refused: Vec<Refused>,
}

impl Input {
    /// Returns the recorded event. It is always present for a reactor that runs no process.
    pub fn event(&self) -> Option<&RecordedEvent> {
        match &self.cause {
            Cause::Event(event) => Some(event),
            Cause::Deadline(_) => None,
        }
    }
}

/// Why a reactor is called.
#[derive(Debug, Clone)]
pub enum Cause {
    /// An event was recorded.
    Event(RecordedEvent),
    /// A deadline of the reactor's process was reached.
    Deadline(Deadline),
}

/// The outcome of a reaction.
pub enum Outcome {
    /// The commands are executed, all or none, and the input is settled. Without commands, the input is settled too.
    Done(Vec<Box<dyn AnyStep>>),
    /// The reaction failed and may succeed later. It is retried after a growing pause, at most ten times.
    Retry(String),
    /// The reaction failed and only an operator can help. The events of this key wait.
    Park(String),
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        match error {
            Error::CorruptData(_) | Error::InvalidValue(_) | Error::ConstraintViolated(_) => {
                Self::Park(error.to_string())
            }
            _ => Self::Retry(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for Outcome {
    fn from(error: serde_json::Error) -> Self {
        Self::Park(format!("the event cannot be decoded: {error}"))
    }
}

/// Decodes the payload of an event, without the event's name around it. A reactor declares only the members that it
/// needs; other members are ignored.
///
/// # Errors
/// The payload does not have the form of `T`.
pub fn payload<T: DeserializeOwned>(event: &RecordedEvent) -> Result<T, serde_json::Error> {
    let mut tagged: HashMap<String, Box<RawValue>> = serde_json::from_str(&event.payload)?;
    let payload = tagged.remove(&*event.event_type).unwrap_or_default();
    serde_json::from_str(payload.get())
}

/// Whether a reactor handles an event. Imported history is ignored, because its effects happened elsewhere.
pub(crate) fn is_subscribed(reactor: &dyn Reactor, event: &RecordedEvent) -> bool {
    let is_meant = |of: &Subscription| {
        of.aggregate_type == event.aggregate_type && (of.events.is_empty() || of.events.contains(&&*event.event_type))
    };
    reactor.subscriptions().iter().any(is_meant) && event.metadata_text(HISTORY) != Some("true")
}

/// The metadata member that marks events that were imported as history.
pub(crate) const HISTORY: &str = "history";

/// Returns what the store needs to register a reactor: its name, its start position and its former name. Reads nothing.
pub fn registration(reactor: &dyn Reactor) -> Registration {
    Registration { name: reactor.name(), start_from: reactor.start_from(), renamed_from: reactor.renamed_from() }
}
