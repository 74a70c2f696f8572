//! A batch of inputs as one append: each reaction is decided on what those before it have led to.

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
use crate::reactions::process::DEADLINE_NOT_ENDED;
use crate::reactions::reactor::{Acts, Cause, Input, Outcome, Reactor};
use crate::reactions::scope::Scope;
use crate::repositories::AnyLoaded;
use crate::step::AnyStep;

/// Events and bytes of one append, after which the batch ends.
const EVENTS_MAX: usize = 1_000;
const BYTES_MAX: usize = 4 << 20;
/// How often a reaction is tried that blocks its thread for ever.
pub(super) const HANGS_MAX: i64 = 3;
/// The longest id and key, in bytes: both are part of an index.
const ID_BYTES_MAX: usize = 512;
/// How long a reaction inside the log may take.
#[cfg(not(test))]
pub(super) const REACT_WITHIN: Duration = Duration::from_secs(10);
#[cfg(test)]
pub(super) const REACT_WITHIN: Duration = Duration::from_millis(600);

/// What a reactor is to react to.
pub(super) struct Item {
    pub(super) cause: Cause,
    /// What keeps it in order.
    pub(super) key: CompactString,
    /// How often it has failed before.
    pub(super) attempts: i64,
    /// Whether it comes out of the backlog.
    pub(super) is_retry: bool,
    /// Why its key cannot be known: the reactor failed at it.
    pub(super) broken: Option<String>,
    /// What the reactor did, where it acted outside before the batch began. It stays for another decision.
    pub(super) acted: Option<Mutex<Option<Outcome>>>,
}

impl Item {
    fn take_acted(&self) -> Option<Outcome> {
        self.acted.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep_acted(&self, outcome: Outcome) {
        if let Some(acted) = &self.acted {
            *acted.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        }
    }

    /// Position of the event; `None` for a deadline.
    pub(super) fn position(&self) -> Option<i64> {
        match &self.cause {
            Cause::Event(event) => Some(event.position),
            Cause::Deadline(_) => None,
        }
    }
}

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its effects are part of the append.
    Done,
    /// It waits behind an earlier event of its key.
    Follows,
    /// A worker takes it from the backlog.
    Queued,
    /// It failed.
    Failed {
        /// Why.
        reason: String,
        /// Whether it may succeed later.
        is_temporary: bool,
    },
}

/// What the reactor and the leader know that all items of a batch share.
pub(super) struct Context {
    pub(super) reactor: &'static dyn Reactor,
    pub(super) decider: Arc<Decider>,
    pub(super) now: Timestamp,
    /// Keys with events in the backlog.
    pub(super) busy: Arc<HashMap<CompactString, i64>>,
    /// Places of items whose reaction did not return.
    pub(super) hung: HashSet<usize>,
    /// Places of items that the database refuses, and why.
    pub(super) unstorable: HashMap<usize, String>,
}

/// A decided batch.
pub(super) struct Decided {
    pub(super) scope: Scope,
    /// Of the first items; the others are left for the next batch.
    pub(super) fates: Vec<Fate>,
}

/// The principal that a reactor's commands are given by.
fn principal(reactor: &dyn Reactor) -> Principal {
    Principal {
        subject: format!("reactor:{}", reactor.name()),
        role: Role::Admin,
        token_id: None,
        issued_at: 0,
        expires_at: i64::MAX,
    }
}

/// What a batch is doing, for whoever watches over its thread.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicUsize);

impl Progress {
    /// Runs code of the reactor's module for the item at a place.
    fn in_module(&self, at: usize) -> InModule<'_> {
        self.0.store(at + 1, Relaxed);
        InModule(self)
    }

    /// Place of the item for which code of the reactor's module runs: code that may never return. `None`: it does not run,
    /// or the database is waited for.
    pub(super) fn in_module_at(&self) -> Option<usize> {
        self.0.load(Relaxed).checked_sub(1)
    }
}

/// While it lives, code of the reactor's module runs.
struct InModule<'a>(&'a Progress);

impl Drop for InModule<'_> {
    fn drop(&mut self) {
        self.0.0.store(0, Relaxed);
    }
}

