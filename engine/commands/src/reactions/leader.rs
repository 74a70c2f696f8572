//! The leader of one reactor: it reads events from the log, the backlog and the deadlines, and appends the effects of
//! the reactions.
//!
//! One process leads a reactor at a time. Correctness does not depend on that: each append compares the position and
//! the fence of the checkpoint, and a new leader raises the fence.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use compact_str::{CompactString, format_compact};
use event_store::append::{Append, BacklogEntry, BacklogKey, Deadline, DeadlineKey, ReactionMove};
use event_store::error::{AppendError, Error};
use event_store::event::RecordedEvent;
use event_store::reactions::{PARTITION, Reactions};
use event_store::store::Store;
use futures::FutureExt;
use jiff::Timestamp;
use kernel::stream::StreamId;
use opentelemetry::KeyValue;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::decider::Decider;
use crate::metrics::METRICS;
use crate::reactions::batch::{
    Context, Decided, HANG_ATTEMPTS_MAX, Item, ItemResult, Progress, REACT_WITHIN, decide, is_storable,
};
use crate::reactions::reactor::{Acts, Cause, Input, Outcome, Reactor, is_subscribed};
use crate::reactions::scope::{Scope, Writes};

/// The largest number of inputs in one append.
const BATCH_MAX: usize = 256;
/// How long a reaction outside the log may take.
const ACT_WITHIN: Duration = Duration::from_secs(60);
/// How long after its time limit a thread that does not return is abandoned.
const GRACE: Duration = Duration::from_secs(2);
/// The number of abandoned threads after which a reactor no longer runs in this process.
const LOST_THREADS_MAX: usize = 32;
/// The largest assumed difference between the clocks of two processes. While the reactor is behind the head, a deadline
/// fires only when it is older than the last read event by this much.
const CLOCK_SKEW: Duration = Duration::from_secs(5);
/// At a stop: how long the leader waits for effects outside the log, and the limit for that wait together with the
/// appends that follow.
const DRAIN_WITHIN: Duration = Duration::from_secs(4);
const STOP_WITHIN: Duration = Duration::from_secs(6);
/// The pause before the leader reads the checkpoint again after another process or an operator has changed it.
const REREAD_DELAY: Duration = Duration::from_millis(50);
/// Events on which a reactor with effects outside the log works concurrently.
const WORKERS: usize = 16;
/// How often deadlines and retries are checked while there are any.
const TICK: Duration = Duration::from_millis(250);
/// Events without an effect move the checkpoint after this many events, or after this time.
const IDLE_EVENTS_MAX: i64 = 1_000;
const IDLE_MOVE: Duration = Duration::from_secs(1);
/// Attempts to append one batch while its streams change. After that, the leader restarts from its checkpoint.
const CONFLICTS_MAX: u32 = 50;
/// The pause before a failed input is retried. It doubles with each attempt, up to the longest.
const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(300);
/// The number of attempts after which an event waits for an operator.
const ATTEMPTS_MAX: i64 = 10;
/// How often the leader checks its lock.
const CHECK_LEADERSHIP: Duration = Duration::from_secs(2);

/// Returns the time in microseconds since 1970. Tests use their own clock.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The last known fence of each reactor's checkpoint.
pub(super) type Fences = watch::Receiver<Arc<BTreeMap<String, i64>>>;

/// Returns the leadership role of a reactor.
pub fn reacting(reactor: &str) -> String {
    format!("reactor.{reactor}")
}

pub(super) struct Leader {
    pub(super) reactor: &'static dyn Reactor,
    pub(super) decider: Arc<Decider>,
    pub(super) clock: Clock,
    pub(super) fences: Fences,
}

