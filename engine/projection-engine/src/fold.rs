//! Folds events into changes of the aggregates of one type.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use compact_str::CompactString;
use event_store::error::Error as StoreError;
use event_store::event::RecordedEvent;
use event_store::store::Store;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::aggregate::Aggregate;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder};
use rayon::prelude::*;

use crate::change::{AnyChanges, Change, Changes, Decoded, Needs};
use crate::error::panic_text;
use crate::exclusions::Exclusions;
use crate::state::{BYTES_PER_AGGREGATE, ByWeight, FoldError, Versioned, occurred_at};

/// Least number of events that are folded on several cores. The batches of the pump are smaller.
const PARALLEL_EVENTS_MIN: usize = 4_000;
/// Maximum number of streams that one query reads as a whole.
const STREAMS_PER_QUERY_MAX: usize = 500;
/// Maximum number of events that one query reads, unless a single stream is longer.
const EVENTS_PER_QUERY_MAX: i64 = 10_000;
/// Share of the cache that is kept for frequently used aggregates. The default share is too large here: the events of
/// an aggregate usually arrive within a short time, and then no more events arrive.
const HOT_SHARE: f64 = 0.5;

/// The result of folding a batch.
pub struct Folded {
    /// The changes of the streams that fold without an error.
    pub changes: Box<dyn AnyChanges>,
    /// The first failed event of each of the other streams.
    pub failed: Vec<FoldError>,
}

/// The changes that the events of one stream make from a position on.
pub struct Partial {
    pub(crate) changes: Box<dyn AnyChanges>,
    /// Position of the last event that was applied or skipped.
    pub(crate) reached: i64,
    /// The event that cannot be folded, if there is one.
    pub(crate) failed: Option<FoldError>,
}

/// The fold of one aggregate type, with the type erased.
pub trait AnyFold: Send + Sync {
    fn aggregate_type(&self) -> &'static str;

    fn needs_state(&self) -> bool;

    /// Folds a batch, stream by stream: a stream that fails does not affect the others.
    fn fold<'a>(
        &'a self,
        events: &'a [RecordedEvent],
        exclusions: &'a Exclusions,
    ) -> BoxFuture<'a, Result<Folded, StoreError>>;

    /// Folds the events of one stream and returns the changes from `position` on. When states are folded, `events` is
    /// the whole stream.
    fn fold_since(&self, events: &[RecordedEvent], position: i64, exclusions: &Exclusions) -> Partial;

    /// Folds whole streams up to `position` and returns one change without a `before` for each aggregate.
    ///
    /// # Errors
    /// The first event that cannot be folded.
    fn fold_whole(
        &self,
        events: &[RecordedEvent],
        position: i64,
        exclusions: &Exclusions,
    ) -> Result<Box<dyn AnyChanges>, FoldError>;

    /// Puts the aggregates that a batch changed into the cache.
    fn put(&self, changes: &dyn AnyChanges);

    /// Empties the cache.
    fn clear(&self);
}

pub(crate) struct AggregateFold<A: Aggregate> {
    store: Store,
    needs: Needs,
    /// Aggregates after their last batch. The cache is only an optimization: an entry whose version is not the one
    /// before the next event is ignored, and the aggregate is folded from the log.
    cache: Cache<CompactString, Arc<Versioned<A>>, ByWeight>,
}

/// The result of folding one stream: its change and its decoded events.
type FoldedStream<A> = (Option<Change<A>>, Vec<Decoded<A>>);

impl<A: Aggregate> AggregateFold<A> {
    pub(crate) fn new(store: Store, needs: Needs, aggregates_max: usize) -> Self {
        Self { store, needs, cache: recency_cache(aggregates_max) }
    }

    async fn streams(
        &self,
        events: &[RecordedEvent],
        exclusions: &Exclusions,
    ) -> Result<Vec<Result<FoldedStream<A>, FoldError>>, StoreError> {
        let mut streams: HashMap<&str, Vec<&RecordedEvent>> = HashMap::new();
        let mut arrival = Vec::new();
        for event in events.iter().filter(|event| event.aggregate_type == A::TYPE && !exclusions.parks(event)) {
            let stream = streams.entry(&event.aggregate_id).or_default();
            if stream.is_empty() {
                arrival.push(&*event.aggregate_id);
            }
            stream.push(event);
        }
        let Some(first) = events.first().filter(|_| !arrival.is_empty()) else { return Ok(Vec::new()) };
        let before = match self.needs.state {
            true => self.before(&arrival, &streams, first.position, exclusions).await?,
            false => HashMap::new(),
        };
        let one = |id: &&str| match self.needs.state {
            true => self.state(before.get(id).cloned(), &streams[id], exclusions),
            false => self.events(&streams[id], exclusions),
        };
        Ok(match events.len() < PARALLEL_EVENTS_MIN {
            true => arrival.iter().map(one).collect(),
            // Aggregates are independent, so several cores fold them in parallel.
            false => arrival.par_iter().map(one).collect(),
        })
    }

