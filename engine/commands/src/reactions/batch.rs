//! Decides a batch of inputs as one append. Each reaction is decided on a state that includes the effects of the
//! reactions before it.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use compact_str::CompactString;
use event_store::error::Error;
use event_store::event::{NewEvent, RecordedEvent};
use futures::FutureExt;
use jiff::Timestamp;
use kernel::process::Refused;
use kernel::stream::StreamId;
use platform::auth::{Principal, Role};
use uuid::Uuid;

use crate::decider::{Decider, EventMetadata};
use crate::problems::DEADLINE_NOT_ENDED;
use crate::reactions::reactor::{Acts, Cause, Input, Outcome, Reactor};
use crate::reactions::scope::Scope;
use crate::repositories::AnyLoaded;
use crate::step::AnyStep;

/// The batch ends when its append has this many events or bytes.
const EVENTS_MAX: usize = 1_000;
const BYTES_MAX: usize = 4 << 20;
/// The largest number of attempts of a reaction that never returns, because each attempt costs a thread.
pub(super) const HANG_ATTEMPTS_MAX: i64 = 3;
/// The largest length of an id and of a key, in bytes. Both are part of a database index.
const ID_BYTES_MAX: usize = 512;
/// How long a reaction inside the log may take.
#[cfg(not(test))]
pub(super) const REACT_WITHIN: Duration = Duration::from_secs(10);
#[cfg(test)]
pub(super) const REACT_WITHIN: Duration = Duration::from_millis(600);

/// An input for the reactor, with the state of its retries.
pub(super) struct Item {
    pub(super) cause: Cause,
    /// The ordering key of the input.
    pub(super) key: CompactString,
    /// How often the input has failed before.
    pub(super) attempts: i64,
    /// True when the input is a retry: an event of the backlog, or a deadline.
    pub(super) is_retry: bool,
    /// Why the input has no key: the reactor failed to compute it.
    pub(super) broken: Option<String>,
    /// Outcome of a reactor that acted outside before the batch began. The outcome is kept, so that its commands can be
    /// decided again.
    pub(super) external_outcome: Option<Mutex<Option<Outcome>>>,
}

impl Item {
    fn take_external_outcome(&self) -> Option<Outcome> {
        self.external_outcome.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put_external_outcome(&self, outcome: Outcome) {
        if let Some(kept) = &self.external_outcome {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        }
    }

    /// Returns the position of the event; `None` for a deadline.
    pub(super) fn position(&self) -> Option<i64> {
        match &self.cause {
            Cause::Event(event) => Some(event.position),
            Cause::Deadline(_) => None,
        }
    }
}

/// The result of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ItemResult {
    /// The effects of the item are part of the append.
    Done,
    /// The item waits behind an earlier event of its key.
    Follows,
    /// The item goes to the backlog, where a worker picks it up.
    Queued,
    /// The reaction failed.
    Failed {
        /// Reason of the failure.
        reason: String,
        /// Whether a retry may succeed.
        is_temporary: bool,
    },
}

/// The data that all items of a batch share.
pub(super) struct Context {
    pub(super) reactor: &'static dyn Reactor,
    pub(super) decider: Arc<Decider>,
    pub(super) now: Timestamp,
    /// Keys with events in the backlog.
    pub(super) backlogged_keys: Arc<HashMap<CompactString, i64>>,
    /// Indexes of items whose reaction did not return.
    pub(super) hung: HashSet<usize>,
    /// Indexes of items that the database refuses, with the reason.
    pub(super) unstorable: HashMap<usize, String>,
}

/// A decided batch.
pub(super) struct Decided {
    pub(super) scope: Scope,
    /// Results of the first items. The items after them are left for the next batch.
    pub(super) results: Vec<ItemResult>,
}

/// Returns the principal that issues the commands of a reactor.
fn principal(reactor: &dyn Reactor) -> Principal {
    Principal {
        subject: format!("reactor:{}", reactor.name()),
        role: Role::Admin,
        token_id: None,
        issued_at: 0,
        expires_at: i64::MAX,
    }
}

/// The progress of a batch, for the task that watches its thread.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicUsize);

impl Progress {
    /// Marks that code of the reactor's module runs for the item at index `at`, until the guard is dropped.
    fn enter_reactor_code(&self, at: usize) -> ReactorCodeGuard<'_> {
        self.0.store(at + 1, Relaxed);
        ReactorCodeGuard(self)
    }

    /// Returns the index of the item for which code of the reactor's module runs; that code may never return. `None`:
    /// no such code runs, or the batch waits for the database.
    pub(super) fn current_item(&self) -> Option<usize> {
        self.0.load(Relaxed).checked_sub(1)
    }
}

