//! From a command to its events: load, decide, append; reload and decide again when somebody else was faster.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use domain::order::{Command, Error as Refused, Event, Order};
use domain::values::OrderId;
use event_store::aggregates::{AggregateRepository, Loaded};
use event_store::append::{Append, Idempotency, StreamCheck, StreamWrite, Unchanged};
use event_store::error::{AppendError, Error as StoreError};
use event_store::event::NewEvent;
use event_store::store::Store;
use jiff::Timestamp;
use kernel::aggregate::{Aggregate, CommandType, EventType, Refusal, RefusalClass};
use kernel::stream::StreamId;
use opentelemetry::trace::SpanKind;
use opentelemetry::{Context, KeyValue};
use platform::auth::{Authenticator, Principal};
use platform::conditional::Versions;
use platform::limits::Limiter;
use platform::problem::Problem;
use platform::trace;
use serde::Serialize;
use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bulk::budget::Budget;
use crate::in_flight::InFlight;
use crate::metrics;
use crate::settings::Settings;

/// How often a command is decided again after a conflict; other processes are the only ones to conflict with.
const ATTEMPTS: usize = 12;
/// How long a command that may wait does so for its turn at an order; others wait `append_wait_ms_max`.
const TURN_WAIT: Duration = Duration::from_secs(10);
/// How long a refusal is held back where it is the processor that is lacking: as long as `Retry-After` says.
const REFUSAL_HELD: Duration = Duration::from_secs(1);
/// Turns are kept by hash of the order's id. Two orders on one turn cost each other the wait for a commit, so there are many
/// more turns than commands under way.
const TURNS: usize = 65_536;

/// What the command API works with. Cheap to clone.
#[derive(Clone)]
pub struct WriteSide {
    inner: Arc<Inner>,
    authenticator: Authenticator,
    /// What streams of commands cost of their principal's rate.
    pub(crate) limiter: Limiter,
    /// What streams of commands may hold.
    pub(crate) budget: Arc<Budget>,
    /// When it is cancelled, streams of commands are read no further.
    pub(crate) stop: CancellationToken,
}

struct Inner {
    store: Store,
    orders: AggregateRepository<Order>,
    /// Commands to one order in this process go one after the other: they would only conflict.
    turns: Vec<Mutex<()>>,
    in_flight: InFlight,
    /// Makes a number of a principal. Keyed, so that nobody can choose a subject that shares another's place.
    hasher: RandomState,
}

impl axum::extract::FromRef<WriteSide> for Authenticator {
    fn from_ref(state: &WriteSide) -> Self {
        state.authenticator.clone()
    }
}

/// A command and who gives it.
#[derive(Debug)]
pub struct Given {
    /// Who.
    pub principal: Principal,
    /// To which order.
    pub order_id: OrderId,
    /// What.
    pub command: Command,
    /// Only at one of these versions (`If-Match`).
    pub expected_version: Option<Versions>,
    /// What to remember the answer under.
    pub idempotency: Option<Key>,
    /// When it happened; now, unless staff say otherwise.
    pub occurred_at: Option<Timestamp>,
    /// Waits where the store does not keep up, in place of being refused.
    pub is_patient: bool,
    /// The request's id.
    pub request_id: Option<String>,
    /// Where the request stands in its trace.
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
    pub status: StatusCode,
}

impl Key {
    /// What the log records when the command commits.
    fn record(&self, stream: StreamId, unchanged: Option<Unchanged>) -> Idempotency {
        Idempotency {
            scope: self.scope.clone(),
            key: self.key.clone(),
            request_hash: self.request_hash.clone(),
            status: self.status.as_u16(),
            stream,
            unchanged,
            answer: None,
        }
    }
}

/// What a command led to.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Accepted {
    /// The order.
    pub order_id: String,
    /// Its version now.
    pub version: i64,
    /// Position in the log that has the change: a query with `min_position` sees it.
    pub position: i64,
}

/// Why a command was not taken.
#[derive(Debug)]
pub enum Rejected {
    /// An answer for the client.
    Problem(Problem),
    /// The idempotency key has been used since it was looked up.
    KeyUsed,
}

impl From<Problem> for Rejected {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl WriteSide {
    /// Over a store, for the principals that the authenticator knows. Results that clients have not read wait in the first
    /// of the `folders` that takes a file.
    pub fn new(
        store: Store,
        authenticator: Authenticator,
        limiter: Limiter,
        settings: Settings,
        folders: Vec<PathBuf>,
        stop: CancellationToken,
    ) -> Self {
        let inner = Inner {
            orders: store.aggregates(),
            store,
            turns: (0..TURNS).map(|_| Mutex::new(())).collect(),
            in_flight: InFlight::default(),
            hasher: RandomState::new(),
        };
        let budget = Arc::new(Budget::new(settings, folders));
        Self { inner: Arc::new(inner), authenticator, limiter, budget, stop }
    }

    /// Whether a token has been revoked since its request began.
    pub(crate) fn has_revoked(&self, principal: &Principal) -> bool {
        self.authenticator.has_revoked(principal)
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.inner.in_flight
    }

