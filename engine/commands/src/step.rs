//! A command to one aggregate: typed where it is created, type-erased where it is executed.

use std::sync::Arc;

use event_store::aggregates::{AggregateRepository, Loaded};
use event_store::append::DeadlineChanges;
use event_store::error::Error;
use event_store::event::NewEvent;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::aggregate::{Access, Aggregate, CommandType, EventType, Refusal};
use kernel::id;
use kernel::stream::{StreamId, is_id};
use platform::auth::Principal;
use platform::conditional::Versions;
use platform::problem::Problem;
use serde::ser::Error as _;

use crate::problems::{INVALID_ID, VERSION_MISMATCH, refused};
use crate::repositories::{AnyLoaded, Memory, Repositories};

/// A command to one aggregate, and the events that were decided.
pub struct Step<A: Aggregate> {
    id: String,
    command: A::Command,
    /// The versions at which the command may run (`If-Match`); `None`: any.
    expected_version: Option<Versions>,
    /// The state on which the command is decided; `None` before it is loaded.
    loaded: Option<Arc<Loaded<A>>>,
    events: Vec<A::Event>,
}

impl<A: Aggregate> Step<A> {
    /// Creates a command to the aggregate with this id.
    pub fn new(id: impl Into<String>, command: A::Command) -> Box<Self> {
        Box::new(Self { id: id.into(), command, expected_version: None, loaded: None, events: Vec::new() })
    }
}

/// A type-erased [`Step`]. The decider calls its methods in this order.
pub trait AnyStep: Send + Sync {
    /// Returns the stream of the aggregate.
    fn stream(&self) -> StreamId;
    /// Returns the type of the aggregate.
    fn kind(&self) -> &'static str;
    /// Returns the name of the command, for metrics.
    fn command(&self) -> &'static str;
    /// Restricts the command to these versions of the aggregate.
    fn expect(&mut self, versions: Option<Versions>);
    /// Loads the state on which the command is decided. With `fresh` it is read from the log; otherwise a cached state
    /// is used, which may be stale. Without a cached state, a command that creates its aggregate is decided on an
    /// absent one, which the append verifies.
    fn load<'a>(&'a mut self, repositories: &'a Repositories, fresh: bool) -> BoxFuture<'a, Result<(), Error>>;
    /// Sets the state to the result of an earlier step for the same stream.
    fn load_pending(&mut self, pending: &AnyLoaded);
    /// Decides the command. No event is applied.
    ///
    /// # Errors
    /// - The id is not valid for an aggregate.
    /// - The aggregate does not exist, or the caller may not see it. Both have the same answer.
    /// - The aggregate is at another version than expected.
    /// - The aggregate refuses the command.
    fn decide(&mut self, principal: &Principal) -> Result<(), Problem>;
    /// Returns the version on which the command was decided.
    fn version(&self) -> i64;
    /// Returns the number of decided events.
    fn events(&self) -> usize;
    /// Encodes the decided events for the log. `metadata` is called once for each event.
    ///
    /// # Errors
    /// An event or its metadata does not serialize.
    fn encode(&self, metadata: &mut dyn FnMut() -> serde_json::Result<String>) -> serde_json::Result<Vec<NewEvent>>;
    /// Returns the state after the decided events.
    fn pending(&self) -> AnyLoaded;
    /// Returns the deadlines that the decided events set and remove; empty when the aggregate is not a process.
    fn deadlines(&self) -> DeadlineChanges {
        DeadlineChanges::default()
    }
    /// Returns the approximate size in memory of a state that [`Self::pending`] returned, in bytes.
    fn weight(&self, _: &AnyLoaded) -> usize {
        0
    }
    /// Returns the cache operations of the aggregate type.
    fn memory(&self) -> Memory;
    /// Caches the state after the events, which are now durable. `version` is the new version of the aggregate.
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
            return Err(Problem::new(INVALID_ID).detail(format!(
                "The {} id must have 1 to {} characters {}. Nothing was written. Send another id.",
                A::TYPE,
                id::CHARS_MAX,
                id::RULE
            )));
        }
        let creates = self.command.creates();
        if !creates && !can_access(principal, state.access()) {
            return Err(refused(&A::Error::not_found()));
        }
        // A command that creates an aggregate has no expected version. The version would also reveal the aggregate to
        // callers who may not see it.
        if let Some(expected) = &self.expected_version
            && !creates
            && !expected.include(version)
        {
            return Err(Problem::new(VERSION_MISMATCH)
                .detail(format!(
                    "The {} is at version {version}, but the request expects {expected}. Read the current version and \
                     try again.",
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

    fn weight(&self, pending: &AnyLoaded) -> usize {
        pending.downcast_ref::<Loaded<A>>().map_or(0, |loaded| loaded.state.weight())
    }

    fn memory(&self) -> Memory {
        Memory::of::<A>()
    }

    fn commit<'a>(&'a mut self, repositories: &'a Repositories, version: i64) -> BoxFuture<'a, ()> {
        async move {
            let Some(loaded) = self.loaded.take() else { return };
            let repository: Arc<AggregateRepository<A>> = repositories.of();
            // The cache holds another reference to the state. After the eviction the state can be changed in place,
            // without a clone.
            repository.evict(&self.id);
            let mut state = Arc::try_unwrap(loaded).map_or_else(|shared| shared.state.clone(), |own| own.state);
            self.events.iter().for_each(|event| state.evolve(event));
            repository.put(&self.id, Arc::new(Loaded { state, version }), self.events.len() as i64).await;
        }
        .boxed()
    }
}

/// Encodes the events of an aggregate for the log. `metadata` is called once for each event.
pub(crate) fn encode<E: EventType>(
    events: &[E],
    metadata: &mut dyn FnMut() -> serde_json::Result<String>,
) -> serde_json::Result<Vec<NewEvent>> {
    let encode = |event: &E| {
        let (event_type, payload) = (event.name(), serde_json::to_string(event)?);
        // An event is decoded by its tag and selected by its name. Both are stored forever, so they must be equal.
        if payload
            .strip_prefix("{\"")
            .and_then(|rest| rest.strip_prefix(event_type))
            .is_none_or(|rest| !rest.starts_with('"'))
        {
            return Err(serde_json::Error::custom(format!(
                "event {event_type} is not serialized under its own name: {payload}"
            )));
        }
        Ok(NewEvent { event_type, event_version: event.version(), payload, metadata: metadata()? })
    };
    events.iter().map(encode).collect()
}

/// Returns the state after the events.
pub(crate) fn evolved<A: Aggregate>(loaded: &Loaded<A>, events: &[A::Event]) -> Loaded<A> {
    let mut state = loaded.state.clone();
    events.iter().for_each(|event| state.evolve(event));
    Loaded { state, version: loaded.version + events.len() as i64 }
}

/// Whether a principal may see an aggregate.
pub fn can_access(principal: &Principal, access: Access<'_>) -> bool {
    match access {
        Access::Absent => false,
        Access::Owner(subject) => principal.can_access_customer(subject),
        Access::Staff => principal.is_staff(),
    }
}
