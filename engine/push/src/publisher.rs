//! Publishers: a context's code that turns events of an aggregate into publications. A [`Publisher`] is typed by its
//! aggregate. [`AnyPublisher`] erases the type; the feed and the recovery call it with many events at a time, so that
//! dynamic dispatch costs little.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use compact_str::CompactString;
use event_store::event::RecordedEvent;
use kernel::aggregate::Aggregate;
use projection_engine::exclusions::Discarded;
use projection_engine::state::{BYTES_PER_AGGREGATE, ByWeight, FoldError, Versioned};
use quick_cache::sync::Cache;

use crate::publication::{Group, Interest, Publication, Step, WriteView};

/// Turns the changes of an aggregate into publications, in one checkpoint group.
pub struct Publisher<A: Aggregate> {
    /// Checkpoint group. A change is published after all read models of this group have applied it.
    pub group: Group,
    /// Member of `data` that holds the aggregate's id, e.g. `counter_id`.
    pub id_member: &'static str,
    /// The channels that changes can go to.
    pub interest: Interest,
    /// Writes the aggregate as clients see it.
    pub view: WriteView<A>,
    /// Creates the publication of a change, with its channels; `None` if clients do not see the change.
    pub publish: fn(&Step<'_, A>) -> Option<Publication>,
}

impl<A: Aggregate> Clone for Publisher<A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A: Aggregate> Copy for Publisher<A> {}

/// A publisher with its aggregate type erased.
pub trait AnyPublisher: Send + Sync {
    /// Returns the aggregate's type name in the log.
    fn aggregate_type(&self) -> &'static str;
    /// Returns the checkpoint group.
    fn group(&self) -> Group;
    /// Returns the member of `data` that holds the aggregate's id.
    fn id_member(&self) -> &'static str;
    /// Returns the channels that changes can go to.
    fn interest(&self) -> &Interest;
    /// Creates a fold of new events. It keeps up to `bytes_max` bytes of aggregates in memory between batches.
    fn live(&self, bytes_max: u64) -> Box<dyn LiveFold>;
    /// Creates a fold that replays whole streams from the log.
    fn replay(&self) -> Box<dyn ReplayFold>;
}

/// Folds new events of an aggregate type, batch by batch. The call order per batch is `prepare`, `load`, `fold`,
/// `finish`.
pub trait LiveFold: Send + Sync {
    /// Looks up the streams of a batch in memory. Returns the ids of streams whose history must be loaded from the log.
    fn prepare(&mut self, events: &[RecordedEvent]) -> Vec<String>;
    /// Folds the events before the batch of the streams that [`Self::prepare`] returned.
    fn load(&mut self, history: &[RecordedEvent], discarded: &Discarded);
    /// Folds events until their publications have about `bytes_max` bytes. Returns the number of folded events, at
    /// least one.
    fn fold(&mut self, events: &[RecordedEvent], bytes_max: usize, out: &mut VecDeque<Arc<Publication>>) -> usize;
    /// Ends the batch: frees everything that is not kept between batches.
    fn finish(&mut self);
    /// Returns the ids of streams with a change that was not published because a context's code panicked, since the
    /// last call.
    fn take_panicked(&mut self) -> Vec<CompactString>;
}

/// Folds the events of whole streams, one stream after the other.
pub trait ReplayFold: Send + Sync {
    /// Folds the next events, and adds publications to `missed`. Returns false when a limit of `missed` is exceeded.
    fn fold(&mut self, events: &[RecordedEvent], of: &Replayed<'_>, missed: &mut Missed) -> bool;
}

/// Selects the changes that a replay publishes.
pub struct Replayed<'a> {
    /// Only changes after this position.
    pub after: i64,
    /// Only changes that go to this channel.
    pub channel: &'a str,
    /// Only events with these names; empty means all events.
    pub event_types: &'a [&'a str],
    /// Events that operators have discarded; they are skipped.
    pub discarded: &'a Discarded,
}

/// Publications that a client missed, with limits on their number and size.
pub struct Missed {
    /// Each publication with the position of the previous one on its channel, where that follows from the stream alone.
    pub publications: Vec<(Option<i64>, Arc<Publication>)>,
    bytes: usize,
    count_max: usize,
    bytes_max: usize,
}

impl Missed {
    /// Creates an empty list that accepts up to `count_max` publications of `bytes_max` bytes together. A single
    /// publication may exceed `bytes_max`.
    pub fn new(count_max: usize, bytes_max: usize) -> Self {
        Self { publications: Vec::new(), bytes: 0, count_max, bytes_max }
    }

    fn push(&mut self, previous: Option<i64>, publication: Publication) -> bool {
        self.bytes += publication.data().len();
        self.publications.push((previous, Arc::new(publication)));
        let count = self.publications.len();
        count <= self.count_max && (self.bytes <= self.bytes_max || count == 1)
    }
}

