//! What is queued for connections. Each form that a transport sends is made once, whoever and however many the subscribers
//! are.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use axum::extract::ws::Utf8Bytes;

use crate::frames::{EventText, ephemeral_frame, push_frame};
use crate::publication::{Group, Publication};

/// A publication on a channel.
pub struct Change {
    /// Position of the publication before it on this channel.
    pub previous: i64,
    /// What changed.
    pub publication: Arc<Publication>,
    event: OnceLock<EventText>,
}

impl Change {
    /// Serialized when somebody needs it.
    pub fn new(previous: i64, publication: Arc<Publication>) -> Self {
        Self { previous, publication, event: OnceLock::new() }
    }
}

/// Changes of one channel that follow each other, queued as one.
pub struct Batch {
    /// The channel.
    pub channel: Arc<str>,
    /// Its checkpoint group.
    pub group: Group,
    /// What the group published together with it has the same number: the position up to which all is queued then.
    pub round: i64,
    /// The changes, in the order of the log.
    pub changes: Vec<Change>,
    frame: OnceLock<Utf8Bytes>,
    patch_frame: OnceLock<Utf8Bytes>,
    bytes: usize,
    /// Bytes of all batches that wait in the process.
    waiting: Arc<AtomicUsize>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Relaxed);
    }
}

impl Batch {
    /// A batch that is not empty. It counts in `waiting` for as long as somebody holds it.
    pub fn new(channel: Arc<str>, group: Group, round: i64, changes: Vec<Change>, waiting: &Arc<AtomicUsize>) -> Self {
        let bytes = changes.iter().map(|change| change.publication.bytes()).sum();
        waiting.fetch_add(bytes, Relaxed);
        let (frame, patch_frame) = Default::default();
        Self { channel, group, round, changes, frame, patch_frame, bytes, waiting: waiting.clone() }
    }

    /// What one listener missed on a channel, out of the log; may be empty. It does not wait for others.
    pub fn recovered(channel: Arc<str>, group: Group, changes: Vec<Change>) -> Self {
        let (frame, patch_frame) = Default::default();
        Self { channel, group, round: 0, changes, frame, patch_frame, bytes: 0, waiting: Arc::default() }
    }

    /// Position before the first change: nothing of this channel happened between.
    pub fn follows(&self) -> i64 {
        self.changes.first().map_or(0, |change| change.previous)
    }

    /// Position of the first change.
    pub fn first(&self) -> i64 {
        self.changes.first().map_or(0, |change| change.publication.position)
    }

    /// Position of the last change.
    pub fn last(&self) -> i64 {
        self.changes.last().map_or(0, |change| change.publication.position)
    }

    /// About how many bytes wait with it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it as one frame of the Centrifuge protocol.
    pub fn frame(&self, patched: bool) -> Utf8Bytes {
        let frame = if patched { &self.patch_frame } else { &self.frame };
        frame.get_or_init(|| self.frame_after(i64::MIN, patched)).clone()
    }

    /// The changes after a position, as one frame.
    pub fn frame_after(&self, position: i64, patched: bool) -> Utf8Bytes {
        let after = || self.changes.iter().filter(|change| change.publication.position > position);
        let mut frame = String::with_capacity(after().map(|change| change.publication.bytes_expected() + 128).sum());
        for Change { previous, publication, .. } in after() {
            if !frame.is_empty() {
                frame.push('\n');
            }
            push_frame(&mut frame, &self.channel, *previous, publication, patched);
        }
        frame.into()
    }
}

/// One change of a batch. Cheap to clone.
#[derive(Clone)]
pub struct Delivered {
    batch: Arc<Batch>,
    at: usize,
}

impl Delivered {
    /// The changes of a batch after a position.
    pub fn after(batch: &Arc<Batch>, position: i64) -> impl Iterator<Item = Self> + '_ {
        let new = batch.changes.partition_point(|change| change.publication.position <= position);
        (new..batch.changes.len()).map(|at| Self { batch: batch.clone(), at })
    }

    /// Its channel.
    pub fn channel(&self) -> &Arc<str> {
        &self.batch.channel
    }

    /// The checkpoint group of the channel.
    pub fn group(&self) -> Group {
        self.batch.group
    }

    /// Its position.
    pub fn position(&self) -> i64 {
        self.change().publication.position
    }

    /// Position of the change before it on its channel.
    pub fn previous(&self) -> i64 {
        self.change().previous
    }

    /// The change as streams and polls send it.
    pub fn event(&self) -> &EventText {
        let Change { previous, publication, event } = self.change();
        event.get_or_init(|| {
            let (offset, previous) = (Some(publication.position), Some(*previous));
            EventText::new("pub", Some(&self.batch.channel), offset, previous, publication.data())
        })
    }

    fn change(&self) -> &Change {
        &self.batch.changes[self.at]
    }
}

/// Sorts changes by position, and those at one position by the names of their channels.
pub fn sort(changes: &mut [Delivered]) {
    changes.sort_by(|a, b| a.position().cmp(&b.position()).then_with(|| a.channel().cmp(b.channel())));
}

/// Something that is in no log: shown to those who are there, and forgotten.
pub struct Ephemeral {
    /// The channel.
    pub channel: Arc<str>,
    /// `pub`, `join` or `leave`.
    pub event: &'static str,
    /// JSON text.
    data: String,
    frame: OnceLock<Utf8Bytes>,
    text: OnceLock<EventText>,
}

impl Ephemeral {
    /// An event with JSON text as its data.
    pub fn new(channel: Arc<str>, event: &'static str, data: String) -> Self {
        Self { channel, event, data, frame: OnceLock::new(), text: OnceLock::new() }
    }

    /// Bytes that wait with it.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// As a frame of the Centrifuge protocol.
    pub fn frame(&self) -> Utf8Bytes {
        self.frame.get_or_init(|| ephemeral_frame(&self.channel, self.event, &self.data).into()).clone()
    }

    /// As streams and polls send it.
    pub fn text(&self) -> &EventText {
        self.text.get_or_init(|| EventText::new(self.event, Some(&self.channel), None, None, &self.data))
    }
}