/// Why a term of the leader ends.
enum Stop {
    /// Another leader or an operator has changed the checkpoint.
    Fenced,
    /// The store failed.
    Store(Error),
    /// The streams that the reactor writes change constantly, or it has lost too many threads.
    Contended,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl Leader {
    /// Leads whenever no other process leads, until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_WITHIN).await;
        };
        tokio::select! {
            () = self.lead(&stop) => {}
            // The task is at worst interrupted between two appends. Inputs that are not appended are read again by the
            // next leader.
            () = too_late => {}
        }
    }

    async fn lead(&self, stop: &CancellationToken) {
        let name = self.reactor.name();
        let store = self.decider.store();
        let lost_threads = AtomicUsize::new(0);
        loop {
            if lost_threads.load(Relaxed) >= LOST_THREADS_MAX {
                tracing::error!(
                    reactor = name,
                    LOST_THREADS_MAX,
                    "The reactor blocked too many threads and no longer runs in this process. Restart the process to \
                     run it here again."
                );
                return std::future::pending().await;
            }
            let role = reacting(name);
            let mut leadership = tokio::select! {
                leadership = store.lead(&role) => leadership,
                () = stop.cancelled() => return,
            };
            let lost = async {
                while leadership.check().await.is_ok() {
                    tokio::time::sleep(CHECK_LEADERSHIP).await;
                }
            };
            let follow = async {
                // Workers outlive a term. The next term settles their outcomes.
                let mut workers = Workers::default();
                while lost_threads.load(Relaxed) < LOST_THREADS_MAX && !stop.is_cancelled() {
                    let mut term = LeaderTerm::new(self, &lost_threads, &mut workers, stop);
                    let stopped = AssertUnwindSafe(term.follow()).catch_unwind().await;
                    let reason = match stopped {
                        Ok(Ok(()) | Err(Stop::Fenced)) => {
                            tokio::time::sleep(REREAD_DELAY).await;
                            continue;
                        }
                        Ok(Err(Stop::Store(error))) => error.to_string(),
                        Ok(Err(Stop::Contended)) => {
                            "the streams that it writes are locked or change constantly, or a reaction never returned"
                                .to_owned()
                        }
                        Err(_) => "the leader panicked; see the process log".to_owned(),
                    };
                    tracing::warn!(reactor = name, reason, "The reactor restarts from its checkpoint.");
                    tokio::time::sleep(RETRY_DELAY_MIN).await;
                }
            };
            METRICS.reactor_leader.record(1, &[KeyValue::new("reactor", name)]);
            tracing::info!(reactor = name, "This process leads the reactor.");
            tokio::select! { () = follow => {}, () = lost => {} }
            METRICS.reactor_leader.record(0, &[KeyValue::new("reactor", name)]);
            if stop.is_cancelled() {
                return;
            }
            tracing::warn!(reactor = name, "This process no longer leads the reactor.");
        }
    }
}

/// Running effects outside the log, by the position of the event.
#[derive(Default)]
struct Workers {
    tasks: JoinSet<ExternalOutcome>,
    running: HashMap<i64, CompactString>,
}

/// The result of an effect outside the log.
struct ExternalOutcome {
    entry: BacklogEntry,
    event: RecordedEvent,
    outcome: Outcome,
    /// Whether its thread did not return and was abandoned.
    is_lost: bool,
}

/// The work of a leader between reading the checkpoint and the next change of the checkpoint by another leader or an
/// operator.
struct LeaderTerm<'a> {
    leader: &'a Leader,
    lost_threads: &'a AtomicUsize,
    workers: &'a mut Workers,
    stop: &'a CancellationToken,
    name: &'static str,
    store: &'a Store,
    rows: Reactions,
    fence: i64,
    /// Position of the checkpoint.
    checkpoint: i64,
    /// Position of the last event that was read.
    read: i64,
    moved: Instant,
    /// Keys with events in the backlog, and the number of their events.
    backlogged_keys: Arc<HashMap<CompactString, i64>>,
    /// When the next event of the backlog is due, in microseconds since 1970, as far as the leader has read.
    next_retry: Option<i64>,
    /// When the next deadline is due, in microseconds since 1970, as far as the leader has read.
    next_deadline: Option<i64>,
    /// Deadlines that failed: the number of attempts, and when they are retried, in microseconds since 1970.
    failing: HashMap<DeadlineKey, (i64, i64)>,
    /// When the last read event was recorded, in microseconds since 1970.
    read_until: i64,
}

impl<'a> LeaderTerm<'a> {
    fn new(
        leader: &'a Leader,
        lost_threads: &'a AtomicUsize,
        workers: &'a mut Workers,
        stop: &'a CancellationToken,
    ) -> Self {
        let store = leader.decider.store();
        Self {
            leader,
            lost_threads,
            workers,
            stop,
            name: leader.reactor.name(),
            store,
            rows: store.reactions(),
            fence: 0,
            checkpoint: 0,
            read: 0,
            moved: Instant::now(),
            backlogged_keys: Arc::default(),
            next_retry: None,
            next_deadline: None,
            failing: HashMap::new(),
            read_until: 0,
        }
    }

