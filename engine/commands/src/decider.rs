//! The one decider of a process: load, decide, append; load and decide again when somebody else was faster.
//!
//! Commands to one stream in this process go one after the other, because they would only conflict. A command may touch
//! several streams: each is decided by its aggregate, and all commit or none.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use event_store::append::{Append, Appended, Idempotency, StreamCheck, StreamWrite, Unchanged};
use event_store::error::{AppendError, Error as StoreError};
use event_store::store::Store;
use jiff::Timestamp;
use kernel::stream::StreamId;
use opentelemetry::trace::SpanKind;
use opentelemetry::{Context, KeyValue};
use platform::auth::Principal;
use platform::problem::Problem;
use platform::trace;
use serde::{Serialize, Serializer};
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use crate::metrics;
use crate::outcome::{Executed, Rejected};
use crate::problems::{busy, unavailable};
use crate::repositories::Repositories;
use crate::step::AnyStep;

/// How often a command is decided again after a conflict; other processes are the only ones to conflict with.
const ATTEMPTS: usize = 12;
/// How long a command that may wait does so for its streams; others wait `append_wait_ms_max`.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long a refusal is held back where it is the processor that is lacking: as long as `Retry-After` says.
const REFUSAL_HELD: Duration = Duration::from_secs(1);
/// Locks are kept by hash of the stream. Two streams on one lock cost each other the wait for a commit, so there are many
/// more locks than commands under way.
const LOCKS: usize = 65_536;

/// Decides on commands to every kind of aggregate.
pub struct Decider {
    store: Store,
    repositories: Repositories,
    stream_locks: Vec<Mutex<()>>,
    /// Makes numbers of streams and principals. Keyed, so that nobody can choose one that shares another's place.
    hasher: RandomState,
}

/// Who gives a command, and what its request says besides.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Who.
    pub principal: Principal,
    /// What to record the answer under.
    pub key: Option<Key>,
    /// When it happened; now, unless staff say otherwise.
    pub occurred_at: Option<Timestamp>,
    /// Whether it tells of the past: no reactor takes its events.
    pub is_history: bool,
    /// Waits where the store does not keep up, in place of being refused.
    pub is_patient: bool,
    /// The request's id.
    pub request_id: Option<String>,
    /// Where the request is in its trace.
    pub trace: Option<Context>,
}

/// An idempotency key and the request that it belongs to.
#[derive(Debug, Clone)]
pub struct Key {
    /// The principal.
    pub scope: String,
    /// The key as the client sent it.
    pub key: String,
    /// Hash of method, path and body.
    pub request_hash: String,
    /// Status of a success.
    pub status: u16,
}

