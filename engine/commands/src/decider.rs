//! The decider of a process: it loads aggregates, decides commands and appends the events. After a conflict it loads
//! and decides again.
//!
//! Commands to one stream run one after the other in a process, because concurrent ones would only conflict. A command
//! may address several streams: each aggregate decides its part, and all parts commit or none.

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
use crate::repositories::{AnyLoaded, Repositories};
use crate::step::AnyStep;

/// Attempts to decide a command while appends conflict. Only other processes cause conflicts, because streams are
/// locked within a process.
const ATTEMPTS: usize = 12;
/// How long a command waits for the locks of its streams if [`Origin::waits_for_capacity`] is set. Other commands wait
/// `append_wait_ms_max`.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long a refusal is delayed when the processor is the bottleneck: as long as `Retry-After` says.
const REFUSAL_DELAY: Duration = Duration::from_secs(1);
/// The number of locks. A stream uses the lock of its hash. Two streams that share a lock wait for each other's
/// commits, so there are many more locks than concurrent commands.
const LOCKS: usize = 65_536;

/// Decides commands to aggregates of every type.
pub struct Decider {
    store: Store,
    repositories: Repositories,
    stream_locks: Vec<Mutex<()>>,
    /// Hashes streams and principals. The hash is keyed, so that a client cannot choose a stream that collides with
    /// another one.
    hasher: RandomState,
}

/// The sender of a command, and the parts of its request that apply to every command.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The authenticated sender.
    pub principal: Principal,
    /// The idempotency key under which the answer is recorded.
    pub key: Option<Key>,
    /// The time at which the command happened; `None`: now. Only staff can set it.
    pub occurred_at: Option<Timestamp>,
    /// Whether the command is imported history. Reactors ignore its events.
    pub is_history: bool,
    /// True when the command waits while the store is overloaded; false when it is refused then.
    pub waits_for_capacity: bool,
    /// The id of the request.
    pub request_id: Option<String>,
    /// The trace context of the request.
    pub trace: Option<Context>,
}

/// An idempotency key, and the request that uses it.
#[derive(Debug, Clone)]
pub struct Key {
    /// Subject of the principal. A key is unique within its scope.
    pub scope: String,
    /// The key as the client sent it.
    pub key: String,
    /// Hash of method, path and body.
    pub request_hash: String,
    /// HTTP status of a success.
    pub status: u16,
}

