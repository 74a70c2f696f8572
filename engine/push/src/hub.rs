//! The hub: keeps the subscribers of each channel and queues changes for them. The hub never blocks on a slow client.
//! It disconnects a client that falls too far behind; the client reconnects and resumes from the log.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::batch::{Batch, Change, Ephemeral};
use crate::connections::CloseReason;
use crate::metrics::METRICS;
use crate::publication::{Group, Interest, Publication};
use crate::queue::{Delivery, Queue};

/// Limit of queued bytes in this process. A batch that is queued for many subscribers counts once. Above the limit, the
/// hub disconnects the connections that are furthest behind.
pub const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A kind of channel: one channel, or all channels with a prefix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kind {
    /// The channel's name, or the prefix of the channels' names.
    pub name: &'static str,
    /// Checkpoint group whose feed publishes on the channel.
    pub group: Group,
}

/// The open channels of this process with their subscribers. Cheap to clone.
#[derive(Clone, Default)]
pub struct Hub(Arc<Inner>);

#[derive(Default)]
struct Inner {
    channels: Mutex<Channels>,
    /// Queued bytes in this process.
    waiting: Arc<AtomicUsize>,
    /// Whether a queue was long after the last delivery. A cheap pre-check of [`Hub::is_backpressured`].
    backpressured: AtomicBool,
}

#[derive(Default)]
struct Channels {
    open: HashMap<Arc<str>, Channel>,
    /// Number of open channels by kind.
    kinds: HashMap<&'static str, usize>,
    groups: HashMap<Group, GroupState>,
    next_id: u64,
}

#[derive(Default)]
struct GroupState {
    /// Number of open channels of the group.
    open: usize,
    /// Position up to which all changes of the group have been queued for the subscribers of that time.
    through: watch::Sender<i64>,
    /// Position up to which the feed has decided, or is about to decide, which events have subscribers.
    considered: i64,
}

struct Channel {
    name: Arc<str>,
    kind: Kind,
    subscribers: HashMap<u64, Subscriber>,
    /// Position of the channel's last change, or a later position with no change in between.
    last: i64,
    /// Changes of the publish round in progress.
    round: Vec<Change>,
}

struct Subscriber {
    queue: Queue,
    staff: bool,
}

/// A subscription of a queue to a channel. Dropping it unsubscribes.
pub struct Subscription {
    hub: Hub,
    channel: Arc<str>,
    id: u64,
}

impl Subscription {
    /// Returns the name of the channel.
    pub fn channel(&self) -> &Arc<str> {
        &self.channel
    }
}

impl Hub {
    /// Subscribes a connection's queue to a channel. Every later change of the channel is queued. So a snapshot or a
    /// part of the log that is read after this call, together with the queue, misses nothing. `staff` subscribers also
    /// receive ephemeral events that are for staff only.
    pub fn subscribe(&self, kind: Kind, name: &str, queue: &Queue, staff: bool) -> Subscription {
        let mut channels = self.lock();
        channels.next_id += 1;
        let id = channels.next_id;
        let subscriber = Subscriber { queue: queue.clone(), staff };
        let channel = match channels.open.get_mut(name) {
            Some(open) => {
                open.subscribers.insert(id, subscriber);
                open.name.clone()
            }
            None => {
                let name: Arc<str> = name.into();
                let group = channels.groups.entry(kind.group).or_default();
                group.open += 1;
                let last = *group.through.borrow();
                let subscribers = HashMap::from([(id, subscriber)]);
                *channels.kinds.entry(kind.name).or_default() += 1;
                let channel = Channel { name: name.clone(), kind, subscribers, last, round: Vec::new() };
                channels.open.insert(name.clone(), channel);
                name
            }
        };
        METRICS.subscriptions.add(1, &[]);
        METRICS.channels.record(channels.open.len() as u64, &[]);
        Subscription { hub: self.clone(), channel, id }
    }

    /// Whether no channel of the group has subscribers.
    pub fn is_empty(&self, group: Group) -> bool {
        self.lock().groups.get(group).is_none_or(|group| group.open == 0)
    }

