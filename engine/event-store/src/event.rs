//! Events in the form in which the log stores them: JSON with metadata, without business types.

use compact_str::CompactString;
use kernel::stream::StreamId;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::{ColumnIndex, Decode, FromRow, Row, Type};

/// An event to be appended.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event's name, e.g. `ItemAdded`. Part of the storage format: never rename it.
    pub event_type: &'static str,
    /// Version of the payload's schema.
    pub event_version: &'static str,
    /// JSON in the format of cqrs-es: tagged with the event's name.
    pub payload: String,
    /// JSON object whose values are strings: cqrs-es reads metadata as a map of strings.
    pub metadata: String,
}

/// An event in the log. Its short texts are stored inline, without an allocation for each.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedEvent {
    /// Position in the whole log: 1, 2, 3 … without gaps, in commit order.
    pub position: i64,
    /// Type of the aggregate, e.g. `order`.
    pub aggregate_type: CompactString,
    /// The aggregate's id.
    pub aggregate_id: CompactString,
    /// Number of the event in its stream: 1, 2, 3 …; also the aggregate's version after the event.
    pub sequence: i64,
    /// The event's name.
    pub event_type: CompactString,
    /// Version of the payload's schema.
    pub event_version: CompactString,
    /// JSON text, tagged with the event's name.
    pub payload: String,
    /// JSON text: an object whose values are strings.
    pub metadata: String,
    /// Time of the append, in microseconds since 1970.
    pub recorded_at: i64,
}

/// The member of the metadata that the log itself reads.
#[derive(Deserialize)]
struct Identity<'a> {
    #[serde(borrow, default)]
    event_id: Option<std::borrow::Cow<'a, str>>,
}

/// Reads the columns by index, in the order of the fields, as both databases select them.
impl<'r, R: Row> FromRow<'r, R> for RecordedEvent
where
    usize: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
        let text = |column: usize| row.try_get_unchecked::<&str, _>(column);
        Ok(Self {
            position: row.try_get(0)?,
            aggregate_type: text(1)?.into(),
            aggregate_id: text(2)?.into(),
            sequence: row.try_get(3)?,
            event_type: text(4)?.into(),
            event_version: text(5)?.into(),
            payload: text(6)?.to_owned(),
            metadata: text(7)?.to_owned(),
            recorded_at: row.try_get(8)?,
        })
    }
}

impl RecordedEvent {
    /// Returns the stream that the event belongs to.
    pub fn stream(&self) -> StreamId {
        StreamId::new(&self.aggregate_type, &self.aggregate_id)
    }

    /// Returns the event's id: `event_id` of its metadata. For an event that foreign code wrote without an `event_id`
    /// it is the natural key `TYPE/ID/SEQUENCE`. The id never changes. Docket's own ids are unique in a log; an
    /// `event_id` that foreign code wrote is not checked.
    pub fn id(&self) -> String {
        serde_json::from_str::<Identity>(&self.metadata)
            .ok()
            .and_then(|identity| identity.event_id.map(|id| id.into_owned()))
            .unwrap_or_else(|| format!("{}/{}/{}", self.aggregate_type, self.aggregate_id, self.sequence))
    }

    /// Returns a string member of the metadata. Only for values without JSON escapes: `request_id`, `traceparent`,
    /// `occurred_at`.
    pub fn metadata_text(&self, name: &str) -> Option<&str> {
        metadata_text(&self.metadata, name)
    }

    /// Serializes the event as a message for the bus.
    pub(crate) fn to_message(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Message {
            position: self.position,
            aggregate_type: (&*self.aggregate_type).into(),
            aggregate_id: (&*self.aggregate_id).into(),
            sequence: self.sequence,
            event_type: (&*self.event_type).into(),
            event_version: (&*self.event_version).into(),
            payload: serde_json::from_str(&self.payload)?,
            metadata: serde_json::from_str(&self.metadata)?,
            recorded_at: self.recorded_at,
        })
    }

    /// Deserializes the event from a message of the bus.
    pub(crate) fn from_message(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let message: Message = serde_json::from_slice(bytes)?;
        Ok(Self {
            position: message.position,
            aggregate_type: message.aggregate_type.into(),
            aggregate_id: message.aggregate_id.into(),
            sequence: message.sequence,
            event_type: message.event_type.into(),
            event_version: message.event_version.into(),
            payload: message.payload.get().to_owned(),
            metadata: message.metadata.get().to_owned(),
            recorded_at: message.recorded_at,
        })
    }
}

pub(crate) fn metadata_text<'a>(metadata: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = metadata;
    loop {
        let (before, after) = rest.split_once(name)?;
        rest = after;
        // PostgreSQL writes a space after the colon. The checks skip a value equal to the name, and longer names that
        // end with it.
        let value = rest.strip_prefix("\":").map(str::trim_start).and_then(|rest| rest.strip_prefix('"'));
        if let Some(value) = value.filter(|_| before.ends_with('"') && !before.ends_with("\\\"")) {
            return value.split('"').next();
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Message<'a> {
    position: i64,
    #[serde(borrow)]
    aggregate_type: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    aggregate_id: std::borrow::Cow<'a, str>,
    sequence: i64,
    #[serde(borrow)]
    event_type: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    event_version: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
    recorded_at: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(metadata: &str) -> RecordedEvent {
        RecordedEvent {
            position: 7,
            aggregate_type: "order".into(),
            aggregate_id: "a-1".into(),
            sequence: 2,
            event_type: "ItemAdded".into(),
            event_version: "1".into(),
            payload: r#"{"ItemAdded":{"name":"caf\u00e9 \"x\""}}"#.into(),
            metadata: metadata.into(),
            recorded_at: 1,
        }
    }

    #[test]
    fn a_message_carries_the_event_unchanged() {
        let event = event(r#"{"event_id":"e-1"}"#);
        assert_eq!(RecordedEvent::from_message(&event.to_message().unwrap()).unwrap(), event);
    }

    #[test]
    fn an_event_without_an_event_id_has_its_natural_key_as_id() {
        assert_eq!(event("{}").id(), "order/a-1/2");
        assert_eq!(event(r#"{"event_id":"e-1"}"#).id(), "e-1");
    }

    #[test]
    fn a_metadata_text_is_found_only_by_its_complete_name() {
        let metadata = r#"{"x_id": "1", "b": "id", "c": "\"id\": \"2\"", "idid":"3", "a\"id":"4","id": "5"}"#;
        assert_eq!(metadata_text(metadata, "id"), Some("5"));
        assert_eq!(metadata_text(metadata, "idid"), Some("3"));
        assert_eq!(metadata_text(metadata, "d"), None);
        assert_eq!(metadata_text(r#"{"id":7}"#, "id"), None);
    }
}
