//! The definition of a projection: typed for the author, with the aggregate type erased for the engine.
//!
//! Types are erased once per batch of events, not once per event.

use std::collections::HashMap;
use std::marker::PhantomData;

use event_store::event::RecordedEvent;
use event_store::store::Store;
use event_store::table::{Merge, Table, Value};
use kernel::aggregate::{Aggregate, EventType, History, Refusal, RefusalType};
use kernel::upcast::Upcasters;

use crate::change::{AnyChanges, Change, Changes, Decoded, Needs, Rows};
use crate::fold::{AggregateFold, AnyFold};

/// The pure function that turns a batch of events into rows.
pub enum Fold<A: Aggregate> {
    /// Computes rows from the states of the aggregates before and after the batch. Not allowed for aggregates with an
    /// unbounded history.
    OfState(fn(&[Change<A>]) -> Vec<Rows>),
    /// Computes rows from the events, in the order of the log. The values of a row are absolute: of several rows with
    /// the same key, only the last one is written.
    OfEvents(fn(&[&Decoded<A>]) -> Vec<Rows>),
}

/// A projection of one aggregate type into tables. Each table belongs to exactly one projection.
pub struct Projection<A: Aggregate> {
    /// Name of the projection, used by operators and in its checkpoint.
    pub name: &'static str,
    /// Version of `tables` and `fold`. Raise it with every change of a table or of the rows written to it. The server
    /// then builds a new generation beside the live one and switches to it.
    pub version: i64,
    /// Tables of the read model.
    pub tables: &'static [&'static Table],
    /// Computes the rows of a batch. They are merged into the tables column by column, as each column's `merge` says.
    pub fold: Fold<A>,
}

/// A [`Projection`] with the aggregate type erased. Only [`Projection`] implements it.
pub trait AnyProjection: Send + Sync {
    /// Returns [`Projection::name`].
    fn name(&self) -> &'static str;
    /// Returns [`Projection::version`].
    fn version(&self) -> i64;
    /// Returns [`Projection::tables`].
    fn tables(&self) -> &'static [&'static Table];
    /// Returns the aggregate type that the projection folds.
    fn aggregate(&self) -> &'static dyn AnyAggregate;
    /// Returns which parts of a batch the projection needs.
    fn needs(&self) -> Needs;
    /// Computes the rows of changes: all rows, or with `only` the rows of the aggregate with this id. Empty for changes
    /// of another aggregate type.
    ///
    /// # Panics
    /// The fold panics, or returns a row that does not match the columns of its table.
    fn rows(&self, changes: &dyn AnyChanges, only: Option<&str>) -> Vec<Rows>;
}

impl<A: Aggregate> AnyProjection for Projection<A> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> i64 {
        self.version
    }

    fn tables(&self) -> &'static [&'static Table] {
        self.tables
    }

    fn aggregate(&self) -> &'static dyn AnyAggregate {
        aggregate_type_of::<A>()
    }

    fn needs(&self) -> Needs {
        Needs { state: matches!(self.fold, Fold::OfState(_)), events: matches!(self.fold, Fold::OfEvents(_)) }
    }

    fn rows(&self, changes: &dyn AnyChanges, only: Option<&str>) -> Vec<Rows> {
        let Some(Changes { states, events }) = changes.as_any().downcast_ref::<Changes<A>>() else {
            return Vec::new();
        };
        let rows = match (&self.fold, only) {
            (Fold::OfState(fold), None) => fold(states),
            (Fold::OfState(fold), Some(id)) => {
                let own = states.iter().position(|change| change.after.id == id);
                own.map(|at| fold(&states[at..=at])).unwrap_or_default()
            }
            (Fold::OfEvents(fold), only) => {
                let own = events.iter().filter(|event| only.is_none_or(|id| event.id == id));
                fold(&own.collect::<Vec<_>>()).into_iter().map(last_of_each_key).collect()
            }
        };
        // Checked here because the errors of the databases are less clear, and SQLite would accept a text for a number.
        let fault = rows.iter().find_map(|(table, rows)| rows.iter().find_map(|row| table.row_error(row)));
        assert!(fault.is_none(), "the fold of {} returned an invalid row: {}", self.name, fault.unwrap_or_default());
        rows
    }
}

