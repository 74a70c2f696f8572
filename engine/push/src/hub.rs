//! The hub: who listens to which channel, and how changes reach them. It never waits for a listener that does not read: one
//! that does not keep up is cut off, and goes on from the log when it comes back.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use tokio::sync::watch;

use crate::channels::{CUSTOMER_PREFIX, ORDER_PREFIX, ORDERS, SALES};
use crate::connections::{End, Ender};
use crate::metrics::METRICS;
use crate::publication::{Batch, Publication};

/// Messages that may wait for one connection: what was published together counts as one.
pub const QUEUE_MESSAGES_MAX: usize = 256;
/// Bytes that may wait in this process; what waits for many on one channel counts once. Beyond it those are cut off who are
/// furthest behind.
pub const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Where so many bytes wait for one connection, and half of what may wait in the process, its reader is waited for.
const MUCH_BYTES: usize = 1024 * 1024;
/// How long a reader is waited for that has taken nothing.
const PATIENCE: Duration = Duration::from_millis(40);

/// What is queued for a connection.
#[derive(Clone)]
pub enum Delivery {
    /// Changes from the log.
    Changes(Arc<Batch>),
    /// What is in no log: shown and forgotten.
    Passing(Arc<Passing>),
}

/// Who looks at an order, how the projections stand.
pub struct Passing {
    /// The channel.
    pub channel: Arc<str>,
    /// `pub`, `join` or `leave`.
    pub event: &'static str,
    /// JSON text of it.
    pub data: String,
}

impl Delivery {
    fn bytes(&self) -> usize {
        match self {
            Self::Changes(batch) => batch.bytes(),
            Self::Passing(passing) => passing.data.len(),
        }
    }

    /// Whether it was published together with the one after it.
    fn is_of_one_round_with(&self, next: Option<&Self>) -> bool {
        matches!((self, next), (Self::Changes(this), Some(Self::Changes(next))) if this.round == next.round)
    }
}

/// The end of a connection's queue that the hub writes to.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

/// The end of a connection's queue that the connection reads; dropped, it takes nothing more.
pub struct Deliveries(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    connection: AtomicWaker,
    ender: Ender,
}

#[derive(Default)]
struct Waiting {
    deliveries: VecDeque<Delivery>,
    messages: usize,
    bytes: usize,
    /// Since when the hub waits for its reader, who has taken nothing since.
    awaited: Option<Instant>,
    /// Nobody reads it any more.
    closed: bool,
}