    fn state(
        &self,
        before: Option<Result<Arc<Versioned<A>>, FoldError>>,
        events: &[&RecordedEvent],
        exclusions: &Exclusions,
    ) -> Result<FoldedStream<A>, FoldError> {
        let before = before.transpose()?;
        let mut after = before.as_deref().cloned().unwrap_or_default();
        let mut decoded = Vec::new();
        for event in events {
            let applied = apply(&mut after, event, exclusions)?;
            decoded.extend(applied.filter(|_| self.needs.events).map(|applied| decode(event, applied)));
        }
        Ok((Change::of(before, Arc::new(after)), decoded))
    }

    fn events(&self, events: &[&RecordedEvent], exclusions: &Exclusions) -> Result<FoldedStream<A>, FoldError> {
        let own = events.iter().filter(|event| !exclusions.discards(event));
        let decoded = own.map(|event| match serde_json::from_str(&event.payload) {
            Ok(payload) => Ok(decode(event, payload)),
            Err(error) => Err(FoldError::new(event, error.to_string())),
        });
        Ok((None, decoded.collect::<Result<_, _>>()?))
    }

    /// Returns the aggregates before a batch, from the cache or folded from the log with few queries. An aggregate that
    /// is absent has no event before the batch.
    async fn before<'a>(
        &self,
        ids: &[&'a str],
        streams: &HashMap<&str, Vec<&RecordedEvent>>,
        first_position: i64,
        exclusions: &Exclusions,
    ) -> Result<HashMap<&'a str, Result<Arc<Versioned<A>>, FoldError>>, StoreError> {
        let mut before = HashMap::new();
        let mut missing = HashMap::new();
        for id in ids.iter().copied() {
            let version = streams[id][0].sequence - 1;
            if version == 0 {
                continue;
            }
            match self.cache.get(id) {
                Some(known) if known.version == version => {
                    before.insert(id, Ok(known));
                }
                _ => {
                    missing.insert(id.to_owned(), id);
                }
            }
        }
        let ids: Vec<String> = missing.keys().cloned().collect();
        let mut rest = &ids[..];
        while !rest.is_empty() {
            let mut events = 0;
            let fits = rest.iter().take(STREAMS_PER_QUERY_MAX).take_while(|id| {
                events += streams[&***id][0].sequence;
                events <= EVENTS_PER_QUERY_MAX
            });
            // At least one stream, however long it is.
            let (ids, more) = rest.split_at(fits.count().max(1));
            rest = more;
            let mut states: HashMap<&str, Result<Versioned<A>, FoldError>> = HashMap::new();
            for event in self.store.read_streams(A::TYPE, ids, first_position).await? {
                let Some(id) = missing.get(&*event.aggregate_id) else { continue };
                let state = states.entry(id).or_insert_with(|| Ok(Versioned::default()));
                if let Ok(known) = state
                    && let Err(failed) = apply(known, &event, exclusions)
                {
                    // The rows already contain the earlier events, so the stream is parked at its first event in this
                    // batch.
                    *state =
                        Err(FoldError::new(streams[*id][0], format!("an earlier event of the stream fails: {failed}")));
                }
            }
            before.extend(states.into_iter().map(|(id, state)| (id, state.map(Arc::new))));
        }
        Ok(before)
    }
}

