//! An aggregate as its recorded events leave it: what every read model and every publication starts from.

use std::sync::Arc;

use compact_str::CompactString;
use event_store::event::RecordedEvent;
use jiff::Timestamp;
use kernel::aggregate::{Access, Aggregate};
use kernel::stream::StreamId;
use quick_cache::Weighter;

/// An event that does not decode, or does not follow from the state that it meets.
#[derive(Debug, Clone, thiserror::Error)]
#[error("event {position} ({event_type} of {stream}): {reason}")]
pub struct FoldError {
    /// Position of the event.
    pub position: i64,
    /// Its name.
    pub event_type: Box<str>,
    /// Its stream.
    pub stream: StreamId,
    /// Its place in the stream.
    pub sequence: i64,
    /// Its id.
    pub event_id: Box<str>,
    /// Why.
    pub reason: Box<str>,
}

impl FoldError {
    /// The event at fault, and why.
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

/// An aggregate at a version, with what the metadata of its events adds. Times are microseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Versioned<A> {
    /// Id of the aggregate; empty as long as no event is applied.
    pub id: CompactString,
    /// Its state.
    pub state: A,
    /// When its first event happened.
    pub created_at: i64,
    /// When its last event happened.
    pub updated_at: i64,
    /// Sequence of its last event.
    pub version: i64,
    /// Position of its last event.
    pub position: i64,
}

impl<A: Aggregate> Versioned<A> {
    /// Applies the next event of the stream, and gives it decoded.
    ///
    /// # Errors
    /// The payload does not decode, or the event is not the next one of its stream.
    pub fn apply(&mut self, recorded: &RecordedEvent) -> Result<A::Event, FoldError> {
        let failed = |reason: String| FoldError::new(recorded, reason);
        if recorded.sequence != self.version + 1 {
            let follows = format!("sequence {} follows {}", recorded.sequence, self.version);
            return Err(failed(match recorded.sequence > self.version + 1 {
                true => format!("{follows}: what was between is not in the log; a backup may have it"),
                false => follows,
            }));
        }
        if recorded.position <= self.position {
            return Err(failed(format!("its position is not behind {}, that of the event before it", self.position)));
        }
        let event: A::Event = serde_json::from_str(&recorded.payload).map_err(|error| failed(error.to_string()))?;
        let at = occurred_at(recorded);
        if !self.exists() {
            self.id.clone_from(&recorded.aggregate_id);
            self.created_at = at;
        }
        self.state.evolve(&event);
        self.updated_at = at;
        self.version = recorded.sequence;
        self.position = recorded.position;
        Ok(event)
    }

    /// Passes over an event that an operator has discarded.
    pub fn skip(&mut self, recorded: &RecordedEvent) {
        self.id.clone_from(&recorded.aggregate_id);
        self.version = recorded.sequence;
        self.position = recorded.position;
    }

    /// Whether the aggregate exists: a stream whose first event is missing or discarded makes none.
    pub fn exists(&self) -> bool {
        self.state.access() != Access::Absent
    }
}

/// When an event happened, in microseconds since 1970: as its metadata say, or, where foreign code wrote none, when the
/// log took it.
pub fn occurred_at(event: &RecordedEvent) -> i64 {
    event
        .metadata_text("occurred_at")
        .and_then(|text| text.parse::<Timestamp>().ok())
        .map_or(event.recorded_at, Timestamp::as_microsecond)
}

/// Microseconds since 1970 as RFC 3339, UTC.
pub fn rfc3339(us: i64) -> String {
    Timestamp::from_microsecond(us).unwrap_or_default().to_string()
}

/// Bytes for which a cache has room for each aggregate that it may hold.
pub const BYTES_PER_AGGREGATE: u64 = 4_096;

/// Weighs aggregates in a cache by bytes: a large one takes the place of several.
#[derive(Debug, Clone, Copy)]
pub struct ByWeight;

impl<A: Aggregate> Weighter<CompactString, Arc<Versioned<A>>> for ByWeight {
    fn weight(&self, _: &CompactString, versioned: &Arc<Versioned<A>>) -> u64 {
        (versioned.state.weight() as u64).max(BYTES_PER_AGGREGATE)
    }
}
