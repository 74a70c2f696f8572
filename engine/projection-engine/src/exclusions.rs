//! Events that a fold leaves out.

use std::collections::HashMap;

use event_store::event::RecordedEvent;
use kernel::stream::StreamId;

/// What a fold leaves out.
#[derive(Debug, Clone, Default)]
pub struct Exclusions {
    /// Streams, each from a position on.
    pub(crate) parked: HashMap<StreamId, i64>,
    /// Single events.
    pub(crate) discarded: Discarded,
}

/// Events that operators have decided to do without, by position, with their ids where those are known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Discarded(HashMap<i64, Option<String>>);

impl Discarded {
    /// Whether this event is one of them.
    pub fn holds(&self, event: &RecordedEvent) -> bool {
        self.0.get(&event.position).is_some_and(|id| id.as_ref().is_none_or(|id| *id == event.id()))
    }

    pub(crate) fn insert(&mut self, position: i64, id: Option<String>) {
        self.0.insert(position, id);
    }
}

impl Exclusions {
    /// Whether the event waits for an operator, or for one before it in its stream.
    pub fn parks(&self, event: &RecordedEvent) -> bool {
        if self.parked.is_empty() {
            return false;
        }
        let stream = event.stream();
        self.parked.get(&stream).is_some_and(|from| event.position >= *from)
    }

    /// Whether an operator has decided to do without it.
    pub fn discards(&self, event: &RecordedEvent) -> bool {
        self.discarded.holds(event)
    }
}
