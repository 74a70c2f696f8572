//! Process managers: aggregates that receive events of other aggregates and respond with commands.

use jiff::Timestamp;

use crate::aggregate::{Aggregate, CommandType, Refusal, RefusalClass, RefusalType};
use crate::stream::StreamId;

/// A process manager: an aggregate with its own stream that reacts to events of other aggregates.
///
/// All methods are pure and synchronous. All effects of one input commit in one transaction, or none of them does: the
/// events of the process, the events of the commands that it sends, and its deadlines.
pub trait Process: Aggregate {
    /// The input of the process, decoded from a recorded event.
    type Input: Send + Sync + 'static;
    /// A command to another aggregate. The reactor that runs the process converts it to a step.
    type Request: Send + Sync + 'static;

    /// Returns the process that an input belongs to. It reads only the payload of the input.
    fn correlate(input: &Self::Input) -> Correlation;

    /// Returns the outputs of the process for a trigger, without applying them. An input that the process has already
    /// handled returns no output.
    fn react(&self, trigger: &Trigger<Self::Input>, now: Timestamp) -> Vec<Output<Self>>;

    /// Returns the deadlines that are set in this state; names are unique. They depend on the state alone, so they can
    /// be restored from the log. A reached deadline must result in an event that clears it.
    fn deadlines(&self) -> Vec<Due> {
        Vec::new()
    }
}

/// The process that an input belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Correlation {
    /// The process with this id. The input starts the process if it does not exist.
    Start(String),
    /// The process with this id. The input is ignored if the process does not exist.
    Continue(String),
    /// No process.
    Ignore,
}

/// The reason for which a process reacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger<I> {
    /// An input arrived.
    Input(I),
    /// A deadline of the process is reached. The value is the name in [`Due`].
    Deadline(String),
    /// Commands that resulted from the previous trigger were refused, and no effect of that trigger was written. If the
    /// commands that result from this trigger are refused too, the input is parked.
    Refused(Vec<Refused>),
}

/// A command that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Stream of the aggregate that refused the command.
    pub stream: StreamId,
    /// Stable name of the rule.
    pub slug: String,
    /// Message of the refusal.
    pub detail: String,
}

/// An output of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<P: Process> {
    /// An event for the stream of the process.
    Event(P::Event),
    /// A command to another aggregate.
    Request(P::Request),
}

/// A deadline of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Name of the deadline, unique within the process.
    pub name: String,
    /// Time of the deadline. The process is never triggered earlier.
    pub at: Timestamp,
}

/// The command type of a process that accepts no commands. Such a process implements `decide` as `match *command {}`.
#[derive(Debug, Clone, Copy)]
pub enum NoCommand {}

impl CommandType for NoCommand {
    fn name(&self) -> &'static str {
        match *self {}
    }

    fn creates(&self) -> bool {
        match *self {}
    }
}

/// The refusal of a process that accepts no commands. To callers, the process does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchProcess;

impl std::fmt::Display for NoSuchProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.refusal_type().title)
    }
}

impl std::error::Error for NoSuchProcess {}

impl Refusal for NoSuchProcess {
    const TYPES: &'static [RefusalType] = &[RefusalType {
        slug: "process-not-found",
        class: RefusalClass::NotFound,
        title: "Process not found",
        meaning: "The process does not exist. Processes accept no commands.",
    }];

    fn not_found() -> Self {
        Self
    }

    fn refusal_type(&self) -> &'static RefusalType {
        &Self::TYPES[0]
    }
}
