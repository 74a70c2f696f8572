//! The bulk commands of a context.

use axum::http::StatusCode;
use kernel::aggregate::Aggregate;
use platform::auth::Principal;
use platform::problem::Problem;
use serde_json::{Map, Value};

use crate::outcome::Resource;
use crate::step::{AnyStep, Step};

/// Creates a command from the `type` of a line, its other members, and its sender. A problem names every wrong member.
type Parse = fn(&str, Map<String, Value>, &Principal) -> Result<Line, Problem>;

/// The commands of a context that clients may send in bulk.
#[derive(Clone, Copy)]
pub struct BulkLines {
    /// The values of `type`, in the order in which errors list them.
    pub types: &'static [&'static str],
    /// Creates a command from a line.
    pub parse: Parse,
}

/// A command that was sent as a line.
pub struct Line {
    pub(crate) step: Box<dyn AnyStep>,
    pub(crate) id: String,
    pub(crate) resource: &'static Resource,
    pub(crate) status: StatusCode,
    /// A subject that must not be banned, and the refusal when it is.
    pub(crate) unless_banned: Option<(String, fn() -> Problem)>,
    /// Whether the result says when an aggregate that existed before was created.
    pub(crate) reports_creation: bool,
}

impl Line {
    /// Creates a command to the aggregate with this id. `status` is the HTTP status of a success. A command with the
    /// status 201 that finds its aggregate there has 200.
    pub fn new<A: Aggregate>(
        resource: &'static Resource,
        status: StatusCode,
        id: impl Into<String>,
        command: A::Command,
    ) -> Self {
        let id = id.into();
        Self {
            step: Step::<A>::new(id.clone(), command),
            id,
            resource,
            status,
            unless_banned: None,
            reports_creation: false,
        }
    }

    /// Refuses the command with `problem` while a subject is banned, unless the command is history.
    #[must_use]
    pub fn unless_banned(mut self, subject: impl Into<String>, problem: fn() -> Problem) -> Self {
        self.unless_banned = Some((subject.into(), problem));
        self
    }

    /// Adds `created_at` to the result when the aggregate existed before: a client that compares its own records with
    /// aggregates can then compare the time, which is not part of a state.
    #[must_use]
    pub fn reporting_creation(mut self) -> Self {
        self.reports_creation = true;
        self
    }
}
