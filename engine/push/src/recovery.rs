//! Recovers the changes that one client missed: folds the changed streams from the log, and publishes their changes to
//! that client alone.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use event_store::error::Error;
use event_store::event::RecordedEvent;
use platform::auth::Principal;
use projection_engine::dead_letters::discarded;

use crate::api::{ChangedStream, Channel, QueryApi, SubscribeError};
use crate::batch::Change;
use crate::publication::Publication;
use crate::publisher::{Missed, Replayed};
use crate::quota::FOLDED_MAX;

/// Most changes that are recovered for one channel. A client that missed more gets a snapshot.
pub const RECOVERED_MAX: i64 = 300;
/// Most bytes that are recovered for one channel.
const RECOVERED_BYTES_MAX: usize = 256 * 1024;
/// Events that are folded before the task yields to others.
const FOLDED_AT_ONCE: usize = 500;

/// A channel with its name and the id in the name.
pub struct NamedChannel<'a> {
    /// Definition of the channel.
    pub channel: &'a Channel,
    /// Full name of the channel.
    pub name: String,
    /// The id in the name; empty for a channel without an id.
    pub id: String,
}

/// Returns the changes of a channel after position `after` up to position `until`. Returns `None` if a limit is
/// exceeded, the caller's replay quota is exhausted, or the changes cannot be determined.
///
/// # Errors
/// The database does not answer.
pub async fn recover(
    api: &QueryApi,
    principal: &Principal,
    named: &NamedChannel<'_>,
    after: i64,
    until: i64,
) -> Result<Option<Vec<Change>>, SubscribeError> {
    let NamedChannel { channel, name, id } = named;
    if channel.missed.is_none() {
        return Ok(None);
    }
    if after >= until {
        return Ok(Some(Vec::new()));
    }
    let streams = match channel.find_changed(api, id, after, until).await {
        Ok(Some(streams)) => streams,
        // If a context's function panics here, its snapshot may still work.
        Ok(None) | Err(SubscribeError::Panicked) => return Ok(None),
        Err(refused) => return Err(refused),
    };
    let events = streams.iter().fold(0_i64, |sum, stream| sum.saturating_add(stream.events));
    if events > FOLDED_MAX || !api.quota.charge(principal, events) {
        return Ok(None);
    }
    if streams.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let discarded = discarded(api.store.db(), channel.group).await?;
    let of = Replayed { after, channel: name, event_types: channel.event_types, discarded: &discarded };
    let mut missed = Missed::new(RECOVERED_MAX as usize, RECOVERED_BYTES_MAX);
    for (aggregate_type, ids) in by_type(streams) {
        let Some(publisher) = api.publisher(&aggregate_type, channel.group) else {
            tracing::error!(
                channel = channel.name,
                aggregate_type,
                "No publisher for this aggregate type. The client gets a snapshot."
            );
            return Ok(None);
        };
        let mut replay = publisher.replay();
        let events = api.store.read_streams(&aggregate_type, &ids, until.saturating_add(1)).await?;
        for events in events.chunks(FOLDED_AT_ONCE) {
            let fold = AssertUnwindSafe(|| replay.fold(events, &of, &mut missed));
            match catch_unwind(fold) {
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => return Ok(None),
                Err(_) => {
                    tracing::error!(
                        channel = channel.name,
                        aggregate_type,
                        "A publisher panicked. The client gets a snapshot."
                    );
                    return Ok(None);
                }
            }
        }
    }
    let mut publications = missed.publications;
    publications.sort_unstable_by_key(|(_, publication)| publication.position);
    let mut last = after;
    let change = |(own, publication): (Option<i64>, Arc<Publication>)| {
        let before = std::mem::replace(&mut last, publication.position);
        Change::new(own.unwrap_or(before), publication)
    };
    Ok(Some(publications.into_iter().map(change).collect()))
}

/// Groups stream ids by aggregate type.
fn by_type(streams: Vec<ChangedStream>) -> BTreeMap<String, Vec<String>> {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for ChangedStream { stream, .. } in streams {
        types.entry(stream.aggregate_type.into()).or_default().push(stream.aggregate_id.into());
    }
    types
}

/// Reads the log after position `after` up to position `until`, and returns the ids of the aggregates of a type that
/// have events with one of `event_types`; empty means any event. Returns `None` if the range has more than `events_max`
/// events, or more than [`RECOVERED_MAX`] of them match.
///
/// # Errors
/// The database does not answer.
pub async fn changed_in_log(
    api: &QueryApi,
    aggregate_type: &str,
    event_types: &[&str],
    (after, until): (i64, i64),
    events_max: i64,
) -> Result<Option<Vec<String>>, Error> {
    if until.saturating_sub(after) > events_max {
        return Ok(None);
    }
    let events = api.store.read(after, (until - after).max(0)).await?;
    let is_of_interest = |event: &&RecordedEvent| {
        event.aggregate_type == aggregate_type && (event_types.is_empty() || event_types.contains(&&*event.event_type))
    };
    let mut ids: Vec<_> = events.iter().filter(is_of_interest).map(|event| event.aggregate_id.to_string()).collect();
    if ids.len() as i64 > RECOVERED_MAX {
        return Ok(None);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(ids))
}
