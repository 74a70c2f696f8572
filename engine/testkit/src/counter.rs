//! An aggregate that adds numbers.

use event_store::event::NewEvent;
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History, Refusal, RefusalClass, RefusalType};
use kernel::upcast::Upcaster;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The sum of a stream's numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counter {
    /// The sum.
    pub sum: i64,
    /// The note of the last event.
    pub note: String,
}

/// An event of a [`Counter`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum Counted {
    /// A number was added.
    Added {
        /// The number.
        by: i64,
        /// A text that tests use to single out an event.
        #[serde(default)]
        note: String,
    },
}

impl EventType for Counted {
    const VERSIONS: &'static [(&'static str, &'static str)] = &[("Added", "1")];

    fn name(&self) -> &'static str {
        "Added"
    }
}

/// Adds a number.
pub struct Add(pub i64);

impl CommandType for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn creates(&self) -> bool {
        true
    }
}

/// The sum would be negative.
#[derive(Debug, thiserror::Error)]
#[error("the sum would be negative")]
pub struct Negative;

impl Refusal for Negative {
    const TYPES: &'static [RefusalType] = &[RefusalType {
        slug: "negative",
        class: RefusalClass::Rule,
        title: "Negative sum",
        meaning: "The sum would be negative.",
    }];

    fn not_found() -> Self {
        Self
    }

    fn refusal_type(&self) -> &'static RefusalType {
        &Self::TYPES[0]
    }
}

impl Aggregate for Counter {
    const TYPE: &'static str = "counter";
    const STATE_VERSION: i64 = 1;
    const HISTORY: History = History::Bounded;
    const UPCASTERS: &'static [Upcaster] = &[];
    type Event = Counted;
    type Command = Add;
    type Error = Negative;

    fn decide(&self, Add(by): &Add) -> Result<Vec<Counted>, Negative> {
        if self.sum + by < 0 { Err(Negative) } else { Ok(vec![Counted::Added { by: *by, note: String::new() }]) }
    }

    fn evolve(&mut self, Counted::Added { by, note }: &Counted) {
        self.sum += by;
        self.note.clone_from(note);
    }

    fn access(&self) -> Access<'_> {
        Access::Staff
    }

    fn weight(&self) -> usize {
        size_of::<Self>() + self.note.len()
    }
}

/// An event that adds a number.
pub fn added(by: i64) -> NewEvent {
    noted(by, "")
}

/// An event that adds a number, with a note.
pub fn noted(by: i64, note: &str) -> NewEvent {
    event(json!({"Added": {"by": by, "note": note}}).to_string())
}

/// An event of a [`Counter`] whose payload does not decode.
pub fn undecodable() -> NewEvent {
    event(json!({"Added": {"by": "not a number"}}).to_string())
}

fn event(payload: String) -> NewEvent {
    let metadata = json!({"event_id": uuid::Uuid::now_v7().to_string()}).to_string();
    NewEvent { event_type: "Added", event_version: "1", payload, metadata }
}