    /// Whether the channel has subscribers.
    pub fn has(&self, channel: &str) -> bool {
        self.lock().open.contains_key(channel)
    }

    /// Returns for each stream id whether the stream's changes could go to an open channel.
    pub fn has_interest<'a>(&self, interest: &Interest, ids: impl Iterator<Item = &'a str>) -> Vec<bool> {
        let channels = self.lock();
        let all = interest.names.iter().any(|name| channels.open.contains_key(*name))
            || interest.by_prefix.iter().any(|prefix| channels.kinds.contains_key(prefix));
        let mut name = String::new();
        let mut is_open = |prefix: &&str, id: &str| {
            name.clear();
            name.push_str(prefix);
            name.push_str(id);
            channels.open.contains_key(&*name)
        };
        ids.map(|id| all || interest.by_stream.iter().any(|prefix| is_open(prefix, id))).collect()
    }

    /// Whether a publication goes to an open channel.
    pub fn has_subscribers_for(&self, publication: &Publication) -> bool {
        let channels = self.lock();
        publication.channels.iter().any(|target| channels.open.contains_key(&*target.name))
    }

    /// Queues publications of a group, in log order, for every subscriber of their channels. Then marks the group's log
    /// as queued up to `through`. Returns the number of deliveries: the sum of the subscribers of each channel with
    /// changes.
    pub fn publish(&self, group: Group, publications: &[Arc<Publication>], through: i64) -> usize {
        let mut reached = 0;
        let mut channels = self.lock();
        let mut touched = Vec::new();
        for publication in publications {
            for target in &publication.channels {
                let open = channels.open.get_mut(&*target.name);
                let Some(channel) = open.filter(|channel| channel.kind.group == group) else { continue };
                if channel.round.is_empty() {
                    touched.push(channel.name.clone());
                }
                let previous = target.previous.unwrap_or(channel.last);
                channel.round.push(Change::new(previous, publication.clone()));
                channel.last = publication.position;
            }
        }
        // The lock is held until the last batch of the round is queued, so the batches of a round are adjacent in a
        // queue.
        for name in touched {
            let Some(channel) = channels.open.get_mut(&name) else { continue };
            let changes = std::mem::take(&mut channel.round);
            METRICS.deliveries.add((changes.len() * channel.subscribers.len()) as u64, &[]);
            let batch = Batch::new(name, group, through, changes, &self.0.waiting);
            if channel.queue(&Delivery::Changes(Arc::new(batch)), false) {
                self.0.backpressured.store(true, Relaxed);
            }
            reached += channel.subscribers.len();
        }
        if self.0.waiting.load(Relaxed) > WAITING_BYTES_MAX {
            channels.evict_slowest(&self.0.waiting);
        }
        let queued = channels.groups.entry(group).or_default().through.clone();
        drop(channels);
        queued.send_replace(through);
        reached
    }

    /// Announces that the feed is about to drop events up to a position that have no subscribers.
    pub fn consider(&self, group: Group, position: i64) {
        self.lock().groups.entry(group).or_default().considered = position;
    }

    /// Returns the position from which a subscription made before this call receives every change. Earlier changes may
    /// have been dropped, because they had no subscribers.
    pub fn complete_after(&self, group: Group) -> i64 {
        let mut channels = self.lock();
        let group = channels.groups.entry(group).or_default();
        group.considered.max(*group.through.borrow())
    }

    /// Marks a group's log as queued up to a position. Used while the group has no subscribers.
    pub fn skip_to(&self, group: Group, position: i64) {
        let mut channels = self.lock();
        let group = channels.groups.entry(group).or_default();
        group.considered = position;
        group.through.send_replace(position);
    }

    /// Whether a queue is long although its reader is reading. Bytes count only when half of [`WAITING_BYTES_MAX`] is
    /// used.
    pub fn is_backpressured(&self) -> bool {
        let bytes_count = self.0.waiting.load(Relaxed) > WAITING_BYTES_MAX / 2;
        let backpressured =
            self.0.backpressured.load(Relaxed) && self.lock().queues().any(|queue| queue.is_backpressured(bytes_count));
        self.0.backpressured.store(backpressured, Relaxed);
        backpressured
    }

    /// Returns a watch on the position up to which the group's log has been queued.
    pub fn through(&self, group: Group) -> watch::Receiver<i64> {
        self.lock().groups.entry(group).or_default().through.subscribe()
    }

    /// Queues an ephemeral event for the subscribers of a channel, or only for those that are staff.
    pub fn publish_ephemeral(&self, channel: &str, event: &'static str, data: String, staff_only: bool) {
        if let Some(channel) = self.lock().open.get(channel) {
            let ephemeral = Ephemeral::new(channel.name.clone(), event, data);
            channel.queue(&Delivery::Ephemeral(Arc::new(ephemeral)), staff_only);
        }
    }

    /// Disconnects the subscribers of every channel that a change of the stream can go to, because they would miss a
    /// change. Their clients reconnect, and resume from the log or from a snapshot.
    pub fn disconnect_subscribers(&self, interest: &Interest, stream_id: &str) {
        let channels = self.lock();
        let concerned = channels.open.values().filter(|channel| interest.includes(&channel.name, stream_id));
        for subscriber in concerned.flat_map(|channel| channel.subscribers.values()) {
            subscriber.queue.disconnect(CloseReason::Incomplete);
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

    /// Disconnects the connections that are furthest behind, until a quarter of [`WAITING_BYTES_MAX`] is free.
    fn evict_slowest(&self, waiting: &AtomicUsize) {
        let mut behind: Vec<_> = self.queues().filter_map(|queue| Some((queue.first_position()?, queue))).collect();
        behind.sort_unstable_by_key(|(position, _)| *position);
        for (_, queue) in behind {
            if waiting.load(Relaxed) <= WAITING_BYTES_MAX / 4 * 3 {
                break;
            }
            queue.disconnect(CloseReason::Slow);
        }
    }
}

impl Channel {
    /// Queues a delivery for the subscribers. Returns whether a subscriber's queue is long now.
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
            let kind = channel.kind;
            channels.open.remove(&self.channel);
            if let Some(group) = channels.groups.get_mut(kind.group) {
                group.open -= 1;
            }
            if let Some(count) = channels.kinds.get_mut(kind.name) {
                *count -= 1;
                if *count == 0 {
                    channels.kinds.remove(kind.name);
                }
            }
        }
        METRICS.subscriptions.add(-1, &[]);
        METRICS.channels.record(channels.open.len() as u64, &[]);
    }
}

