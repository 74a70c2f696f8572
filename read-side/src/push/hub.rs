//! The hub: who listens to which channel, and how a change reaches them. A change is encoded once and its bytes shared.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Changes that may wait for one subscriber; one that falls further behind is cut off and resumes from the log.
pub const QUEUE_MAX: usize = 256;

/// A change of an order, as it is published.
#[derive(Debug)]
pub struct Publication {
    /// Position of the event.
    pub position: i64,
    /// The order.
    pub order_id: String,
    /// Its version after the event.
    pub version: i64,
    /// JSON text of `data`.
    pub data: String,
}

/// A change on the channel it came by.
pub type Delivery = (Arc<str>, Arc<Publication>);

/// The channels of this process; cheap to clone.
#[derive(Clone, Default)]
pub struct Hub {
    channels: Arc<Mutex<Channels>>,
}

#[derive(Default)]
struct Channels {
    subscribers: HashMap<Arc<str>, HashMap<u64, Subscriber>>,
    next_id: u64,
}

struct Subscriber {
    queue: mpsc::Sender<Delivery>,
    /// Cancelled when the queue overflows: the connection is slow.
    slow: CancellationToken,
}

/// A place in a channel; leaves it when dropped.
pub struct Subscription {
    hub: Hub,
    channel: Arc<str>,
    id: u64,
}

impl Hub {
    /// Attaches a connection's queue to a channel. From here on every change of the channel is queued, so a snapshot
    /// read afterwards misses nothing.
    pub fn subscribe(&self, channel: &str, queue: mpsc::Sender<Delivery>, slow: CancellationToken) -> Subscription {
        let mut channels = self.lock();
        channels.next_id += 1;
        let id = channels.next_id;
        let channel: Arc<str> = match channels.subscribers.get_key_value(channel) {
            Some((known, _)) => known.clone(),
            None => channel.into(),
        };
        channels.subscribers.entry(channel.clone()).or_default().insert(id, Subscriber { queue, slow });
        Subscription { hub: self.clone(), channel, id }
    }

    /// Whether nobody listens to anything.
    pub fn is_empty(&self) -> bool {
        self.lock().subscribers.is_empty()
    }

    /// Whether anybody could want a change of this order; the customer's channel counts only by its kind, because the
    /// owner is not known before the order is folded.
    pub fn wants(&self, order_channel: &str, all_channel: &str, customer_prefix: &str) -> bool {
        let channels = self.lock();
        channels.subscribers.contains_key(order_channel)
            || channels.subscribers.contains_key(all_channel)
            || channels.subscribers.keys().any(|channel| channel.starts_with(customer_prefix))
    }

    /// Queues a change to every subscriber of the channel. Never waits: a full queue cuts its connection off.
    pub fn publish(&self, channel: &str, publication: &Arc<Publication>) {
        let channels = self.lock();
        let Some((channel, subscribers)) = channels.subscribers.get_key_value(channel) else { return };
        for subscriber in subscribers.values() {
            if subscriber.queue.try_send((channel.clone(), publication.clone())).is_err() {
                subscriber.slow.cancel();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut channels = self.hub.lock();
        if let Some(subscribers) = channels.subscribers.get_mut(&self.channel) {
            subscribers.remove(&self.id);
            if subscribers.is_empty() {
                channels.subscribers.remove(&self.channel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(position: i64) -> Arc<Publication> {
        Arc::new(Publication { position, order_id: "a".into(), version: position, data: "{}".into() })
    }

    #[tokio::test]
    async fn a_full_queue_cuts_off_its_own_connection_only() {
        let hub = Hub::default();
        let (slow_queue, _kept) = mpsc::channel(1);
        let (queue, mut deliveries) = mpsc::channel(8);
        let (slow, fine) = (CancellationToken::new(), CancellationToken::new());
        let _a = hub.subscribe("orders", slow_queue, slow.clone());
        let _b = hub.subscribe("orders", queue, fine.clone());
        for position in 1..=3 {
            hub.publish("orders", &publication(position));
        }
        assert!(slow.is_cancelled() && !fine.is_cancelled());
        for position in 1..=3 {
            assert_eq!(deliveries.recv().await.unwrap().1.position, position);
        }
    }

    #[tokio::test]
    async fn a_channel_ends_with_its_last_subscriber() {
        let hub = Hub::default();
        let (queue, _kept) = mpsc::channel(1);
        let subscription = hub.subscribe("order:a", queue, CancellationToken::new());
        assert!(hub.wants("order:a", "orders", "customer:"));
        assert!(!hub.wants("order:b", "orders", "customer:"));
        drop(subscription);
        assert!(!hub.wants("order:a", "orders", "customer:"));
    }
}