/// A guard: code of the reactor's module runs until it is dropped.
struct ReactorCodeGuard<'a>(&'a Progress);

impl Drop for ReactorCodeGuard<'_> {
    fn drop(&mut self) {
        self.0.0.store(0, Relaxed);
    }
}

/// Decides items in order, until the append is large enough. `progress` shows the current item.
///
/// # Errors
/// The database is unavailable.
pub(super) async fn decide(items: &[Arc<Item>], context: &Context, progress: &Progress) -> Result<Decided, Error> {
    let mut scope = Scope::new(context.decider.clone());
    let principal = principal(context.reactor);
    let mut blocked: HashSet<&CompactString> = HashSet::new();
    let mut results = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let (events, bytes) = scope.size();
        if events >= EVENTS_MAX || bytes >= BYTES_MAX {
            break;
        }
        let waits = blocked.contains(&item.key) || !item.is_retry && context.backlogged_keys.contains_key(&item.key);
        let is_queued = context.reactor.acts() == Acts::Outside && item.external_outcome.is_none();
        let result = if waits {
            ItemResult::Follows
        } else if let Some(reason) = &item.broken {
            ItemResult::Failed { reason: reason.clone(), is_temporary: true }
        } else if is_queued {
            ItemResult::Queued
        } else if let Some(reason) = context.unstorable.get(&at) {
            ItemResult::Failed { reason: reason.clone(), is_temporary: false }
        } else if context.hung.contains(&at) {
            // Each call that never returns costs a thread, so it has few attempts.
            let is_temporary = item.attempts + 1 < HANG_ATTEMPTS_MAX;
            ItemResult::Failed { reason: "the reactor did not return in time".into(), is_temporary }
        } else {
            let reaction = react((at, item), context, &principal, &mut scope, progress);
            match AssertUnwindSafe(reaction).catch_unwind().await {
                Ok(result) => result?,
                Err(_) => ItemResult::Failed {
                    reason: "the reactor panicked; see the process log".into(),
                    is_temporary: true,
                },
            }
        };
        if result != ItemResult::Done {
            blocked.insert(&item.key);
        }
        results.push(result);
    }
    Ok(Decided { scope, results })
}

/// Calls the reactor and decides its commands. A reactor that handles refusals is called a second time with them.
async fn react(
    (at, item): (usize, &Item),
    context: &Context,
    principal: &Principal,
    scope: &mut Scope,
    progress: &Progress,
) -> Result<ItemResult, Error> {
    let Context { reactor, now, .. } = context;
    let mut input = Input { cause: item.cause.clone(), attempt: item.attempts, now: *now, refused: Vec::new() };
    loop {
        let mut outcome = match item.take_external_outcome() {
            Some(outcome) => outcome,
            None => {
                let _guard = progress.enter_reactor_code(at);
                match tokio::time::timeout(REACT_WITHIN, reactor.react(&input, scope)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Outcome::Retry(format!("the reactor did not return within {REACT_WITHIN:?}")),
                }
            }
        };
        let steps = match &mut outcome {
            Outcome::Done(steps) => steps,
            Outcome::Retry(reason) | Outcome::Park(reason) => {
                let reason = reason.clone();
                let is_temporary = matches!(outcome, Outcome::Retry(_));
                item.put_external_outcome(outcome);
                return Ok(ItemResult::Failed { reason, is_temporary });
            }
        };
        let carried_out = carry_out(steps, (at, &item.cause), principal, scope, progress).await;
        item.put_external_outcome(outcome);
        let refused = match carried_out? {
            Ok(()) => return Ok(ItemResult::Done),
            Err(refused) => refused,
        };
        for Refused { stream, detail, .. } in &refused {
            tracing::warn!(reactor = reactor.name(), %stream, detail, "A command of the reactor was refused.");
        }
        // A deadline that was not ended is a fault of the process, so the process is not called with it as a refusal.
        let is_fault = refused.iter().any(|refused| refused.slug == DEADLINE_NOT_ENDED.slug);
        if is_fault || !reactor.handles_refusals() || !input.refused.is_empty() || item.external_outcome.is_some() {
            let refusals = refused.iter().map(|refused| format!("{}: {}", refused.stream, refused.detail));
            let reason = refusals.collect::<Vec<_>>().join("; ");
            return Ok(ItemResult::Failed { reason, is_temporary: is_fault || !reactor.handles_refusals() });
        }
        input.refused = refused;
    }
}

