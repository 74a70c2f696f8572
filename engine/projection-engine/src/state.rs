//! An aggregate's state after its recorded events: the input of every projection and every publication.

use std::sync::Arc;

use compact_str::CompactString;
use event_store::event::RecordedEvent;
use jiff::Timestamp;
use kernel::aggregate::{Access, Aggregate};
use kernel::stream::StreamId;
use quick_cache::Weighter;

/// An event that cannot be decoded, or that is not the next event of its stream.
#[derive(Debug, Clone, thiserror::Error)]
#[error("event {position} ({event_type} of stream {stream}) cannot be applied: {reason}")]
pub struct FoldError {
    /// Position of the event.
    pub position: i64,
    /// Name of the event.
    pub event_type: Box<str>,
    /// Stream of the event.
    pub stream: StreamId,
    /// Sequence of the event in its stream.
    pub sequence: i64,
    /// Id of the event; empty if it is unknown.
    pub event_id: Box<str>,
    /// Why the event cannot be applied.
    pub reason: Box<str>,
}

impl FoldError {
    /// Returns an error about `event`.
    pub fn new(event: &RecordedEvent, reason: String) -> Self {
        Self {
            position: event.position,
            event_type: (&*event.event_type).into(),
            stream: event.stream(),
            sequence: event.sequence,
            event_id: event.id().into(),
            reason: reason.into(),
        }
    }
}

/// An aggregate's state at a version, with the times and the position of its events. Times are in microseconds since
/// 1970.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Versioned<A> {
    /// Id of the aggregate; empty until an event is applied or skipped.
    pub id: CompactString,
    /// State of the aggregate.
    pub state: A,
    /// Time of its first event.
    pub created_at: i64,
    /// Time of its last event.
    pub updated_at: i64,
    /// Sequence of the last event that was applied or skipped.
    pub version: i64,
    /// Position of the last event that was applied or skipped.
    pub position: i64,
    /// Whether an event was applied.
    is_begun: bool,
}

impl<A: Aggregate> Versioned<A> {
    /// Applies the next event of the stream and returns the decoded event.
    ///
    /// # Errors
    /// The payload cannot be decoded, or the event is not the next one of its stream.
    pub fn apply(&mut self, recorded: &RecordedEvent) -> Result<A::Event, FoldError> {
        let failed = |reason: String| FoldError::new(recorded, reason);
        if recorded.sequence != self.version + 1 {
            let follows = format!("sequence {} follows sequence {}", recorded.sequence, self.version);
            return Err(failed(match recorded.sequence > self.version + 1 {
                true => format!("{follows}: the log lacks the events between them; a backup may contain them"),
                false => follows,
            }));
        }
        if recorded.position <= self.position {
            return Err(failed(format!(
                "its position is not greater than {}, the position of the previous event",
                self.position
            )));
        }
        let event: A::Event = serde_json::from_str(&recorded.payload).map_err(|error| failed(error.to_string()))?;
        let at = occurred_at(recorded);
        if self.version == 0 {
            self.id.clone_from(&recorded.aggregate_id);
        }
        // An aggregate without an owner may exist before its first event.
        if !self.is_begun || !self.exists() {
            self.created_at = at;
        }
        self.is_begun = true;
        self.state.evolve(&event);
        self.updated_at = at;
        self.version = recorded.sequence;
        self.position = recorded.position;
        Ok(event)
    }

    /// Skips an event that an operator has discarded: the version and the position advance, the state stays the same.
    pub fn skip(&mut self, recorded: &RecordedEvent) {
        self.id.clone_from(&recorded.aggregate_id);
        self.version = recorded.sequence;
        self.position = recorded.position;
    }

    /// Whether the aggregate exists. A stream whose first event is missing or discarded has no aggregate.
    pub fn exists(&self) -> bool {
        self.state.access() != Access::Absent
    }
}

/// Returns when an event happened, in microseconds since 1970: `occurred_at` of its metadata, or the time of its
/// recording when the metadata has no valid `occurred_at`, because other code wrote the event.
pub fn occurred_at(event: &RecordedEvent) -> i64 {
    event
        .metadata_text("occurred_at")
        .and_then(|text| text.parse::<Timestamp>().ok())
        .map_or(event.recorded_at, Timestamp::as_microsecond)
}

/// Formats microseconds since 1970 as RFC 3339 in UTC.
pub fn rfc3339(us: i64) -> String {
    Timestamp::from_microsecond(us).unwrap_or_default().to_string()
}

/// Bytes of cache capacity per aggregate, and the least weight of an aggregate in a cache.
pub const BYTES_PER_AGGREGATE: u64 = 4_096;

/// Weighs aggregates in a cache by their size in bytes, so that a large aggregate uses the space of several small ones.
#[derive(Debug, Clone, Copy)]
pub struct ByWeight;

impl<A: Aggregate> Weighter<CompactString, Arc<Versioned<A>>> for ByWeight {
    fn weight(&self, _: &CompactString, versioned: &Arc<Versioned<A>>) -> u64 {
        (versioned.state.weight() as u64).max(BYTES_PER_AGGREGATE)
    }
}