    /// Decides on a command and appends its events. When it returns `Ok`, they are durable.
    ///
    /// The hot aggregate in memory may be stale. So a refusal, and the answer that there is nothing to do, are
    /// only given on a state fresh from the log, and an acceptance only stands when the append finds the version it was decided on.
    pub async fn dispatch(&self, given: Given) -> Result<Accepted, Rejected> {
        let command = given.command.name();
        let outcome = self.decide_and_append(given).await;
        metrics::dispatched(command, &outcome);
        outcome
    }

    async fn decide_and_append(&self, given: Given) -> Result<Accepted, Rejected> {
        let source = self.inner.hasher.hash_one(&given.principal.subject);
        if !given.is_patient && self.inner.store.is_overloaded(source) {
            // Clients that come back at once would take the processor from the commands that were taken.
            if self.inner.store.is_short_of_processor() {
                tokio::time::sleep(REFUSAL_HELD).await;
            }
            return Err(unavailable(StoreError::Overloaded).into());
        }
        let id = given.order_id.as_str().to_owned();
        let _turn = self.turn(&id, given.is_patient).await?;
        let mut fresh = false;
        for attempt in 0..ATTEMPTS {
            let span = trace::child("decide", SpanKind::Internal, given.trace.as_ref());
            let loaded = self.state(&given, fresh).await?;
            let decided = decide(&loaded, &given);
            drop(span);
            let events = match decided {
                Ok(events) if fresh || !events.is_empty() => events,
                Ok(_) | Err(_) if !fresh => {
                    fresh = true;
                    continue;
                }
                Ok(events) => events,
                Err(problem) => return Err(problem.into()),
            };
            let mut last = Unchanged { version: loaded.version, position: 0 };
            if events.is_empty() {
                last.position = self.position(&id, last.version).await?;
                if given.idempotency.is_none() {
                    return Ok(Accepted { order_id: id, version: last.version, position: last.position });
                }
            }
            let span = trace::child("append", SpanKind::Internal, given.trace.as_ref());
            span.describe(|| vec![KeyValue::new("docket.order.id", id.clone())]);
            let outcome = self.inner.store.append(append(&given, source, last, &events, &span)?).await;
            drop(span);
            match outcome {
                Ok(appended) => {
                    let mut state = loaded.state.clone();
                    events.iter().for_each(|event| state.evolve(event));
                    let version = appended.versions.first().copied().unwrap_or(last.version);
                    self.inner.orders.put(&id, state, version, events.len() as i64).await;
                    return Ok(Accepted { order_id: id, version, position: appended.position });
                }
                Err(error @ (AppendError::Conflict { .. } | AppendError::Predecessor | AppendError::Fenced)) => {
                    tracing::debug!(%error, attempt, "conflict: deciding again");
                    metrics::retried();
                    fresh = true;
                    // Others write to this order: spread the next tries of all of them.
                    tokio::time::sleep(Duration::from_micros(200 * attempt as u64 * (1 + attempt as u64))).await;
                }
                Err(AppendError::KeyUsed) => return Err(Rejected::KeyUsed),
                Err(AppendError::Store(error)) => {
                    // Of what was shed nothing can have been written.
                    if !matches!(error, StoreError::Overloaded) {
                        self.inner.orders.evict(&id);
                    }
                    return Err(unavailable(error).into());
                }
            }
        }
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "order-busy", "The order is busy")
            .detail("Other commands changed the order each time this one was tried. Nothing was written: try again.")
            .retry_after(1)
            .into())
    }

    /// Position of an order's event.
    async fn position(&self, id: &str, version: i64) -> Result<i64, Problem> {
        let events =
            self.inner.store.read_stream(Order::TYPE, id, version - 1, version, 1).await.map_err(unavailable)?;
        let missing = || unavailable(StoreError::Stored(format!("{id} has no event {version}")));
        Ok(events.first().ok_or_else(missing)?.position)
    }

    async fn turn(&self, id: &str, is_patient: bool) -> Result<MutexGuard<'_, ()>, Problem> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let turn = &self.inner.turns[hasher.finish() as usize % TURNS];
        let within = if is_patient { TURN_WAIT } else { self.inner.store.append_wait_max() };
        tokio::time::timeout(within, turn.lock()).await.map_err(|_| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "order-busy", "The order is busy")
                .detail("Too many commands wait for this order. Nothing was written: try again.")
                .retry_after(1)
        })
    }

    /// The state to decide on. A new order is assumed not to be there: the append checks it.
    async fn state(&self, given: &Given, fresh: bool) -> Result<Arc<Loaded<Order>>, Problem> {
        let id = given.order_id.as_str();
        if !fresh {
            if let Some(cached) = self.inner.orders.cached(id) {
                return Ok(cached);
            }
            if given.command.creates() {
                return Ok(Arc::new(Loaded { state: Order::default(), version: 0 }));
            }
        }
        self.inner.orders.load(id).await.map_err(unavailable)
    }
}

