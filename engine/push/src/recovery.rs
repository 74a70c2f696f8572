//! What a listener missed, out of the log: the streams that changed are folded, and their changes published again to it
//! alone.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use event_store::error::Error;
use event_store::event::RecordedEvent;
use platform::auth::Principal;
use projection_engine::dead_letters::discarded;

use crate::api::{ChangedStream, Channel, QueryApi, Refused};
use crate::batch::Change;
use crate::publication::Publication;
use crate::publisher::{Missed, Replayed};
use crate::quota::FOLDED_MAX;

/// Changes that are handed out of the log at once. Whoever missed more gets a fresh snapshot.
pub const RECOVERED_MAX: i64 = 300;
/// Bytes of such changes.
const RECOVERED_BYTES_MAX: usize = 256 * 1024;
/// Events that are folded before others get their turn.
const FOLDED_AT_ONCE: usize = 500;

/// A channel, by its kind, its name and the id in the name.
pub struct Named<'a> {
    /// The kind.
    pub channel: &'a Channel,
    /// The whole name.
    pub name: String,
    /// The id; empty where there is none.
    pub id: String,
}

/// The changes of a channel after one position up to another; `None` where they are too many, too expensive, or not known.
///
/// # Errors
/// The database does not answer.
pub async fn recover(
    api: &QueryApi,
    principal: &Principal,
    named: &Named<'_>,
    after: i64,
    until: i64,
) -> Result<Option<Vec<Change>>, Refused> {
    let Named { channel, name, id } = named;
    if channel.missed.is_none() {
        return Ok(None);
    }
    if after >= until {
        return Ok(Some(Vec::new()));
    }
    let streams = match channel.find_changed(api, id, after, until).await {
        Ok(Some(streams)) => streams,
        // Where a context has a fault, a snapshot may still do.
        Ok(None) | Err(Refused::Panicked) => return Ok(None),
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
            tracing::error!(channel = channel.name, aggregate_type, "nobody publishes this aggregate");
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
                    tracing::error!(channel = channel.name, aggregate_type, "a publisher panicked");
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

/// Ids by the types of their aggregates.
fn by_type(streams: Vec<ChangedStream>) -> BTreeMap<String, Vec<String>> {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for ChangedStream { stream, .. } in streams {
        types.entry(stream.aggregate_type.into()).or_default().push(stream.aggregate_id.into());
    }
    types
}

/// Ids of the aggregates of a type with events of some names (of any where there are none) after one position up to
/// another, found by reading the log; `None` where that is more than `events_max` events, or leads to more changes than are
/// handed out.
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
