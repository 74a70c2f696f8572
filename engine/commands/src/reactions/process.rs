//! Runs a process manager as a reactor.

use crate::problems::{DEADLINE_NOT_ENDED, INVALID_ID};
use std::sync::Arc;

use compact_str::CompactString;
use event_store::aggregates::Loaded;
use event_store::append::{Deadline, DeadlineChanges, DeadlineKey};
use event_store::error::Error;
use event_store::event::{NewEvent, RecordedEvent};
use event_store::reactions::StartFrom;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::process::{Correlation, Due, Output, Process, Trigger};
use kernel::stream::{StreamId, is_id};
use platform::auth::Principal;
use platform::conditional::Versions;
use platform::problem::Problem;

use crate::reactions::reactor::{Cause, Input, Outcome, Reactor, Subscription};
use crate::reactions::scope::Scope;
use crate::repositories::{AnyLoaded, Memory, Repositories};
use crate::step::{AnyStep, encode, evolved};

/// Runs a process manager as a reactor. Its inputs are events, refusals of its commands, and its deadlines.
pub struct ProcessManager<P: Process> {
    /// See [`Reactor::name`].
    pub name: &'static str,
    /// See [`Reactor::subscriptions`].
    pub subscriptions: &'static [Subscription],
    /// See [`Reactor::start_from`].
    pub start_from: StartFrom,
    /// See [`Reactor::renamed_from`].
    pub renamed_from: Option<&'static str>,
    /// Decodes an event into an input; `None`: the event is not an input of the process.
    ///
    /// # Errors
    /// The event cannot be decoded. It is parked.
    pub input: fn(&RecordedEvent) -> Result<Option<P::Input>, serde_json::Error>,
    /// Creates a step from a command that the process issues.
    pub request: fn(P::Request) -> Box<dyn AnyStep>,
}

impl<P: Process> ProcessManager<P> {
    /// Returns the input of an event, and the process to which it belongs.
    fn correlated(&self, event: &RecordedEvent) -> Result<Option<(P::Input, Correlation)>, serde_json::Error> {
        let input = (self.input)(event)?;
        Ok(input.map(|input| {
            let correlation = P::correlate(&input);
            (input, correlation)
        }))
    }

    async fn react_to(&self, input: &Input, scope: &mut Scope) -> Outcome {
        let (id, may_begin, mut trigger) = match &input.cause {
            Cause::Deadline(due) => (due.key.id.to_string(), false, Trigger::Deadline(due.key.name.to_string())),
            Cause::Event(event) => match self.correlated(event) {
                Ok(Some((input, Correlation::Start(id)))) => (id, true, Trigger::Input(input)),
                Ok(Some((input, Correlation::Continue(id)))) => (id, false, Trigger::Input(input)),
                Ok(Some((_, Correlation::Ignore)) | None) => return Outcome::Done(Vec::new()),
                Err(error) => return error.into(),
            },
        };
        let loaded = match scope.load::<P>(&id).await {
            Ok(loaded) => loaded,
            Err(error) => return error.into(),
        };
        if loaded.version == 0 && !may_begin && matches!(input.cause, Cause::Event(_)) {
            return Outcome::Done(Vec::new());
        }
        if let Cause::Deadline(due) = &input.cause
            && !loaded
                .state
                .deadlines()
                .iter()
                .any(|set| set.name == *due.key.name && set.at.as_microsecond() == due.due_at)
        {
            // The process no longer waits for this deadline. Its row is removed, or moved to the time in the state.
            return Outcome::Done(vec![OwnEvents::<P>::boxed(id, loaded, Vec::new(), Some(due))]);
        }
        if !input.refused.is_empty() {
            trigger = Trigger::Refused(input.refused.clone());
        }
        let (mut events, mut steps) = (Vec::new(), Vec::new());
        for output in loaded.state.react(&trigger, input.now) {
            match output {
                Output::Event(event) => events.push(event),
                Output::Request(request) => steps.push((self.request)(request)),
            }
        }
        let due = match &input.cause {
            Cause::Deadline(due) => Some(due),
            Cause::Event(_) => None,
        };
        if !events.is_empty() || due.is_some() {
            steps.insert(0, OwnEvents::<P>::boxed(id, loaded, events, due));
        }
        Outcome::Done(steps)
    }
}