fn decide(loaded: &Loaded<Order>, given: &Given) -> Result<Vec<Event>, Problem> {
    let order = &loaded.state;
    let creates = given.command.creates();
    if !creates && !order.customer_id.as_ref().is_some_and(|owner| given.principal.may_see(owner.as_str())) {
        // Not there and not yours are the same answer.
        return Err(refused(&Refused::NotFound));
    }
    // A create names no version: what an order's version is, is only for those who may see it.
    if let Some(expected) = &given.expected_version
        && !creates
        && !expected.include(loaded.version)
    {
        return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "version-mismatch", "The order has another version")
            .detail(format!("The order is at version {}, the request names {expected}. Read it again.", loaded.version))
            .with("version", loaded.version));
    }
    order.decide(&given.command).map_err(|error| refused(&error))
}

/// A business reason as a problem.
pub(crate) fn refused(error: &impl Refusal) -> Problem {
    let status = match error.class() {
        RefusalClass::NotFound => StatusCode::NOT_FOUND,
        RefusalClass::Conflict => StatusCode::CONFLICT,
        RefusalClass::Rule => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let problem = Problem::new(status, error.slug(), error.title()).detail(error.to_string());
    error.pointers().into_iter().fold(problem, |problem, (pointer, reason)| problem.error(pointer, reason))
}

/// A store that is away, as the client is told: try again, and how to do it safely.
pub(crate) fn unavailable(error: StoreError) -> Problem {
    if let StoreError::Overloaded = error {
        // There may be thousands a second: they are counted.
        tracing::debug!(%error, "store");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many commands wait")
            .detail("More commands wait than can be written in time. Nothing was written: try again in a moment.")
            .retry_after(1);
    }
    if let StoreError::Storage(_) = error {
        // The store has said so once.
        tracing::debug!(%error, "store");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "disk-low", "The server's disk is full")
            .detail(
                "Nothing was written. The server takes commands again when its disk has room and can be written. Try \
                 again later.",
            )
            .retry_after(10);
    }
    tracing::error!(%error, "store");
    match error {
        StoreError::Malformed(_) => return Problem::internal(),
        StoreError::Stored(_) => {
            return Problem::internal().detail(
                "What is stored of this order cannot be read, so trying again will not help: tell the operator.",
            );
        }
        StoreError::Refused(_) => {
            return Problem::internal()
                .detail("The database refused the change, so trying again will not help. Nothing was written: tell the operator.");
        }
        StoreError::Unstorable(_) => {
            return Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unstorable-value", "The database cannot hold a value")
                .detail("The database cannot hold a value of this request, so trying again will not help. Nothing was written: send another value, or tell the operator.");
        }
        _ => {}
    }
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "The store cannot be reached")
        .detail(
            "Try again. With the same Idempotency-Key the command has its effect once, whatever became of this try.",
        )
        .retry_after(1)
}

/// What an event carries besides its payload; cqrs-es reads metadata as a map of strings.
#[derive(Serialize)]
struct Metadata<'a> {
    event_id: Uuid,
    correlation_id: &'a str,
    causation_id: Uuid,
    actor: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    occurred_at: Timestamp,
}

/// `last` is the event that the command was decided on; its position is only asked for where there are no events.
fn append(
    given: &Given,
    source: u64,
    last: Unchanged,
    events: &[Event],
    span: &trace::Open,
) -> Result<Append, Problem> {
    let command_id = Uuid::now_v7();
    let own_correlation = command_id.to_string();
    // What happens to the events is part of the request's trace. One that nobody records is worth no bytes in the log,
    // unless it came from outside.
    let traceparent = span.traceparent().or_else(|| given.trace.as_ref().and_then(trace::worth_keeping));
    // Microseconds: what the databases and the clients can hold.
    let now = Timestamp::from_microsecond(event_store::now_us()).unwrap_or_default();
    let encode = |event: &Event| -> Result<NewEvent, serde_json::Error> {
        Ok(NewEvent {
            event_type: event.name(),
            event_version: event.version(),
            payload: serde_json::to_string(event)?,
            metadata: serde_json::to_string(&Metadata {
                event_id: Uuid::now_v7(),
                correlation_id: given.request_id.as_deref().unwrap_or(&own_correlation),
                causation_id: command_id,
                actor: &given.principal.subject,
                request_id: given.request_id.as_deref(),
                traceparent: traceparent.as_deref(),
                occurred_at: given.occurred_at.unwrap_or(now),
            })?,
        })
    };
    let events = events.iter().map(encode).collect::<Result<Vec<_>, _>>().map_err(|error| {
        tracing::error!(%error, "an event does not serialize");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error")
    })?;
    let stream = StreamId::new(Order::TYPE, given.order_id.as_str());
    let unchanged = events.is_empty().then_some(last);
    let idempotency = given.idempotency.as_ref().map(|key| key.record(stream.clone(), unchanged));
    let (mut writes, mut checks) = (Vec::new(), Vec::new());
    match events.is_empty() {
        true => checks.push(StreamCheck { stream, version: last.version }),
        false => writes.push(StreamWrite { stream, expected_version: last.version, events, lineage: None }),
    }
    Ok(Append {
        writes,
        checks,
        reaction: None,
        idempotency,
        source,
        is_patient: given.is_patient,
        trace: span.context().cloned(),
    })
}
