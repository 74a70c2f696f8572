//! Folds events into changes of every aggregate type of a checkpoint group. Used by the pump, by rebuilds and by
//! verification.

use std::panic::{AssertUnwindSafe, catch_unwind};

use event_store::error::Error as StoreError;
use event_store::event::RecordedEvent;
use event_store::store::Store;
use kernel::stream::StreamId;

use crate::change::{AnyChanges, Needs, Rows};
use crate::error::{Error, panic_text};
use crate::exclusions::Exclusions;
use crate::fold::{AnyFold, Partial};
use crate::projection::AnyProjection;
use crate::registry::{CORE, Group};
use crate::state::FoldError;

/// Folds consecutive batches of events for the projections of a checkpoint group.
pub(crate) struct GroupFold {
    folds: Vec<Box<dyn AnyFold>>,
    /// The events that the fold excludes.
    pub(crate) exclusions: Exclusions,
    is_core: bool,
}

/// The changes that a batch makes, one entry per aggregate type.
pub(crate) struct Batch(Vec<Box<dyn AnyChanges>>);

impl Batch {
    /// Returns a batch with the changes of one aggregate type.
    pub(crate) fn of(changes: Box<dyn AnyChanges>) -> Self {
        Self(vec![changes])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|changes| changes.is_empty())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &dyn AnyChanges> {
        self.0.iter().map(|changes| &**changes)
    }

    /// Returns the rows of one projection: all rows, or with `only` the rows of one stream.
    ///
    /// # Errors
    /// [`Error::Panicked`] when the fold of the projection panics.
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
        let needs = |kind: &str| {
            let own = group.projections.iter().filter(|projection| projection.aggregate().aggregate_type() == kind);
            own.fold(Needs::default(), |all, one| Needs {
                state: all.state || one.needs().state,
                events: all.events || one.needs().events,
            })
        };
        let kinds = group.aggregates().into_iter();
        let folds = kinds.map(|kind| kind.new_fold(store.clone(), needs(kind.aggregate_type()), aggregates_max));
        Self { folds: folds.collect(), exclusions, is_core: group.name == CORE }
    }

    /// Empties the caches. Needed when the cached aggregates may differ from the written rows.
    pub(crate) fn clear(&self) {
        self.folds.iter().for_each(|fold| fold.clear());
    }

    /// Puts the aggregates that a batch changed into the caches; called after the batch is written.
    pub(crate) fn put(&self, batch: &Batch) {
        for fold in &self.folds {
            batch.iter().for_each(|changes| fold.put(changes));
        }
    }

    /// Folds events and returns the changes, and the first failed event of each stream that cannot be folded.
    pub(crate) async fn fold(&self, events: &[RecordedEvent]) -> Result<(Batch, Vec<FoldError>), StoreError> {
        let (mut all, mut failed) = (Vec::new(), Vec::new());
        for fold in &self.folds {
            let folded = fold.fold(events, &self.exclusions).await?;
            all.push(folded.changes);
            failed.extend(folded.failed);
        }
        Ok((Batch(all), failed))
    }

    /// Folds events like [`Self::fold`], but fails when any event cannot be folded.
    ///
    /// # Errors
    /// [`Error::Fold`] for one of the failed events.
    pub(crate) async fn changes(&self, events: &[RecordedEvent]) -> Result<Batch, Error> {
        let (batch, failed) = self.fold(events).await?;
        match failed.into_iter().next() {
            Some(failed) => Err(Error::Fold(failed)),
            None => Ok(batch),
        }
    }

    /// Whether the group folds states of an aggregate type. Folding a state needs the whole stream.
    pub(crate) fn needs_state(&self, aggregate_type: &str) -> bool {
        self.folds.iter().any(|fold| fold.aggregate_type() == aggregate_type && fold.needs_state())
    }

    /// Returns the changes that the events of one stream make from `position` on; `None` when the group does not fold
    /// the stream's aggregate type.
    pub(crate) fn fold_since(&self, stream: &StreamId, events: &[RecordedEvent], position: i64) -> Option<Partial> {
        let own = self.folds.iter().find(|fold| fold.aggregate_type() == stream.aggregate_type);
        own.map(|fold| fold.fold_since(events, position, &self.exclusions))
    }

    /// Folds whole streams up to `position` and returns one change without a `before` for each aggregate.
    ///
    /// # Errors
    /// The first event that cannot be folded.
    pub(crate) fn fold_whole(&self, events: &[RecordedEvent], position: i64) -> Result<Batch, FoldError> {
        let all = self.folds.iter().map(|fold| fold.fold_whole(events, position, &self.exclusions));
        Ok(Batch(all.collect::<Result<_, _>>()?))
    }

    /// Returns the aggregate types that the group folds.
    pub(crate) fn aggregate_types(&self) -> impl Iterator<Item = &'static str> {
        self.folds.iter().map(|fold| fold.aggregate_type())
    }

    /// Runs code of a context. Code of a foreign module may block the thread; `block_in_place` then moves the other
    /// tasks of the thread to another thread.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.is_core { work() } else { tokio::task::block_in_place(work) }
    }
}
