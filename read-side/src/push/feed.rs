//! From the stream to the hub. An event is published once the read models have it, so that whoever is told of a change
//! and asks, sees it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use event_store::event::RecordedEvent;
use projections::order::{FoldError, ORDER, OrderState, OrderView, occurred_at, payload_view, rfc3339};
use serde::Serialize;
use serde_json::Value;

use crate::push::channels::{CUSTOMER_PREFIX, ORDER_PREFIX, ORDERS};
use crate::push::hub::Publication;
use crate::state::ReadSide;

/// Orders kept in memory between changes; others are folded again from the log.
const ORDERS_IN_MEMORY_MAX: usize = 10_000;
/// How often it is asked whether anybody listens.
const LOOK_AROUND: Duration = Duration::from_millis(20);
/// Changes that are queued before the connections get a chance to send them.
const PUBLISHED_AT_ONCE: usize = 32;
/// Wait after a failure.
const RETRY: Duration = Duration::from_millis(300);

/// Feeds the hub until the process stops.
pub async fn run(state: ReadSide) {
    let stop = state.stop.clone();
    tokio::select! {
        () = follow(&state) => {}
        () = stop.cancelled() => {}
    }
}

async fn follow(state: &ReadSide) {
    let mut feed = Feed { state, orders: quick_cache::sync::Cache::new(ORDERS_IN_MEMORY_MAX) };
    // A subscriber's snapshot holds at least what the read models had before the subscriber came. So while nobody
    // listens, the feed need not read: it begins there.
    let mut position = state.progress.slowest();
    loop {
        let now = state.progress.slowest();
        if state.hub.is_empty() {
            position = now;
            tokio::time::sleep(LOOK_AROUND).await;
            continue;
        }
        let mut stream = state.store.subscribe(position);
        // One call is waited for across the looks around, so that its own deadlines count.
        while let Some(events) = while_listened(state, stream.next()).await {
            match events {
                Ok(events) => position = feed.publish(events).await.unwrap_or(position),
                Err(error) => {
                    tracing::warn!(%error, "live updates wait for the store");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// Waits for a future as long as somebody listens.
async fn while_listened<T>(state: &ReadSide, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    while !state.hub.is_empty() {
        if let Ok(done) = tokio::time::timeout(LOOK_AROUND, future.as_mut()).await {
            return Some(done);
        }
    }
    None
}

struct Feed<'a> {
    state: &'a ReadSide,
    orders: quick_cache::sync::Cache<String, Arc<OrderState>>,
}

impl Feed<'_> {
    /// Gives the position that is published.
    async fn publish(&mut self, events: Vec<RecordedEvent>) -> Option<i64> {
        let last = events.last()?.position;
        self.projected(last).await;
        let wanted: Vec<_> = events.into_iter().filter(|event| self.is_wanted(event)).collect();
        if wanted.is_empty() {
            return Some(last);
        }
        let mut before = loop {
            match self.before(&wanted).await {
                Ok(before) => break before,
                Err(error) => tracing::warn!(%error, "live updates wait for the store"),
            }
            tokio::time::sleep(RETRY).await;
        };
        for (event, number) in wanted.iter().zip(1..) {
            if number % PUBLISHED_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
            let mut order = before.remove(&event.aggregate_id).map_or_else(OrderState::default, Arc::unwrap_or_clone);
            if let Err(error) = self.publish_one(&mut order, event) {
                // The projections stop at such an event, and so this is only met behind them.
                tracing::error!(%error, "not published");
            }
            let order = Arc::new(order);
            self.orders.insert(event.aggregate_id.clone(), order.clone());
            before.insert(event.aggregate_id.clone(), order);
        }
        Some(last)
    }

    fn is_wanted(&self, event: &RecordedEvent) -> bool {
        let channel = format!("{ORDER_PREFIX}{}", event.aggregate_id);
        event.aggregate_type == ORDER && self.state.hub.wants(&channel, ORDERS, CUSTOMER_PREFIX)
    }

    /// Waits until every read model has a position.
    async fn projected(&self, position: i64) {
        let mut changes = self.state.progress.changes();
        // The sender lives as long as the process.
        let _ = changes.wait_for(|known| known.values().all(|at| *at >= position)).await;
    }

    /// Each order as it was before its first event in the batch.
    async fn before(
        &self,
        events: &[RecordedEvent],
    ) -> Result<HashMap<String, Arc<OrderState>>, event_store::error::Error> {
        let mut first: HashMap<&str, &RecordedEvent> = HashMap::new();
        for event in events {
            first.entry(&event.aggregate_id).or_insert(event);
        }
        let mut before = HashMap::new();
        let mut missing = Vec::new();
        for (id, event) in first {
            match self.orders.get(id) {
                _ if event.sequence == 1 => {}
                Some(order) if order.version == event.sequence - 1 => {
                    before.insert(id.to_owned(), order);
                }
                _ => missing.push(id.to_owned()),
            }
        }
        if let (false, Some(first)) = (missing.is_empty(), events.first()) {
            let mut orders: HashMap<String, OrderState> = HashMap::new();
            for event in self.state.store.read_streams(ORDER, &missing, first.position).await? {
                if let Err(error) = orders.entry(event.aggregate_id.clone()).or_default().apply(&event) {
                    // The events after it do not apply either: nothing of this order is published, the others flow.
                    tracing::error!(%error, "not published");
                }
            }
            before.extend(orders.into_iter().map(|(id, order)| (id, Arc::new(order))));
        }
        Ok(before)
    }

    fn publish_one(&self, order: &mut OrderState, recorded: &RecordedEvent) -> Result<(), FoldError> {
        #[derive(Serialize)]
        struct Data<'a> {
            #[serde(rename = "type")]
            event_type: &'a str,
            order_id: &'a str,
            version: i64,
            position: i64,
            occurred_at: String,
            payload: Value,
            view: OrderView<'a>,
        }
        let event = order.apply(recorded)?;
        let data = Data {
            event_type: &recorded.event_type,
            order_id: &recorded.aggregate_id,
            version: recorded.sequence,
            position: recorded.position,
            occurred_at: rfc3339(occurred_at(recorded)),
            payload: payload_view(&event, order.order.currency),
            view: order.view(),
        };
        let publication = Arc::new(Publication {
            position: recorded.position,
            order_id: recorded.aggregate_id.clone(),
            version: recorded.sequence,
            // A struct of strings and numbers always serializes.
            data: serde_json::to_string(&data).unwrap_or_default(),
        });
        let hub = &self.state.hub;
        hub.publish(&format!("{ORDER_PREFIX}{}", recorded.aggregate_id), &publication);
        hub.publish(&format!("{CUSTOMER_PREFIX}{}", order.customer_id()), &publication);
        hub.publish(ORDERS, &publication);
        Ok(())
    }
}
