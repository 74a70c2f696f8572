//! The feed of a checkpoint group: reads the log and publishes to the hub. An event is published only after all read
//! models of the group have applied it. So a client that receives a change and then sends a query sees the change.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use event_store::event::RecordedEvent;
use event_store::trace;
use opentelemetry::trace::SpanKind;
use projection_engine::dead_letters::discarded;

use crate::api::QueryApi;
use crate::metrics::METRICS;
use crate::publication::{Group, Publication};
use crate::publisher::{AnyPublisher, LiveFold};

/// Bytes of aggregates that a group keeps in memory between batches. Other aggregates are folded from the log again.
const KEPT_BYTES_MAX: u64 = 10_000 * 4_096;
/// How often the feed checks whether the group has subscribers.
const SUBSCRIBERS_CHECK: Duration = Duration::from_millis(20);
/// Limits of one publish round, in changes and bytes. Connections can send between two rounds.
const PUBLISHED_AT_ONCE: usize = 128;
const BYTES_AT_ONCE: usize = 64 * 1024;
/// Pause after a publish round. A round to fewer than `NO_PAUSE_BELOW` deliveries needs no pause; a larger one pauses
/// for `PAUSE_PER_DELIVERY` per delivery, at most `PAUSE_MAX`.
const NO_PAUSE_BELOW: usize = 200;
const PAUSE_PER_DELIVERY: Duration = Duration::from_micros(10);
const PAUSE_MAX: Duration = Duration::from_millis(25);
/// Longest wait for slow readers after one publish round, and the interval of its checks.
const BACKPRESSURE_MAX: Duration = Duration::from_millis(20);
const BACKPRESSURE_CHECK: Duration = Duration::from_millis(2);
/// Budget of such waits, so that slow readers do not noticeably delay the others: at most 100 ms in a row, refilled
/// with one part in `THROTTLE_BUDGET_PART` of the elapsed time.
const THROTTLE_BUDGET_MAX: Duration = Duration::from_millis(100);
const THROTTLE_BUDGET_PART: u32 = 100;
/// Wait after a failed read of the store.
const RETRY: Duration = Duration::from_millis(300);

/// Publishes the events of a group to the hub until the process stops.
pub async fn run(api: QueryApi, group: Group) {
    let stop = api.stop.clone();
    tokio::select! {
        () = follow(&api, group) => {}
        () = stop.cancelled() => {}
    }
}