#[cfg(test)]
mod tests {
    use projection_engine::registry::CORE;

    use super::*;
    use crate::batch::Delivered;
    use crate::connections::CloseHandle;
    use crate::queue::{QUEUE_MESSAGES_MAX, READER_WAIT, queue};
    use crate::testing::{ALL, ONE, OTHER, OWNED, PUBLISHER, created, large};

    fn changes(delivery: Option<Delivery>) -> Vec<(i64, i64)> {
        match delivery {
            Some(Delivery::Changes(batch)) => {
                batch.changes.iter().map(|change| (change.previous, change.publication.position)).collect()
            }
            _ => vec![],
        }
    }

    #[test]
    fn a_full_queue_closes_only_its_own_connection() {
        let hub = Hub::default();
        let (slow_handle, fine_handle) = (CloseHandle::default(), CloseHandle::default());
        let ((slow, _slow_end), (fine, mut fine_end)) = (queue(slow_handle.clone()), queue(fine_handle.clone()));
        let _slow = hub.subscribe(ALL, "counters", &slow, true);
        let _fine = hub.subscribe(ALL, "counters", &fine, true);
        for position in 1..=QUEUE_MESSAGES_MAX as i64 + 1 {
            hub.publish(CORE, &[created("a", position)], position);
            assert_eq!(changes(fine_end.try_next()), [(position - 1, position)]);
        }
        assert!(slow_handle.is_closed() && !fine_handle.is_closed());
    }

