//! Aggregates: state that follows from events alone, and the rules by which a command becomes events.

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::upcast::Upcaster;

/// A kind of aggregate. Its default is one that does not exist.
///
/// Everything is pure and synchronous: time, ids and answers from outside arrive in the command.
pub trait Aggregate: Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Its name in the log: lower-case letters, digits and hyphens, because it becomes part of NATS subjects. A storage
    /// format: it never changes.
    const TYPE: &'static str;
    /// Version of the serialized state. Raise it with every change of the state's shape or of `evolve`: a snapshot of
    /// another version is ignored.
    const STATE_VERSION: i64;
    /// How long its streams become.
    const HISTORY: History;
    /// Steps that bring stored events of older versions to the present one, oldest step first.
    const UPCASTERS: &'static [Upcaster];
    /// What happens to it.
    type Event: EventType;
    /// What can be asked of it.
    type Command: CommandType;
    /// Why a command is refused.
    type Error: Refusal;

    /// The events that a command makes of this state. They are not applied. A command that changes nothing succeeds
    /// without an event.
    ///
    /// # Errors
    /// The rule that refuses the command.
    fn decide(&self, command: &Self::Command) -> Result<Vec<Self::Event>, Self::Error>;

    /// Applies one event. It holds no rule and never fails, whatever the order of events: what is stored has happened.
    fn evolve(&mut self, event: &Self::Event);

    /// Who may know of it.
    fn access(&self) -> Access<'_>;

    /// About how many bytes it takes in memory, for caches.
    fn weight(&self) -> usize;
}

/// How long the streams of an aggregate become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// A stream ends: it is folded as a whole.
    Bounded,
    /// A stream goes on for years: it is never folded as a whole.
    Unbounded,
}

/// Who may know of an aggregate. To everybody else it is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access<'a> {
    /// Nobody: it does not exist.
    Absent,
    /// Its owner, by subject, and staff.
    Owner(&'a str),
    /// Staff.
    Staff,
}

/// The events of an aggregate: an enum, stored as JSON tagged by the event's name, `{"NAME": {…}}`.
pub trait EventType: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// Every event's name with the version that newly written ones carry. Names are a storage format and never change.
    const VERSIONS: &'static [(&'static str, &'static str)];

    /// The event's name.
    fn name(&self) -> &'static str;

    /// The version that it is written in.
    fn version(&self) -> &'static str {
        version_of::<Self>(self.name()).unwrap_or("1")
    }
}

/// The version in which events of a name are written; `None` where there is no such event.
pub fn version_of<E: EventType>(name: &str) -> Option<&'static str> {
    E::VERSIONS.iter().find(|(known, _)| *known == name).map(|(_, version)| *version)
}

/// The commands of an aggregate.
pub trait CommandType: Send + Sync + 'static {
    /// The command's name, for metrics and logs.
    fn name(&self) -> &'static str;

    /// Whether it begins an aggregate that does not exist.
    fn creates(&self) -> bool;
}

/// A business reason for which a command is refused; nothing was changed.
pub trait Refusal: std::error::Error + Send + Sync + 'static {
    /// The refusal of everybody who may not know of the aggregate, and of commands to one that does not exist.
    fn not_found() -> Self;

    /// The stable name of the rule, the last part of a problem's `type`.
    fn slug(&self) -> &'static str;

    /// Which kind of refusal it is.
    fn class(&self) -> RefusalClass;

    /// A short summary of the kind, without details: a problem's `title`.
    fn title(&self) -> &'static str;

    /// The fields of the command that are at fault: a JSON pointer and a reason each.
    fn pointers(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Kinds of refusal: each has one HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalClass {
    /// The aggregate is not there, or not for the caller: 404.
    NotFound,
    /// It exists, and the command would begin it: 409.
    Conflict,
    /// A rule refuses the command: 422.
    Rule,
}
