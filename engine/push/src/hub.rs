//! The hub: who listens to which channel, and how changes reach their queues. It never waits for a listener that does not
//! read: one that does not keep up is cut off, and goes on from the log when it comes back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::batch::{Batch, Change, Ephemeral};
use crate::connections::CloseReason;
use crate::metrics::METRICS;
use crate::publication::{Group, Interest, Publication};
use crate::queue::{Delivery, Queue};

/// Bytes that may wait in this process. What waits for many on one channel counts once. Beyond it, the connections that are
/// furthest behind are cut off.
pub const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A kind of channel, as the hub knows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kind {
    /// The channel's name, or the prefix of its names.
    pub name: &'static str,
    /// The checkpoint group whose feed publishes on it.
    pub group: Group,
}

/// The channels of this process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Hub(Arc<Center>);

#[derive(Default)]
struct Center {
    channels: Mutex<Channels>,
    /// Bytes that wait in this process.
    waiting: Arc<AtomicUsize>,
    /// Whether much waited for somebody when something was queued last.
    backpressured: AtomicBool,
}

#[derive(Default)]
struct Channels {
    open: HashMap<Arc<str>, Channel>,
    /// How many channels of a kind are open.
    kinds: HashMap<&'static str, usize>,
    groups: HashMap<Group, GroupState>,
    next_id: u64,
}

#[derive(Default)]
struct GroupState {
    /// How many channels of the group are open.
    open: usize,
    /// Whatever lies at or before it has been queued to all who listened by then.
    through: watch::Sender<i64>,
}

struct Channel {
    name: Arc<str>,
    kind: Kind,
    subscribers: HashMap<u64, Subscriber>,
    /// Position of its last change, or one after which there was none.
    last: i64,
    /// Changes of the round that is being published.
    round: Vec<Change>,
}

struct Subscriber {
    queue: Queue,
    staff: bool,
}

