//! The hub: who listens to which channel, and how changes reach them. It never waits for a listener: one that does not
//! keep up is cut off, and goes on from the log when it comes back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{mpsc, watch};

use crate::push::channels::{CUSTOMER_PREFIX, ORDER_PREFIX, ORDERS, SALES};
use crate::push::connections::{End, Ender};
use crate::push::metrics::METRICS;
use crate::push::publication::{Batch, Publication};

/// Changes that may wait for one connection.
pub const QUEUE_MESSAGES_MAX: usize = 256;
/// Bytes that may wait for one connection.
pub const QUEUE_BYTES_MAX: usize = 1024 * 1024;

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
    /// Messages and bytes of it.
    fn weight(&self) -> (usize, usize) {
        match self {
            Self::Changes(batch) => (batch.changes.len(), batch.bytes()),
            Self::Passing(passing) => (1, passing.data.len()),
        }
    }
}

/// The end of a connection's queue that the hub writes to.
#[derive(Clone)]
pub struct Queue {
    sender: mpsc::UnboundedSender<Delivery>,
    load: Arc<Load>,
    ender: Ender,
}

/// The end of a connection's queue that the connection reads.
pub struct Deliveries {
    receiver: mpsc::UnboundedReceiver<Delivery>,
    load: Arc<Load>,
    ender: Ender,
}

#[derive(Default)]
struct Load {
    messages: AtomicUsize,
    bytes: AtomicUsize,
}

/// A connection's queue; bounded, by what waits in it: `ender` ends a connection that lets more wait.
pub fn queue(ender: Ender) -> (Queue, Deliveries) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let load = Arc::new(Load::default());
    (Queue { sender, load: load.clone(), ender: ender.clone() }, Deliveries { receiver, load, ender })
}

impl Queue {
    fn push(&self, delivery: Delivery, (messages, bytes): (usize, usize)) {
        let load = &self.load;
        // An empty queue takes whatever comes: one change may be larger than all that may wait.
        let waiting = load.messages.fetch_add(messages, Relaxed);
        let waiting_bytes = load.bytes.fetch_add(bytes, Relaxed);
        // The bytes of a change that is one of several channels lie there once: what waited before is what counts.
        if waiting > 0 && (waiting + messages > QUEUE_MESSAGES_MAX || waiting_bytes > QUEUE_BYTES_MAX) {
            self.ender.end(End::Slow);
        }
        // After that something is missing, and nothing more may come.
        if !self.ender.has_ended() {
            // Fails only where the connection has just ended.
            let _ = self.sender.send(delivery);
        }
    }
}

impl Deliveries {
    /// The next one. Ends never while somebody holds a [`Queue`].
    pub async fn next(&mut self) -> Option<Delivery> {
        let delivery = self.receiver.recv().await?;
        self.taken(&delivery);
        Some(delivery)
    }

    /// The next one, if there is one.
    pub fn try_next(&mut self) -> Option<Delivery> {
        let delivery = self.receiver.try_recv().ok()?;
        self.taken(&delivery);
        Some(delivery)
    }

    /// Whether nothing that was meant for it may be missing.
    pub fn is_whole(&self) -> bool {
        !self.ender.has_ended()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }

    fn taken(&self, delivery: &Delivery) {
        let (messages, bytes) = delivery.weight();
        self.load.messages.fetch_sub(messages, Relaxed);
        self.load.bytes.fetch_sub(bytes, Relaxed);
    }
}

/// The channels of this process; cheap to clone.
#[derive(Clone)]
pub struct Hub {
    channels: Arc<Mutex<Channels>>,
    /// Whatever lies at or before it has been queued to all who listened by then.
    through: Arc<watch::Sender<i64>>,
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

impl Default for Hub {
    fn default() -> Self {
        Self { channels: Arc::default(), through: Arc::new(watch::channel(0).0) }
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
                let last = *self.through.borrow();
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
            channel.queue(&Delivery::Changes(Arc::new(Batch::new(name, of_channel))), false);
            reached += channel.subscribers.len();
        }
        drop(channels);
        self.through.send_replace(through);
        reached
    }

    /// Nobody listened until now: what lies at or before a position has been queued to all who did.
    pub fn skip_to(&self, position: i64) {
        self.through.send_replace(position);
    }

    /// Whether somebody who listens has not read yet most of the bytes that may wait.
    pub fn is_crowded(&self) -> bool {
        let channels = self.lock();
        let mut queues = channels.open.values().flat_map(|channel| channel.subscribers.values());
        queues.any(|subscriber| {
            let queue = &subscriber.queue;
            queue.load.bytes.load(Relaxed) > QUEUE_BYTES_MAX / 4 && !queue.ender.has_ended()
        })
    }

    /// Follows how far the log has been queued.
    pub fn through(&self) -> watch::Receiver<i64> {
        self.through.subscribe()
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
        self.channels.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Channel {
    fn queue(&self, delivery: &Delivery, staff_only: bool) {
        let weight = delivery.weight();
        for subscriber in self.subscribers.values().filter(|subscriber| subscriber.staff || !staff_only) {
            subscriber.queue.push(delivery.clone(), weight);
        }
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
pub(super) mod tests {
    use event_store::event::RecordedEvent;

    use super::*;

    pub(in crate::push) fn created(order_id: &str, position: i64) -> Arc<Publication> {
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
