//! From the stream to the hub. An event is published once the read models have it, so that whoever is told of a change
//! and asks, sees it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::order::Order;
use event_store::event::RecordedEvent;
use event_store::trace;
use kernel::aggregate::Aggregate;
use opentelemetry::trace::SpanKind;
use projection_engine::dead_letters;
use projection_engine::registry::CORE;
use projection_engine::state::{BYTES_PER_AGGREGATE, ByWeight, Versioned};
use quick_cache::sync::Cache;

use crate::api::QueryApi;
use crate::channels::{PROJECTIONS, projections};
use crate::metrics::METRICS;
use crate::publication::Publication;

/// Orders kept in memory between changes; others are folded again from the log.
const ORDERS_IN_MEMORY_MAX: usize = 10_000;
/// How often it is asked whether anybody listens.
const LOOK_AROUND: Duration = Duration::from_millis(20);
/// Changes, and bytes of them, that are queued before the connections get a chance to send them.
const PUBLISHED_AT_ONCE: usize = 128;
const BYTES_AT_ONCE: usize = 64 * 1024;
/// How often the projections are looked at while somebody listens to how they stand.
const LOOK_AT_PROJECTIONS: Duration = Duration::from_secs(1);
/// Subscribers that are reached in no time; and for more of them, about what each takes, and the longest rest.
const FEW: usize = 200;
const SENT_WITHIN: Duration = Duration::from_micros(10);
const REST_MAX: Duration = Duration::from_millis(25);
/// How long changes wait for those who have not read the ones before, and how often that is looked at.
const CROWDED_MAX: Duration = Duration::from_millis(20);
const CROWDED_LOOK: Duration = Duration::from_millis(2);
/// How long they wait for them at once, and which part of the time: others shall not notice it.
const PATIENCE_MAX: Duration = Duration::from_millis(100);
const PATIENCE_PART: u32 = 100;
/// Wait after a failure.
const RETRY: Duration = Duration::from_millis(300);

/// Feeds the hub until the process stops.
pub async fn run(state: QueryApi) {
    let stop = state.stop.clone();
    tokio::select! {
        () = follow(&state) => {}
        () = stop.cancelled() => {}
    }
}

/// Tells whoever listens how the projections stand, when that changes, until the process stops.
pub async fn tell_projections(state: QueryApi) {
    let mut told = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_AT_PROJECTIONS) => {}
            () = state.stop.cancelled() => return,
        }
        if !state.hub.has(PROJECTIONS) {
            continue;
        }
        match projections(&state).await {
            Ok((field, items)) => {
                let now = format!(r#"{{"{field}":{items}}}"#);
                if told != now {
                    state.hub.pass(PROJECTIONS, "pub", now.clone(), false);
                    told = now;
                }
            }
            Err(error) => tracing::warn!(%error, "the projections' state cannot be read"),
        }
    }
}