    fn now(&self) -> i64 {
        (self.leader.clock)()
    }

    /// Follows the log from the checkpoint until another leader or an operator changes the checkpoint.
    async fn follow(&mut self) -> Result<(), Stop> {
        // Runs in its own task: a call that is dropped halfway could leave a transaction open in a connection of the
        // pool.
        let (rows, name) = (self.rows.clone(), self.name);
        let acquired = tokio::spawn(async move { rows.acquire(name).await });
        let Some(found) = acquired.await.map_err(|_| Error::Closing)?? else {
            return Err(Error::CorruptData(format!("reactor {} is not registered in the store", self.name)).into());
        };
        (self.fence, self.checkpoint, self.read) = (found.fence, found.position, found.position);
        if let Some(reason) = found.held {
            tracing::info!(
                reactor = self.name,
                reason,
                "The reactor is held. Run `docket reactors release` to resume it."
            );
            let changed = self.changed_by_others();
            tokio::select! { () = changed => {}, () = self.stop.cancelled() => {} }
            return Ok(());
        }
        self.backlogged_keys = Arc::new(self.rows.backlog_keys(self.name).await?.into_iter().collect());
        // Backlog events that are due come first.
        self.next_retry = Some(0);
        if let Some(process) = self.leader.reactor.process() {
            self.next_deadline = self.rows.next_deadline(process).await?;
        }
        let mut stream = self.store.subscribe_without_pause(self.read);
        loop {
            let tick = self.next_tick();
            let changed = self.changed_by_others();
            tokio::select! {
                () = self.stop.cancelled() => return self.drain().await,
                () = changed => return Ok(()),
                events = stream.next() => self.handle_events(events?).await?,
                Some(external) = self.workers.tasks.join_next() => match external {
                    Ok(external) => self.settle(external).await?,
                    Err(error) => tracing::error!(reactor = self.name, %error, "A worker task of the reactor failed."),
                },
                () = tokio::time::sleep(tick) => {}
            }
            self.retry_due_backlog().await?;
            self.fire_due_deadlines().await?;
            self.advance_checkpoint().await?;
        }
    }

    /// Settles the effects outside the log that end in time. The next leader retries the others.
    async fn drain(&mut self) -> Result<(), Stop> {
        let until = Instant::now() + DRAIN_WITHIN;
        while let Ok(Some(Ok(external))) = tokio::time::timeout_at(until.into(), self.workers.tasks.join_next()).await {
            self.settle(external).await?;
        }
        Ok(())
    }

