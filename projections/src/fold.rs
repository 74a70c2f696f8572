//! From events to changes of orders, for the pump, the rebuild and the verification alike.

use std::collections::HashMap;
use std::sync::Arc;

use event_store::event::RecordedEvent;
use event_store::store::Store;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder};
use rayon::prelude::*;

use crate::dead_letters::LeftOut;
use crate::error::Error;
use crate::order::{BYTES_PER_ORDER, ByBytes, FoldError, ORDER, OrderState};
use crate::projection::Change;

/// Events that are worth being divided; the batches of the live projections are smaller.
const MANY: usize = 4_000;

/// Orders, and events of them, whose whole streams are read at once.
const READ_AT_ONCE: usize = 500;
const READ_EVENTS_MAX: i64 = 10_000;
/// How much of the cache is for what was asked for often: an order's events come soon after each other, and then no more.
const OFTEN: f64 = 0.5;

/// Folds batches that follow each other.
pub(crate) struct Fold {
    store: Store,
    /// Orders as the last batch left them. Only ever a shortcut: an entry that is not exactly the version before the next
    /// event is folded again from the log.
    orders: Cache<String, Arc<OrderState>, ByBytes>,
    /// Events that are passed over.
    pub(crate) left_out: LeftOut,
}

impl Fold {
    pub(crate) fn new(store: Store, orders_in_memory_max: usize, left_out: LeftOut) -> Self {
        Self { store, orders: recent(orders_in_memory_max), left_out }
    }

    /// Forgets every order: what was folded was not written.
    pub(crate) fn forget(&self) {
        self.orders.clear();
    }

    /// Keeps what a batch led to, once it is written.
    pub(crate) fn keep(&self, changes: &[Change]) {
        for change in changes {
            self.orders.insert(change.after.order_id.clone(), change.after.clone());
        }
    }

    /// What the events do, order by order.
    pub(crate) async fn changes(&self, events: &[RecordedEvent]) -> Result<Vec<Change>, Error> {
        let changes = self.each(events).await?.into_iter().filter_map(Result::transpose);
        Ok(changes.collect::<Result<_, _>>()?)
    }

    /// The orders of a batch that do not fold, where one is known not to.
    pub(crate) async fn failing(&self, events: &[RecordedEvent], known: FoldError) -> Vec<FoldError> {
        let mut failing: Vec<_> = match self.each(events).await {
            Ok(each) => each.into_iter().filter_map(Result::err).collect(),
            Err(_) => Vec::new(),
        };
        if failing.iter().all(|failed| failed.order_id != known.order_id) {
            failing.push(known);
        }
        failing
    }

    async fn each(&self, events: &[RecordedEvent]) -> Result<Vec<Result<Option<Change>, FoldError>>, Error> {
        let mut streams: HashMap<&str, Vec<&RecordedEvent>> = HashMap::new();
        let mut arrival = Vec::new();
        for event in events.iter().filter(|event| event.aggregate_type == ORDER && !self.left_out.parks(event)) {
            let stream = streams.entry(&event.aggregate_id).or_default();
            if stream.is_empty() {
                arrival.push(&*event.aggregate_id);
            }
            stream.push(event);
        }
        let Some(first) = events.first() else { return Ok(Vec::new()) };
        let before = self.before(&arrival, &streams, first.position).await?;
        let change = |id: &&str| {
            let before = before.get(id).cloned();
            let mut after = before.as_deref().cloned().unwrap_or_default();
            for event in &streams[id] {
                self.apply(&mut after, event)?;
            }
            Ok(Change::of(before, Arc::new(after)))
        };
        Ok(match events.len() < MANY {
            true => arrival.iter().map(change).collect(),
            // Orders do not know of each other: each core takes its part.
            false => arrival.par_iter().map(change).collect(),
        })
    }

    /// Folds one event, or passes over it.
    pub(crate) fn apply(&self, order: &mut OrderState, event: &RecordedEvent) -> Result<(), FoldError> {
        match self.left_out.discards(event) {
            true => order.pass_over(event),
            false => drop(order.apply(event)?),
        }
        Ok(())
    }

    /// The orders as they were before a batch: from memory, or folded from the log in one query.
    async fn before<'a>(
        &self,
        ids: &[&'a str],
        streams: &HashMap<&str, Vec<&RecordedEvent>>,
        first_position: i64,
    ) -> Result<HashMap<&'a str, Arc<OrderState>>, Error> {
        let mut before = HashMap::new();
        let mut missing = HashMap::new();
        for id in ids.iter().copied() {
            let version = streams[id][0].sequence - 1;
            if version == 0 {
                continue;
            }
            match self.orders.get(id) {
                Some(state) if state.version == version => {
                    before.insert(id, state);
                }
                _ => {
                    missing.insert(id.to_owned(), id);
                }
            }
        }
        if !missing.is_empty() {
            let ids: Vec<String> = missing.keys().cloned().collect();
            let mut rest = &ids[..];
            while !rest.is_empty() {
                let mut events = 0;
                let fits = rest.iter().take(READ_AT_ONCE).take_while(|id| {
                    events += streams[&***id][0].sequence;
                    events <= READ_EVENTS_MAX
                });
                // One at least, however long it is.
                let (ids, more) = rest.split_at(fits.count().max(1));
                rest = more;
                let mut states: HashMap<&str, OrderState> = HashMap::new();
                for event in self.store.read_streams(ORDER, ids, first_position).await? {
                    let Some(id) = missing.get(&*event.aggregate_id) else { continue };
                    // What was folded before is in the rows: the order stops at the event that comes next.
                    self.apply(states.entry(id).or_default(), &event)
                        .map_err(|failed| FoldError::new(streams[id][0], format!("{failed}, before it")))?;
                }
                before.extend(states.into_iter().map(|(id, state)| (id, Arc::new(state))));
            }
        }
        Ok(before)
    }
}

/// A cache that keeps what is new, not only what proves itself.
fn recent(orders_max: usize) -> Cache<String, Arc<OrderState>, ByBytes> {
    let capacity = orders_max as u64 * BYTES_PER_ORDER;
    let options = OptionsBuilder::new()
        .estimated_items_capacity(orders_max)
        .weight_capacity(capacity)
        .hot_allocation(OFTEN)
        .build()
        .expect("both capacities are set");
    Cache::with_options(options, ByBytes, DefaultHashBuilder::default(), DefaultLifecycle::default())
}
