//! A command to one aggregate, typed where it is made and without its type where it is carried out.

use std::sync::Arc;

use axum::http::StatusCode;
use event_store::aggregates::{AggregateRepository, Loaded};
use event_store::append::DeadlineChanges;
use event_store::error::Error;
use event_store::event::NewEvent;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, Refusal};
use kernel::stream::{StreamId, is_id};
use platform::auth::Principal;
use platform::conditional::Versions;
use platform::problem::Problem;
use serde::ser::Error as _;

use crate::problems::refused;
use crate::repositories::{AnyLoaded, Memory, Repositories};

/// A command to one aggregate, with what was decided on it.
pub struct Step<A: Aggregate> {
    id: String,
    command: A::Command,
    /// Only at one of these versions (`If-Match`).
    expected_version: Option<Versions>,
    /// The state that it is decided on, once it is loaded.
    loaded: Option<Arc<Loaded<A>>>,
    events: Vec<A::Event>,
}

impl<A: Aggregate> Step<A> {
    /// A command to the aggregate with an id.
    pub fn new(id: impl Into<String>, command: A::Command) -> Box<Self> {
        Box::new(Self { id: id.into(), command, expected_version: None, loaded: None, events: Vec::new() })
    }
}

/// [`Step`] without its type: what the decider asks of it, in this order.
pub trait AnyStep: Send + Sync {
    /// The aggregate's stream.
    fn stream(&self) -> StreamId;
    /// The kind of aggregate.
    fn kind(&self) -> &'static str;
    /// The command's name.
    fn command(&self) -> &'static str;
    /// Carries it out only at one of these versions.
    fn expect(&mut self, versions: Option<Versions>);
    /// Loads the state to decide on: that in memory, which may be stale, unless it has to be `fresh` from the log. A command
    /// that creates its aggregate is decided on an absent one: the append checks it.
    fn load<'a>(&'a mut self, repositories: &'a Repositories, fresh: bool) -> BoxFuture<'a, Result<(), Error>>;
    /// Takes the state to decide on from a step before it, of the same stream.
    fn load_pending(&mut self, pending: &AnyLoaded);
    /// Decides. Nothing is applied.
    ///
    /// # Errors
    /// An id that no aggregate can have. Not there or not the caller's: the same answer. Another version than expected. The aggregate's refusal.
    fn decide(&mut self, principal: &Principal) -> Result<(), Problem>;
    /// The version that was decided on.
    fn version(&self) -> i64;
    /// Number of events that were decided.
    fn events(&self) -> usize;
    /// The events as the log takes them; `metadata` is called once for each.
    ///
    /// # Errors
    /// An event or its metadata does not serialize.
    fn encode(&self, metadata: &mut dyn FnMut() -> serde_json::Result<String>) -> serde_json::Result<Vec<NewEvent>>;
    /// The state with the decided events applied to it.
    fn pending(&self) -> AnyLoaded;
    /// Deadlines that the decided events set and remove, where the aggregate is a process.
    fn deadlines(&self) -> DeadlineChanges {
        DeadlineChanges::default()
    }
    /// What can be done with aggregates of its kind in memory.
    fn memory(&self) -> Memory;
    /// The events are durable: keeps the state that they lead to in memory.
    fn commit<'a>(&'a mut self, repositories: &'a Repositories, version: i64) -> BoxFuture<'a, ()>;
}

impl<A: Aggregate> AnyStep for Step<A> {
    fn stream(&self) -> StreamId {
        StreamId::new(A::TYPE, &self.id)
    }

