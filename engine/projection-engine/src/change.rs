//! What a batch of events did, typed and without its type.

use std::any::Any;
use std::sync::Arc;

use event_store::table::{Table, Value};
use kernel::aggregate::Aggregate;

use crate::state::Versioned;

/// What a batch of events did to one aggregate.
pub struct Change<A> {
    /// The aggregate before the batch; `None` where the batch created it.
    pub before: Option<Arc<Versioned<A>>>,
    /// The aggregate after it.
    pub after: Arc<Versioned<A>>,
}

impl<A: Aggregate> Change<A> {
    /// `None` where the aggregate does not exist: a stream whose first event is missing or discarded is in no read model.
    pub fn of(before: Option<Arc<Versioned<A>>>, after: Arc<Versioned<A>>) -> Option<Self> {
        after.exists().then(|| Self { before: before.filter(|before| before.exists()), after })
    }
}

/// An event, decoded. Times are microseconds since 1970.
pub struct Decoded<A: Aggregate> {
    /// Id of the aggregate.
    pub id: compact_str::CompactString,
    /// The event.
    pub event: A::Event,
    /// Its place in its stream.
    pub sequence: i64,
    /// Its place in the log.
    pub position: i64,
    /// When it happened.
    pub occurred_at: i64,
}

/// Rows for one table; keys are distinct.
pub type Rows = (&'static Table, Vec<Vec<Value>>);

/// What of a batch is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Folds {
    /// The states of aggregates before and after it.
    pub state: bool,
    /// Its events, decoded.
    pub events: bool,
}

/// What a batch did to the aggregates of one kind.
pub struct Changes<A: Aggregate> {
    /// The aggregates that changed, where a projection needs their states.
    pub states: Vec<Change<A>>,
    /// The events in the order of the log, where a projection needs them.
    pub events: Vec<Decoded<A>>,
}

/// [`Changes`] without their type.
pub trait AnyChanges: Any + Send + Sync {
    /// For the downcast.
    fn as_any(&self) -> &dyn Any;
    /// Whether nothing changed.
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
