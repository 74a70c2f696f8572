//! The messages that are queued for connections. Each transport's form of a message is encoded once and shared by all
//! subscribers.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use axum::extract::ws::Utf8Bytes;

use crate::frames::{EventText, ephemeral_frame, push_frame};
use crate::publication::{Group, Publication};

/// A publication on a channel.
pub struct Change {
    /// Position of the previous publication on this channel.
    pub previous: i64,
    /// The publication.
    pub publication: Arc<Publication>,
    event: OnceLock<EventText>,
}

impl Change {
    /// Creates a change. It is serialized when a connection sends it.
    pub fn new(previous: i64, publication: Arc<Publication>) -> Self {
        Self { previous, publication, event: OnceLock::new() }
    }
}

/// Consecutive changes of one channel, queued as one message.
pub struct Batch {
    /// Name of the channel.
    pub channel: Arc<str>,
    /// Checkpoint group of the channel.
    pub group: Group,
    /// Number of the publish round. All batches that one call of [`crate::hub::Hub::publish`] queues have the same
    /// number: the position up to which the group's log is queued after the call.
    pub round: i64,
    /// The changes, in the order of the log.
    pub changes: Vec<Change>,
    frame: OnceLock<Utf8Bytes>,
    patch_frame: OnceLock<Utf8Bytes>,
    bytes: usize,
    /// Total bytes of all queued batches of the process.
    waiting: Arc<AtomicUsize>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Relaxed);
    }
}

impl Batch {
    /// Creates a batch. `changes` must not be empty. `waiting` includes the batch's bytes until the last reference to
    /// the batch is dropped.
    pub fn new(channel: Arc<str>, group: Group, round: i64, changes: Vec<Change>, waiting: &Arc<AtomicUsize>) -> Self {
        let bytes = changes.iter().map(|change| change.publication.bytes()).sum();
        waiting.fetch_add(bytes, Relaxed);
        let (frame, patch_frame) = Default::default();
        Self { channel, group, round, changes, frame, patch_frame, bytes, waiting: waiting.clone() }
    }

    /// Creates a batch of the changes that one client missed on a channel; `changes` may be empty. The batch belongs to
    /// no publish round and does not count in the queued bytes of the process.
    pub fn recovered(channel: Arc<str>, group: Group, changes: Vec<Change>) -> Self {
        let (frame, patch_frame) = Default::default();
        Self { channel, group, round: 0, changes, frame, patch_frame, bytes: 0, waiting: Arc::default() }
    }

    /// Returns the position of the channel's change before the first change of the batch. No change of the channel is
    /// between the two.
    pub fn follows(&self) -> i64 {
        self.changes.first().map_or(0, |change| change.previous)
    }

    /// Returns the position of the first change.
    pub fn first(&self) -> i64 {
        self.changes.first().map_or(0, |change| change.publication.position)
    }

    /// Returns the position of the last change.
    pub fn last(&self) -> i64 {
        self.changes.last().map_or(0, |change| change.publication.position)
    }

    /// Returns the approximate size in bytes; 0 for a recovered batch.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns all changes as one frame of the Centrifuge protocol, with patches in place of views if `patched`.
    pub fn frame(&self, patched: bool) -> Utf8Bytes {
        let frame = if patched { &self.patch_frame } else { &self.frame };
        frame.get_or_init(|| self.frame_after(i64::MIN, patched)).clone()
    }

    /// Encodes the changes after a position as one frame of the Centrifuge protocol.
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
    /// Returns the changes of a batch after a position.
    pub fn after(batch: &Arc<Batch>, position: i64) -> impl Iterator<Item = Self> + '_ {
        let new = batch.changes.partition_point(|change| change.publication.position <= position);
        (new..batch.changes.len()).map(|at| Self { batch: batch.clone(), at })
    }

    /// Returns the name of the channel.
    pub fn channel(&self) -> &Arc<str> {
        &self.batch.channel
    }

    /// Returns the checkpoint group of the channel.
    pub fn group(&self) -> Group {
        self.batch.group
    }

    /// Returns the position of the change.
    pub fn position(&self) -> i64 {
        self.change().publication.position
    }

    /// Returns the position of the previous change on the channel.
    pub fn previous(&self) -> i64 {
        self.change().previous
    }

    /// Returns the change as server-sent events and polls send it.
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

/// Sorts changes by position, and changes at one position by channel name.
pub fn sort(changes: &mut [Delivered]) {
    changes.sort_by(|a, b| a.position().cmp(&b.position()).then_with(|| a.channel().cmp(b.channel())));
}

/// An ephemeral event: it is not in the log, so only current subscribers receive it, and it cannot be resumed.
pub struct Ephemeral {
    /// Name of the channel.
    pub channel: Arc<str>,
    /// `pub`, `join` or `leave`.
    pub event: &'static str,
    /// JSON text.
    data: String,
    frame: OnceLock<Utf8Bytes>,
    text: OnceLock<EventText>,
}

impl Ephemeral {
    /// Creates an ephemeral event with JSON text as its data.
    pub fn new(channel: Arc<str>, event: &'static str, data: String) -> Self {
        Self { channel, event, data, frame: OnceLock::new(), text: OnceLock::new() }
    }

    /// Returns the size of the data in bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Returns the event as a frame of the Centrifuge protocol.
    pub fn frame(&self) -> Utf8Bytes {
        self.frame.get_or_init(|| ephemeral_frame(&self.channel, self.event, &self.data).into()).clone()
    }

    /// Returns the event as server-sent events and polls send it.
    pub fn text(&self) -> &EventText {
        self.text.get_or_init(|| EventText::new(self.event, Some(&self.channel), None, None, &self.data))
    }
}
