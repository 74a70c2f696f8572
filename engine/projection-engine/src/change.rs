//! The changes that a batch of events makes to aggregates: typed, and with the type erased.

use std::any::Any;
use std::sync::Arc;

use event_store::table::{Table, Value};
use kernel::aggregate::Aggregate;

use crate::state::Versioned;

/// The change that a batch of events makes to one aggregate.
pub struct Change<A> {
    /// The aggregate before the batch; `None` when the batch created it.
    pub before: Option<Arc<Versioned<A>>>,
    /// The aggregate after the batch.
    pub after: Arc<Versioned<A>>,
}

impl<A: Aggregate> Change<A> {
    /// Returns the change, or `None` when the aggregate does not exist after the batch: a stream whose first event is
    /// missing or discarded is in no read model.
    pub fn of(before: Option<Arc<Versioned<A>>>, after: Arc<Versioned<A>>) -> Option<Self> {
        after.exists().then(|| Self { before: before.filter(|before| before.exists()), after })
    }
}

/// A decoded event.
pub struct Decoded<A: Aggregate> {
    /// Id of the event's aggregate.
    pub id: compact_str::CompactString,
    /// The decoded payload.
    pub event: A::Event,
    /// Its sequence in the stream of its aggregate, starting at 1.
    pub sequence: i64,
    /// Its position in the log.
    pub position: i64,
    /// When it happened, in microseconds since 1970.
    pub occurred_at: i64,
}

/// Rows for one table, with distinct primary keys.
pub type Rows = (&'static Table, Vec<Vec<Value>>);

/// Which parts of a batch a projection needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Whether it needs the states of the aggregates before and after the batch.
    pub state: bool,
    /// Whether it needs the decoded events.
    pub events: bool,
}

/// The changes that a batch makes to the aggregates of one type.
pub struct Changes<A: Aggregate> {
    /// The changed aggregates; empty when no projection needs their states.
    pub states: Vec<Change<A>>,
    /// The events in the order of the log; empty when no projection needs them.
    pub events: Vec<Decoded<A>>,
}

/// [`Changes`] with the aggregate type erased.
pub trait AnyChanges: Any + Send + Sync {
    /// Returns the changes for a downcast to [`Changes`].
    fn as_any(&self) -> &dyn Any;
    /// Whether there are no changed aggregates and no events.
    fn is_empty(&self) -> bool;
}

impl<A: Aggregate> AnyChanges for Changes<A> {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn is_empty(&self) -> bool {
        self.states.is_empty() && self.events.is_empty()
    }
}