/// The metadata of an event. `cqrs-es` reads metadata as a map of strings, so every value serializes as a string.
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
    /// Whether the event is imported history. Reactors ignore it.
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
    /// Creates a decider on a store.
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

    /// Returns the repositories, which cache the aggregates as this process last saw them.
    pub fn repositories(&self) -> &Repositories {
        &self.repositories
    }

    /// Returns a hash of a stream, to distribute work.
    pub(crate) fn hash_of(&self, stream: &StreamId) -> usize {
        self.hasher.hash_one(stream) as usize
    }

    /// Executes commands, all or none. The first refusal is returned. When the result is `Ok`, the events are durable.
    ///
    /// Cached states may be stale. Therefore a refusal, and a success without events, are returned only after a
    /// decision on states that were read from the log. A success with events is valid only if the append finds the
    /// versions on which the events were decided.
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
        if !origin.waits_for_capacity && self.store.is_overloaded(source) {
            // A client that retries immediately takes processor time from the commands that were accepted.
            if self.store.is_short_of_processor() {
                tokio::time::sleep(REFUSAL_DELAY).await;
            }
            return Err(unavailable(StoreError::Overloaded).into());
        }
        let streams: Vec<StreamId> = steps.iter().map(|step| step.stream()).collect();
        let kind = steps.first().map_or("aggregate", |step| step.kind());
        let _locks = self.lock_streams(&streams, kind, origin.waits_for_capacity).await?;
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
            span.set_attributes(|| match streams.first() {
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
                    tracing::debug!(%error, attempt, "Append conflict. Deciding again.");
                    metrics::retried();
                    fresh = true;
                    // Other processes write to these streams, so the retries of all of them are spread over time.
                    tokio::time::sleep(Duration::from_micros(200 * attempt as u64 * (1 + attempt as u64))).await;
                }
                Err(AppendError::KeyUsed) => return Err(Rejected::KeyUsed),
                Err(AppendError::Store(error)) => {
                    // A command that was shed was never written, so the cached states remain valid.
                    if !matches!(error, StoreError::Overloaded) {
                        for (step, stream) in steps.iter().zip(&streams) {
                            (step.memory().evict)(&self.repositories, &stream.aggregate_id);
                        }
                    }
                    return Err(unavailable(error).into());
                }
            }
        }
        Err(busy(kind, "Other commands changed the same aggregate at every attempt.").into())
    }

    /// Decides a command on `pending`, or on the state in the log, and appends nothing.
    ///
    /// # Errors
    /// The refusal, or a failure of the store.
    pub(crate) async fn check(
        &self,
        step: &mut dyn AnyStep,
        pending: Option<&AnyLoaded>,
        principal: &Principal,
    ) -> Result<(), Problem> {
        match pending {
            Some(state) => step.load_pending(state),
            None => step.load(&self.repositories, true).await.map_err(unavailable)?,
        }
        step.decide(principal)
    }

    /// Loads the aggregate of each step and decides it. The outer error is a failure of the store, the inner error is
    /// the first refusal.
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

    /// Caches the states after the append, and returns the versions in the order of the steps.
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

    /// Returns the largest position of the last events of unchanged streams.
    async fn position_of(&self, streams: &[StreamId], steps: &[Box<dyn AnyStep>]) -> Result<i64, Problem> {
        let mut position = 0;
        for (stream, version) in streams.iter().zip(steps.iter().map(|step| step.version())) {
            let StreamId { aggregate_type, aggregate_id } = stream;
            let events = self.store.read_stream(aggregate_type, aggregate_id, version - 1, version, 1).await;
            let events = events.map_err(unavailable)?;
            let missing = || unavailable(StoreError::CorruptData(format!("{stream} has no event {version}")));
            position = position.max(events.first().ok_or_else(missing)?.position);
        }
        Ok(position)
    }

    /// Locks streams. The locks are sorted, so that two callers cannot deadlock, and deduplicated, because two streams
    /// may share a lock.
    pub(crate) async fn lock_streams(
        &self,
        streams: &[StreamId],
        kind: &'static str,
        waits_for_capacity: bool,
    ) -> Result<Vec<MutexGuard<'_, ()>>, Problem> {
        let mut slots: Vec<usize> = streams.iter().map(|stream| self.hash_of(stream) % LOCKS).collect();
        slots.sort_unstable();
        slots.dedup();
        let within = if waits_for_capacity { LOCK_WAIT } else { self.store.append_wait_max() };
        let all = async {
            let mut guards = Vec::with_capacity(slots.len());
            for slot in slots {
                guards.push(self.stream_locks[slot].lock().await);
            }
            guards
        };
        tokio::time::timeout(within, all)
            .await
            .map_err(|_| busy(kind, "Too many commands wait for the same aggregate."))
    }
}

/// Builds the append of decided steps. `position` is the position of the last event when no step has events.
fn append(
    streams: &[StreamId],
    steps: &[Box<dyn AnyStep>],
    origin: &Origin,
    source: u64,
    position: i64,
    span: &trace::OpenSpan,
) -> Result<Append, Problem> {
    let command_id = Uuid::now_v7().to_string();
    // The events continue the trace of the request. A trace that is not sampled is not stored, unless a client started
    // it.
    let traceparent = span.traceparent().or_else(|| origin.trace.as_ref().and_then(trace::propagated_traceparent));
    // Truncated to microseconds, the precision of the databases and the clients.
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
            tracing::error!(%error, "Could not serialize an event.");
            Problem::internal()
        })?;
        writes.push(StreamWrite { stream, expected_version: version, events, lineage: None });
    }
    // The idempotency record refers to the first stream that is written, or to the first stream when none is written.
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
    Ok(Append {
        writes,
        checks,
        reaction: None,
        idempotency,
        source,
        waits_for_capacity: origin.waits_for_capacity,
        trace,
    })
}