    #[test]
    fn the_connection_furthest_behind_is_closed_above_the_byte_limit() {
        const LARGE: usize = 1024 * 1024;
        let hub = Hub::default();
        let handles = [CloseHandle::default(), CloseHandle::default(), CloseHandle::default()];
        let queues = handles.clone().map(queue);
        let _places: Vec<_> = queues.iter().map(|(queue, _)| hub.subscribe(ALL, "counters", queue, true)).collect();
        let [(_, unread), (_, mut late), (_, mut fine)] = queues;
        let closed = || handles.each_ref().map(CloseHandle::is_closed);
        let publish_large = |position| {
            // A little less, for the JSON around the payload.
            hub.publish(CORE, &[large("a", position, LARGE - 1024)], position);
        };
        for position in 1..=(WAITING_BYTES_MAX / LARGE) as i64 {
            publish_large(position);
            assert!(fine.try_next().is_some());
            assert!(position < 10 || late.try_next().is_some());
        }
        assert_eq!(closed(), [false; 3]);
        publish_large(1_000);
        publish_large(1_001);
        assert_eq!(closed(), [true, false, false], "only the connection that is furthest behind is closed");
        assert!(unread.is_empty() && hub.0.waiting.load(Relaxed) <= 12 * LARGE, "its queued changes are freed");
    }

    #[test]
    fn a_publish_round_is_one_message() {
        let hub = Hub::default();
        let (handle, other) = (CloseHandle::default(), CloseHandle::default());
        let ((queue_of_many, mut end), (queue_of_one, _end)) = (queue(handle.clone()), queue(other.clone()));
        let channels = [(ALL, "counters"), (ONE, "counter:a"), (ONE, "counter:b"), (OWNED, "owner:ada")];
        let _places = channels.map(|(kind, name)| hub.subscribe(kind, name, &queue_of_many, true));
        let _place = hub.subscribe(ONE, "counter:a", &queue_of_one, true);
        let publish = |times: usize| {
            for _ in 0..times {
                hub.publish(CORE, &[created("a", 1), created("b", 2)], 2);
                // Separates two publish rounds, which are counted as separate messages.
                hub.publish_ephemeral("counters", "pub", "{}".to_owned(), false);
            }
        };
        publish(QUEUE_MESSAGES_MAX / 2);
        assert!(!handle.is_closed());
        for _ in 0..5 {
            end.try_next();
        }
        publish(1);
        assert!(!handle.is_closed() && !other.is_closed(), "two messages were read and two were queued");
        publish(1);
        assert!(handle.is_closed() && !other.is_closed());
    }

    #[test]
    fn backpressure_waits_only_for_clients_that_read() {
        let hub = Hub::default();
        let (queue, mut end) = queue(CloseHandle::default());
        let _all = hub.subscribe(ALL, "counters", &queue, true);
        let publish = |position| {
            hub.publish(CORE, &[created("a", position)], position);
        };
        (1..QUEUE_MESSAGES_MAX as i64).for_each(publish);
        assert!(hub.is_backpressured());
        std::thread::sleep(READER_WAIT);
        assert!(!hub.is_backpressured(), "the reader reads nothing");
        end.try_next();
        publish(QUEUE_MESSAGES_MAX as i64);
        assert!(hub.is_backpressured(), "the reader reads again");
        while end.messages() > QUEUE_MESSAGES_MAX / 2 {
            end.try_next();
        }
        assert!(!hub.is_backpressured());
    }

    #[test]
    fn a_subscription_is_complete_after_the_events_that_the_feed_considers() {
        let hub = Hub::default();
        hub.skip_to(CORE, 7);
        hub.consider(CORE, 9);
        let interest = PUBLISHER.interest;
        assert_eq!(hub.has_interest(&interest, ["a"].into_iter()), [false], "nobody subscribes yet");
        let (queue, mut end) = queue(CloseHandle::default());
        let _all = hub.subscribe(ALL, "counters", &queue, true);
        assert_eq!(hub.complete_after(CORE), 9, "the events up to 9 are not queued for this subscription");
        hub.publish(CORE, &[], 9);
        assert!(end.try_next().is_none());
        assert_eq!((hub.complete_after(CORE), hub.complete_after(OTHER.group)), (9, 0));
    }