impl<A: Aggregate> AnyPublisher for Publisher<A> {
    fn aggregate_type(&self) -> &'static str {
        A::TYPE
    }

    fn group(&self) -> Group {
        self.group
    }

    fn id_member(&self) -> &'static str {
        self.id_member
    }

    fn interest(&self) -> &Interest {
        &self.interest
    }

    fn live(&self, bytes_max: u64) -> Box<dyn LiveFold> {
        let count = (bytes_max / BYTES_PER_AGGREGATE) as usize;
        let kept = Cache::with_weighter(count, bytes_max, ByWeight);
        Box::new(Live { publisher: *self, kept, current: HashMap::new(), panicked: Vec::new() })
    }

    fn replay(&self) -> Box<dyn ReplayFold> {
        Box::new(Replay { publisher: *self, current: None })
    }
}

impl<A: Aggregate> Publisher<A> {
    /// Applies an event and creates its publication.
    fn step(
        &self,
        before: Option<Arc<Versioned<A>>>,
        recorded: &RecordedEvent,
    ) -> Result<(Option<Publication>, Arc<Versioned<A>>), FoldError> {
        let mut after = before.as_deref().cloned().unwrap_or_default();
        let event = after.apply(recorded)?;
        let after = Arc::new(after);
        if !after.exists() {
            return Ok((None, after));
        }
        let (id_member, view) = (self.id_member, self.view);
        let step = Step { before: before.as_ref(), after: &after, event: &event, recorded, id_member, view };
        let publication = (self.publish)(&step);
        debug_assert!(
            publication
                .iter()
                .flat_map(|publication| &publication.channels)
                .all(|target| self.interest.includes(&target.name, &recorded.aggregate_id)),
            "the interest of the publisher does not include a channel of {recorded:?}"
        );
        Ok((publication, after))
    }
}

struct Live<A: Aggregate> {
    publisher: Publisher<A>,
    /// Aggregates as of the last batch that contained them.
    kept: Cache<CompactString, Arc<Versioned<A>>, ByWeight>,
    /// Aggregates of the current batch, each in its state before its next event.
    current: HashMap<CompactString, Arc<Versioned<A>>>,
    panicked: Vec<CompactString>,
}

impl<A: Aggregate> LiveFold for Live<A> {
    fn prepare(&mut self, events: &[RecordedEvent]) -> Vec<String> {
        let mut first: HashMap<&str, &RecordedEvent> = HashMap::new();
        for event in events {
            first.entry(&event.aggregate_id).or_insert(event);
        }
        let mut missing = Vec::new();
        for (id, event) in first {
            match self.kept.get(id) {
                _ if event.sequence == 1 => {}
                Some(state) if state.version == event.sequence - 1 => {
                    self.current.insert(event.aggregate_id.clone(), state);
                }
                _ => missing.push(id.to_owned()),
            }
        }
        missing
    }

    fn load(&mut self, history: &[RecordedEvent], discarded: &Discarded) {
        let mut loaded: HashMap<CompactString, Versioned<A>> = HashMap::new();
        for event in history {
            let state = loaded.entry(event.aggregate_id.clone()).or_default();
            if discarded.holds(event) {
                state.skip(event);
                continue;
            }
            // If one event does not apply, the later events of its stream do not apply either. So nothing of this
            // stream is published; other streams are not affected.
            match catch_unwind(AssertUnwindSafe(|| state.apply(event))) {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::error!(%error, "Could not apply an event. Its stream is not published."),
                Err(_) => self.panicked.push(event.aggregate_id.clone()),
            }
        }
        self.current.extend(loaded.into_iter().map(|(id, state)| (id, Arc::new(state))));
    }

    fn fold(&mut self, events: &[RecordedEvent], bytes_max: usize, out: &mut VecDeque<Arc<Publication>>) -> usize {
        let mut bytes = 0;
        for (at, event) in events.iter().enumerate() {
            let before = self.current.remove(&event.aggregate_id);
            let step = catch_unwind(AssertUnwindSafe(|| self.publisher.step(before, event)));
            match step {
                Ok(Ok((publication, after))) => {
                    self.kept.insert(event.aggregate_id.clone(), after.clone());
                    self.current.insert(event.aggregate_id.clone(), after);
                    if let Some(publication) = publication {
                        bytes += publication.bytes_expected();
                        out.push_back(Arc::new(publication));
                    }
                }
                // The read models have parked the stream at this event, so its later events are not published either.
                Ok(Err(error)) => tracing::error!(%error, "Could not apply an event. Its stream is not published."),
                Err(_) => {
                    tracing::error!(
                        stream = %stream(event),
                        event.position = event.position,
                        "A publisher panicked. The subscribers of this stream's channels are disconnected."
                    );
                    self.panicked.push(event.aggregate_id.clone());
                }
            }
            if bytes >= bytes_max {
                return at + 1;
            }
        }
        events.len()
    }

    fn finish(&mut self) {
        self.current = HashMap::new();
    }

    fn take_panicked(&mut self) -> Vec<CompactString> {
        std::mem::take(&mut self.panicked)
    }
}

fn stream(event: &RecordedEvent) -> String {
    format!("{}/{}", event.aggregate_type, event.aggregate_id)
}

