//! Group commit: one task takes what waits, from all requests, into one transaction.
//!
//! Positions come from one counter, updated inside that transaction, so they are dense and in commit order; sharing the
//! transaction wins back what the serialisation costs. Within a batch each command stands alone: a loser gets its
//! conflict, the others are not disturbed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, KeyValue};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use crate::error::{AppendError, Error};
use crate::event::{NewEvent, RecordedEvent, metadata_text};
use crate::log::Log;
use crate::metrics::METRICS;
use crate::now_us;
use crate::queue::{Limits, Queue, Refused};
use crate::settings::Settings;
use crate::tail::Tail;
use crate::trace;

/// One command's events, to be written together or not at all.
#[derive(Debug)]
pub struct Append {
    /// Kind of the aggregate.
    pub aggregate_type: &'static str,
    /// The aggregate's id.
    pub aggregate_id: String,
    /// The version on which the command was decided; 0 where the stream must not exist.
    pub expected_version: i64,
    /// Its events; may be empty where only an idempotency row is to be kept.
    pub events: Vec<NewEvent>,
    /// Position of the event at `expected_version`: what an append without events answers with.
    pub last_position: i64,
    /// What to remember of the answer, where the request had an idempotency key.
    pub idempotency: Option<Idempotency>,
    /// Who asks, as a number: the appender's time is shared equally between sources.
    pub source: u64,
    /// Waits until there is room, however long that takes, and is never shed.
    pub is_patient: bool,
    /// Span of the append, where the request is traced: it is linked with that of the transaction.
    pub trace: Option<Context>,
}

/// The request to remember; the answer's version and position are filled in when the append commits.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The principal.
    pub scope: String,
    /// The key as the client sent it.
    pub key: String,
    /// Hash of method, path and body.
    pub request_hash: String,
    /// Status of the answer.
    pub status: u16,
}

/// Where an append stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The aggregate's version after it.
    pub version: i64,
    /// Position of its last event; for an append without events, the append's `last_position`.
    pub position: i64,
}

/// An append and who waits for it.
pub(crate) struct Pending {
    pub(crate) append: Append,
    reply: oneshot::Sender<Reply>,
}

/// What became of an append, and when that was known.
type Reply = (Instant, Result<Appended, AppendError>);

/// Answers; a requester that went away has no use for it.
fn answer(reply: oneshot::Sender<Reply>, at: Instant, outcome: Result<Appended, AppendError>) {
    let _ = reply.send((at, outcome));
}

/// What the transaction found when it held the lock.
pub(crate) struct Found {
    /// The log's head.
    pub(crate) head: i64,
    /// Versions of the aggregates in the batch.
    pub(crate) versions: HashMap<String, i64>,
    /// Idempotency keys of the batch that are taken.
    pub(crate) keys: HashSet<(String, String)>,
}

/// What each command of the batch gets, and what there is to write for the winners.
pub(crate) struct Plan {
    /// One for each append, in order.
    pub(crate) outcomes: Vec<Result<Appended, AppendError>>,
    /// Head after the batch.
    pub(crate) head: i64,
    /// When it was recorded, in microseconds since 1970.
    pub(crate) recorded_at: i64,
}

/// Key of an aggregate within a batch.
pub(crate) fn aggregate_key(append: &Append) -> String {
    format!("{}/{}", append.aggregate_type, append.aggregate_id)
}

/// Decides who wins. Appends to one aggregate are taken in order of arrival, each checked against those before it.
pub(crate) fn plan(batch: &[&Append], mut found: Found) -> Plan {
    let mut head = found.head;
    let outcomes = batch
        .iter()
        .map(|append| {
            if let Some(idempotency) = &append.idempotency
                && !found.keys.insert((idempotency.scope.clone(), idempotency.key.clone()))
            {
                return Err(AppendError::KeyUsed);
            }
            let version = found.versions.entry(aggregate_key(append)).or_default();
            if *version != append.expected_version {
                if let Some(idempotency) = &append.idempotency {
                    found.keys.remove(&(idempotency.scope.clone(), idempotency.key.clone()));
                }
                return Err(AppendError::Conflict { expected: append.expected_version, actual: *version });
            }
            *version += append.events.len() as i64;
            head += append.events.len() as i64;
            let position = if append.events.is_empty() { append.last_position } else { head };
            Ok(Appended { version: *version, position })
        })
        .collect();
    Plan { outcomes, head, recorded_at: now_us() }
}

/// The plan for the usual case, made without a look: nobody else wrote since `head`, every command was decided on its
/// stream's last version, no key is taken. Each is checked when the plan is written: the head by comparison, keys by their
/// primary key, and versions by theirs, because a command decided on an older version would write a sequence that is there;
/// that the stream is not shorter is for the writer to make sure. `None` for a batch in which an append without events has nothing that a key could catch.
pub(crate) fn assumed(batch: &[&Append], head: i64) -> Option<Plan> {
    let mut versions = HashMap::new();
    for append in batch {
        if append.events.is_empty() {
            return None;
        }
        versions.entry(aggregate_key(append)).or_insert(append.expected_version);
    }
    Some(plan(batch, Found { head, versions, keys: HashSet::new() }))
}

