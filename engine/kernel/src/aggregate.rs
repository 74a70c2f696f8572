//! Aggregates: state that is derived from events alone, and the rules that turn a command into events.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::upcast::Upcaster;

/// A type of aggregate. The default value is the state of an aggregate that does not exist.
///
/// All methods are pure and synchronous. The current time, new ids and results of external calls must be part of the
/// command.
pub trait Aggregate: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Name of the type in the log: lower-case letters, digits and hyphens, because it becomes part of NATS subjects.
    /// The name is stored with every event, so it must never change.
    const TYPE: &'static str;
    /// Version of the serialized state. Increase it with every change to the state's shape or to `evolve`: snapshots of
    /// other versions are ignored.
    const STATE_VERSION: i64;
    /// Whether the streams of this type stay short.
    const HISTORY: History;
    /// Upcasters that convert stored events of older versions to the current version, oldest step first.
    const UPCASTERS: &'static [Upcaster];
    /// The events of the aggregate.
    type Event: EventType;
    /// The commands that the aggregate accepts.
    type Command: CommandType;
    /// The reasons for which a command is refused.
    type Error: Refusal;

    /// Returns the events that result from a command in this state, without applying them. A command that changes
    /// nothing returns no events.
    ///
    /// # Errors
    /// Returns the rule that refuses the command.
    fn decide(&self, command: &Self::Command) -> Result<Vec<Self::Event>, Self::Error>;

    /// Applies one event to the state. It checks no rules and must not fail, whatever the order of events: a stored
    /// event is a fact.
    fn evolve(&mut self, event: &Self::Event);

    /// Returns who may see the aggregate.
    fn access(&self) -> Access<'_>;

    /// Returns the approximate size of the state in memory, in bytes. Caches use it.
    fn weight(&self) -> usize;
}

/// Whether the streams of an aggregate type stay short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// A stream has an end. Whole streams may be folded.
    Bounded,
    /// A stream grows for years. It is never folded as a whole.
    Unbounded,
}

/// Who may see an aggregate. For all other callers the aggregate does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access<'a> {
    /// Nobody: the aggregate does not exist.
    Absent,
    /// The owner, given by token subject, and staff.
    Owner(&'a str),
    /// Staff only.
    Staff,
}

/// The event type of an aggregate: an enum that is stored as externally tagged JSON, `{"NAME": {…}}`.
pub trait EventType: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// Name and current version of every event. New events are written in this version. Names are stored, so they must
    /// never change.
    const VERSIONS: &'static [(&'static str, &'static str)];

    /// Returns the name of the event.
    fn name(&self) -> &'static str;

    /// Returns the version in which the event is written.
    fn version(&self) -> &'static str {
        version_of::<Self>(self.name()).unwrap_or("1")
    }
}

/// Returns the version in which events with this name are written; `None` if `E` has no such event.
pub fn version_of<E: EventType>(name: &str) -> Option<&'static str> {
    E::VERSIONS.iter().find(|(known, _)| *known == name).map(|(_, version)| *version)
}

/// The command type of an aggregate.
pub trait CommandType: Send + Sync + 'static {
    /// Returns the name of the command, for metrics and logs.
    fn name(&self) -> &'static str;

    /// Whether the command creates the aggregate.
    fn creates(&self) -> bool;
}

/// A business reason for which a command is refused. A refused command changes nothing.
pub trait Refusal: std::error::Error + Send + Sync + 'static {
    /// Every type that [`Self::refusal_type`] returns. `/problems` lists them.
    const TYPES: &'static [RefusalType];

    /// Returns the refusal for callers that may not see the aggregate, and for commands to an aggregate that does not
    /// exist.
    fn not_found() -> Self;

    /// Returns the rule that refuses the command, one of [`Self::TYPES`].
    fn refusal_type(&self) -> &'static RefusalType;

    /// Returns the invalid fields of the command, each as a JSON pointer and a reason.
    fn pointers(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// A rule that refuses commands, as clients see it. It is the same at every occurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusalType {
    /// Stable name of the rule: the last part of a problem's `type`.
    pub slug: &'static str,
    /// Class of the refusal, which decides the HTTP status.
    pub class: RefusalClass,
    /// Short summary of the rule without details: a problem's `title`.
    pub title: &'static str,
    /// What the rule is and what the client can do, in sentences.
    pub meaning: &'static str,
}

/// Classes of refusals. Each class has one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalClass {
    /// The aggregate does not exist, or the caller may not see it: 404.
    NotFound,
    /// The command would create an aggregate that already exists: 409.
    Conflict,
    /// A rule refuses the command: 422.
    Rule,
}