    #[test]
    fn each_change_has_the_previous_position_on_its_channel() {
        let hub = Hub::default();
        hub.skip_to(CORE, 7);
        let (queue, mut end) = queue(CloseHandle::default());
        let _all = hub.subscribe(ALL, "counters", &queue, true);
        let _one = hub.subscribe(ONE, "counter:b", &queue, true);
        hub.publish(CORE, &[created("a", 8), created("b", 9)], 9);
        hub.publish(CORE, &[created("b", 12)], 12);
        assert_eq!(changes(end.try_next()), [(7, 8), (8, 9)]);
        // On the channel of one stream the previous position is that of the stream: 0, because `created` makes first
        // events.
        assert_eq!(changes(end.try_next()), [(0, 9)]);
        assert_eq!(changes(end.try_next()), [(0, 12)]);
        assert_eq!(changes(end.try_next()), [(9, 12)]);
        assert_eq!(*hub.through(CORE).borrow(), 12);
    }

    #[test]
    fn a_channel_is_removed_with_its_last_subscriber() {
        let hub = Hub::default();
        let (queue, _end) = queue(CloseHandle::default());
        let interest = |ids: [&'static str; 2]| hub.has_interest(&PUBLISHER.interest, ids.into_iter());
        let one = hub.subscribe(ONE, "counter:a", &queue, false);
        assert_eq!(interest(["a", "b"]), [true, false]);
        let owned = hub.subscribe(OWNED, "owner:ada", &queue, false);
        assert_eq!(interest(["a", "b"]), [true, true]);
        drop((one, owned));
        assert_eq!(interest(["a", "b"]), [false, false]);
        assert!(hub.is_empty(CORE));
    }

    #[test]
    fn a_publication_of_another_group_is_ignored() {
        let hub = Hub::default();
        let (queue, mut end) = queue(CloseHandle::default());
        let _other = hub.subscribe(OTHER, "points", &queue, true);
        assert!(hub.is_empty(CORE) && !hub.is_empty(OTHER.group));
        let stray = Arc::into_inner(created("a", 3)).expect("the only one").on("points");
        hub.publish(CORE, &[Arc::new(stray)], 3);
        assert!(end.try_next().is_none(), "a publication of another group than the channel's is ignored");
        assert_eq!((*hub.through(CORE).borrow(), *hub.through(OTHER.group).borrow()), (3, 0));
    }

    #[test]
    fn subscribers_of_a_stream_are_disconnected() {
        let hub = Hub::default();
        let handles = [CloseHandle::default(), CloseHandle::default(), CloseHandle::default()];
        let queues = handles.clone().map(queue);
        let places = [(ONE, "counter:a"), (ONE, "counter:b"), (OWNED, "owner:ada")];
        let _places: Vec<_> = places
            .into_iter()
            .zip(&queues)
            .map(|((kind, name), (queue, _))| hub.subscribe(kind, name, queue, true))
            .collect();
        hub.disconnect_subscribers(&PUBLISHER.interest, "a");
        assert_eq!(
            handles.map(|handle| handle.why()),
            [Some(CloseReason::Incomplete), None, Some(CloseReason::Incomplete)]
        );
    }

    /// The text of a change is encoded once, for any number of streams and polls.
    #[test]
    fn a_change_is_encoded_once_for_all_subscribers() {
        let hub = Hub::default();
        let mut ends: Vec<_> = (0..3).map(|_| queue(CloseHandle::default())).collect();
        let _places: Vec<_> = ends.iter().map(|(queue, _)| hub.subscribe(ALL, "counters", queue, false)).collect();
        hub.publish(CORE, &[created("a", 1)], 1);
        let texts: Vec<_> = ends
            .iter_mut()
            .map(|(_, end)| {
                let Some(Delivery::Changes(batch)) = end.try_next() else { panic!("a change") };
                let change = Delivered::after(&batch, 0).next().expect("a change");
                // A server-sent event contains the line; a poll contains the JSON object within it.
                (change.event().data_line().as_ptr(), change.event().json().as_ptr())
            })
            .collect();
        assert!(texts.iter().all(|text| *text == texts[0]), "all subscribers share the same bytes");
    }
}
