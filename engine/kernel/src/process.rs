//! Process managers: aggregates that learn what happened elsewhere and answer with commands.

use jiff::Timestamp;

use crate::aggregate::{Aggregate, CommandType, Refusal, RefusalClass};
use crate::stream::StreamId;

/// A process manager: an aggregate with a stream of its own that reacts to events of other aggregates.
///
/// Everything is pure and synchronous. What one input leads to (events of its own, those of the commands that it gives,
/// and its deadlines) commits in one transaction, or not at all.
pub trait Process: Aggregate {
    /// What it learns, decoded from a recorded event.
    type Input: Send + Sync + 'static;
    /// A command that it gives to another aggregate; the reactor that runs the process turns it into a step.
    type Request: Send + Sync + 'static;

    /// Which process an input belongs to. It reads the input's payload only.
    fn correlate(input: &Self::Input) -> Correlation;

    /// What the process does about an input. Nothing is applied. An input that it has already taken gives nothing.
    fn react(&self, trigger: &Trigger<Self::Input>, now: Timestamp) -> Vec<Output<Self>>;

    /// The deadlines that are set in this state, each name once. They follow from the state alone, so the log can make
    /// them again. A deadline that is reached must lead to an event that ends it.
    fn deadlines(&self) -> Vec<Due> {
        Vec::new()
    }
}

/// The process that an input belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Correlation {
    /// The process with this id, which begins with this input where it does not exist.
    Start(String),
    /// The process with this id; an input to one that does not exist is ignored.
    Continue(String),
    /// None.
    Ignore,
}

/// Why a process reacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger<I> {
    /// It learned something.
    Input(I),
    /// One of its deadlines is reached; the name is that of [`Due`].
    Deadline(String),
    /// Commands that it gave because of the trigger before were refused, and nothing of what that trigger led to is written.
    /// A refusal of what it does now parks the input.
    Refused(Vec<Refused>),
}

/// A command that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The stream that it was for.
    pub stream: StreamId,
    /// The stable name of the rule.
    pub slug: String,
    /// The refusal in words.
    pub detail: String,
}

/// Something that a process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<P: Process> {
    /// An event of its own stream.
    Event(P::Event),
    /// A command to another aggregate.
    Request(P::Request),
}

/// A deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Its name within the process.
    pub name: String,
    /// When it is reached, never before.
    pub at: Timestamp,
}

/// The commands of a process that takes none: only its inputs move it. `decide` is `match *command {}`.
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

/// The refusal of a process that takes no commands: there is nothing for whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchProcess;

impl std::fmt::Display for NoSuchProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.title())
    }
}

impl std::error::Error for NoSuchProcess {}

impl Refusal for NoSuchProcess {
    fn not_found() -> Self {
        Self
    }

    fn slug(&self) -> &'static str {
        "process-not-found"
    }

    fn class(&self) -> RefusalClass {
        RefusalClass::NotFound
    }

    fn title(&self) -> &'static str {
        "There is no such process"
    }
}