/// Hands appends to the one task that writes. When the last clone is dropped, that task finishes what was queued and
/// ends.
#[derive(Clone)]
pub(crate) struct Appender(Arc<Entrance>);

struct Entrance {
    queue: Arc<Queue<Pending>>,
    log: Log,
    /// Of the appender's thread.
    runtime: Handle,
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Appender {
    /// Starts the task; `head` receives each new head of the log.
    pub(crate) fn start(
        log: Log,
        settings: &Settings,
        head: watch::Sender<i64>,
        tail: Tail,
        tracker: &tokio_util::task::TaskTracker,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(Limits {
            commands_max: settings.append_queue_max,
            batch_events_max: settings.append_batch_events_max,
            wait_max: settings.append_wait_max(),
        }));
        let task = tracker.track_future(run(Committer { log: log.clone(), head, tail }, queue.clone()));
        // On a thread of its own: a commit takes several steps, and each would wait behind all the requests that are ready.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entrance = Entrance { queue, log, runtime: runtime.handle().clone() };
        std::thread::Builder::new().name("appender".into()).spawn(move || runtime.block_on(task))?;
        Ok(Self(Arc::new(entrance)))
    }

    /// Tries an append between two batches, on the appender's thread, where its connection belongs.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        let log = self.0.log.clone();
        self.0.runtime.spawn(async move { log.probe().await }).await.map_err(|_| Error::Closing)?
    }

    /// Whether an append of this source would be shed now.
    pub(crate) fn is_overloaded(&self, source: u64) -> bool {
        self.0.queue.is_overloaded(source)
    }

    /// Whether answers wait for the processor rather than for the database.
    pub(crate) fn is_short_of_processor(&self) -> bool {
        self.0.queue.is_short_of_processor()
    }

    pub(crate) async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let started = Instant::now();
        let outcome = self.queued(append).await;
        METRICS.wait.record(started.elapsed().as_secs_f64(), &[]);
        outcome
    }

    async fn queued(&self, append: Append) -> Result<Appended, AppendError> {
        let queue = &self.0.queue;
        let (reply, answered) = oneshot::channel();
        let (source, events, is_patient) = (append.source, append.events.len(), append.is_patient);
        let pending = Pending { append, reply };
        match is_patient {
            true => queue.push_patiently(source, events, pending).await.ok_or(Error::Closing)?,
            false => queue.push(source, events, pending).map_err(|refused| match refused {
                Refused::Full(_) => Error::Overloaded,
                Refused::Closed => Error::Closing,
            })?,
        }
        let _under_way = queue.enter();
        let (at, outcome) = answered.await.map_err(|_| Error::Closing)?;
        queue.answered(at.elapsed());
        outcome
    }
}

/// The database gave no answer in that time.
struct Silent(Duration);

/// What a committed batch goes through.
struct Committer {
    log: Log,
    head: watch::Sender<i64>,
    tail: Tail,
}

async fn run(committer: Committer, queue: Arc<Queue<Pending>>) {
    while let Some((batch, behind)) = queue.take().await {
        METRICS.queue.record(behind as u64, &[]);
        METRICS.batch_size.record(batch.len() as u64, &[]);
        let events = batch.iter().map(|pending| pending.append.events.len()).sum();
        let outcome = committer.write(batch).await;
        queue.written(events);
        if let Err(Silent(waited)) = outcome {
            // Those behind it have waited as long, and would each wait as long again.
            for next in queue.drain() {
                answer(next.reply, Instant::now(), Err(Error::Silent(waited).into()));
            }
        }
    }
}

impl Committer {
    /// Writes a batch; where the database refuses it for what is in it, each command alone, so that only the culprit
    /// fails.
    ///
    /// # Errors
    /// The database did not answer.
    async fn write(&self, batch: Vec<Pending>) -> Result<(), Silent> {
        let appends: Vec<&Append> = batch.iter().map(|pending| &pending.append).collect();
        let traces = appends.iter().filter_map(|append| append.trace.as_ref());
        let span = trace::shared("commit", traces.clone().map(|trace| trace.span().span_context().clone()));
        if let Some(span) = &span {
            span.describe([KeyValue::new("docket.append.commands", appends.len() as i64)]);
            traces.for_each(|of| of.span().add_link(span.context().span().span_context().clone(), vec![]));
        }
        let started = Instant::now();
        let outcome = self.log.append(&appends).await;
        METRICS.commit.record(started.elapsed().as_secs_f64(), &[]);
        drop(span);
        match outcome {
            Ok(plan) => {
                drop(appends);
                self.committed(batch, plan);
                Ok(())
            }
            Err(error) if batch.len() > 1 && error.is_about_the_data() => {
                for pending in batch {
                    Box::pin(self.write(vec![pending])).await?;
                }
                Ok(())
            }
            Err(error) => {
                METRICS.failures.add(1, &[]);
                tracing::error!(%error, commands = batch.len(), "append failed");
                for pending in batch {
                    answer(pending.reply, Instant::now(), Err(error.of_each().into()));
                }
                if let Error::Silent(waited) = error { Err(Silent(waited)) } else { Ok(()) }
            }
        }
    }

