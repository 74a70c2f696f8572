//! The queue of commands that wait for the appender. It is bounded, fair between sources, and sheds commands that would
//! wait too long.
//!
//! Scheduling is deficit round robin: in each round, every source with waiting commands gets one turn of
//! [`TURN_EVENTS`] events. A source with thousands of commands therefore delays the single command of another source by
//! one turn, not by thousands of commands. The batch size is adapted so that writing a batch takes about
//! [`BATCH_TIME`]: a command that just missed a batch waits only that long, and hundreds of commands still share a
//! commit.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Number of events that a source may write in one turn.
const TURN_EVENTS: usize = 32;
/// Target time for writing one batch.
const BATCH_TIME: Duration = Duration::from_millis(25);
/// Lower limit of the batch size in events, even on a slow disk: enough commands must share the cost of a commit.
const BATCH_EVENTS_MIN: usize = 512;
/// Below this number of commands in flight, no command is shed: so few fit into the next batch.
const COMMANDS_NEVER_SHED: usize = 64;
/// Assumed time to write one event, until it has been measured.
const INITIAL_EVENT_TIME: Duration = Duration::from_micros(10);
/// Number of times that a command waits for the processor: when its request arrives, when it is written, and once while
/// faster requests run before it.
const SCHEDULING_WAITS: u32 = 3;
/// Average wait of an answer for the processor above which the process is short of processor time.
const SCHEDULING_DELAY_MAX: Duration = Duration::from_millis(50);
/// Maximum number of emptied queues that are kept for other sources.
const SPARE_MAX: usize = 256;

/// Limits of the queue.
pub(crate) struct Limits {
    /// Maximum number of waiting commands of all sources. One source may have half of them.
    pub(crate) commands_max: usize,
    /// Maximum number of events in one batch.
    pub(crate) batch_events_max: usize,
    /// Maximum expected wait of a command when it is queued.
    pub(crate) wait_max: Duration,
}

/// The queue between the requests and the one task that writes.
pub(crate) struct Queue<T> {
    limits: Limits,
    waiting: Mutex<Waiting<T>>,
    /// Notified when a command was queued or the queue was closed.
    arrived: Notify,
    /// Notified when a batch was written and the queue has room.
    left: Notify,
    /// Number of queued commands whose requests have not received their result.
    in_flight: AtomicUsize,
    /// Moving average, in microseconds, of the time between a result and the moment when its request runs again. It
    /// measures the wait for the processor.
    scheduling_delay_us: AtomicU64,
}

/// Counts a command as in flight until it is dropped.
pub(crate) struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

struct Waiting<T> {
    /// The sources with waiting commands, by id.
    sources: HashMap<u64, Source<T>>,
    /// Ids of the sources with waiting commands, in the order of their turns.
    round: VecDeque<u64>,
    spare: Vec<VecDeque<(usize, T)>>,
    commands: usize,
    events: usize,
    /// Size of the next batch in events, chosen so that writing it takes about [`BATCH_TIME`].
    batch_events: usize,
    /// Time to write one event, measured in large batches.
    event_time: Duration,
    /// Time at which the appender started to write the current batch.
    writing_since: Option<Instant>,
    is_closed: bool,
}

struct Source<T> {
    commands: VecDeque<(usize, T)>,
    events: usize,
    /// Number of events that the source may still write in this turn.
    credit: usize,
}

/// Reason why a command was not queued.
#[derive(Debug, PartialEq)]
pub(crate) enum Refused<T> {
    /// The queue is full, or the command would wait too long. Contains the command.
    Full(T),
    /// The queue is closed.
    Closed,
}

impl<T> Queue<T> {
    pub(crate) fn new(limits: Limits) -> Self {
        let waiting = Waiting {
            sources: HashMap::new(),
            round: VecDeque::new(),
            spare: Vec::new(),
            commands: 0,
            events: 0,
            batch_events: limits.batch_events_max,
            event_time: INITIAL_EVENT_TIME,
            writing_since: None,
            is_closed: false,
        };
        Self {
            limits,
            waiting: Mutex::new(waiting),
            arrived: Notify::new(),
            left: Notify::new(),
            in_flight: AtomicUsize::new(0),
            scheduling_delay_us: AtomicU64::new(0),
        }
    }

    /// Counts a queued command as in flight, until the returned guard is dropped.
    pub(crate) fn enter(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(&self.in_flight)
    }

    /// Records how long a result waited until its request ran.
    pub(crate) fn record_scheduling_delay(&self, waited: Duration) {
        // Two concurrent updates may lose one value, which an average tolerates.
        let waited = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.scheduling_delay_us
            .store((self.scheduling_delay_us.load(Relaxed) * 15).saturating_add(waited) / 16, Relaxed);
    }

