//! The id of an event stream.

use std::fmt;

use compact_str::CompactString;

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

/// Whether an id has 1 to 64 characters of `A-Z a-z 0-9 _ -`. Every aggregate id must have this form, because it
/// becomes part of URL paths and channel names.
pub fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}