/// What an event carries besides its payload; cqrs-es reads metadata as a map of strings.
#[derive(Serialize)]
pub(crate) struct EventMetadata<'a> {
    pub(crate) event_id: Uuid,
    pub(crate) correlation_id: &'a str,
    pub(crate) causation_id: &'a str,
    pub(crate) actor: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) occurred_at: Timestamp,
    /// Whether it tells of the past: no reactor takes it.
    #[serde(skip_serializing_if = "is_false", serialize_with = "as_text")]
    pub(crate) history: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn as_text<S: Serializer>(value: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Decider {
    /// Over a store.
    pub fn new(store: Store) -> Self {
        Self {
            repositories: Repositories::new(store.clone()),
            store,
            stream_locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            hasher: RandomState::new(),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The aggregates of every kind, as this process last saw them.
    pub fn repositories(&self) -> &Repositories {
        &self.repositories
    }

    /// A number of a stream, for dividing work.
    pub(crate) fn number_of(&self, stream: &StreamId) -> usize {
        self.hasher.hash_one(stream) as usize
    }

    /// Carries commands out, all or none; the first refusal answers. When it returns `Ok`, their events are durable.
    ///
    /// States in memory may be stale. So a refusal, and the answer that there is nothing to do, are only given on states
    /// fresh from the log, and an acceptance only stands when the append finds the versions that it was decided on.
    ///
    /// # Errors
    /// [`Rejected`].
    pub async fn execute(&self, steps: &mut [Box<dyn AnyStep>], origin: &Origin) -> Result<Executed, Rejected> {
        let outcome = self.decide_and_append(steps, origin).await;
        steps.iter().for_each(|step| metrics::executed(step.command(), &outcome));
        outcome
    }

    async fn decide_and_append(&self, steps: &mut [Box<dyn AnyStep>], origin: &Origin) -> Result<Executed, Rejected> {
        let source = self.hasher.hash_one(&origin.principal.subject);
        if !origin.is_patient && self.store.is_overloaded(source) {
            // Clients that come back at once would take the processor from the commands that were taken.
            if self.store.is_short_of_processor() {
                tokio::time::sleep(REFUSAL_HELD).await;
            }
            return Err(unavailable(StoreError::Overloaded).into());
        }
        let streams: Vec<StreamId> = steps.iter().map(|step| step.stream()).collect();
        let kind = steps.first().map_or("aggregate", |step| step.kind());
        let _locks = self.lock_streams(&streams, kind, origin.is_patient).await?;
        let mut fresh = false;
        for attempt in 0..ATTEMPTS {
            let span = trace::child("decide", SpanKind::Internal, origin.trace.as_ref());
            let decided = self.decide(steps, &origin.principal, fresh).await?;
            drop(span);
            let changes = steps.iter().any(|step| step.events() > 0);
            match decided {
                Ok(()) if fresh || changes => {}
                _ if !fresh => {
                    fresh = true;
                    continue;
                }
                Ok(()) => {}
                Err(problem) => return Err(problem.into()),
            }
            let mut position = 0;
            if !changes {
                position = self.position_of(&streams, steps).await?;
                if origin.key.is_none() {
                    return Ok(Executed { versions: steps.iter().map(|step| step.version()).collect(), position });
                }
            }
            let span = trace::child("append", SpanKind::Internal, origin.trace.as_ref());
            span.describe(|| match streams.first() {
                Some(first) => vec![
                    KeyValue::new("docket.aggregate.type", first.aggregate_type.to_string()),
                    KeyValue::new("docket.aggregate.id", first.aggregate_id.to_string()),
                ],
                None => Vec::new(),
            });
            let append = append(&streams, steps, origin, source, position, &span)?;
            let outcome = self.store.append(append).await;
            drop(span);
            match outcome {
                Ok(appended) => return Ok(self.commit(steps, appended).await),
                Err(error @ (AppendError::Conflict { .. } | AppendError::Predecessor | AppendError::Fenced)) => {
                    tracing::debug!(%error, attempt, "conflict: deciding again");
                    metrics::retried();
                    fresh = true;
                    // Others write to these streams: spread the next tries of all of them.
                    tokio::time::sleep(Duration::from_micros(200 * attempt as u64 * (1 + attempt as u64))).await;
                }
                Err(AppendError::KeyUsed) => return Err(Rejected::KeyUsed),
                Err(AppendError::Store(error)) => {
                    // Of what was shed nothing can have been written.
                    if !matches!(error, StoreError::Overloaded) {
                        for (step, stream) in steps.iter().zip(&streams) {
                            (step.memory().evict)(&self.repositories, &stream.aggregate_id);
                        }
                    }
                    return Err(unavailable(error).into());
                }
            }
        }
        Err(busy(kind, "Other commands changed it each time this one was tried.").into())
    }

    /// Loads and decides each; the outer error is that of the store, the inner one the first refusal.
    async fn decide(
        &self,
        steps: &mut [Box<dyn AnyStep>],
        principal: &Principal,
        fresh: bool,
    ) -> Result<Result<(), Problem>, Problem> {
        for step in steps.iter_mut() {
            step.load(&self.repositories, fresh).await.map_err(unavailable)?;
            if let Err(problem) = step.decide(principal) {
                return Ok(Err(problem));
            }
        }
        Ok(Ok(()))
    }

    /// Keeps what commands led to.
    async fn commit(&self, steps: &mut [Box<dyn AnyStep>], appended: Appended) -> Executed {
        let mut written = appended.versions.iter();
        let mut versions = Vec::with_capacity(steps.len());
        for step in steps {
            match step.events() {
                0 => versions.push(step.version()),
                _ => {
                    let version = written.next().copied().unwrap_or_default();
                    step.commit(&self.repositories, version).await;
                    versions.push(version);
                }
            }
        }
        Executed { versions, position: appended.position }
    }

    /// Position of the last event of streams that nothing is written to.
    async fn position_of(&self, streams: &[StreamId], steps: &[Box<dyn AnyStep>]) -> Result<i64, Problem> {
        let mut position = 0;
        for (stream, version) in streams.iter().zip(steps.iter().map(|step| step.version())) {
            let StreamId { aggregate_type, aggregate_id } = stream;
            let events = self.store.read_stream(aggregate_type, aggregate_id, version - 1, version, 1).await;
            let events = events.map_err(unavailable)?;
            let missing = || unavailable(StoreError::Stored(format!("{stream} has no event {version}")));
            position = position.max(events.first().ok_or_else(missing)?.position);
        }
        Ok(position)
    }

    /// Locks streams in one order for everybody, each lock once.
    pub(crate) async fn lock_streams(
        &self,
        streams: &[StreamId],
        kind: &'static str,
        is_patient: bool,
    ) -> Result<Vec<MutexGuard<'_, ()>>, Problem> {
        let mut slots: Vec<usize> = streams.iter().map(|stream| self.number_of(stream) % LOCKS).collect();
        slots.sort_unstable();
        slots.dedup();
        let within = if is_patient { LOCK_WAIT } else { self.store.append_wait_max() };
        let all = async {
            let mut guards = Vec::with_capacity(slots.len());
            for slot in slots {
                guards.push(self.stream_locks[slot].lock().await);
            }
            guards
        };
        tokio::time::timeout(within, all).await.map_err(|_| busy(kind, "Too many commands wait for it."))
    }
}

/// `position` is that of the last event where there are none to write.
fn append(
    streams: &[StreamId],
    steps: &[Box<dyn AnyStep>],
    origin: &Origin,
    source: u64,
    position: i64,
    span: &trace::Open,
) -> Result<Append, Problem> {
    let command_id = Uuid::now_v7().to_string();
    // What happens to the events is part of the request's trace. One that nobody records is worth no bytes in the log,
    // unless it came from outside.
    let traceparent = span.traceparent().or_else(|| origin.trace.as_ref().and_then(trace::worth_keeping));
    // Microseconds: what the databases and the clients can hold.
    let now = Timestamp::from_microsecond(event_store::now_us()).unwrap_or_default();
    let mut metadata = || {
        serde_json::to_string(&EventMetadata {
            event_id: Uuid::now_v7(),
            correlation_id: origin.request_id.as_deref().unwrap_or(&command_id),
            causation_id: &command_id,
            actor: &origin.principal.subject,
            request_id: origin.request_id.as_deref(),
            traceparent: traceparent.as_deref(),
            occurred_at: origin.occurred_at.unwrap_or(now),
            history: origin.is_history,
        })
    };
    let (mut writes, mut checks) = (Vec::with_capacity(steps.len()), Vec::new());
    for (step, stream) in steps.iter().zip(streams) {
        let (stream, version) = (stream.clone(), step.version());
        if step.events() == 0 {
            checks.push(StreamCheck { stream, version });
            continue;
        }
        let events = step.encode(&mut metadata).map_err(|error| {
            tracing::error!(%error, "an event does not serialize");
            Problem::internal()
        })?;
        writes.push(StreamWrite { stream, expected_version: version, events, lineage: None });
    }
    // The record is about the first stream that is written, or, where none is, the first one.
    let written = steps.iter().zip(streams).find(|(step, _)| step.events() > 0);
    let recorded = written.or_else(|| steps.iter().zip(streams).next());
    let idempotency = origin.key.as_ref().zip(recorded).map(|(key, (step, stream))| Idempotency {
        scope: key.scope.clone(),
        key: key.key.clone(),
        request_hash: key.request_hash.clone(),
        status: key.status,
        stream: stream.clone(),
        unchanged: (step.events() == 0).then_some(Unchanged { version: step.version(), position }),
        answer: None,
    });
    let trace = span.context().cloned();
    Ok(Append { writes, checks, reaction: None, idempotency, source, is_patient: origin.is_patient, trace })
}