impl<P: Process> Reactor for ProcessManager<P> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn subscriptions(&self) -> &'static [Subscription] {
        self.subscriptions
    }

    fn start_from(&self) -> StartFrom {
        self.start_from
    }

    fn renamed_from(&self) -> Option<&'static str> {
        self.renamed_from
    }

    fn process(&self) -> Option<&'static str> {
        Some(P::TYPE)
    }

    fn handles_refusals(&self) -> bool {
        true
    }

    fn key(&self, event: &RecordedEvent) -> CompactString {
        match self.correlated(event) {
            Ok(Some((_, Correlation::Start(id) | Correlation::Continue(id)))) => id.into(),
            _ => event.aggregate_id.clone(),
        }
    }

    fn react<'a>(&'a self, input: &'a Input, scope: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        self.react_to(input, scope).boxed()
    }

    fn deadlines_of<'a>(&'a self, id: &'a str, scope: &'a mut Scope) -> BoxFuture<'a, Result<Vec<Deadline>, Error>> {
        async move {
            let loaded = scope.load::<P>(id).await?;
            let key = |name: &str| DeadlineKey { process: P::TYPE.into(), id: id.into(), name: name.into() };
            let deadline = |due: Due| Deadline { key: key(&due.name), due_at: due.at.as_microsecond() };
            Ok(loaded.state.deadlines().into_iter().map(deadline).collect())
        }
        .boxed()
    }
}

/// The events that a process has decided itself.
struct OwnEvents<P: Process> {
    id: String,
    loaded: Arc<Loaded<P>>,
    events: Vec<P::Event>,
    /// The deadline that caused the events.
    due: Option<Deadline>,
}

impl<P: Process> OwnEvents<P> {
    fn boxed(id: String, loaded: Arc<Loaded<P>>, events: Vec<P::Event>, due: Option<&Deadline>) -> Box<dyn AnyStep> {
        Box::new(Self { id, loaded, events, due: due.cloned() })
    }

    /// Returns the deadlines before and after the events.
    fn deadlines_around(&self) -> (Vec<Due>, Vec<Due>) {
        (self.loaded.state.deadlines(), evolved(&self.loaded, &self.events).state.deadlines())
    }

    fn key_of(&self, name: &str) -> DeadlineKey {
        DeadlineKey { process: P::TYPE.into(), id: self.id.as_str().into(), name: name.into() }
    }
}

impl<P: Process> AnyStep for OwnEvents<P> {
    fn stream(&self) -> StreamId {
        StreamId::new(P::TYPE, &self.id)
    }

    fn kind(&self) -> &'static str {
        P::TYPE
    }

    fn command(&self) -> &'static str {
        "react"
    }

    fn expect(&mut self, _: Option<Versions>) {}

    fn load<'a>(&'a mut self, _: &'a Repositories, _: bool) -> BoxFuture<'a, Result<(), Error>> {
        futures::future::ready(Ok(())).boxed()
    }

    fn load_pending(&mut self, pending: &AnyLoaded) {
        if let Ok(loaded) = pending.clone().downcast() {
            self.loaded = loaded;
        }
    }

    fn decide(&mut self, _: &Principal) -> Result<(), Problem> {
        if self.loaded.version == 0 && !self.events.is_empty() && !is_id(&self.id) {
            return Err(Problem::new(INVALID_ID).detail(format!(
                "The id `{}` is not valid for a {}.",
                self.id,
                P::TYPE
            )));
        }
        let (_, after) = self.deadlines_around();
        let is_set =
            |due: &Deadline| after.iter().any(|set| set.name == *due.key.name && set.at.as_microsecond() == due.due_at);
        if let Some(due) = self.due.as_ref().filter(|due| is_set(due)) {
            let name = &due.key.name;
            return Err(Problem::new(DEADLINE_NOT_ENDED)
                .detail(format!("The deadline {name} was reached, and no event of the process ended it.")));
        }
        Ok(())
    }

    fn version(&self) -> i64 {
        self.loaded.version
    }

    fn events(&self) -> usize {
        self.events.len()
    }

    fn encode(&self, metadata: &mut dyn FnMut() -> serde_json::Result<String>) -> serde_json::Result<Vec<NewEvent>> {
        encode(&self.events, metadata)
    }

    fn pending(&self) -> AnyLoaded {
        match self.events.is_empty() {
            true => self.loaded.clone(),
            false => Arc::new(evolved(&self.loaded, &self.events)),
        }
    }

    fn deadlines(&self) -> DeadlineChanges {
        let (before, after) = self.deadlines_around();
        let is_in = |all: &[Due], name: &str| all.iter().any(|due| due.name == name);
        let is_reached = |due: &Due| self.due.as_ref().is_some_and(|reached| reached.key.name == *due.name);
        let new = after.iter().filter(|due| !before.contains(due) || is_reached(due));
        let schedule = new.map(|due| Deadline { key: self.key_of(&due.name), due_at: due.at.as_microsecond() });
        let gone = before.iter().map(|due| &*due.name).chain(self.due.as_ref().map(|due| &*due.key.name));
        let unschedule = gone.filter(|name| !is_in(&after, name)).map(|name| self.key_of(name));
        DeadlineChanges { schedule: schedule.collect(), unschedule: unschedule.collect() }
    }

    fn memory(&self) -> Memory {
        Memory::of::<P>()
    }

    fn commit<'a>(&'a mut self, repositories: &'a Repositories, _: i64) -> BoxFuture<'a, ()> {
        let (state, events) = (self.pending(), self.events.len() as i64);
        async move { (Memory::of::<P>().put)(repositories, &self.id, &state, events).await }.boxed()
    }
}
