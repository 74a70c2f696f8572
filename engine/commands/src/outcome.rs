//! The results of commands.

use platform::problem::Problem;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// The result of executed commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// The version of each aggregate after execution, in the order of the commands.
    pub versions: Vec<i64>,
    /// Position in the log that includes the changes. A query with this `min_position` sees them.
    pub position: i64,
}

/// The reason for which commands were not executed.
#[derive(Debug)]
pub enum Rejected {
    /// The command was refused or failed. The problem is the answer for the client.
    Problem(Problem),
    /// Another request used the idempotency key after it was looked up.
    KeyUsed,
}

impl From<Problem> for Rejected {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// How answers name the aggregates of a type.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// The member of an answer that holds the id, e.g. `counter_id`.
    pub id_field: &'static str,
    /// The path to which the id is appended in `Location`, e.g. `/v1/counters/`.
    pub path: &'static str,
}

/// The result of one accepted command. Serializes as `{"<id_field>", "version", "position"}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// How the answer names the aggregate.
    pub resource: &'static Resource,
    /// Id of the aggregate.
    pub id: String,
    /// Version of the aggregate after the command.
    pub version: i64,
    /// Position in the log that includes the change. A query with this `min_position` sees it.
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
