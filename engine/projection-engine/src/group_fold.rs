//! From events to changes of every kind of aggregate of a group, for the pump, the rebuild and the verification alike.

use std::panic::{AssertUnwindSafe, catch_unwind};

use event_store::error::Error as StoreError;
use event_store::event::RecordedEvent;
use event_store::store::Store;
use kernel::stream::StreamId;

use crate::change::{AnyChanges, Folds, Rows};
use crate::error::{Error, panic_text};
use crate::exclusions::Exclusions;
use crate::fold::{AnyFold, Partial};
use crate::projection::AnyProjection;
use crate::registry::{CORE, Group};
use crate::state::FoldError;

/// Folds the batches of a group, which follow each other.
pub(crate) struct GroupFold {
    folds: Vec<Box<dyn AnyFold>>,
    /// Events that are left out.
    pub(crate) exclusions: Exclusions,
    is_core: bool,
}

/// What a batch did, for each kind of aggregate.
pub(crate) struct Batch(Vec<Box<dyn AnyChanges>>);

impl Batch {
    /// The changes of one kind of aggregate.
    pub(crate) fn of(changes: Box<dyn AnyChanges>) -> Self {
        Self(vec![changes])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|changes| changes.is_empty())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &dyn AnyChanges> {
        self.0.iter().map(|changes| &**changes)
    }

    /// The rows of one projection: all of them, or those of one stream.
    ///
    /// # Errors
    /// [`Error::Panicked`].
    pub(crate) fn rows(&self, projection: &dyn AnyProjection, only: Option<&StreamId>) -> Result<Vec<Rows>, Error> {
        if only.is_some_and(|stream| stream.aggregate_type != projection.aggregate().aggregate_type()) {
            return Ok(Vec::new());
        }
        let rows = || self.0.iter().flat_map(|changes| projection.rows(&**changes, only.map(|id| &*id.aggregate_id)));
        let caught = catch_unwind(AssertUnwindSafe(|| rows().collect()));
        caught.map_err(|panic| Error::Panicked(format!("{}: {}", projection.name(), panic_text(&*panic))))
    }
}

impl GroupFold {
    pub(crate) fn new(store: &Store, group: &Group, aggregates_max: usize, exclusions: Exclusions) -> Self {
        let folds = |kind: &str| {
            let own = group.projections.iter().filter(|projection| projection.aggregate().aggregate_type() == kind);
            own.fold(Folds::default(), |all, one| Folds {
                state: all.state || one.needs().state,
                events: all.events || one.needs().events,
            })
        };
        let kinds = group.aggregates().into_iter();
        let folds = kinds.map(|kind| kind.new_fold(store.clone(), folds(kind.aggregate_type()), aggregates_max));
        Self { folds: folds.collect(), exclusions, is_core: group.name == CORE }
    }

    /// Removes every aggregate from the cache: what was folded was not written.
    pub(crate) fn clear(&self) {
        self.folds.iter().for_each(|fold| fold.clear());
    }

    /// Keeps what a batch led to, once it is written.
    pub(crate) fn put(&self, batch: &Batch) {
        for fold in &self.folds {
            batch.iter().for_each(|changes| fold.put(changes));
        }
    }

    /// What the events do, and the first event of each stream that does not fold.
    pub(crate) async fn fold(&self, events: &[RecordedEvent]) -> Result<(Batch, Vec<FoldError>), StoreError> {
        let (mut all, mut failed) = (Vec::new(), Vec::new());
        for fold in &self.folds {
            let folded = fold.fold(events, &self.exclusions).await?;
            all.push(folded.changes);
            failed.extend(folded.failed);
        }
        Ok((Batch(all), failed))
    }

    /// The same where no event may fail.
    ///
    /// # Errors
    /// [`Error::Fold`] for the first event that fails.
    pub(crate) async fn changes(&self, events: &[RecordedEvent]) -> Result<Batch, Error> {
        let (batch, failed) = self.fold(events).await?;
        match failed.into_iter().next() {
            Some(failed) => Err(Error::Fold(failed)),
            None => Ok(batch),
        }
    }

    /// Whether the states of a kind of aggregate are folded, for which its whole streams are read.
    pub(crate) fn needs_state(&self, aggregate_type: &str) -> bool {
        self.folds.iter().any(|fold| fold.aggregate_type() == aggregate_type && fold.needs_state())
    }

    /// What the events of one stream do from a position on; `None` where the group does not fold its kind of aggregate.
    pub(crate) fn since(&self, stream: &StreamId, events: &[RecordedEvent], position: i64) -> Option<Partial> {
        let own = self.folds.iter().find(|fold| fold.aggregate_type() == stream.aggregate_type);
        own.map(|fold| fold.since(events, position, &self.exclusions))
    }

    /// Each aggregate of the events, which hold whole streams, as it was at a position: one change each.
    ///
    /// # Errors
    /// An event that does not fold.
    pub(crate) fn whole(&self, events: &[RecordedEvent], position: i64) -> Result<Batch, FoldError> {
        let all = self.folds.iter().map(|fold| fold.whole(events, position, &self.exclusions));
        Ok(Batch(all.collect::<Result<_, _>>()?))
    }

    /// The kinds of aggregates that are folded.
    pub(crate) fn aggregate_types(&self) -> impl Iterator<Item = &'static str> {
        self.folds.iter().map(|fold| fold.aggregate_type())
    }

    /// Runs work of a context. That of a foreign one may block the thread; then its other tasks move to another one.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.is_core { work() } else { tokio::task::block_in_place(work) }
    }
}