impl<A: Aggregate> AnyFold for AggregateFold<A> {
    fn aggregate_type(&self) -> &'static str {
        A::TYPE
    }

    fn needs_state(&self) -> bool {
        self.needs.state
    }

    fn fold<'a>(
        &'a self,
        events: &'a [RecordedEvent],
        exclusions: &'a Exclusions,
    ) -> BoxFuture<'a, Result<Folded, StoreError>> {
        async move {
            let (mut changes, mut failed) = (Changes::<A> { states: Vec::new(), events: Vec::new() }, Vec::new());
            for stream in self.streams(events, exclusions).await? {
                match stream {
                    Ok((change, decoded)) => {
                        changes.states.extend(change);
                        changes.events.extend(decoded);
                    }
                    Err(error) => failed.push(error),
                }
            }
            changes.events.sort_unstable_by_key(|event| event.position);
            Ok(Folded { changes: Box::new(changes), failed })
        }
        .boxed()
    }

    fn fold_since(&self, events: &[RecordedEvent], position: i64, exclusions: &Exclusions) -> Partial {
        let mut state = Versioned::<A>::default();
        let (mut before, mut decoded, mut failed) = (None, Vec::new(), None);
        if let Some(first) = events.first().filter(|first| first.sequence > 1 && !self.needs.state) {
            // No projection needs states, so the stream may start at any event.
            (state.version, state.position) = (first.sequence - 1, first.position - 1);
        }
        for event in events {
            if event.position == position && state.version > 0 {
                before = Some(Arc::new(state.clone()));
            }
            match apply(&mut state, event, exclusions) {
                Ok(applied) if event.position >= position && self.needs.events => {
                    decoded.extend(applied.map(|applied| decode(event, applied)));
                }
                Ok(_) => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let reached = state.position;
        let state = Some(state).filter(|state| self.needs.state && state.position >= position);
        let states = state.and_then(|state| Change::of(before, Arc::new(state))).into_iter().collect();
        Partial { changes: Box::new(Changes { states, events: decoded }), reached, failed }
    }

    fn fold_whole(
        &self,
        events: &[RecordedEvent],
        position: i64,
        exclusions: &Exclusions,
    ) -> Result<Box<dyn AnyChanges>, FoldError> {
        let mut states: HashMap<&str, Versioned<A>> = HashMap::new();
        let mut decoded = Vec::new();
        let own = |event: &&RecordedEvent| {
            event.aggregate_type == A::TYPE && event.position <= position && !exclusions.parks(event)
        };
        for event in events.iter().filter(own) {
            if !self.needs.state {
                decoded.extend(self.events(&[event], exclusions)?.1);
                continue;
            }
            let applied = apply(states.entry(&event.aggregate_id).or_default(), event, exclusions)?;
            decoded.extend(applied.filter(|_| self.needs.events).map(|applied| decode(event, applied)));
        }
        let states = states.into_values().filter(|_| self.needs.state);
        let states = states.filter_map(|after| Change::of(None, Arc::new(after))).collect();
        Ok(Box::new(Changes { states, events: decoded }))
    }

    fn put(&self, changes: &dyn AnyChanges) {
        let Some(changes) = changes.as_any().downcast_ref::<Changes<A>>() else { return };
        for change in &changes.states {
            self.cache.insert(change.after.id.clone(), change.after.clone());
        }
    }

    fn clear(&self) {
        self.cache.clear();
    }
}

/// Applies an event and returns it decoded, or skips a discarded event and returns `None`.
fn apply<A: Aggregate>(
    state: &mut Versioned<A>,
    event: &RecordedEvent,
    exclusions: &Exclusions,
) -> Result<Option<A::Event>, FoldError> {
    if exclusions.discards(event) {
        state.skip(event);
        return Ok(None);
    }
    let applied = catch_unwind(AssertUnwindSafe(|| state.apply(event)));
    match applied {
        Ok(applied) => applied.map(Some),
        Err(panic) => Err(FoldError::new(event, format!("the aggregate panicked: {}", panic_text(&*panic)))),
    }
}

fn decode<A: Aggregate>(recorded: &RecordedEvent, event: A::Event) -> Decoded<A> {
    Decoded {
        id: recorded.aggregate_id.clone(),
        event,
        sequence: recorded.sequence,
        position: recorded.position,
        occurred_at: occurred_at(recorded),
    }
}

/// Returns a cache that also keeps new entries, not only frequently used ones.
fn recency_cache<A: Aggregate>(aggregates_max: usize) -> Cache<CompactString, Arc<Versioned<A>>, ByWeight> {
    let options = OptionsBuilder::new()
        .estimated_items_capacity(aggregates_max)
        .weight_capacity(aggregates_max as u64 * BYTES_PER_AGGREGATE)
        .hot_allocation(HOT_SHARE)
        .build()
        .expect("both capacities are set");
    Cache::with_options(options, ByWeight, DefaultHashBuilder::default(), DefaultLifecycle::default())
}
