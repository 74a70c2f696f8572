//! A batch of inputs as one append: each reaction is decided on what those before it have led to.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::reactions::reactor::{Acts, Cause, Input, Outcome, Reactor};
use crate::reactions::scope::Scope;
use crate::repositories::AnyLoaded;
use crate::step::AnyStep;

/// Events and bytes of one append, after which the batch ends.
const EVENTS_MAX: usize = 1_000;
const BYTES_MAX: usize = 4 << 20;
/// How often a reaction that does not return is tried.
const HANGS_MAX: i64 = 3;

/// What a reactor is to react to.
pub(super) struct Item {
    pub(super) cause: Cause,
    /// What keeps it in order.
    pub(super) key: CompactString,
    /// How often it has failed before.
    pub(super) attempts: i64,
    /// Whether it comes out of the backlog.
    pub(super) is_retry: bool,
    /// What the reactor did, where it acted outside before the batch began.
    pub(super) acted: Option<Mutex<Option<Outcome>>>,
}

impl Item {
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

/// Decides on items, in order, until the append is large enough. `progress` says which item is under way.
///
/// # Errors
/// The database is away.
pub(super) async fn decide(items: &[Arc<Item>], context: &Context, progress: &AtomicUsize) -> Result<Decided, Error> {
    let mut scope = Scope::new(context.decider.clone());
    let principal = principal(context.reactor);
    let mut blocked: HashSet<&CompactString> = HashSet::new();
    let mut fates = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        progress.store(at, Relaxed);
        let (events, bytes) = scope.size();
        if events >= EVENTS_MAX || bytes >= BYTES_MAX {
            break;
        }
        let waits = blocked.contains(&item.key) || !item.is_retry && context.busy.contains_key(&item.key);
        let is_queued = context.reactor.acts() == Acts::Outside && item.acted.is_none();
        let fate = if waits {
            Fate::Follows
        } else if is_queued {
            Fate::Queued
        } else if let Some(reason) = context.unstorable.get(&at) {
            Fate::Failed { reason: reason.clone(), is_temporary: false }
        } else if context.hung.contains(&at) {
            // The database may have been slow; but each call that never returns costs a thread.
            let is_temporary = item.attempts + 1 < HANGS_MAX;
            Fate::Failed { reason: "the reactor did not return in time".into(), is_temporary }
        } else {
            let reaction = react(item, context, &principal, &mut scope);
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
async fn react(item: &Item, context: &Context, principal: &Principal, scope: &mut Scope) -> Result<Fate, Error> {
    let Context { reactor, now, .. } = context;
    let mut input = Input { cause: item.cause.clone(), attempt: item.attempts, now: *now, refused: Vec::new() };
    loop {
        let acted = item.acted.as_ref().and_then(|acted| acted.lock().unwrap_or_else(PoisonError::into_inner).take());
        let outcome = match acted {
            Some(outcome) => outcome,
            None => reactor.react(&input, scope).await,
        };
        let steps = match outcome {
            Outcome::Done(steps) => steps,
            Outcome::Retry(reason) => return Ok(Fate::Failed { reason, is_temporary: true }),
            Outcome::Park(reason) => return Ok(Fate::Failed { reason, is_temporary: false }),
        };
        let refused = match carry_out(steps, &item.cause, principal, scope).await? {
            Ok(()) => return Ok(Fate::Done),
            Err(refused) => refused,
        };
        if !reactor.takes_refusals() || !input.refused.is_empty() {
            let refusals = refused.iter().map(|refused| format!("{}: {}", refused.stream, refused.detail));
            let reason = refusals.collect::<Vec<_>>().join("; ");
            return Ok(Fate::Failed { reason, is_temporary: !reactor.takes_refusals() });
        }
        input.refused = refused;
    }
}

/// Decides steps, all or none; the inner error is every refusal.
async fn carry_out(
    steps: Vec<Box<dyn AnyStep>>,
    cause: &Cause,
    principal: &Principal,
    scope: &mut Scope,
) -> Result<Result<(), Vec<Refused>>, Error> {
    let metadata = Metadata::new(cause, principal);
    let mut pending: HashMap<StreamId, AnyLoaded> = HashMap::new();
    let mut decided: Vec<(Box<dyn AnyStep>, StreamId, Vec<NewEvent>)> = Vec::with_capacity(steps.len());
    let mut refused = Vec::new();
    for mut step in steps {
        let stream = step.stream();
        match pending.get(&stream).or_else(|| scope.state_of(&stream)).cloned() {
            Some(state) => step.load_pending(&state),
            None => {
                // A command that may create its aggregate often meets one that is there.
                let repositories = scope.decider().repositories();
                let is_in_memory = (step.memory().version)(repositories, &stream.aggregate_id).is_some();
                step.load(repositories, !is_in_memory).await?;
            }
        }
        scope.rest_on(&*step, &stream, &step.pending());
        if let Err(problem) = step.decide(principal) {
            let (slug, detail) = (problem.slug().to_owned(), problem.to_string());
            refused.push(Refused { stream, slug, detail });
            continue;
        }
        let events = step.encode(&mut || metadata.of_event()).map_err(|error| Error::Unstorable(error.to_string()))?;
        pending.insert(stream.clone(), step.pending());
        decided.push((step, stream, events));
    }
    if !refused.is_empty() {
        return Ok(Err(refused));
    }
    decided.into_iter().for_each(|(step, stream, events)| scope.apply(&*step, &stream, events));
    Ok(Ok(()))
}

/// What the events of a reaction carry besides their payloads: they belong to what led to them.
struct Metadata<'a> {
    event: Option<&'a RecordedEvent>,
    correlation_id: String,
    causation_id: String,
    actor: &'a str,
}

impl<'a> Metadata<'a> {
    fn new(cause: &'a Cause, principal: &'a Principal) -> Self {
        let (event, causation_id) = match cause {
            Cause::Event(event) => (Some(event), event.id()),
            Cause::Deadline(due) => (None, format!("{}/{}/{}", due.key.process, due.key.id, due.key.name)),
        };
        let correlation_id = event.and_then(|event| event.metadata_text("correlation_id")).map(str::to_owned);
        let correlation_id = correlation_id.unwrap_or_else(|| causation_id.clone());
        Self { event, correlation_id, causation_id, actor: &principal.subject }
    }

    /// The metadata of one more event.
    fn of_event(&self) -> serde_json::Result<String> {
        let of_cause = |name| self.event.and_then(|event| event.metadata_text(name));
        serde_json::to_string(&EventMetadata {
            event_id: Uuid::now_v7(),
            correlation_id: &self.correlation_id,
            causation_id: &self.causation_id,
            actor: self.actor,
            request_id: of_cause("request_id"),
            traceparent: of_cause("traceparent"),
            occurred_at: Timestamp::from_microsecond(event_store::now_us()).unwrap_or_default(),
            history: false,
        })
    }
}