struct Replay<A: Aggregate> {
    publisher: Publisher<A>,
    /// The current stream's aggregate; `None` after an event that does not apply, because the read models have parked
    /// the stream at that event.
    current: Option<Option<Arc<Versioned<A>>>>,
}

impl<A: Aggregate> ReplayFold for Replay<A> {
    fn fold(&mut self, events: &[RecordedEvent], of: &Replayed<'_>, missed: &mut Missed) -> bool {
        for event in events {
            if event.sequence == 1 {
                self.current = Some(None);
            }
            let Some(before) = self.current.take() else { continue };
            let is_shown = event.position > of.after
                && (of.event_types.is_empty() || of.event_types.contains(&&*event.event_type));
            if is_shown && !of.discarded.holds(event) {
                let Ok((publication, after)) = self.publisher.step(before, event) else { continue };
                self.current = Some(Some(after));
                let Some(publication) = publication else { continue };
                let Some(previous) = publication.target(of.channel).map(|target| target.previous) else { continue };
                if !missed.push(previous, publication) {
                    return false;
                }
                continue;
            }
            // This event is not published, so the state before it is not needed, and the aggregate is changed in place.
            let mut state = before.map_or_else(Versioned::default, Arc::unwrap_or_clone);
            let applied = if of.discarded.holds(event) {
                state.skip(event);
                true
            } else {
                state.apply(event).is_ok()
            };
            self.current = applied.then(|| Some(Arc::new(state)));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{PUBLISHER, added};

    fn replay(events: &[RecordedEvent], of: &Replayed<'_>) -> Vec<(Option<i64>, i64)> {
        let mut missed = Missed::new(10, usize::MAX);
        assert!(PUBLISHER.replay().fold(events, of, &mut missed));
        missed.publications.iter().map(|(previous, publication)| (*previous, publication.position)).collect()
    }

    #[test]
    fn a_replay_returns_the_missed_changes_of_a_channel() {
        let events = [added("a", 1, 1, 1), added("a", 2, 4, 1), added("a", 3, 6, 1), added("b", 1, 2, 1)];
        let discarded = Discarded::default();
        let of = |after, channel| Replayed { after, channel, event_types: &[], discarded: &discarded };
        assert_eq!(replay(&events, &of(1, "counter:a")), [(Some(1), 4), (Some(4), 6)]);
        assert_eq!(replay(&events, &of(1, "counters")), [(None, 4), (None, 6), (None, 2)]);
        assert_eq!(replay(&events, &of(1, "others")), []);
        let others = Replayed { event_types: &["Removed"], ..of(0, "counters") };
        assert_eq!(replay(&events, &others), []);
        // A gap in a stream: the events after the gap are parked.
        assert_eq!(replay(&[added("a", 1, 1, 1), added("a", 3, 6, 1)], &of(0, "counters")), [(None, 1)]);
    }

    #[test]
    fn a_replay_has_limits() {
        let events: Vec<_> = (1..=11).map(|number| added("a", number, number, 1)).collect();
        let discarded = Discarded::default();
        let of = Replayed { after: 0, channel: "counters", event_types: &[], discarded: &discarded };
        assert!(!PUBLISHER.replay().fold(&events, &of, &mut Missed::new(10, usize::MAX)));
        assert!(
            PUBLISHER.replay().fold(&events[..1], &of, &mut Missed::new(10, 1)),
            "a single publication may exceed the byte limit"
        );
        assert!(!PUBLISHER.replay().fold(&events[..2], &of, &mut Missed::new(10, 1)));
    }

    #[test]
    fn a_batch_continues_the_streams_of_the_last_one() {
        let (mut live, mut out) = (PUBLISHER.live(1 << 20), VecDeque::new());
        let first = [added("a", 1, 1, 1), added("b", 1, 2, 1), added("a", 2, 3, 1)];
        assert_eq!(live.prepare(&first), Vec::<String>::new());
        assert_eq!(live.fold(&first, 1, &mut out), 1, "the byte limit stops the fold after one event");
        assert_eq!(live.fold(&first[1..], usize::MAX, &mut out), 2);
        live.finish();
        let second = [added("a", 3, 4, 5), added("c", 2, 5, 1)];
        assert_eq!(live.prepare(&second), ["c"], "stream c is not in memory");
        live.load(&[added("c", 1, 3, 7)], &Discarded::default());
        live.fold(&second, usize::MAX, &mut out);
        let shown: Vec<_> = out.iter().map(|publication| (publication.position, publication.version)).collect();
        assert_eq!(shown, [(1, 1), (2, 1), (3, 2), (4, 3), (5, 2)]);
    }

    #[test]
    fn a_panic_in_a_publisher_skips_only_its_stream() {
        let (mut live, mut out) = (PUBLISHER.live(1 << 20), VecDeque::new());
        let events = [added("a", 1, 1, 666), added("b", 1, 2, 1)];
        live.prepare(&events);
        assert_eq!(live.fold(&events, usize::MAX, &mut out), 2);
        assert_eq!((out.len(), live.take_panicked(), live.take_panicked().len()), (1, vec!["a".into()], 0));
    }
}