    fn scheduling_delay(&self) -> Duration {
        Duration::from_micros(self.scheduling_delay_us.load(Relaxed))
    }

    /// Returns whether answers wait long for the processor.
    pub(crate) fn is_short_of_processor(&self) -> bool {
        self.scheduling_delay() > SCHEDULING_DELAY_MAX
    }

    /// Returns whether a command of this source would be refused now.
    pub(crate) fn is_overloaded(&self, source: u64) -> bool {
        self.would_shed(&self.lock(), source, 1)
    }

    fn would_shed(&self, waiting: &Waiting<T>, source: u64, events: usize) -> bool {
        let expected = || waiting.expected_wait(source, events) + self.scheduling_delay() * SCHEDULING_WAITS;
        let in_flight = self.in_flight.load(Relaxed).max(waiting.commands);
        waiting.is_full(&self.limits, source) || in_flight >= COMMANDS_NEVER_SHED && expected() > self.limits.wait_max
    }

    /// Queues a command, unless the queue is full or the command would wait too long.
    pub(crate) fn push(&self, source: u64, events: usize, command: T) -> Result<(), Refused<T>> {
        self.enqueue(source, events, command, |waiting| self.would_shed(waiting, source, events))
    }

    /// Queues a command as soon as there is room, without a time limit. Returns `None` when the queue is closed.
    pub(crate) async fn push_when_free(&self, source: u64, events: usize, mut command: T) -> Option<()> {
        loop {
            let left = self.left.notified();
            match self.enqueue(source, events, command, |waiting| waiting.is_full(&self.limits, source)) {
                Ok(()) => return Some(()),
                Err(Refused::Closed) => return None,
                Err(Refused::Full(back)) => command = back,
            }
            left.await;
        }
    }

