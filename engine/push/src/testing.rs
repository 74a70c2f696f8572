//! Shared test fixtures: a counter aggregate with a publisher, as a context would define them.

use std::collections::VecDeque;
use std::sync::Arc;

use event_store::event::RecordedEvent;
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History, Refusal, RefusalClass, RefusalType};
use kernel::upcast::Upcaster;
use projection_engine::registry::CORE;
use projection_engine::state::Versioned;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::hub::Kind;
use crate::publication::{Interest, Json, Publication, Step};
use crate::publisher::{AnyPublisher, Publisher};

pub(crate) const ONE: Kind = Kind { name: "counter:", group: CORE };
pub(crate) const ALL: Kind = Kind { name: "counters", group: CORE };
pub(crate) const OWNED: Kind = Kind { name: "owner:", group: CORE };
/// A channel of a second checkpoint group, as an external module would define it.
pub(crate) const OTHER: Kind = Kind { name: "points", group: "loyalty" };

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Counter {
    exists: bool,
    total: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Event {
    Added {
        by: i64,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        note: String,
    },
}

impl EventType for Event {
    const VERSIONS: &'static [(&'static str, &'static str)] = &[("Added", "1")];

    fn name(&self) -> &'static str {
        "Added"
    }
}

pub(crate) struct Command;

impl CommandType for Command {
    fn name(&self) -> &'static str {
        "add"
    }

    fn creates(&self) -> bool {
        true
    }
}

#[derive(Debug, thiserror::Error)]
#[error("refused")]
pub(crate) struct Refused;

impl Refusal for Refused {
    const TYPES: &'static [RefusalType] = &[RefusalType {
        slug: "refused",
        class: RefusalClass::Rule,
        title: "Refused",
        meaning: "The aggregate refuses every command.",
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
    type Event = Event;
    type Command = Command;
    type Error = Refused;

    fn decide(&self, _: &Command) -> Result<Vec<Event>, Refused> {
        Err(Refused)
    }

    fn evolve(&mut self, Event::Added { by, .. }: &Event) {
        self.exists = true;
        self.total += by;
    }

    fn access(&self) -> Access<'_> {
        if self.exists { Access::Owner("ada") } else { Access::Absent }
    }

    fn weight(&self) -> usize {
        16
    }
}

pub(crate) static PUBLISHER: Publisher<Counter> = Publisher {
    group: CORE,
    id_member: "counter_id",
    interest: Interest { names: &["counters"], by_stream: &["counter:"], by_prefix: &["owner:"] },
    view,
    publish,
};

fn view(counter: &Versioned<Counter>, json: &mut Json) {
    assert_ne!(counter.id, "panics", "a faulty view function");
    json.write(&json!({"id": &*counter.id, "total": counter.state.total}));
}

fn publish(step: &Step<'_, Counter>) -> Option<Publication> {
    let Event::Added { by, note } = step.event;
    assert_ne!(*by, 666, "a faulty publisher");
    let payload = if note.is_empty() { json!({"by": by}) } else { json!({"by": by, "note": note}) };
    let own = step.publication(payload).on_stream_channel(format!("counter:{}", step.after.id));
    Some(own.on("owner:ada").on("counters"))
}

pub(crate) fn added(id: &str, sequence: i64, position: i64, by: i64) -> RecordedEvent {
    noted(id, sequence, position, by, "")
}

pub(crate) fn noted(id: &str, sequence: i64, position: i64, by: i64, note: &str) -> RecordedEvent {
    let payload = json!({"Added": {"by": by, "note": note}});
    RecordedEvent {
        position,
        aggregate_type: "counter".into(),
        aggregate_id: id.into(),
        sequence,
        event_type: "Added".into(),
        event_version: "1".into(),
        payload: payload.to_string(),
        metadata: "{}".into(),
        recorded_at: 1,
    }
}

/// Returns the publication of the last of some events of a stream.
pub(crate) fn publication_of(events: &[RecordedEvent]) -> Arc<Publication> {
    let (mut fold, mut out) = (PUBLISHER.live(1 << 20), VecDeque::new());
    fold.prepare(events);
    assert_eq!(fold.fold(events, usize::MAX, &mut out), events.len());
    out.pop_back().expect("a publication")
}

/// Returns the publication of a stream's first event.
pub(crate) fn created(id: &str, position: i64) -> Arc<Publication> {
    publication_of(&[added(id, 1, position, 1)])
}

/// Returns the publication of a stream's first event, with a payload text of `bytes` bytes.
pub(crate) fn large(id: &str, position: i64, bytes: usize) -> Arc<Publication> {
    publication_of(&[noted(id, 1, position, 1, &"x".repeat(bytes))])
}