async fn follow(api: &QueryApi, group: Group) {
    let publishers: Vec<_> = api.publishers.iter().filter(|publisher| publisher.group() == group).collect();
    let bytes_max = KEPT_BYTES_MAX / publishers.len().max(1) as u64;
    let publisher_feeds = publishers.iter().map(|publisher| PublisherFeed::new(**publisher, bytes_max)).collect();
    let mut feed = Feed { api, group, publisher_feeds, throttle_budget: THROTTLE_BUDGET_MAX, counted: Instant::now() };
    // A new subscriber's snapshot contains at least the position that the read models had reached before it subscribed.
    // So the feed reads nothing while the group has no subscribers, and starts from that position with the first one.
    let mut position = api.progress.slowest(group);
    loop {
        let now = api.progress.slowest(group);
        if api.hub.is_empty(group) {
            position = now;
            api.hub.skip_to(group, now);
            tokio::time::sleep(SUBSCRIBERS_CHECK).await;
            continue;
        }
        let mut stream = api.store.subscribe(position);
        // The checks do not cancel `next`, so that its own timeouts keep running.
        while let Some(events) = feed.while_subscribed(stream.next()).await {
            match events {
                Ok(events) => position = feed.publish(events).await.unwrap_or(position),
                Err(error) => {
                    tracing::warn!(%error, "Live updates are waiting for the store.");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

struct Feed<'a> {
    api: &'a QueryApi,
    group: Group,
    publisher_feeds: Vec<PublisherFeed>,
    /// How long the feed may wait for slow readers now, and when this was last updated.
    throttle_budget: Duration,
    counted: Instant,
}

/// A publisher, with its events of the current batch.
struct PublisherFeed {
    publisher: &'static dyn AnyPublisher,
    fold: Box<dyn LiveFold>,
    events: Vec<RecordedEvent>,
    /// Number of `events` that are folded.
    folded: usize,
    /// Publications of the folded events that are not published yet.
    ready: VecDeque<Arc<Publication>>,
    /// Ids of streams with a change that was not published because a context's code panicked.
    panicked: Vec<CompactString>,
}

impl PublisherFeed {
    fn new(publisher: &'static dyn AnyPublisher, bytes_max: u64) -> Self {
        Self {
            publisher,
            fold: publisher.live(bytes_max),
            events: Vec::new(),
            folded: 0,
            ready: VecDeque::new(),
            panicked: Vec::new(),
        }
    }

    /// Returns the next publication. Folds events until there is one.
    fn peek(&mut self) -> Option<&Arc<Publication>> {
        while self.ready.is_empty() && self.folded < self.events.len() {
            let next = &self.events[self.folded..];
            let next = &next[..next.len().min(PUBLISHED_AT_ONCE)];
            self.folded += self.fold.fold(next, BYTES_AT_ONCE, &mut self.ready);
            self.panicked.extend(self.fold.take_panicked());
        }
        self.ready.front()
    }
}

impl Feed<'_> {
    /// Waits for a future; gives up with `None` when the group has no subscribers.
    async fn while_subscribed<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        while !self.api.hub.is_empty(self.group) {
            if let Ok(done) = tokio::time::timeout(SUBSCRIBERS_CHECK, future.as_mut()).await {
                return Some(done);
            }
        }
        None
    }

    /// Publishes a batch of events. Returns the position of the last one.
    async fn publish(&mut self, events: Vec<RecordedEvent>) -> Option<i64> {
        let last = events.last()?.position;
        self.projected(last).await;
        self.api.hub.consider(self.group, last);
        self.sort_by_publisher(events);
        while let Err(error) = self.load().await {
            tracing::warn!(%error, "Live updates are waiting for the store.");
            tokio::time::sleep(RETRY).await;
        }
        let mut spans = self.spans();
        let (mut round, mut bytes) = (Vec::new(), 0);
        while let Some(publication) = self.next() {
            // Serialized here, outside of the hub's lock, and only if a subscriber will receive it.
            if self.api.hub.has_subscribers_for(&publication) {
                bytes += publication.data().len();
            }
            let position = publication.position;
            round.push(publication);
            if round.len() == PUBLISHED_AT_ONCE || bytes >= BYTES_AT_ONCE {
                let reached = self.api.hub.publish(self.group, &round, position);
                spans.retain(|(of, _)| *of > position);
                self.pace(reached).await;
                (round, bytes) = (Vec::new(), 0);
            }
        }
        let reached = self.api.hub.publish(self.group, &round, last);
        drop(spans);
        METRICS.published(self.wanted());
        self.log();
        for feed in &mut self.publisher_feeds {
            (feed.events, feed.folded) = (Vec::new(), 0);
            feed.fold.finish();
        }
        self.pace(reached).await;
        Some(last)
    }

    /// Distributes the events to their publishers. Drops events that cannot go to an open channel.
    fn sort_by_publisher(&mut self, events: Vec<RecordedEvent>) {
        for event in events {
            let is_of_type = |feed: &&mut PublisherFeed| event.aggregate_type == feed.publisher.aggregate_type();
            if let Some(feed) = self.publisher_feeds.iter_mut().find(is_of_type) {
                feed.events.push(event);
            }
        }
        for feed in self.publisher_feeds.iter_mut().filter(|feed| !feed.events.is_empty()) {
            let ids = feed.events.iter().map(|event| event.aggregate_id.as_str());
            let mut wanted = self.api.hub.has_interest(feed.publisher.interest(), ids).into_iter();
            feed.events.retain(|_| wanted.next().unwrap_or(true));
        }
    }

    /// Loads each stream's state before its first event in the batch.
    async fn load(&mut self) -> Result<(), event_store::error::Error> {
        for feed in self.publisher_feeds.iter_mut().filter(|feed| !feed.events.is_empty()) {
            let missing = feed.fold.prepare(&feed.events);
            if let (false, Some(first)) = (missing.is_empty(), feed.events.first()) {
                let discarded = discarded(self.api.store.db(), self.group).await?;
                let aggregate_type = feed.publisher.aggregate_type();
                let history = self.api.store.read_streams(aggregate_type, &missing, first.position).await?;
                feed.fold.load(&history, &discarded);
            }
        }
        Ok(())
    }

    /// Returns the next publication of all publishers, in log order.
    fn next(&mut self) -> Option<Arc<Publication>> {
        let mut first: Option<(i64, usize)> = None;
        for (at, feed) in self.publisher_feeds.iter_mut().enumerate() {
            if let Some(publication) = feed.peek()
                && first.is_none_or(|(position, _)| publication.position < position)
            {
                first = Some((publication.position, at));
            }
            // A change of these streams was not published. Their subscribers must not receive a later change as if
            // nothing were missing.
            for stream_id in feed.panicked.drain(..) {
                self.api.hub.disconnect_subscribers(feed.publisher.interest(), &stream_id);
            }
        }
        self.publisher_feeds[first?.1].ready.pop_front()
    }

    /// Creates spans for the events whose requests are traced, with their positions. Each span ends when its event is
    /// published.
    fn spans(&self) -> Vec<(i64, trace::Span)> {
        let span =
            |event: &RecordedEvent| Some((event.position, trace::event_span("push", SpanKind::Consumer, event)?));
        self.wanted().filter_map(span).collect()
    }

    fn wanted(&self) -> impl Iterator<Item = &RecordedEvent> {
        self.publisher_feeds.iter().flat_map(|feed| &feed.events)
    }

    /// Pauses so that the connections can send their queued deliveries. The changes that arrive in the meantime are
    /// then queued together, as one delivery per channel. Waits longer for slow readers, within the throttle budget.
    async fn pace(&mut self, reached: usize) {
        match reached {
            0 => {}
            1..NO_PAUSE_BELOW => tokio::task::yield_now().await,
            many => tokio::time::sleep((PAUSE_PER_DELIVERY * many as u32).min(PAUSE_MAX)).await,
        }
        // A burst of changes can fill a queue faster than a client can read it.
        let now = Instant::now();
        self.throttle_budget =
            (self.throttle_budget + (now - self.counted) / THROTTLE_BUDGET_PART).min(THROTTLE_BUDGET_MAX);
        let wait = self.throttle_budget.min(BACKPRESSURE_MAX);
        while reached > 0 && now.elapsed() < wait && self.api.hub.is_backpressured() {
            tokio::time::sleep(BACKPRESSURE_CHECK).await;
        }
        self.throttle_budget = self.throttle_budget.saturating_sub(now.elapsed());
        self.counted = Instant::now();
    }

    /// Waits until every read model of the group has reached a position.
    async fn projected(&self, position: i64) {
        let mut changes = self.api.progress.changes();
        loop {
            // The sender lives as long as the process.
            let _ = changes.wait_for(|known| known.slowest(self.group) >= position).await;
            // The known positions may be from before a crash of PostgreSQL that reset read models to earlier positions.
            match self.api.progress.slowest_in(self.api.store.db(), self.group).await {
                Ok(slowest) if slowest >= position => return,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "Live updates are waiting for the store.");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Logs one line per event, so that a request can be followed through the logs.
    fn log(&self) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            for event in self.wanted() {
                tracing::debug!(
                    request_id = event.metadata_text("request_id"),
                    aggregate.r#type = &*event.aggregate_type,
                    aggregate.id = &*event.aggregate_id,
                    event.r#type = &*event.event_type,
                    event.position = event.position,
                    "Event pushed."
                );
            }
        }
    }
}