/// Decides on items, in order, until the append is large enough. `progress` says which item is under way.
///
/// # Errors
/// The database is away.
pub(super) async fn decide(items: &[Arc<Item>], context: &Context, progress: &Progress) -> Result<Decided, Error> {
    let mut scope = Scope::new(context.decider.clone());
    let principal = principal(context.reactor);
    let mut blocked: HashSet<&CompactString> = HashSet::new();
    let mut fates = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let (events, bytes) = scope.size();
        if events >= EVENTS_MAX || bytes >= BYTES_MAX {
            break;
        }
        let waits = blocked.contains(&item.key) || !item.is_retry && context.busy.contains_key(&item.key);
        let is_queued = context.reactor.acts() == Acts::Outside && item.acted.is_none();
        let fate = if waits {
            Fate::Follows
        } else if let Some(reason) = &item.broken {
            Fate::Failed { reason: reason.clone(), is_temporary: true }
        } else if is_queued {
            Fate::Queued
        } else if let Some(reason) = context.unstorable.get(&at) {
            Fate::Failed { reason: reason.clone(), is_temporary: false }
        } else if context.hung.contains(&at) {
            // Each call that never returns costs a thread, so it is tried a few times only.
            let is_temporary = item.attempts + 1 < HANGS_MAX;
            Fate::Failed { reason: "the reactor did not return in time".into(), is_temporary }
        } else {
            let reaction = react((at, item), context, &principal, &mut scope, progress);
            match AssertUnwindSafe(reaction).catch_unwind().await {
                Ok(fate) => fate?,
                Err(_) => {
                    Fate::Failed { reason: "the reactor panicked; the log has the message".into(), is_temporary: true }
                }
            }
        };
        if fate != Fate::Done {
            blocked.insert(&item.key);
        }
        fates.push(fate);
    }
    Ok(Decided { scope, fates })
}

/// Calls the reactor and decides its commands: once, and a second time with refusals where it takes them.
async fn react(
    (at, item): (usize, &Item),
    context: &Context,
    principal: &Principal,
    scope: &mut Scope,
    progress: &Progress,
) -> Result<Fate, Error> {
    let Context { reactor, now, .. } = context;
    let mut input = Input { cause: item.cause.clone(), attempt: item.attempts, now: *now, refused: Vec::new() };
    loop {
        let mut outcome = match item.take_acted() {
            Some(outcome) => outcome,
            None => {
                let _in_module = progress.in_module(at);
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
                item.keep_acted(outcome);
                return Ok(Fate::Failed { reason, is_temporary });
            }
        };
        let carried_out = carry_out(steps, (at, &item.cause), principal, scope, progress).await;
        item.keep_acted(outcome);
        let refused = match carried_out? {
            Ok(()) => return Ok(Fate::Done),
            Err(refused) => refused,
        };
        for Refused { stream, detail, .. } in &refused {
            tracing::warn!(reactor = reactor.name(), %stream, detail, "a command of a reactor was refused");
        }
        // A fault of the process is no refusal that it could answer.
        let is_fault = refused.iter().any(|refused| refused.slug == DEADLINE_NOT_ENDED);
        if is_fault || !reactor.takes_refusals() || !input.refused.is_empty() || item.acted.is_some() {
            let refusals = refused.iter().map(|refused| format!("{}: {}", refused.stream, refused.detail));
            let reason = refusals.collect::<Vec<_>>().join("; ");
            return Ok(Fate::Failed { reason, is_temporary: is_fault || !reactor.takes_refusals() });
        }
        input.refused = refused;
    }
}

/// Whether both databases can hold a text as an id or a key.
pub(super) fn is_storable(text: &str) -> bool {
    text.len() <= ID_BYTES_MAX && !text.contains('\0')
}

/// Decides steps, all or none; the inner error is every refusal.
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
            let (slug, detail) = ("invalid-id".to_owned(), format!("no {} can have this id", stream.aggregate_type));
            refused.push(Refused { stream, slug, detail });
            continue;
        }
        match pending.get(&stream).or_else(|| scope.state_of(&stream)).cloned() {
            Some(state) => step.load_pending(&state),
            None => {
                // A command that may create its aggregate often meets one that is there.
                let repositories = scope.decider().repositories();
                let is_in_memory = (step.memory().version)(repositories, &stream.aggregate_id).is_some();
                step.load(repositories, !is_in_memory).await?;
            }
        }
        scope.rest_on(&**step, &stream, &step.pending());
        let _in_module = progress.in_module(at);
        if let Err(problem) = step.decide(principal) {
            let (slug, detail) = (problem.slug().to_owned(), problem.to_string());
            refused.push(Refused { stream, slug, detail });
            continue;
        }
        let events = step.encode(&mut || metadata.of_event()).map_err(|error| Error::Unstorable(error.to_string()))?;
        pending.insert(stream.clone(), step.pending());
        decided.push((&**step, stream, events));
    }
    if !refused.is_empty() {
        return Ok(Err(refused));
    }
    decided.into_iter().for_each(|(step, stream, events)| scope.apply(step, &stream, events));
    Ok(Ok(()))
}

/// The event that a reaction belongs to: the one that was reacted to, or the last one of the process whose deadline was
/// reached.
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

/// What the events of a reaction carry besides their payloads: they belong to what led to them.
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

    /// The metadata of one more event.
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