    /// Waits until the checkpoint has a newer fence than the fence of this leader.
    fn changed_by_others(&self) -> impl Future<Output = ()> + use<> {
        let (mut fences, name, own) = (self.leader.fences.clone(), self.name, self.fence);
        async move {
            let newer = |fences: &Arc<BTreeMap<String, i64>>| fences.get(name).is_some_and(|fence| *fence > own);
            if fences.wait_for(newer).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// Returns how long the leader may wait before it checks the backlog, the deadlines and the checkpoint again.
    fn next_tick(&self) -> Duration {
        match (self.next_retry.or(self.next_deadline), self.read > self.checkpoint) {
            (Some(_), _) => TICK,
            (None, true) => IDLE_MOVE.saturating_sub(self.moved.elapsed()).max(Duration::from_millis(1)),
            (None, false) => Duration::from_secs(3_600),
        }
    }

    /// Reacts to new events of the log.
    async fn handle_events(&mut self, events: Vec<RecordedEvent>) -> Result<(), Stop> {
        let Some((end, recorded_at)) = events.last().map(|event| (event.position, event.recorded_at)) else {
            return Ok(());
        };
        let reactor = self.leader.reactor;
        let item = |event: RecordedEvent| {
            let key = catch_unwind(AssertUnwindSafe(|| reactor.key(&event)));
            let broken =
                key.is_err().then(|| "the reactor panicked while it computed the key; see the process log".to_owned());
            let key = storable(key.unwrap_or_else(|_| event.aggregate_id.clone()));
            Arc::new(Item {
                cause: Cause::Event(event),
                key,
                attempts: 0,
                is_retry: false,
                broken,
                external_outcome: None,
            })
        };
        let mut items: Vec<_> = events.into_iter().filter(|event| is_subscribed(reactor, event)).map(item).collect();
        while !items.is_empty() {
            let done = self.react(&items, Some(end)).await?;
            items.drain(..done);
        }
        self.read = end;
        self.read_until = recorded_at;
        Ok(())
    }

    /// Moves the checkpoint past events without an effect, when enough events or enough time have passed.
    async fn advance_checkpoint(&mut self) -> Result<(), Stop> {
        let passed = self.read - self.checkpoint;
        if passed == 0 || passed < IDLE_EVENTS_MAX && self.moved.elapsed() < IDLE_MOVE {
            return Ok(());
        }
        let reaction = ReactionMove { to: self.read, ..self.reaction() };
        let append =
            Append { reaction: Some(reaction), waits_for_capacity: true, source: self.source(), ..Append::default() };
        match self.store.append(append).await {
            Ok(_) => self.moved_to(self.read),
            Err(AppendError::Store(error)) => return Err(error.into()),
            Err(_) => return Err(Stop::Fenced),
        }
        Ok(())
    }

    fn moved_to(&mut self, position: i64) {
        self.checkpoint = position;
        self.moved = Instant::now();
    }

    /// Returns a checkpoint move that keeps the position.
    fn reaction(&self) -> ReactionMove {
        ReactionMove {
            reactor: self.name.into(),
            partition: PARTITION,
            from: self.checkpoint,
            to: self.checkpoint,
            fence: self.fence,
            ..ReactionMove::default()
        }
    }

    fn source(&self) -> u64 {
        self.leader.decider.hash_of(&StreamId::new("reactor", self.name)) as u64
    }

    /// Retries the events of the backlog that are due.
    async fn retry_due_backlog(&mut self) -> Result<(), Stop> {
        let now = self.now();
        if self.next_retry.is_none_or(|due_at| due_at > now) {
            return Ok(());
        }
        match self.leader.reactor.acts() {
            Acts::InTheLog => {
                let due = self.rows.due_backlog(self.name, now, BATCH_MAX as i64).await?;
                for first in &due {
                    self.retry_key(&first.event.key).await?;
                }
                self.next_retry = match due.len() == BATCH_MAX {
                    true => Some(now),
                    false => self.rows.next_due(self.name, now).await?,
                };
            }
            Acts::Outside => self.send_workers(now).await?,
        }
        Ok(())
    }

    /// Reacts to the events of a key in order, until one fails again.
    async fn retry_key(&mut self, key: &CompactString) -> Result<(), Stop> {
        loop {
            let entries = self.rows.backlog_of(self.name, key, BATCH_MAX as i64).await?;
            let items = self.items_of(entries).await?;
            if items.is_empty() {
                return Ok(());
            }
            let done = self.react(&items, None).await?;
            let is_free = !self.backlogged_keys.contains_key(key);
            if is_free || done == 0 || self.has_failed(key).await? {
                return Ok(());
            }
        }
    }

    /// Whether the first event of a key has failed; also true when the key has no event left.
    async fn has_failed(&self, key: &str) -> Result<bool, Stop> {
        let first = self.rows.backlog_of(self.name, key, 1).await?;
        Ok(first.first().is_none_or(|entry| entry.attempts > 0))
    }

    async fn items_of(&self, entries: Vec<BacklogEntry>) -> Result<Vec<Arc<Item>>, Error> {
        let positions: Vec<i64> = entries.iter().map(|entry| entry.event.position).collect();
        let events = self.store.read_positions(&positions).await?;
        let entries: HashMap<i64, BacklogEntry> =
            entries.into_iter().map(|entry| (entry.event.position, entry)).collect();
        let item = |event: RecordedEvent| {
            let entry = entries.get(&event.position)?;
            let (key, attempts) = (entry.event.key.clone(), entry.attempts);
            let cause = Cause::Event(event);
            Some(Arc::new(Item { cause, key, attempts, is_retry: true, broken: None, external_outcome: None }))
        };
        Ok(events.into_iter().filter_map(item).collect())
    }

    /// Starts workers for due events.
    async fn send_workers(&mut self, now: i64) -> Result<(), Stop> {
        let free = WORKERS.saturating_sub(self.workers.tasks.len());
        if free == 0 {
            return Ok(());
        }
        let due = self.rows.due_backlog(self.name, now, (self.workers.running.len() + free) as i64).await?;
        // Only one event of a key runs at a time, even when an operator has skipped the running one.
        let keys: HashSet<&CompactString> = self.workers.running.values().collect();
        let is_new = |entry: &BacklogEntry| !keys.contains(&entry.event.key);
        let mut due: Vec<_> = due.into_iter().filter(is_new).collect();
        due.truncate(free);
        if due.is_empty() {
            // Events that wait for others of their key become due when the others are settled.
            self.next_retry = self.rows.next_due(self.name, now).await?;
            return Ok(());
        }
        let positions: Vec<i64> = due.iter().map(|entry| entry.event.position).collect();
        let events = self.store.read_positions(&positions).await?;
        for entry in due {
            let Some(event) = events.iter().find(|event| event.position == entry.event.position).cloned() else {
                continue;
            };
            self.workers.running.insert(event.position, entry.event.key.clone());
            let (reactor, decider) = (self.leader.reactor, self.leader.decider.clone());
            let now = timestamp(now);
            self.workers.tasks.spawn(async move {
                let cause = Cause::Event(event.clone());
                let attempt = entry.attempts;
                let input = Input { cause, attempt, now, refused: Vec::new() };
                let slow = || Outcome::Retry(format!("the reactor did not return within {ACT_WITHIN:?}"));
                // Runs on a thread that may be abandoned, because the call may never return.
                let call = spawn_blocking(move || {
                    let mut scope = Scope::new(decider);
                    let reacted = async { tokio::time::timeout(ACT_WITHIN, reactor.react(&input, &mut scope)).await };
                    Handle::current().block_on(reacted).unwrap_or_else(|_| slow())
                });
                let (outcome, is_lost) = match tokio::time::timeout(ACT_WITHIN + GRACE, call).await {
                    Ok(Ok(outcome)) => (outcome, false),
                    Ok(Err(_)) => (Outcome::Retry("the reactor panicked; see the process log".into()), false),
                    Err(_) if attempt + 1 < HANG_ATTEMPTS_MAX => (slow(), true),
                    Err(_) => (Outcome::Park("the reactor never returned and blocked its thread".into()), true),
                };
                ExternalOutcome { entry, event, outcome, is_lost }
            });
        }
        Ok(())
    }

    /// Appends the result of an effect outside the log.
    async fn settle(&mut self, external: ExternalOutcome) -> Result<(), Stop> {
        let ExternalOutcome { entry, event, outcome, is_lost } = external;
        self.lost_threads.fetch_add(is_lost.into(), Relaxed);
        self.workers.running.remove(&event.position);
        let item = Item {
            cause: Cause::Event(event),
            key: entry.event.key,
            attempts: entry.attempts,
            is_retry: true,
            broken: None,
            external_outcome: Some(Mutex::new(Some(outcome))),
        };
        self.react(&[Arc::new(item)], None).await?;
        // A worker is free for the next event.
        self.next_retry = Some(self.now());
        Ok(())
    }

    /// Fires deadlines that are due, once every event that was recorded before them is handled.
    async fn fire_due_deadlines(&mut self) -> Result<(), Stop> {
        let Some(process) = self.leader.reactor.process() else { return Ok(()) };
        let now = self.now();
        if self.next_deadline.is_none_or(|due_at| due_at > now) {
            return Ok(());
        }
        // The head is read after the clock. At the head, every event that was recorded before `now` has been read.
        // Behind the head, only the events that were recorded before the last read event are certain, within the clock
        // skew.
        let until = match self.store.head().await? > self.read {
            true => now.min(self.read_until - CLOCK_SKEW.as_micros() as i64),
            false => now,
        };
        let can_be_taken = |due: &Deadline| {
            !self.backlogged_keys.contains_key(&due.key.id)
                && self.failing.get(&due.key).is_none_or(|(_, again_at)| *again_at <= now)
        };
        let item = |due: Deadline| {
            let (key, attempts) = (due.key.id.clone(), self.failing.get(&due.key).map_or(0, |(attempts, _)| *attempts));
            Arc::new(Item {
                cause: Cause::Deadline(due),
                key,
                attempts,
                is_retry: true,
                broken: None,
                external_outcome: None,
            })
        };
        // Deadlines that cannot fire now must not hide later ones.
        let (mut items, mut skipped) = (Vec::new(), 0);
        while items.is_empty() {
            let due = self.rows.due_deadlines(process, until, BATCH_MAX as i64, skipped).await?;
            if due.is_empty() {
                break;
            }
            skipped += due.len() as i64;
            items = due.into_iter().filter(can_be_taken).map(item).collect();
        }
        while !items.is_empty() {
            let done = self.react(&items, None).await?;
            items.drain(..done);
        }
        self.next_deadline = self.rows.next_deadline(process).await?;
        Ok(())
    }

    /// Reacts to the first of these items in one append, and returns their number. `end` is the position to which the
    /// checkpoint moves when all items are handled; `None` leaves the checkpoint unchanged.
    async fn react(&mut self, items: &[Arc<Item>], end: Option<i64>) -> Result<usize, Stop> {
        let mut most = items.len().min(BATCH_MAX);
        let mut context = Context {
            reactor: self.leader.reactor,
            decider: self.leader.decider.clone(),
            now: timestamp(self.now()),
            backlogged_keys: self.backlogged_keys.clone(),
            hung: HashSet::new(),
            unstorable: HashMap::new(),
        };
        for _ in 0..CONFLICTS_MAX {
            let (mut decided, returned) = self.decide(items, most, context).await?;
            context = returned;
            let streams = decided.scope.stream_ids();
            let locks = self.leader.decider.lock_streams(&streams, "reactor", true).await;
            let _locks = locks.map_err(|_| Stop::Contended)?;
            if decided.scope.is_stale() {
                // Under the locks no other task of this process changes the streams.
                let (again, returned) = self.decide(items, most, context).await?;
                context = returned;
                let known: HashSet<_> = streams.iter().collect();
                if again.scope.stream_ids().iter().any(|stream| !known.contains(stream)) {
                    continue;
                }
                decided = again;
            }
            let Decided { mut scope, results } = decided;
            let appended = self.append(&mut scope, items, &results, end).await;
            match appended {
                Ok(moved) => {
                    // The context shares the backlogged keys, which change now.
                    drop(context);
                    scope.put_in_cache().await;
                    self.after_append(items, &results, &moved);
                    return Ok(results.len());
                }
                Err(AppendError::Conflict { .. } | AppendError::Predecessor) => {
                    scope.evict();
                    most = (results.len() / 2).max(1);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(AppendError::Fenced | AppendError::KeyUsed) => return Err(Stop::Fenced),
                Err(AppendError::Store(error)) => {
                    scope.evict();
                    if !is_data_error(&error) {
                        return Err(error.into());
                    }
                    if results.len() == 1 {
                        context.unstorable.insert(0, error.to_string());
                    }
                    most = (results.len() / 2).max(1);
                }
            }
        }
        Err(Stop::Contended)
    }

    /// Decides on a separate thread, which is abandoned when a reaction does not return.
    async fn decide(
        &self,
        items: &[Arc<Item>],
        mut most: usize,
        mut context: Context,
    ) -> Result<(Decided, Context), Stop> {
        loop {
            let progress = Arc::new(Progress::default());
            let shared = Arc::new(context);
            let mut task = spawn_blocking({
                let (items, context, progress) = (items[..most].to_vec(), shared.clone(), progress.clone());
                move || Handle::current().block_on(decide(&items, &context, &progress))
            });
            let hung = supervise(&mut task, &progress).await;
            let decided = match hung {
                Watched::Ended(decided) => decided,
                Watched::Hangs(at) => {
                    self.lost_threads.fetch_add(1, Relaxed);
                    if self.lost_threads.load(Relaxed) >= LOST_THREADS_MAX {
                        return Err(Stop::Contended);
                    }
                    let Context { reactor, decider, now, backlogged_keys, hung, unstorable } = &*shared;
                    let mut hung = hung.clone();
                    hung.insert(at);
                    let unstorable = unstorable.clone();
                    context = Context {
                        reactor: *reactor,
                        decider: decider.clone(),
                        now: *now,
                        backlogged_keys: backlogged_keys.clone(),
                        hung,
                        unstorable,
                    };
                    tracing::error!(
                        reactor = self.name,
                        within = ?REACT_WITHIN,
                        "The reactor did not return in time. Its thread is abandoned."
                    );
                    continue;
                }
            };
            context = Arc::try_unwrap(shared).map_err(|_| Stop::Contended)?;
            match decided {
                Ok(decided) => return Ok((decided, context)),
                Err(error) if !is_data_error(&error) => return Err(error.into()),
                Err(error) if most == 1 => drop(context.unstorable.insert(0, error.to_string())),
                Err(_) => most = (most / 2).max(1),
            }
        }
    }

    /// Appends the effects of a decided batch.
    async fn append(
        &self,
        scope: &mut Scope,
        items: &[Arc<Item>],
        results: &[ItemResult],
        end: Option<i64>,
    ) -> Result<ReactionMove, AppendError> {
        let Writes { writes, checks, deadlines } = scope.take();
        let mut reaction = self.reaction();
        for (item, result) in items.iter().zip(results) {
            self.record(item, result, &mut reaction);
        }
        self.schedule_next_of_key(items, results, &mut reaction).await?;
        if let Some(end) = end {
            let next = items.get(results.len()).and_then(|item| item.position());
            reaction.to = next.map_or(end, |next| next - 1);
        }
        reaction.deadlines = deadlines;
        let moved = reaction.clone();
        let reaction = Some(reaction);
        let append = Append {
            writes,
            checks,
            reaction,
            idempotency: None,
            source: self.source(),
            waits_for_capacity: true,
            trace: None,
        };
        self.store.append(append).await?;
        Ok(moved)
    }

    /// Adds the backlog changes of an item to the reaction.
    fn record(&self, item: &Item, result: &ItemResult, reaction: &mut ReactionMove) {
        let Some(position) = item.position() else { return };
        let event = BacklogKey { key: item.key.clone(), position };
        let entry = |attempts, due_at, reason| BacklogEntry { event: event.clone(), attempts, due_at, reason };
        match result {
            ItemResult::Done if item.is_retry => reaction.settle.push(event),
            ItemResult::Done => {}
            // The event is in the backlog already.
            ItemResult::Follows if item.is_retry => {}
            ItemResult::Follows => reaction.park.push(entry(0, None, None)),
            ItemResult::Queued => reaction.park.push(entry(0, Some(self.now()), None)),
            ItemResult::Failed { reason, is_temporary } => {
                // Settling requires that the event is still in the backlog. An operator may have skipped it.
                if item.is_retry {
                    reaction.settle.push(event.clone());
                }
                let attempts = item.attempts + 1;
                let again = *is_temporary && attempts < ATTEMPTS_MAX;
                let due_at = again.then(|| self.now() + pause(attempts).as_micros() as i64);
                reaction.park.push(entry(attempts, due_at, Some(reason.clone())));
            }
        }
    }

    /// For each key whose retried events are settled, makes the next event of the backlog due.
    async fn schedule_next_of_key(
        &self,
        items: &[Arc<Item>],
        results: &[ItemResult],
        reaction: &mut ReactionMove,
    ) -> Result<(), Error> {
        let settled: HashSet<&CompactString> = items
            .iter()
            .zip(results)
            .filter(|(item, result)| item.is_retry && **result == ItemResult::Done)
            .map(|(item, _)| &item.key)
            .collect();
        for key in settled {
            let is_settled =
                |position: i64| reaction.settle.iter().any(|done| done.key == *key && done.position == position);
            let taken = reaction.settle.iter().filter(|done| done.key == *key).count() as i64;
            let is_failing = reaction.park.iter().any(|entry| entry.event.key == *key);
            if is_failing || self.backlogged_keys.get(key).is_none_or(|events| *events <= taken) {
                continue;
            }
            let rows = self.rows.backlog_of(self.name, key, taken + 1).await?;
            if let Some(next) = rows.into_iter().find(|entry| !is_settled(entry.event.position)) {
                reaction.park.push(BacklogEntry { due_at: Some(self.now()), ..next });
            }
        }
        Ok(())
    }

    /// Updates the state in memory after an append.
    fn after_append(&mut self, items: &[Arc<Item>], results: &[ItemResult], moved: &ReactionMove) {
        if moved.to > self.checkpoint {
            self.moved_to(moved.to);
            self.read = self.read.max(moved.to);
        }
        let now = self.now();
        for (item, result) in items.iter().zip(results) {
            let label = match result {
                ItemResult::Done => "done",
                ItemResult::Follows | ItemResult::Queued => "waiting",
                ItemResult::Failed { is_temporary: true, .. } if item.attempts + 1 < ATTEMPTS_MAX => "retried",
                // A deadline is retried without a limit, because its process waits for it.
                ItemResult::Failed { .. } if item.position().is_none() => "retried",
                ItemResult::Failed { .. } => "parked",
            };
            METRICS.reactions.add(1, &[KeyValue::new("reactor", self.name), KeyValue::new("result", label)]);
            if let (ItemResult::Failed { reason, .. }, position) = (result, item.position()) {
                let attempt = item.attempts + 1;
                tracing::warn!(
                    reactor = self.name,
                    key = &*item.key,
                    event.position = position,
                    attempt,
                    reason,
                    result = label,
                    "A reaction failed."
                );
            }
            match (&item.cause, result) {
                (Cause::Deadline(due), ItemResult::Failed { .. }) => {
                    let attempts = item.attempts + 1;
                    let again_at = now + pause(attempts).as_micros() as i64;
                    self.failing.insert(due.key.clone(), (attempts, again_at));
                }
                (Cause::Deadline(due), _) => drop(self.failing.remove(&due.key)),
                (Cause::Event(event), ItemResult::Done) if !item.is_retry => {
                    let seconds = (now - event.recorded_at).max(0) as f64 / 1e6;
                    METRICS.reaction_latency.record(seconds, &[KeyValue::new("reactor", self.name)]);
                }
                (Cause::Event(_), ItemResult::Done) => {
                    let backlogged_keys = Arc::make_mut(&mut self.backlogged_keys);
                    if let Some(events) = backlogged_keys.get_mut(&item.key) {
                        *events -= 1;
                        if *events <= 0 {
                            backlogged_keys.remove(&item.key);
                        }
                    }
                }
                (Cause::Event(_), _) if !item.is_retry => {
                    *Arc::make_mut(&mut self.backlogged_keys).entry(item.key.clone()).or_default() += 1;
                }
                (Cause::Event(_), _) => {}
            }
        }
        let earliest = |known: Option<i64>, new: Option<i64>| match (known, new) {
            (Some(known), Some(new)) => Some(known.min(new)),
            (known, new) => known.or(new),
        };
        let retry = moved.park.iter().filter_map(|entry| entry.due_at).min();
        self.next_retry = earliest(self.next_retry, retry);
        let deadline = moved.deadlines.schedule.iter().map(|deadline| deadline.due_at).min();
        self.next_deadline = earliest(self.next_deadline, deadline);
    }
}

/// The state of a decision task.
enum Watched<T> {
    Ended(T),
    /// The reaction to the item at this index does not return.
    Hangs(usize),
}

async fn supervise<T>(
    task: &mut tokio::task::JoinHandle<Result<T, Error>>,
    progress: &Progress,
) -> Watched<Result<T, Error>> {
    let mut since = (None, Instant::now());
    loop {
        match tokio::time::timeout(TICK, &mut *task).await {
            Ok(Ok(decided)) => return Watched::Ended(decided),
            Ok(Err(error)) => return Watched::Ended(Err(Error::ConstraintViolated(error.to_string()))),
            Err(_) => {}
        }
        match progress.current_item() {
            Some(at) if since.0 == Some(at) => {
                if since.1.elapsed() >= REACT_WITHIN + GRACE {
                    return Watched::Hangs(at);
                }
            }
            at => since = (at, Instant::now()),
        }
    }
}

fn pause(attempts: i64) -> Duration {
    let doublings = u32::try_from(attempts.clamp(1, 16) - 1).unwrap_or_default();
    (RETRY_DELAY_MIN * 2_u32.pow(doublings)).min(RETRY_DELAY_MAX)
}

fn timestamp(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap_or_default()
}

/// Whether a retry cannot help, because the error is caused by the data.
fn is_data_error(error: &Error) -> bool {
    error.is_data_error()
        || matches!(error, Error::ConstraintViolated(_) | Error::InvalidValue(_) | Error::CorruptData(_))
}

/// Returns a key that both databases can store. A key that is too long, or has a zero character, is replaced by its
/// hash.
fn storable(key: CompactString) -> CompactString {
    match is_storable(&key) {
        true => key,
        false => format_compact!("{:x}", Sha256::digest(key.as_bytes())),
    }
}

#[cfg(test)]
mod tests;
