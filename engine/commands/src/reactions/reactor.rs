//! What a reactor is: it takes events of the log, one after the other for each key, and answers with commands.

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

/// Events that a reactor takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscription {
    /// Type of the aggregate.
    pub aggregate_type: &'static str,
    /// Names of events; empty: all.
    pub events: &'static [&'static str],
}

/// Where what a reactor does has its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acts {
    /// In the log alone: its events and its checkpoint commit together, so each event has its effect exactly once.
    InTheLog,
    /// Outside, too: a call to another system. Each event goes through the backlog to one of several workers, and has its
    /// effect at least once, so a call carries a key that is the same for all its attempts.
    Outside,
}

/// Takes events and answers with commands. Listed in a module.
pub trait Reactor: Send + Sync {
    /// Its name, unique in a program: lower-case letters, digits and hyphens. Its checkpoint is kept under it.
    fn name(&self) -> &'static str;

    /// The events that it takes.
    fn subscriptions(&self) -> &'static [Subscription];

    /// Where it begins in a store that does not know it.
    fn start_from(&self) -> StartFrom {
        StartFrom::Now
    }

    /// The name that it had in an earlier release.
    fn renamed_from(&self) -> Option<&'static str> {
        None
    }

    /// Where it has its effect.
    fn acts(&self) -> Acts {
        Acts::InTheLog
    }

    /// Type of the process whose deadlines it takes.
    fn process(&self) -> Option<&'static str> {
        None
    }

    /// Whether it is called again with the refusals of its commands. Otherwise a refusal is a failure.
    fn takes_refusals(&self) -> bool {
        false
    }

    /// What keeps events in order: an event waits while an earlier one of its key waits. The id of the event's aggregate
    /// where nothing else is said.
    fn key(&self, event: &RecordedEvent) -> CompactString {
        event.aggregate_id.clone()
    }

    /// What it does about an input. One that does not return within ten seconds ([`Acts::InTheLog`]) or a minute
    /// ([`Acts::Outside`]) has failed; one that panics, too.
    fn react<'a>(&'a self, input: &'a Input, scope: &'a mut Scope) -> BoxFuture<'a, Outcome>;

    /// The deadlines that a process with this id waits for, from its state: how they are made again from the log.
    fn deadlines_of<'a>(&'a self, id: &'a str, scope: &'a mut Scope) -> BoxFuture<'a, Result<Vec<Deadline>, Error>> {
        let _ = (id, scope);
        std::future::ready(Ok(Vec::new())).boxed()
    }
}

/// What a reactor reacts to.
#[derive(Debug, Clone)]
pub struct Input {
    /// Why it is called.
    pub cause: Cause,
    /// How often it has failed at this before.
    pub attempt: i64,
    /// The clock of the process that leads the reactor.
    pub now: Timestamp,
    /// Refusals of the commands that it gave when it was called before; see [`Reactor::takes_refusals`].
    pub refused: Vec<Refused>,
}

impl Input {
    /// The event, where one was recorded: always so for reactors that run no process.
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
    /// A deadline of its process is reached.
    Deadline(Deadline),
}

/// What a reactor does.
pub enum Outcome {
    /// The commands are carried out, all or none, and the input is done. Without a command, it is done.
    Done(Vec<Box<dyn AnyStep>>),
    /// It failed, and may succeed later: it is called again after a pause that grows, ten times at most.
    Retry(String),
    /// It failed, and only an operator can help: the events of this key wait.
    Park(String),
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        match error {
            Error::Stored(_) | Error::Unstorable(_) | Error::Refused(_) => Self::Park(error.to_string()),
            _ => Self::Retry(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for Outcome {
    fn from(error: serde_json::Error) -> Self {
        Self::Park(format!("the event cannot be read: {error}"))
    }
}

/// The payload of an event, without the event's name around it. A reactor reads the members that it needs, whatever else
/// is there.
///
/// # Errors
/// The payload is not of this form.
pub fn payload<T: DeserializeOwned>(event: &RecordedEvent) -> Result<T, serde_json::Error> {
    let mut tagged: HashMap<String, Box<RawValue>> = serde_json::from_str(&event.payload)?;
    let payload = tagged.remove(&*event.event_type).unwrap_or_default();
    serde_json::from_str(payload.get())
}

/// Whether a reactor takes an event. Events of an import of history have had their effects elsewhere.
pub(crate) fn takes(reactor: &dyn Reactor, event: &RecordedEvent) -> bool {
    let is_meant = |of: &Subscription| {
        of.aggregate_type == event.aggregate_type && (of.events.is_empty() || of.events.contains(&&*event.event_type))
    };
    reactor.subscriptions().iter().any(is_meant) && event.metadata_text(HISTORY) != Some("true")
}

/// Member of the metadata of events that were imported as history.
pub(crate) const HISTORY: &str = "history";

/// How the store gets to know a reactor.
pub fn registration(reactor: &dyn Reactor) -> Registration {
    Registration { name: reactor.name(), start_from: reactor.start_from(), renamed_from: reactor.renamed_from() }
}