    fn enqueue(
        &self,
        source: u64,
        events: usize,
        command: T,
        refuses: impl FnOnce(&Waiting<T>) -> bool,
    ) -> Result<(), Refused<T>> {
        // A command without events still costs work.
        let events = events.max(1);
        let mut waiting = self.lock();
        if waiting.is_closed {
            return Err(Refused::Closed);
        }
        if refuses(&waiting) {
            return Err(Refused::Full(command));
        }
        waiting.add(source, events, command);
        drop(waiting);
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for the next batch. Returns the batch and the number of commands that wait behind it, or `None` when the
    /// queue is closed and empty.
    pub(crate) async fn take(&self) -> Option<(Vec<T>, usize)> {
        loop {
            {
                let mut waiting = self.lock();
                if waiting.commands > 0 {
                    let batch = waiting.batch();
                    waiting.writing_since = Some(Instant::now());
                    let behind = waiting.commands;
                    return Some((batch, behind));
                }
                if waiting.is_closed {
                    return None;
                }
            }
            self.arrived.notified().await;
        }
    }

    /// Records that the batch taken last, with this number of events, has been written.
    pub(crate) fn written(&self, events: usize) {
        let mut waiting = self.lock();
        if let Some(since) = waiting.writing_since.take() {
            waiting.measure(&self.limits, events, since.elapsed());
        }
        drop(waiting);
        self.left.notify_waiters();
    }

    /// Removes and returns all waiting commands, which will not be written.
    pub(crate) fn drain(&self) -> Vec<T> {
        let mut waiting = self.lock();
        waiting.round.clear();
        (waiting.commands, waiting.events) = (0, 0);
        let sources = std::mem::take(&mut waiting.sources);
        drop(waiting);
        self.left.notify_waiters();
        sources.into_values().flat_map(|source| source.commands).map(|(_, command)| command).collect()
    }

    /// Stops accepting commands. Waiting commands can still be taken.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_one();
        self.left.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<T> Waiting<T> {
    fn is_full(&self, limits: &Limits, source: u64) -> bool {
        let own = self.sources.get(&source).map_or(0, |source| source.commands.len());
        self.commands >= limits.commands_max || own >= limits.commands_max.div_ceil(2)
    }

    /// Returns the expected wait of one more command of a source. Before it, every other source writes as many events
    /// as this source has waiting, or all of its own if it has fewer.
    fn expected_wait(&self, source: u64, events: usize) -> Duration {
        let own = self.sources.get(&source);
        let sources = self.sources.len() + usize::from(own.is_none());
        let share_events = (own.map_or(0, |source| source.events) + events).max(TURN_EVENTS);
        let ahead = self.events.min(share_events.saturating_mul(sources));
        // The time of the current batch so far counts in full: if the disk hangs, the expected wait grows.
        let writing = self.writing_since.map_or(Duration::ZERO, |since| since.elapsed());
        writing + self.event_time.saturating_mul(u32::try_from(ahead).unwrap_or(u32::MAX))
    }

    fn add(&mut self, source: u64, events: usize, command: T) {
        let (spare, round) = (&mut self.spare, &mut self.round);
        let source = self.sources.entry(source).or_insert_with_key(|id| {
            round.push_back(*id);
            Source { commands: spare.pop().unwrap_or_default(), events: 0, credit: 0 }
        });
        source.commands.push_back((events, command));
        source.events += events;
        self.commands += 1;
        self.events += events;
    }

    /// Takes commands from the sources in turn until the batch has reached its size; the last command may exceed it.
    /// For a command larger than one turn, a source saves the credit of several rounds.
    fn batch(&mut self) -> Vec<T> {
        let mut batch = Vec::with_capacity(self.commands.min(self.batch_events));
        let mut room = self.batch_events;
        while room > 0 {
            let Some(id) = self.round.pop_front() else { break };
            let Some(source) = self.sources.get_mut(&id) else { continue };
            source.credit += TURN_EVENTS;
            while room > 0
                && let Some((events, _)) = source.commands.front()
                && *events <= source.credit
                && let Some((events, command)) = source.commands.pop_front()
            {
                batch.push(command);
                source.credit -= events;
                source.events -= events;
                room = room.saturating_sub(events);
                self.commands -= 1;
                self.events -= events;
            }
            if !source.commands.is_empty() {
                self.round.push_back(id);
            } else if let Some(Source { commands, .. }) = self.sources.remove(&id)
                && self.spare.len() < SPARE_MAX
                && commands.capacity() <= COMMANDS_NEVER_SHED
            {
                self.spare.push(commands);
            }
        }
        batch
    }

    /// Adapts the batch size to the measured speed of the disk. Only large batches are used for that, because the cost
    /// of a commit dominates small ones.
    fn measure(&mut self, limits: &Limits, events: usize, took: Duration) {
        if events == 0 {
            return;
        }
        let event_time = took.div_f64(events as f64);
        if events < self.batch_events.min(BATCH_EVENTS_MIN) / 2 {
            // Shedding keeps batches small. After a stall, fast small batches show that the stall is over.
            self.event_time = self.event_time.min(event_time);
            return;
        }
        self.event_time = (self.event_time + event_time) / 2;
        let in_time = BATCH_TIME.div_duration_f64(self.event_time.max(Duration::from_nanos(1))) as usize;
        self.batch_events = in_time.max(BATCH_EVENTS_MIN).min(limits.batch_events_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BULK: u64 = 1;
    const SINGLE: u64 = 2;

    fn queue(commands_max: usize) -> Queue<&'static str> {
        Queue::new(Limits { commands_max, batch_events_max: 512, wait_max: Duration::from_millis(100) })
    }

    async fn batch(queue: &Queue<&'static str>) -> Vec<&'static str> {
        queue.take().await.expect("a command waits").0
    }

    #[tokio::test]
    async fn a_single_command_waits_for_at_most_one_turn_of_a_busy_source() {
        let queue = queue(8_192);
        for _ in 0..2_000 {
            queue.push(BULK, 1, "bulk").unwrap();
        }
        queue.push(SINGLE, 1, "single").unwrap();
        let batch = batch(&queue).await;
        assert_eq!(batch.len(), 512);
        assert_eq!(batch.iter().position(|command| *command == "single"), Some(TURN_EVENTS));
    }

    #[tokio::test]
    async fn turns_are_counted_in_events() {
        let queue = queue(8_192);
        for _ in 0..100 {
            queue.push(BULK, 64, "large").unwrap();
            queue.push(SINGLE, 1, "small").unwrap();
            queue.push(SINGLE, 1, "small").unwrap();
        }
        let batch = batch(&queue).await;
        let large = batch.iter().filter(|command| **command == "large").count();
        assert!((3..=5).contains(&large), "{large} commands of 64 events and {} of 1 event", batch.len() - large);
    }

    #[tokio::test]
    async fn commands_of_each_source_keep_their_order_and_none_is_lost() {
        let queue = Queue::new(Limits { commands_max: 10_000, batch_events_max: 100, wait_max: Duration::MAX });
        for number in 0..900_usize {
            queue.push(number as u64 % 7, number % 5 * 20, number).unwrap();
        }
        queue.close();
        assert_eq!(queue.push(1, 1, 0), Err(Refused::Closed));
        let mut taken: Vec<usize> = vec![];
        while let Some((batch, _)) = queue.take().await {
            assert!(!batch.is_empty());
            taken.extend(batch);
        }
        for source in 0..7 {
            let of_it: Vec<_> = taken.iter().filter(|number| *number % 7 == source).collect();
            assert!(of_it.is_sorted());
        }
        taken.sort_unstable();
        assert!(taken.into_iter().eq(0..900));
    }

    #[tokio::test]
    async fn a_source_uses_at_most_half_of_the_queue() {
        let queue = queue(10);
        for _ in 0..5 {
            queue.push(BULK, 1, "bulk").unwrap();
        }
        assert_eq!(queue.push(BULK, 1, "one too many"), Err(Refused::Full("one too many")));
        for _ in 0..5 {
            queue.push(SINGLE, 1, "single").unwrap();
        }
        assert!(queue.is_overloaded(3), "the queue is full");
        assert_eq!(queue.push(3, 1, "third"), Err(Refused::Full("third")));
    }

    #[tokio::test]
    async fn a_waiting_command_is_queued_when_there_is_room() {
        let queue = std::sync::Arc::new(queue(2));
        queue.push(BULK, 1, "first").unwrap();
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.push_when_free(BULK, 1, "waiting").await }
        });
        tokio::task::yield_now().await;
        assert_eq!(batch(&queue).await, ["first"]);
        queue.written(1);
        assert_eq!(waiting.await.unwrap(), Some(()));
        assert_eq!(batch(&queue).await, ["waiting"]);
    }

    #[tokio::test]
    async fn a_backlog_beyond_the_wait_limit_is_shed_but_no_other_source() {
        let queue = queue(8_192);
        // A disk that writes 512 events in 256 ms writes 200 events in 100 ms.
        for _ in 0..20 {
            queue.lock().measure(&queue.limits, 512, Duration::from_millis(256));
        }
        let taken = (0..1_000).take_while(|_| queue.push(BULK, 1, "bulk").is_ok()).count();
        assert!((150..=250).contains(&taken), "{taken}");
        assert!(queue.is_overloaded(BULK));
        assert!(!queue.is_overloaded(SINGLE), "other sources wait for a turn, not for the whole backlog");
        queue.push(SINGLE, 1, "single").unwrap();
    }

    #[tokio::test]
    async fn while_the_disk_hangs_few_commands_are_accepted_and_many_are_shed() {
        let queue = queue(8_192);
        queue.push(BULK, 1, "written").unwrap();
        batch(&queue).await;
        queue.lock().writing_since = Instant::now().checked_sub(Duration::from_secs(1));
        let taken = (0..1_000).take_while(|number| queue.push(*number, 1, "waits").is_ok()).count();
        assert_eq!(taken, COMMANDS_NEVER_SHED);
        queue.written(1);
        assert!(!queue.is_overloaded(BULK));
    }

    #[tokio::test]
    async fn commands_are_shed_while_responses_wait_for_the_processor() {
        let queue = queue(8_192);
        let mut in_flight: Vec<_> = (0..COMMANDS_NEVER_SHED).map(|_| queue.enter()).collect();
        assert!(!queue.is_overloaded(SINGLE));
        for _ in 0..50 {
            queue.record_scheduling_delay(Duration::from_millis(60));
        }
        assert!(
            queue.is_short_of_processor() && queue.is_overloaded(SINGLE),
            "three times 60 ms exceed the limit of 100 ms"
        );
        in_flight.pop();
        assert!(
            !queue.is_overloaded(SINGLE),
            "so few commands are never shed: their answers show when the processor is free again"
        );
        (0..100).for_each(|_| queue.record_scheduling_delay(Duration::from_micros(50)));
        assert!(!queue.is_short_of_processor());
    }

    #[test]
    fn the_batch_size_follows_the_speed_of_the_disk() {
        let queue: Queue<()> =
            Queue::new(Limits { commands_max: 1, batch_events_max: 4_000, wait_max: Duration::ZERO });
        let batch_after = |events: usize, took_ms| {
            for _ in 0..20 {
                queue.lock().measure(&queue.limits, events, Duration::from_millis(took_ms));
            }
            queue.lock().batch_events
        };
        assert_eq!(batch_after(4_000, 20), 4_000);
        assert!((950..=1_050).contains(&batch_after(4_000, 100)));
        assert_eq!(batch_after(1_000, 1_000), BATCH_EVENTS_MIN);
        assert_eq!(batch_after(1, 1), BATCH_EVENTS_MIN, "a small batch does not change the size");
    }
}
