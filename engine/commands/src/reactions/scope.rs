//! What a reaction may read: the states that the reactions before it have led to, and the log.

use std::collections::HashMap;
use std::sync::Arc;

use event_store::aggregates::Loaded;
use event_store::append::{DeadlineChanges, StreamCheck, StreamWrite};
use event_store::error::Error;
use event_store::event::{NewEvent, RecordedEvent};
use kernel::aggregate::Aggregate;
use kernel::stream::StreamId;

use crate::decider::Decider;
use crate::repositories::{AnyLoaded, Memory};
use crate::step::AnyStep;

/// Events that a reaction reads at once, at most.
const READ_MAX: i64 = 10_000;

/// The streams that a batch of reactions has read or decided on, as it has left them, on top of the log.
pub struct Scope {
    decider: Arc<Decider>,
    /// In the order in which the batch first touched them.
    streams: Vec<Touched>,
    places: HashMap<StreamId, usize>,
    deadlines: DeadlineChanges,
    /// Number of events that the batch has decided, and their bytes.
    size: (usize, usize),
}

/// A stream that a batch has read or decided on.
struct Touched {
    stream: StreamId,
    /// Its version in the log.
    base: i64,
    /// Its state with the events that the batch has decided.
    state: AnyLoaded,
    memory: Memory,
    /// The events that the batch has decided.
    events: Vec<NewEvent>,
    /// How many those are, also once they are taken.
    appended: i64,
}

/// What a batch of reactions writes, and what it rests on.
pub(crate) struct Writes {
    pub(crate) writes: Vec<StreamWrite>,
    pub(crate) checks: Vec<StreamCheck>,
    pub(crate) deadlines: DeadlineChanges,
}

impl Scope {
    /// Over the log as it is.
    pub fn new(decider: Arc<Decider>) -> Self {
        let (streams, places, deadlines) = (Vec::new(), HashMap::new(), DeadlineChanges::default());
        Self { decider, streams, places, deadlines, size: (0, 0) }
    }

    /// The state of an aggregate now, with what the reactions before this one have done. The reaction is only written where
    /// the aggregate has not changed meanwhile.
    ///
    /// # Errors
    /// The database is away, or an event of the aggregate does not decode.
    pub async fn load<A: Aggregate>(&mut self, id: &str) -> Result<Arc<Loaded<A>>, Error> {
        let stream = StreamId::new(A::TYPE, id);
        if let Some(loaded) = self.state_of(&stream).and_then(|state| state.clone().downcast().ok()) {
            return Ok(loaded);
        }
        let repository = self.decider.repositories().of::<A>();
        let loaded = match repository.cached(id) {
            Some(loaded) => loaded,
            None => repository.load(id).await?,
        };
        self.touch(stream, loaded.version, loaded.clone(), Memory::of::<A>());
        Ok(loaded)
    }

    /// Events of one aggregate with `after < sequence <= to`, in order, at most 10,000: what has happened does not change.
    ///
    /// # Errors
    /// The database is away.
    pub async fn read_stream(
        &self,
        aggregate_type: &str,
        id: &str,
        after: i64,
        to: i64,
    ) -> Result<Vec<RecordedEvent>, Error> {
        self.decider.store().read_stream(aggregate_type, id, after, to, READ_MAX).await
    }

    pub(crate) fn decider(&self) -> &Arc<Decider> {
        &self.decider
    }

    /// The state of a stream that the batch has touched.
    pub(crate) fn state_of(&self, stream: &StreamId) -> Option<&AnyLoaded> {
        self.places.get(stream).map(|place| &self.streams[*place].state)
    }

    fn touch(&mut self, stream: StreamId, base: i64, state: AnyLoaded, memory: Memory) {
        self.places.insert(stream.clone(), self.streams.len());
        self.streams.push(Touched { stream, base, state, memory, events: Vec::new(), appended: 0 });
    }

    /// Records the state that a step was decided on: the append checks that the stream still has this version.
    pub(crate) fn rest_on(&mut self, step: &dyn AnyStep, stream: &StreamId, state: &AnyLoaded) {
        if !self.places.contains_key(stream) {
            self.touch(stream.clone(), step.version(), state.clone(), step.memory());
        }
    }

    /// Takes over what a step has decided. Its stream has been touched.
    pub(crate) fn apply(&mut self, step: &dyn AnyStep, stream: &StreamId, events: Vec<NewEvent>) {
        let Some(touched) = self.places.get(stream).map(|place| &mut self.streams[*place]) else { return };
        touched.state = step.pending();
        touched.appended += events.len() as i64;
        self.size.0 += events.len();
        self.size.1 += events.iter().map(|event| event.payload.len() + event.metadata.len()).sum::<usize>();
        touched.events.extend(events);
        let DeadlineChanges { schedule, unschedule } = step.deadlines();
        for removed in &unschedule {
            self.deadlines.schedule.retain(|set| set.key != *removed);
        }
        for set in &schedule {
            self.deadlines.schedule.retain(|other| other.key != set.key);
        }
        self.deadlines.unschedule.extend(unschedule);
        self.deadlines.schedule.extend(schedule);
    }

    /// Every stream that the batch has touched.
    pub(crate) fn stream_ids(&self) -> Vec<StreamId> {
        self.streams.iter().map(|touched| touched.stream.clone()).collect()
    }

    /// Whether this process has changed a stream since the batch read it.
    pub(crate) fn is_stale(&self) -> bool {
        let repositories = self.decider.repositories();
        self.streams.iter().any(|touched| {
            let version = (touched.memory.version)(repositories, &touched.stream.aggregate_id);
            version.is_some_and(|version| version != touched.base)
        })
    }

    /// Removes the streams from memory: the next decision reads the log.
    pub(crate) fn evict(&self) {
        for touched in &self.streams {
            (touched.memory.evict)(self.decider.repositories(), &touched.stream.aggregate_id);
        }
    }

    /// Takes out what the batch writes and rests on.
    pub(crate) fn take(&mut self) -> Writes {
        let (mut writes, mut checks) = (Vec::new(), Vec::new());
        for touched in &mut self.streams {
            let (stream, version) = (touched.stream.clone(), touched.base);
            match std::mem::take(&mut touched.events) {
                events if events.is_empty() => checks.push(StreamCheck { stream, version }),
                events => writes.push(StreamWrite { stream, expected_version: version, events, lineage: None }),
            }
        }
        Writes { writes, checks, deadlines: std::mem::take(&mut self.deadlines) }
    }

    /// What the batch has written is durable: keeps the states that it led to in memory.
    pub(crate) async fn keep(&self) {
        for touched in self.streams.iter().filter(|touched| touched.appended > 0) {
            let id = &touched.stream.aggregate_id;
            (touched.memory.keep)(self.decider.repositories(), id, &touched.state, touched.appended).await;
        }
    }

    /// Number of events that the batch has decided, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.size
    }
}