/// Keeps only the last of several rows with the same key.
fn last_of_each_key((table, rows): Rows) -> Rows {
    let keys: Vec<usize> =
        table.columns.iter().enumerate().filter(|(_, column)| column.merge == Merge::Key).map(|(at, _)| at).collect();
    let key = |row: &[Value]| keys.iter().map(|at| row[*at].clone()).collect::<Vec<_>>();
    let last: HashMap<Vec<Value>, usize> = rows.iter().enumerate().map(|(at, row)| (key(row), at)).collect();
    if last.len() == rows.len() {
        return (table, rows);
    }
    let kept = rows.into_iter().enumerate().filter(|(at, row)| last.get(&key(row)) == Some(at));
    (table, kept.map(|(_, row)| row).collect())
}

/// An aggregate type as a value, with its Rust type erased.
pub trait AnyAggregate: Send + Sync {
    /// Returns [`Aggregate::TYPE`].
    fn aggregate_type(&self) -> &'static str;
    /// Returns [`Aggregate::HISTORY`].
    fn history(&self) -> History;
    /// Returns [`EventType::VERSIONS`].
    fn events(&self) -> &'static [(&'static str, &'static str)];
    /// Returns the types of the refusals of its commands.
    fn refusals(&self) -> &'static [RefusalType];
    /// Returns [`Aggregate::UPCASTERS`].
    fn upcasters(&self) -> Upcasters;
    /// Returns why an event of this type cannot be decoded; `None` if it can.
    fn undecodable(&self, event: &RecordedEvent) -> Option<String>;
    /// Creates a fold with its own cache for about `aggregates_max` aggregates.
    fn new_fold(&self, store: Store, needs: Needs, aggregates_max: usize) -> Box<dyn AnyFold>;
}

struct AggregateType<A>(PhantomData<fn() -> A>);

/// Returns the aggregate type `A` as a value.
pub fn aggregate_type_of<A: Aggregate>() -> &'static dyn AnyAggregate {
    const { &AggregateType::<A>(PhantomData) }
}

impl<A: Aggregate> AnyAggregate for AggregateType<A> {
    fn aggregate_type(&self) -> &'static str {
        A::TYPE
    }

    fn history(&self) -> History {
        A::HISTORY
    }

    fn events(&self) -> &'static [(&'static str, &'static str)] {
        A::Event::VERSIONS
    }

    fn refusals(&self) -> &'static [RefusalType] {
        A::Error::TYPES
    }

    fn upcasters(&self) -> Upcasters {
        Upcasters::of(A::TYPE, A::UPCASTERS)
    }

    fn undecodable(&self, event: &RecordedEvent) -> Option<String> {
        serde_json::from_str::<A::Event>(&event.payload).err().map(|error| error.to_string())
    }

    fn new_fold(&self, store: Store, needs: Needs, aggregates_max: usize) -> Box<dyn AnyFold> {
        Box::new(AggregateFold::<A>::new(store, needs, aggregates_max))
    }
}

/// A callback for changes that are projected for the first time, for example to count them. Rebuilds and verification
/// do not call it.
pub struct Observer<A: Aggregate>(pub fn(&[Change<A>]));

/// An [`Observer`] with the aggregate type erased.
pub trait AnyObserver: Send + Sync {
    /// Calls the observer if the changes are of its aggregate type.
    fn observe(&self, changes: &dyn AnyChanges);
}

impl<A: Aggregate> AnyObserver for Observer<A> {
    fn observe(&self, changes: &dyn AnyChanges) {
        if let Some(changes) = changes.as_any().downcast_ref::<Changes<A>>() {
            (self.0)(&changes.states);
        }
    }
}