/// Whether both databases can store a text as an id or a key.
pub(super) fn is_storable(text: &str) -> bool {
    text.len() <= ID_BYTES_MAX && !text.contains('\0')
}

/// Decides steps, all or none. The inner error holds every refusal.
async fn carry_out(
    steps: &mut [Box<dyn AnyStep>],
    (at, cause): (usize, &Cause),
    principal: &Principal,
    scope: &mut Scope,
    progress: &Progress,
) -> Result<Result<(), Vec<Refused>>, Error> {
    let origin = origin(cause, steps, scope).await?;
    let metadata = Metadata::new(origin.as_ref(), principal);
    let mut pending: HashMap<StreamId, AnyLoaded> = HashMap::new();
    let mut decided: Vec<(&dyn AnyStep, StreamId, Vec<NewEvent>)> = Vec::with_capacity(steps.len());
    let mut refused = Vec::new();
    for step in steps {
        let stream = step.stream();
        if !is_storable(&stream.aggregate_id) {
            let (slug, detail) =
                ("invalid-id".to_owned(), format!("the id is not valid for a {}", stream.aggregate_type));
            refused.push(Refused { stream, slug, detail });
            continue;
        }
        match pending.get(&stream).or_else(|| scope.state_of(&stream)).cloned() {
            Some(state) => step.load_pending(&state),
            None => {
                // A command that may create its aggregate often addresses an existing one, so the log is read unless
                // the aggregate is cached.
                let repositories = scope.decider().repositories();
                let is_in_memory = (step.memory().version)(repositories, &stream.aggregate_id).is_some();
                step.load(repositories, !is_in_memory).await?;
            }
        }
        scope.add_dependency(&**step, &stream, &step.pending());
        let _guard = progress.enter_reactor_code(at);
        if let Err(problem) = step.decide(principal) {
            let (slug, detail) = (problem.slug().to_owned(), problem.to_string());
            refused.push(Refused { stream, slug, detail });
            continue;
        }
        let events =
            step.encode(&mut || metadata.of_event()).map_err(|error| Error::InvalidValue(error.to_string()))?;
        pending.insert(stream.clone(), step.pending());
        decided.push((&**step, stream, events));
    }
    if !refused.is_empty() {
        return Ok(Err(refused));
    }
    decided.into_iter().for_each(|(step, stream, events)| scope.apply(step, &stream, events));
    Ok(Ok(()))
}

/// Returns the event that caused a reaction: the event of the input, or the last event of the process whose deadline
/// was reached.
async fn origin(cause: &Cause, steps: &[Box<dyn AnyStep>], scope: &Scope) -> Result<Option<RecordedEvent>, Error> {
    let due = match cause {
        Cause::Event(event) => return Ok(Some(event.clone())),
        Cause::Deadline(due) => &due.key,
    };
    let stream = StreamId::new(&due.process, &due.id);
    let Some(own) = steps.iter().find(|step| step.stream() == stream) else { return Ok(None) };
    let version = own.version();
    let last = scope.read_stream(&due.process, &due.id, version - 1, version).await?;
    Ok(last.into_iter().next())
}

/// The metadata of the events of a reaction: they continue the correlation of the event that caused them.
struct Metadata<'a> {
    origin: Option<&'a RecordedEvent>,
    correlation_id: String,
    causation_id: String,
    actor: &'a str,
}

impl<'a> Metadata<'a> {
    fn new(origin: Option<&'a RecordedEvent>, principal: &'a Principal) -> Self {
        let causation_id = origin.map_or_else(|| Uuid::now_v7().to_string(), RecordedEvent::id);
        let correlation_id = origin.and_then(|event| event.metadata_text("correlation_id")).map(str::to_owned);
        let correlation_id = correlation_id.unwrap_or_else(|| causation_id.clone());
        Self { origin, correlation_id, causation_id, actor: &principal.subject }
    }

    /// Returns the metadata of one event, with a new event id.
    fn of_event(&self) -> serde_json::Result<String> {
        let of_origin = |name| self.origin.and_then(|event| event.metadata_text(name));
        serde_json::to_string(&EventMetadata {
            event_id: Uuid::now_v7(),
            correlation_id: &self.correlation_id,
            causation_id: &self.causation_id,
            actor: self.actor,
            request_id: of_origin("request_id"),
            traceparent: of_origin("traceparent"),
            occurred_at: Timestamp::from_microsecond(event_store::now_us()).unwrap_or_default(),
            history: false,
        })
    }
}
