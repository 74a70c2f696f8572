//! Events that a fold excludes.

use std::collections::HashMap;

use event_store::event::RecordedEvent;
use kernel::stream::StreamId;

/// The parked streams and discarded events that a fold excludes.
#[derive(Debug, Clone, Default)]
pub struct Exclusions {
    /// The parked streams, each with the position from which its events are excluded.
    pub(crate) parked: HashMap<StreamId, i64>,
    /// The discarded events.
    pub(crate) discarded: Discarded,
}

/// Events that operators have discarded, by position, with the event id if it is known. The id guards against a log
/// that was restored and has another event at the same position.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Discarded(HashMap<i64, Option<String>>);

impl Discarded {
    /// Whether this event is discarded.
    pub fn holds(&self, event: &RecordedEvent) -> bool {
        self.0.get(&event.position).is_some_and(|id| id.as_ref().is_none_or(|id| *id == event.id()))
    }

    pub(crate) fn insert(&mut self, position: i64, id: Option<String>) {
        self.0.insert(position, id);
    }
}

impl Exclusions {
    /// Whether the event is in a parked stream, at or after the event at which the stream is parked.
    pub fn parks(&self, event: &RecordedEvent) -> bool {
        if self.parked.is_empty() {
            return false;
        }
        let stream = event.stream();
        self.parked.get(&stream).is_some_and(|from| event.position >= *from)
    }

    /// Whether an operator has discarded the event.
    pub fn discards(&self, event: &RecordedEvent) -> bool {
        self.discarded.holds(event)
    }
}
