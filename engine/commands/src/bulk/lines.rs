//! What the lines of a context mean.

use axum::http::StatusCode;
use kernel::aggregate::Aggregate;
use platform::auth::Principal;
use platform::problem::Problem;
use serde_json::{Map, Value};

use crate::outcome::Resource;
use crate::step::{AnyStep, Step};

/// Makes a command of a line: its `type`, its other fields, and who sends it; a problem names every field that is wrong.
type Parse = fn(&str, Map<String, Value>, &Principal) -> Result<Line, Problem>;

/// The commands of a context that may come in bulk.
#[derive(Clone, Copy)]
pub struct BulkLines {
    /// The values of `type`, in the order in which errors list them.
    pub types: &'static [&'static str],
    /// Makes a command of a line.
    pub parse: Parse,
}

/// A line as a command.
pub struct Line {
    pub(crate) step: Box<dyn AnyStep>,
    pub(crate) id: String,
    pub(crate) resource: &'static Resource,
    pub(crate) status: StatusCode,
}

impl Line {
    /// A command to the aggregate with an id. `status` is that of a success.
    pub fn new<A: Aggregate>(
        resource: &'static Resource,
        status: StatusCode,
        id: impl Into<String>,
        command: A::Command,
    ) -> Self {
        let id = id.into();
        Self { step: Step::<A>::new(id.clone(), command), id, resource, status }
    }
}
