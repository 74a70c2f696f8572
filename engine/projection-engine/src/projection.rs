//! What a projection is: typed where it is written, without its type where the engine runs it.
//!
//! Types are erased once for a batch of events, never for each event.

use std::collections::HashMap;
use std::marker::PhantomData;

use event_store::event::RecordedEvent;
use event_store::store::Store;
use event_store::table::{Merge, Table, Value};
use kernel::aggregate::{Aggregate, EventType, History};
use kernel::upcast::Upcasters;

use crate::change::{AnyChanges, Change, Changes, Decoded, Folds, Rows};
use crate::fold::{AggregateFold, AnyFold};

/// How a batch of events becomes rows: a pure function.
pub enum Fold<A: Aggregate> {
    /// From the states of aggregates before and after the batch. Refused for aggregates with an unbounded history.
    OfState(fn(&[Change<A>]) -> Vec<Rows>),
    /// From the events, in the order of the log. A row's values are absolute: of several rows with one key the last one
    /// counts.
    OfEvents(fn(&[&Decoded<A>]) -> Vec<Rows>),
}

/// A read model of one kind of aggregate. Each table belongs to one projection.
pub struct Projection<A: Aggregate> {
    /// Its name, as operators use it and as its checkpoint is kept.
    pub name: &'static str,
    /// Version of what follows. Raise it with every change of a table or of what goes into it: the server then builds a new
    /// generation beside the old one and switches.
    pub version: i64,
    /// Its tables.
    pub tables: &'static [&'static Table],
    /// The rows that a batch leads to, merged into the tables column by column.
    pub fold: Fold<A>,
}

/// A projection without its type. Implemented by [`Projection`] only.
pub trait AnyProjection: Send + Sync {
    /// See [`Projection::name`].
    fn name(&self) -> &'static str;
    /// See [`Projection::version`].
    fn version(&self) -> i64;
    /// See [`Projection::tables`].
    fn tables(&self) -> &'static [&'static Table];
    /// The kind of aggregate that it folds.
    fn aggregate(&self) -> &'static dyn AnyAggregate;
    /// What it needs folded.
    fn needs(&self) -> Folds;
    /// The rows that changes lead to: all of them, or those of one aggregate. Empty for changes of another kind.
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
        kind_of::<A>()
    }

    fn needs(&self) -> Folds {
        Folds { state: matches!(self.fold, Fold::OfState(_)), events: matches!(self.fold, Fold::OfEvents(_)) }
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
        // The databases would say less, and SQLite would take a text for a number.
        let fault = rows.iter().find_map(|(table, rows)| rows.iter().find_map(|row| table.fault(row)));
        assert!(fault.is_none(), "the fold of {}: {}", self.name, fault.unwrap_or_default());
        rows
    }
}

/// Of several rows with one key, the last.
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

/// A kind of aggregate without its type.
pub trait AnyAggregate: Send + Sync {
    /// See [`Aggregate::TYPE`].
    fn aggregate_type(&self) -> &'static str;
    /// See [`Aggregate::HISTORY`].
    fn history(&self) -> History;
    /// See [`EventType::VERSIONS`].
    fn events(&self) -> &'static [(&'static str, &'static str)];
    /// See [`Aggregate::UPCASTERS`].
    fn upcasters(&self) -> Upcasters;
    /// Why an event of it cannot be decoded, if it cannot.
    fn undecodable(&self, event: &RecordedEvent) -> Option<String>;
    /// A fold with a cache of its own, for at most so many aggregates.
    fn new_fold(&self, store: Store, folds: Folds, aggregates_max: usize) -> Box<dyn AnyFold>;
}

struct Kind<A>(PhantomData<fn() -> A>);

/// A kind of aggregate as a value.
pub fn kind_of<A: Aggregate>() -> &'static dyn AnyAggregate {
    const { &Kind::<A>(PhantomData) }
}

impl<A: Aggregate> AnyAggregate for Kind<A> {
    fn aggregate_type(&self) -> &'static str {
        A::TYPE
    }

    fn history(&self) -> History {
        A::HISTORY
    }

    fn events(&self) -> &'static [(&'static str, &'static str)] {
        A::Event::VERSIONS
    }

    fn upcasters(&self) -> Upcasters {
        Upcasters::of(A::TYPE, A::UPCASTERS)
    }

    fn undecodable(&self, event: &RecordedEvent) -> Option<String> {
        serde_json::from_str::<A::Event>(&event.payload).err().map(|error| error.to_string())
    }

    fn new_fold(&self, store: Store, folds: Folds, aggregates_max: usize) -> Box<dyn AnyFold> {
        Box::new(AggregateFold::<A>::new(store, folds, aggregates_max))
    }
}

/// Called with what was projected for the first time, e.g. to count it. Not called in a rebuild or a verification.
pub struct Observer<A: Aggregate>(pub fn(&[Change<A>]));

/// An [`Observer`] without its type.
pub trait AnyObserver: Send + Sync {
    /// Calls it, if the changes are of its kind.
    fn observe(&self, changes: &dyn AnyChanges);
}

impl<A: Aggregate> AnyObserver for Observer<A> {
    fn observe(&self, changes: &dyn AnyChanges) {
        if let Some(changes) = changes.as_any().downcast_ref::<Changes<A>>() {
            (self.0)(&changes.states);
        }
    }
}
