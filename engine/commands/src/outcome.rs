//! What became of commands.

use platform::problem::Problem;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// What commands led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// The version of each aggregate now, in the order of the commands.
    pub versions: Vec<i64>,
    /// Position in the log that has the changes: a query with `min_position` sees them.
    pub position: i64,
}

/// Why commands were not carried out.
#[derive(Debug)]
pub enum Rejected {
    /// An answer for the client.
    Problem(Problem),
    /// The idempotency key has been used since it was looked up.
    KeyUsed,
}

impl From<Problem> for Rejected {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// How answers name the aggregates of a kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// The member of an answer that holds the id, e.g. `counter_id`.
    pub id_field: &'static str,
    /// The path that the id is added to in `Location`, e.g. `/v1/counters/`.
    pub path: &'static str,
}

/// What a command led to: `{"<id_field>", "version", "position"}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// How the aggregate is named.
    pub resource: &'static Resource,
    /// Its id.
    pub id: String,
    /// Its version now.
    pub version: i64,
    /// Position in the log that has the change: a query with `min_position` sees it.
    pub position: i64,
}

impl Serialize for Accepted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(Some(3))?;
        members.serialize_entry(self.resource.id_field, &self.id)?;
        members.serialize_entry("version", &self.version)?;
        members.serialize_entry("position", &self.position)?;
        members.end()
    }
}