/// A connection's queue; bounded, by what waits in it: `ender` ends a connection that lets more wait.
pub fn queue(ender: Ender) -> (Queue, Deliveries) {
    let shared = Arc::new(Shared { waiting: Mutex::default(), connection: AtomicWaker::new(), ender });
    (Queue(shared.clone()), Deliveries(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Waiting {
    fn is_much(&self, bytes_count: bool) -> bool {
        self.messages > QUEUE_MESSAGES_MAX / 2 || (bytes_count && self.bytes > MUCH_BYTES)
    }

    fn take(&mut self) -> Option<Delivery> {
        let delivery = self.deliveries.pop_front()?;
        self.messages -= usize::from(!delivery.is_of_one_round_with(self.deliveries.front()));
        self.bytes -= delivery.bytes();
        self.awaited = None;
        Some(delivery)
    }

    fn close(&mut self) {
        *self = Self { closed: true, ..Self::default() };
    }
}

impl Queue {
    /// Whether much waits now.
    fn push(&self, delivery: Delivery, bytes: usize) -> bool {
        let mut waiting = self.0.lock();
        if waiting.closed {
            return false;
        }
        if !waiting.deliveries.back().is_some_and(|last| last.is_of_one_round_with(Some(&delivery))) {
            if waiting.messages == QUEUE_MESSAGES_MAX {
                drop(waiting);
                self.cut_off();
                return false;
            }
            waiting.messages += 1;
        }
        waiting.bytes += bytes;
        waiting.deliveries.push_back(delivery);
        let is_much = waiting.is_much(true);
        drop(waiting);
        self.0.connection.wake();
        is_much
    }

    /// Ends the connection, and lets go what waits for it: from here on something is missing, and nothing more may come.
    fn cut_off(&self) {
        self.0.ender.end(End::Slow);
        self.0.lock().close();
        self.0.connection.wake();
    }

    /// Position of the first change that waits.
    fn behind_at(&self) -> Option<i64> {
        self.0.lock().deliveries.iter().find_map(|delivery| match delivery {
            Delivery::Changes(batch) => Some(batch.first()),
            Delivery::Passing(_) => None,
        })
    }

    /// Whether much waits for its reader, who may be expected to read on.
    fn is_crowded(&self, bytes_count: bool) -> bool {
        let mut waiting = self.0.lock();
        waiting.is_much(bytes_count) && waiting.awaited.get_or_insert_with(Instant::now).elapsed() < PATIENCE
    }
}

impl Deliveries {
    /// The next one; never comes where nothing more is queued.
    pub async fn next(&mut self) -> Delivery {
        poll_fn(|context| {
            // Registered first: what is queued in between wakes this task.
            self.0.connection.register(context.waker());
            self.try_next().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// The next one, if there is one.
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.0.lock().take()
    }

    /// The next one, if it holds changes that were published together with those that came last.
    pub fn try_next_of(&mut self, round: i64) -> Option<Arc<Batch>> {
        let mut waiting = self.0.lock();
        match waiting.deliveries.front() {
            Some(Delivery::Changes(batch)) if batch.round == round => {
                let batch = batch.clone();
                waiting.take();
                Some(batch)
            }
            _ => None,
        }
    }

    /// Whether nothing that was meant for it may be missing.
    pub fn is_whole(&self) -> bool {
        !self.0.ender.has_ended()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.0.lock().deliveries.is_empty()
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.0.lock().close();
    }
}

/// The channels of this process; cheap to clone.
#[derive(Clone, Default)]
pub struct Hub(Arc<Center>);

#[derive(Default)]
struct Center {
    channels: Mutex<Channels>,
    /// Whatever lies at or before it has been queued to all who listened by then.
    through: watch::Sender<i64>,
    /// Bytes that wait in this process.
    waiting: Arc<AtomicUsize>,
    /// Much waited for somebody when something was queued last.
    crowded: AtomicBool,
}

#[derive(Default)]
struct Channels {
    open: HashMap<Arc<str>, Channel>,
    /// How many of them are customers'.
    customers: usize,
    next_id: u64,
}

struct Channel {
    subscribers: HashMap<u64, Subscriber>,
    /// Position of its last change, or one after which there was none.
    last: i64,
}

struct Subscriber {
    queue: Queue,
    staff: bool,
}

/// A place in a channel; leaves it when dropped.
pub struct Subscription {
    hub: Hub,
    channel: Arc<str>,
    id: u64,
}

impl Subscription {
    /// The channel.
    pub fn channel(&self) -> &Arc<str> {
        &self.channel
    }
}

impl Hub {
    /// Attaches a connection's queue to a channel. From here on every change of the channel is queued, so a snapshot or
    /// a part of the log read afterwards misses nothing.
    pub fn subscribe(&self, channel: &str, queue: &Queue, staff: bool) -> Subscription {
        let mut channels = self.lock();
        channels.next_id += 1;
        let id = channels.next_id;
        let name: Arc<str> = match channels.open.get_key_value(channel) {
            Some((known, _)) => known.clone(),
            None => {
                let name: Arc<str> = channel.into();
                let last = *self.0.through.borrow();
                channels.customers += usize::from(channel.starts_with(CUSTOMER_PREFIX));
                channels.open.insert(name.clone(), Channel { subscribers: HashMap::new(), last });
                name
            }
        };
        if let Some(open) = channels.open.get_mut(&name) {
            open.subscribers.insert(id, Subscriber { queue: queue.clone(), staff });
        }
        METRICS.subscriptions.add(1, &[]);
        METRICS.channels.record(channels.open.len() as u64, &[]);
        Subscription { hub: self.clone(), channel: name, id }
    }

    /// Whether nobody listens to anything.
    pub fn is_empty(&self) -> bool {
        self.lock().open.is_empty()
    }

    /// Whether somebody listens to a channel.
    pub fn has(&self, channel: &str) -> bool {
        self.lock().open.contains_key(channel)
    }

    /// Which of the orders somebody could want to hear of; the customers' channels count only by their kind, because an
    /// order's owner is not known before it is folded.
    pub fn wants<'a>(&self, order_ids: impl Iterator<Item = &'a str>) -> Vec<bool> {
        let channels = self.lock();
        let all = channels.customers > 0 || channels.open.contains_key(ORDERS) || channels.open.contains_key(SALES);
        let mut name = String::new();
        let mut wants = |id| {
            name.clear();
            name.push_str(ORDER_PREFIX);
            name.push_str(id);
            all || channels.open.contains_key(&*name)
        };
        order_ids.map(&mut wants).collect()
    }

    /// Queues changes, in the order of the log, to every subscriber of their channels, and says that all of the log is
    /// queued up to `through`. Gives to how many subscribers something was queued.
    pub fn publish(&self, changes: &[Arc<Publication>], through: i64) -> usize {
        let mut reached = 0;
        let mut channels = self.lock();
        let mut by_channel: Vec<(String, Vec<&Arc<Publication>>)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for change in changes {
            let sale = change.is_sale().then(|| SALES.to_owned());
            let names = [
                format!("{ORDER_PREFIX}{}", change.order_id()),
                format!("{CUSTOMER_PREFIX}{}", change.customer_id()),
                ORDERS.to_owned(),
            ];
            for name in names.into_iter().chain(sale).filter(|name| channels.open.contains_key(&**name)) {
                let place = *places.entry(name.clone()).or_insert_with(|| {
                    by_channel.push((name, Vec::new()));
                    by_channel.len() - 1
                });
                by_channel[place].1.push(change);
            }
        }
        for (name, changes) in by_channel {
            let Some((name, _)) = channels.open.get_key_value(&*name) else { continue };
            let name = name.clone();
            let Some(channel) = channels.open.get_mut(&name) else { continue };
            let mut of_channel = Vec::with_capacity(changes.len());
            for change in changes {
                // An order knows its last change itself.
                let previous = if name.starts_with(ORDER_PREFIX) { change.previous_of_order() } else { channel.last };
                of_channel.push((previous, change.clone()));
                channel.last = change.position;
            }
            METRICS.deliveries.add((of_channel.len() * channel.subscribers.len()) as u64, &[]);
            let batch = Batch::new(name, through, of_channel, &self.0.waiting);
            if channel.queue(&Delivery::Changes(Arc::new(batch)), false) {
                self.0.crowded.store(true, Relaxed);
            }
            reached += channel.subscribers.len();
        }
        if self.0.waiting.load(Relaxed) > WAITING_BYTES_MAX {
            channels.make_room(&self.0.waiting);
        }
        drop(channels);
        self.0.through.send_replace(through);
        reached
    }

    /// Nobody listened until now: what lies at or before a position has been queued to all who did.
    pub fn skip_to(&self, position: i64) {
        self.0.through.send_replace(position);
    }

    /// Whether much waits for somebody who reads.
    pub fn is_crowded(&self) -> bool {
        let bytes_count = self.0.waiting.load(Relaxed) > WAITING_BYTES_MAX / 2;
        let crowded = self.0.crowded.load(Relaxed) && self.lock().queues().any(|queue| queue.is_crowded(bytes_count));
        self.0.crowded.store(crowded, Relaxed);
        crowded
    }

    /// Follows how far the log has been queued.
    pub fn through(&self) -> watch::Receiver<i64> {
        self.0.through.subscribe()
    }

    /// Queues something that is in no log, for all or for staff.
    pub fn pass(&self, channel: &str, event: &'static str, data: String, staff_only: bool) {
        let channels = self.lock();
        if let Some((name, channel)) = channels.open.get_key_value(channel) {
            let passing = Passing { channel: name.clone(), event, data };
            channel.queue(&Delivery::Passing(Arc::new(passing)), staff_only);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Channels> {
        self.0.channels.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Channels {
    fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.open.values().flat_map(|channel| channel.subscribers.values().map(|subscriber| &subscriber.queue))
    }

    /// Cuts off those who are furthest behind, until a quarter of what may wait is free.
    fn make_room(&self, waiting: &AtomicUsize) {
        let mut behind: Vec<_> = self.queues().filter_map(|queue| Some((queue.behind_at()?, queue))).collect();
        behind.sort_unstable_by_key(|(position, _)| *position);
        for (_, queue) in behind {
            if waiting.load(Relaxed) <= WAITING_BYTES_MAX / 4 * 3 {
                break;
            }
            queue.cut_off();
        }
    }
}

impl Channel {
    /// Whether much waits for somebody now.
    fn queue(&self, delivery: &Delivery, staff_only: bool) -> bool {
        let bytes = delivery.bytes();
        let subscribers = self.subscribers.values().filter(|subscriber| subscriber.staff || !staff_only);
        subscribers.fold(false, |much, subscriber| subscriber.queue.push(delivery.clone(), bytes) | much)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut channels = self.hub.lock();
        let Some(channel) = channels.open.get_mut(&self.channel) else { return };
        channel.subscribers.remove(&self.id);
        if channel.subscribers.is_empty() {
            channels.open.remove(&self.channel);
            channels.customers -= usize::from(self.channel.starts_with(CUSTOMER_PREFIX));
        }
        METRICS.subscriptions.add(-1, &[]);
        METRICS.channels.record(channels.open.len() as u64, &[]);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use event_store::event::RecordedEvent;

    use super::*;

    pub(crate) fn created(order_id: &str, position: i64) -> Arc<Publication> {
        let payload = r#"{"OrderCreated":{"customer_id":"ada","currency":"USD","attributes":{}}}"#;
        let event = RecordedEvent {
            position,
            aggregate_type: "order".into(),
            aggregate_id: order_id.into(),
            sequence: 1,
            event_type: "OrderCreated".into(),
            event_version: "1".into(),
            payload: payload.into(),
            metadata: "{}".into(),
            recorded_at: 1,
        };
        Arc::new(Publication::of(None, &event).unwrap().0)
    }

    fn changes(delivery: Option<Delivery>) -> Vec<(i64, i64)> {
        match delivery {
            Some(Delivery::Changes(batch)) => {
                batch.changes.iter().map(|(prev, change)| (*prev, change.position)).collect()
            }
            _ => vec![],
        }
    }

    #[test]
    fn a_full_queue_cuts_off_its_own_connection_only() {
        let hub = Hub::default();
        let (slow_ender, fine_ender) = (Ender::default(), Ender::default());
        let ((slow, _slow_end), (fine, mut fine_end)) = (queue(slow_ender.clone()), queue(fine_ender.clone()));
        let _slow = hub.subscribe(ORDERS, &slow, true);
        let _fine = hub.subscribe(ORDERS, &fine, true);
        for position in 1..=QUEUE_MESSAGES_MAX as i64 + 1 {
            hub.publish(&[created("a", position)], position);
            assert_eq!(changes(fine_end.try_next()), [(position - 1, position)]);
        }
        assert!(slow_ender.has_ended() && !fine_ender.has_ended());
    }

    #[test]
    fn large_changes_may_wait_while_there_is_room() {
        const LARGE: usize = 1024 * 1024;
        let hub = Hub::default();
        let enders = [Ender::default(), Ender::default(), Ender::default()];
        let queues = enders.clone().map(queue);
        let _places: Vec<_> = queues.iter().map(|(queue, _)| hub.subscribe(ORDERS, queue, true)).collect();
        let [(_, unread), (_, mut late), (_, mut fine)] = queues;
        let ended = || enders.each_ref().map(Ender::has_ended);
        let publish_large = |position| {
            let mut change = Arc::into_inner(created("a", position)).unwrap();
            change.data = "x".repeat(LARGE);
            hub.publish(&[Arc::new(change)], position);
        };
        for position in 1..=(WAITING_BYTES_MAX / LARGE) as i64 {
            publish_large(position);
            assert!(fine.try_next().is_some());
            assert!(position < 10 || late.try_next().is_some());
        }
        assert_eq!(ended(), [false; 3]);
        publish_large(1_000);
        assert_eq!(ended(), [true, false, false], "who is furthest behind, alone");
        assert!(unread.is_empty() && hub.0.waiting.load(Relaxed) <= 11 * LARGE, "its changes are let go");
    }

    #[test]
    fn what_is_published_together_is_one_message() {
        let hub = Hub::default();
        let (ender, other) = (Ender::default(), Ender::default());
        let ((queue_of_many, mut end), (queue_of_one, _end)) = (queue(ender.clone()), queue(other.clone()));
        let channels = [ORDERS, "order:a", "order:b", "customer:ada"];
        let _places = channels.map(|channel| hub.subscribe(channel, &queue_of_many, true));
        let _place = hub.subscribe("order:a", &queue_of_one, true);
        let publish = |times: usize| {
            for _ in 0..times {
                hub.publish(&[created("a", 1), created("b", 2)], 2);
                // Another round, in which there was nothing.
                hub.pass(ORDERS, "pub", "{}".to_owned(), false);
            }
        };
        publish(QUEUE_MESSAGES_MAX / 2);
        assert!(!ender.has_ended());
        for _ in 0..5 {
            end.try_next();
        }
        publish(1);
        assert!(!ender.has_ended() && !other.has_ended(), "two messages went, and two came");
        publish(1);
        assert!(ender.has_ended() && !other.has_ended());
    }

    #[test]
    fn readers_are_waited_for_and_others_are_not() {
        let hub = Hub::default();
        let (queue, mut end) = queue(Ender::default());
        let _all = hub.subscribe(ORDERS, &queue, true);
        let publish = |position| {
            hub.publish(&[created("a", position)], position);
        };
        (1..QUEUE_MESSAGES_MAX as i64).for_each(publish);
        assert!(hub.is_crowded());
        std::thread::sleep(PATIENCE);
        assert!(!hub.is_crowded(), "it takes nothing");
        end.try_next();
        publish(QUEUE_MESSAGES_MAX as i64);
        assert!(hub.is_crowded(), "it reads");
        while end.0.lock().messages > QUEUE_MESSAGES_MAX / 2 {
            end.try_next();
        }
        assert!(!hub.is_crowded());
    }

    #[test]
    fn each_change_names_the_one_before_it_on_its_channel() {
        let hub = Hub::default();
        hub.skip_to(7);
        let (queue, mut end) = queue(Ender::default());
        let _all = hub.subscribe(ORDERS, &queue, true);
        let _one = hub.subscribe("order:b", &queue, true);
        hub.publish(&[created("a", 8), created("b", 9)], 9);
        hub.publish(&[created("b", 12)], 12);
        // An order's first change has none before it.
        assert_eq!(changes(end.try_next()), [(7, 8), (8, 9)]);
        assert_eq!(changes(end.try_next()), [(0, 9)]);
        assert_eq!(changes(end.try_next()), [(0, 12)]);
        assert_eq!(changes(end.try_next()), [(9, 12)]);
        assert_eq!(*hub.through().borrow(), 12);
    }

    #[test]
    fn a_channel_ends_with_its_last_subscriber() {
        let hub = Hub::default();
        let (queue, _end) = queue(Ender::default());
        let order = hub.subscribe("order:a", &queue, false);
        assert_eq!(hub.wants(["a", "b"].into_iter()), [true, false]);
        let customer = hub.subscribe("customer:ada", &queue, false);
        assert_eq!(hub.wants(["a", "b"].into_iter()), [true, true]);
        drop((order, customer));
        assert_eq!(hub.wants(["a", "b"].into_iter()), [false, false]);
        assert!(hub.is_empty());
    }
}