async fn follow(state: &QueryApi) {
    let room = ORDERS_IN_MEMORY_MAX as u64 * BYTES_PER_AGGREGATE;
    let orders = Cache::with_weighter(ORDERS_IN_MEMORY_MAX, room, ByWeight);
    let mut feed = Feed { state, orders, patience: PATIENCE_MAX, counted: Instant::now() };
    // A subscriber's snapshot holds at least what the read models had before the subscriber came. So while nobody
    // listens, the feed need not read: it begins there.
    let mut position = state.progress.slowest(CORE);
    loop {
        let now = state.progress.slowest(CORE);
        if state.hub.is_empty() {
            position = now;
            state.hub.skip_to(now);
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
async fn while_listened<T>(state: &QueryApi, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    while !state.hub.is_empty() {
        if let Ok(done) = tokio::time::timeout(LOOK_AROUND, future.as_mut()).await {
            return Some(done);
        }
    }
    None
}

struct Feed<'a> {
    state: &'a QueryApi,
    orders: Cache<compact_str::CompactString, Arc<Versioned<Order>>, ByWeight>,
    /// How long readers may be waited for now, and when that was counted.
    patience: Duration,
    counted: Instant,
}

impl Feed<'_> {
    /// Gives the position that is published.
    async fn publish(&mut self, events: Vec<RecordedEvent>) -> Option<i64> {
        let last = events.last()?.position;
        self.projected(last).await;
        let ids = events.iter().map(|event| event.aggregate_id.as_str());
        let wanted: Vec<_> = self.state.hub.wants(ids).into_iter().zip(events).filter_map(wanted).collect();
        let mut before = loop {
            match self.before(&wanted).await {
                Ok(before) => break before,
                Err(error) => tracing::warn!(%error, "live updates wait for the store"),
            }
            tokio::time::sleep(RETRY).await;
        };
        let (mut round, mut bytes) = (Vec::new(), 0);
        let mut spans = Vec::new();
        for event in &wanted {
            spans.extend(trace::of_event("push", SpanKind::Consumer, event));
            match Publication::of(before.remove(&*event.aggregate_id), event) {
                Ok((publication, order)) => {
                    self.orders.insert(event.aggregate_id.clone(), order.clone());
                    before.insert(event.aggregate_id.to_string(), order);
                    if publication.has_order() {
                        bytes += publication.data.len();
                        round.push(Arc::new(publication));
                    }
                }
                // The projections have parked it, and the order's later events with it.
                Err(error) => tracing::error!(%error, "not published"),
            }
            if round.len() == PUBLISHED_AT_ONCE || bytes >= BYTES_AT_ONCE {
                let reached = self.state.hub.publish(&round, event.position);
                self.rest(reached).await;
                (round, bytes) = (Vec::new(), 0);
                spans.clear();
            }
        }
        let reached = self.state.hub.publish(&round, last);
        drop(spans);
        METRICS.published(&wanted);
        tell(&wanted);
        self.rest(reached).await;
        Some(last)
    }

    /// Lets the connections send what is queued. Meanwhile more changes gather, which then cost each of them one delivery.
    async fn rest(&mut self, reached: usize) {
        match reached {
            0 => {}
            1..FEW => tokio::task::yield_now().await,
            many => tokio::time::sleep((SENT_WITHIN * many as u32).min(REST_MAX)).await,
        }
        // Changes fill a queue faster than a client can read them.
        let now = Instant::now();
        self.patience = (self.patience + (now - self.counted) / PATIENCE_PART).min(PATIENCE_MAX);
        let wait = self.patience.min(CROWDED_MAX);
        while reached > 0 && now.elapsed() < wait && self.state.hub.is_crowded() {
            tokio::time::sleep(CROWDED_LOOK).await;
        }
        self.patience = self.patience.saturating_sub(now.elapsed());
        self.counted = Instant::now();
    }

    /// Waits until every read model has a position.
    async fn projected(&self, position: i64) {
        let mut changes = self.state.progress.changes();
        loop {
            // The sender lives as long as the process.
            let _ = changes.wait_for(|known| known.slowest(CORE) >= position).await;
            // What is known may be of before a crash of PostgreSQL, which took read models back.
            match self.state.progress.slowest_in(self.state.store.db(), CORE).await {
                Ok(slowest) if slowest >= position => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "live updates wait for the store");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Each order as it was before its first event in the batch.
    async fn before(
        &self,
        events: &[RecordedEvent],
    ) -> Result<HashMap<String, Arc<Versioned<Order>>>, event_store::error::Error> {
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
            let mut orders: HashMap<String, Versioned<Order>> = HashMap::new();
            let discarded = dead_letters::discarded(self.state.store.db(), CORE).await?;
            for event in self.state.store.read_streams(Order::TYPE, &missing, first.position).await? {
                let order = orders.entry(event.aggregate_id.to_string()).or_default();
                if discarded.holds(&event) {
                    order.skip(&event);
                } else if let Err(error) = order.apply(&event) {
                    // The events after it do not apply either: nothing of this order is published, the others flow.
                    tracing::error!(%error, "not published");
                }
            }
            before.extend(orders.into_iter().map(|(id, order)| (id, Arc::new(order))));
        }
        Ok(before)
    }
}

/// Lines for whoever follows one request through the logs.
fn tell(events: &[RecordedEvent]) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        for event in events {
            tracing::debug!(
                request_id = event.metadata_text("request_id"),
                aggregate.r#type = &*event.aggregate_type,
                aggregate.id = &*event.aggregate_id,
                event.r#type = &*event.event_type,
                event.position = event.position,
                "pushed"
            );
        }
    }
}

/// Events that somebody could want to hear of.
fn wanted((somebody, event): (bool, RecordedEvent)) -> Option<RecordedEvent> {
    (somebody && event.aggregate_type == Order::TYPE).then_some(event)
}
