//! The id of an event stream.

use std::fmt;

use compact_str::CompactString;

use crate::id;

/// The id of an aggregate's stream: aggregate type and aggregate id. Aggregates of two types may have the same id;
/// their streams are separate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    /// Type of the aggregate, e.g. `counter`.
    pub aggregate_type: CompactString,
    /// Id of the aggregate, unique within its type.
    pub aggregate_id: CompactString,
}

impl StreamId {
    /// Creates the id of an aggregate's stream.
    pub fn new(aggregate_type: &str, aggregate_id: &str) -> Self {
        Self { aggregate_type: aggregate_type.into(), aggregate_id: aggregate_id.into() }
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.aggregate_type, self.aggregate_id)
    }
}

/// Whether an id is valid for an aggregate: see [`id::is_valid`], with at most [`id::CHARS_MAX`] characters. It becomes
/// part of URL paths, where it is percent-encoded, and of channel names.
pub fn is_id(id: &str) -> bool {
    id::is_valid(id, id::CHARS_MAX)
}