/// A place among a channel's subscribers, given up when dropped.
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
    /// a part of the log that is read afterwards misses nothing.
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

    /// Whether nobody listens to a channel of a group.
    pub fn is_empty(&self, group: Group) -> bool {
        self.lock().groups.get(group).is_none_or(|group| group.open == 0)
    }

    /// Whether somebody listens to a channel.
    pub fn has(&self, channel: &str) -> bool {
        self.lock().open.contains_key(channel)
    }

    /// Which of some streams have changes that could go to an open channel.
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
    pub fn is_awaited(&self, publication: &Publication) -> bool {
        let channels = self.lock();
        publication.channels.iter().any(|target| channels.open.contains_key(&*target.name))
    }

    /// Queues a group's publications, in the order of the log, to every subscriber of their channels, and says that all of
    /// the log is queued up to `through`. Gives to how many subscribers something was queued.
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
        // All batches of a round lie beside each other in a queue: the lock is held until the last one is queued.
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

    /// Nobody listened to a group until now: what lies at or before a position has been queued to all who did.
    pub fn skip_to(&self, group: Group, position: i64) {
        self.lock().groups.entry(group).or_default().through.send_replace(position);
    }

    /// Whether much waits for somebody who reads.
    pub fn is_backpressured(&self) -> bool {
        let bytes_count = self.0.waiting.load(Relaxed) > WAITING_BYTES_MAX / 2;
        let backpressured =
            self.0.backpressured.load(Relaxed) && self.lock().queues().any(|queue| queue.is_backpressured(bytes_count));
        self.0.backpressured.store(backpressured, Relaxed);
        backpressured
    }

    /// Follows how far the log has been queued to the listeners of a group.
    pub fn through(&self, group: Group) -> watch::Receiver<i64> {
        self.lock().groups.entry(group).or_default().through.subscribe()
    }

    /// Queues something that is in no log, for all subscribers of a channel or for staff.
    pub fn publish_ephemeral(&self, channel: &str, event: &'static str, data: String, staff_only: bool) {
        if let Some(channel) = self.lock().open.get(channel) {
            let ephemeral = Ephemeral::new(channel.name.clone(), event, data);
            channel.queue(&Delivery::Ephemeral(Arc::new(ephemeral)), staff_only);
        }
    }

    /// Cuts off the listeners of every channel that a change of a stream can go to: they would miss one. They come back, and
    /// go on from the log or from a snapshot.
    pub fn cut_off(&self, interest: &Interest, stream_id: &str) {
        let channels = self.lock();
        let concerned = channels.open.values().filter(|channel| interest.includes(&channel.name, stream_id));
        for subscriber in concerned.flat_map(|channel| channel.subscribers.values()) {
            subscriber.queue.cut_off(CloseReason::Incomplete);
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
    fn evict_slowest(&self, waiting: &AtomicUsize) {
        let mut behind: Vec<_> = self.queues().filter_map(|queue| Some((queue.behind_at()?, queue))).collect();
        behind.sort_unstable_by_key(|(position, _)| *position);
        for (_, queue) in behind {
            if waiting.load(Relaxed) <= WAITING_BYTES_MAX / 4 * 3 {
                break;
            }
            queue.cut_off(CloseReason::Slow);
        }
    }
}

impl Channel {
    /// Queues a delivery to the subscribers; whether much waits for one of them now.
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
    fn a_full_queue_cuts_off_its_own_connection_only() {
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
    fn large_changes_may_wait_while_there_is_room() {
        const LARGE: usize = 1024 * 1024;
        let hub = Hub::default();
        let handles = [CloseHandle::default(), CloseHandle::default(), CloseHandle::default()];
        let queues = handles.clone().map(queue);
        let _places: Vec<_> = queues.iter().map(|(queue, _)| hub.subscribe(ALL, "counters", queue, true)).collect();
        let [(_, unread), (_, mut late), (_, mut fine)] = queues;
        let closed = || handles.each_ref().map(CloseHandle::is_closed);
        let publish_large = |position| {
            // A little less for the text around it.
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
        assert_eq!(closed(), [true, false, false], "who is furthest behind, alone");
        assert!(unread.is_empty() && hub.0.waiting.load(Relaxed) <= 12 * LARGE, "its changes are let go");
    }

    #[test]
    fn what_is_published_together_is_one_message() {
        let hub = Hub::default();
        let (handle, other) = (CloseHandle::default(), CloseHandle::default());
        let ((queue_of_many, mut end), (queue_of_one, _end)) = (queue(handle.clone()), queue(other.clone()));
        let channels = [(ALL, "counters"), (ONE, "counter:a"), (ONE, "counter:b"), (OWNED, "owner:ada")];
        let _places = channels.map(|(kind, name)| hub.subscribe(kind, name, &queue_of_many, true));
        let _place = hub.subscribe(ONE, "counter:a", &queue_of_one, true);
        let publish = |times: usize| {
            for _ in 0..times {
                hub.publish(CORE, &[created("a", 1), created("b", 2)], 2);
                // Between two rounds there is something.
                hub.publish_ephemeral("counters", "pub", "{}".to_owned(), false);
            }
        };
        publish(QUEUE_MESSAGES_MAX / 2);
        assert!(!handle.is_closed());
        for _ in 0..5 {
            end.try_next();
        }
        publish(1);
        assert!(!handle.is_closed() && !other.is_closed(), "two messages went, and two came");
        publish(1);
        assert!(handle.is_closed() && !other.is_closed());
    }

    #[test]
    fn readers_are_waited_for_and_others_are_not() {
        let hub = Hub::default();
        let (queue, mut end) = queue(CloseHandle::default());
        let _all = hub.subscribe(ALL, "counters", &queue, true);
        let publish = |position| {
            hub.publish(CORE, &[created("a", position)], position);
        };
        (1..QUEUE_MESSAGES_MAX as i64).for_each(publish);
        assert!(hub.is_backpressured());
        std::thread::sleep(READER_WAIT);
        assert!(!hub.is_backpressured(), "it takes nothing");
        end.try_next();
        publish(QUEUE_MESSAGES_MAX as i64);
        assert!(hub.is_backpressured(), "it reads");
        while end.messages() > QUEUE_MESSAGES_MAX / 2 {
            end.try_next();
        }
        assert!(!hub.is_backpressured());
    }

    #[test]
    fn each_change_names_the_one_before_it_on_its_channel() {
        let hub = Hub::default();
        hub.skip_to(CORE, 7);
        let (queue, mut end) = queue(CloseHandle::default());
        let _all = hub.subscribe(ALL, "counters", &queue, true);
        let _one = hub.subscribe(ONE, "counter:b", &queue, true);
        hub.publish(CORE, &[created("a", 8), created("b", 9)], 9);
        hub.publish(CORE, &[created("b", 12)], 12);
        // A stream's first change has none before it.
        assert_eq!(changes(end.try_next()), [(7, 8), (8, 9)]);
        assert_eq!(changes(end.try_next()), [(0, 9)]);
        assert_eq!(changes(end.try_next()), [(0, 12)]);
        assert_eq!(changes(end.try_next()), [(9, 12)]);
        assert_eq!(*hub.through(CORE).borrow(), 12);
    }

    #[test]
    fn a_channel_ends_with_its_last_subscriber() {
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
    fn groups_do_not_meet() {
        let hub = Hub::default();
        let (queue, mut end) = queue(CloseHandle::default());
        let _other = hub.subscribe(OTHER, "points", &queue, true);
        assert!(hub.is_empty(CORE) && !hub.is_empty(OTHER.group));
        let stray = Arc::into_inner(created("a", 3)).expect("the only one").on("points");
        hub.publish(CORE, &[Arc::new(stray)], 3);
        assert!(end.try_next().is_none(), "another group publishes on this channel");
        assert_eq!((*hub.through(CORE).borrow(), *hub.through(OTHER.group).borrow()), (3, 0));
    }

    #[test]
    fn who_would_miss_a_change_is_cut_off() {
        let hub = Hub::default();
        let handles = [CloseHandle::default(), CloseHandle::default(), CloseHandle::default()];
        let queues = handles.clone().map(queue);
        let places = [(ONE, "counter:a"), (ONE, "counter:b"), (OWNED, "owner:ada")];
        let _places: Vec<_> = places
            .into_iter()
            .zip(&queues)
            .map(|((kind, name), (queue, _))| hub.subscribe(kind, name, queue, true))
            .collect();
        hub.cut_off(&PUBLISHER.interest, "a");
        assert_eq!(
            handles.map(|handle| handle.why()),
            [Some(CloseReason::Incomplete), None, Some(CloseReason::Incomplete)]
        );
    }

    /// However many streams and polls follow a channel, the text of a change on it is made once.
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
                // A stream sends the line, a poll the object in it.
                (change.event().data_line().as_ptr(), change.event().json().as_ptr())
            })
            .collect();
        assert!(texts.iter().all(|text| *text == texts[0]), "the same bytes for all");
    }
}