    fn kind(&self) -> &'static str {
        A::TYPE
    }

    fn command(&self) -> &'static str {
        self.command.name()
    }

    fn expect(&mut self, versions: Option<Versions>) {
        self.expected_version = versions;
    }

    fn load<'a>(&'a mut self, repositories: &'a Repositories, fresh: bool) -> BoxFuture<'a, Result<(), Error>> {
        let repository: Arc<AggregateRepository<A>> = repositories.of();
        let in_memory = match fresh {
            true => None,
            false if self.command.creates() => {
                let absent = || Arc::new(Loaded { state: A::default(), version: 0 });
                Some(repository.cached(&self.id).unwrap_or_else(absent))
            }
            false => repository.cached(&self.id),
        };
        if let Some(loaded) = in_memory {
            self.loaded = Some(loaded);
            return futures::future::ready(Ok(())).boxed();
        }
        async move {
            self.loaded = Some(repository.load(&self.id).await?);
            Ok(())
        }
        .boxed()
    }

    fn load_pending(&mut self, pending: &AnyLoaded) {
        self.loaded = pending.clone().downcast().ok();
    }

    fn decide(&mut self, principal: &Principal) -> Result<(), Problem> {
        let Some(loaded) = &self.loaded else { return Err(Problem::internal()) };
        let (state, version) = (&loaded.state, loaded.version);
        if version == 0 && !is_id(&self.id) {
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-id", "The id is not valid").detail(
                format!(
                    "The id of a {} has 1 to 64 characters of A-Z a-z 0-9 _ -. Nothing was written. Send another id.",
                    A::TYPE
                ),
            ));
        }
        let creates = self.command.creates();
        if !creates && !may_know(principal, state.access()) {
            return Err(refused(&A::Error::not_found()));
        }
        // A command that creates names no version: what the version is, is only for those who may see the aggregate.
        if let Some(expected) = &self.expected_version
            && !creates
            && !expected.include(version)
        {
            let title = format!("The {} has another version", A::TYPE);
            return Err(Problem::new(StatusCode::PRECONDITION_FAILED, "version-mismatch", &title)
                .detail(format!(
                    "The {} is at version {version}, the request names {expected}. Read it again.",
                    A::TYPE
                ))
                .with("version", version));
        }
        self.events = state.decide(&self.command).map_err(|error| refused(&error))?;
        Ok(())
    }

    fn version(&self) -> i64 {
        self.loaded.as_ref().map_or(0, |loaded| loaded.version)
    }

    fn events(&self) -> usize {
        self.events.len()
    }

    fn encode(&self, metadata: &mut dyn FnMut() -> serde_json::Result<String>) -> serde_json::Result<Vec<NewEvent>> {
        encode(&self.events, metadata)
    }

    fn pending(&self) -> AnyLoaded {
        match &self.loaded {
            Some(loaded) if self.events.is_empty() => loaded.clone(),
            Some(loaded) => Arc::new(evolved(loaded, &self.events)),
            None => Arc::new(Loaded { state: A::default(), version: 0 }),
        }
    }

    fn memory(&self) -> Memory {
        Memory::of::<A>()
    }

    fn commit<'a>(&'a mut self, repositories: &'a Repositories, version: i64) -> BoxFuture<'a, ()> {
        async move {
            let Some(loaded) = self.loaded.take() else { return };
            let repository: Arc<AggregateRepository<A>> = repositories.of();
            // The cache has the other reference to the state: without it the state is evolved where it is.
            repository.evict(&self.id);
            let mut state = Arc::try_unwrap(loaded).map_or_else(|shared| shared.state.clone(), |own| own.state);
            self.events.iter().for_each(|event| state.evolve(event));
            repository.put(&self.id, Arc::new(Loaded { state, version }), self.events.len() as i64).await;
        }
        .boxed()
    }
}

/// The events of an aggregate as the log takes them; `metadata` is called once for each.
pub(crate) fn encode<E: EventType>(
    events: &[E],
    metadata: &mut dyn FnMut() -> serde_json::Result<String>,
) -> serde_json::Result<Vec<NewEvent>> {
    let encode = |event: &E| {
        let (event_type, payload) = (event.name(), serde_json::to_string(event)?);
        // It is read by its tag and found by its name, for ever.
        if payload
            .strip_prefix("{\"")
            .and_then(|rest| rest.strip_prefix(event_type))
            .is_none_or(|rest| !rest.starts_with('"'))
        {
            return Err(serde_json::Error::custom(format!("the event named {event_type} is not tagged so: {payload}")));
        }
        Ok(NewEvent { event_type, event_version: event.version(), payload, metadata: metadata()? })
    };
    events.iter().map(encode).collect()
}

/// A state with events applied to it.
pub(crate) fn evolved<A: Aggregate>(loaded: &Loaded<A>, events: &[A::Event]) -> Loaded<A> {
    let mut state = loaded.state.clone();
    events.iter().for_each(|event| state.evolve(event));
    Loaded { state, version: loaded.version + events.len() as i64 }
}

/// Whether a principal may know of an aggregate.
pub fn may_know(principal: &Principal, access: Access<'_>) -> bool {
    match access {
        Access::Absent => false,
        Access::Owner(subject) => principal.may_see(subject),
        Access::Staff => principal.is_staff(),
    }
}