    /// Hands the events to readers, then the answers to requesters.
    fn committed(&self, batch: Vec<Pending>, plan: Plan) {
        let mut answers = Vec::with_capacity(batch.len());
        let mut events = 0;
        for (Pending { append, reply }, outcome) in batch.into_iter().zip(plan.outcomes) {
            if let Ok(appended) = &outcome {
                events += append.events.len() as u64;
                tell(&append, appended);
                self.tail.push(recorded(append, *appended, plan.recorded_at));
            }
            if matches!(outcome, Err(AppendError::Conflict { .. })) {
                METRICS.conflicts.add(1, &[]);
            }
            answers.push((reply, outcome));
        }
        METRICS.events.add(events, &[]);
        self.head.send_if_modified(|known| {
            let newer = plan.head > *known;
            *known = plan.head.max(*known);
            newer
        });
        let at = Instant::now();
        for (reply, outcome) in answers {
            answer(reply, at, outcome);
        }
    }
}

/// A line for whoever follows one request through the logs.
fn tell(append: &Append, appended: &Appended) {
    if tracing::enabled!(tracing::Level::DEBUG) {
        let before = append.events.len() as i64;
        for (event, nth) in append.events.iter().zip(1..) {
            tracing::debug!(
                request_id = metadata_text(&event.metadata, "request_id"),
                order.id = append.aggregate_id,
                event.r#type = event.event_type,
                event.position = appended.position - before + nth,
                "appended"
            );
        }
    }
}

/// A command's events as the log has them now.
fn recorded(append: Append, appended: Appended, recorded_at: i64) -> impl Iterator<Item = RecordedEvent> {
    let Append { aggregate_type, aggregate_id, events, .. } = append;
    let before = events.len() as i64;
    events.into_iter().zip(1..).map(move |(event, nth)| RecordedEvent {
        position: appended.position - before + nth,
        aggregate_type: aggregate_type.into(),
        aggregate_id: (&*aggregate_id).into(),
        sequence: appended.version - before + nth,
        event_type: event.event_type.into(),
        event_version: event.event_version.into(),
        payload: event.payload,
        metadata: event.metadata,
        recorded_at,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(id: &str, expected_version: i64, events: usize, key: Option<&str>) -> Append {
        let event =
            NewEvent { event_type: "E".into(), event_version: "1".into(), payload: "{}".into(), metadata: "{}".into() };
        Append {
            aggregate_type: "order",
            aggregate_id: id.into(),
            expected_version,
            events: vec![event; events],
            last_position: 7,
            source: 0,
            is_patient: false,
            idempotency: key.map(|key| Idempotency {
                scope: "s".into(),
                key: key.into(),
                request_hash: "h".into(),
                status: 200,
            }),
            trace: None,
        }
    }

    #[test]
    fn a_loser_leaves_its_neighbours_and_no_hole() {
        let batch =
            [append("a", 0, 2, None), append("a", 0, 1, None), append("a", 2, 1, None), append("b", 4, 1, None)];
        let found = Found { head: 10, versions: HashMap::from([("order/b".into(), 4)]), keys: HashSet::new() };
        let plan = plan(&batch.iter().collect::<Vec<_>>(), found);
        assert_eq!(plan.head, 14);
        assert!(matches!(plan.outcomes[0], Ok(Appended { version: 2, position: 12 })));
        assert!(matches!(plan.outcomes[1], Err(AppendError::Conflict { expected: 0, actual: 2 })));
        assert!(matches!(plan.outcomes[2], Ok(Appended { version: 3, position: 13 })));
        assert!(matches!(plan.outcomes[3], Ok(Appended { version: 5, position: 14 })));
    }

    #[test]
    fn an_append_without_events_answers_with_its_own_last_position() {
        let batch = [append("b", 4, 0, None), append("a", 0, 1, None)];
        let found = Found { head: 10, versions: HashMap::from([("order/b".into(), 4)]), keys: HashSet::new() };
        let plan = plan(&batch.iter().collect::<Vec<_>>(), found);
        assert!(matches!(plan.outcomes[0], Ok(Appended { version: 4, position: 7 })));
        assert!(matches!(plan.outcomes[1], Ok(Appended { version: 1, position: 11 })));
    }

    #[test]
    fn a_key_wins_once_and_a_conflict_gives_it_back() {
        let batch = [append("a", 3, 1, Some("k")), append("a", 0, 1, Some("k")), append("b", 0, 1, Some("k"))];
        let found = Found { head: 0, versions: HashMap::new(), keys: HashSet::new() };
        let plan = plan(&batch.iter().collect::<Vec<_>>(), found);
        assert!(matches!(plan.outcomes[0], Err(AppendError::Conflict { .. })));
        assert!(plan.outcomes[1].is_ok());
        assert!(matches!(plan.outcomes[2], Err(AppendError::KeyUsed)));
    }
}
