//! Opens a client's channels, for every transport: from a snapshot, or from the log. No race between this and the live
//! changes can lose or repeat a change.

use std::collections::BTreeMap;
use std::sync::Arc;

use event_store::error::Error;
use futures::FutureExt;
use futures::future::BoxFuture;
use platform::auth::Principal;
use projection_engine::generation::{live_generations, serving};

use crate::api::{QueryApi, SubscribeError};
use crate::batch::{Batch, Change};
use crate::cursor::{Cursor, GroupCursor, Received};
use crate::hub::{Kind, Subscription};
use crate::publication::Group;
use crate::queue::Queue;
use crate::recovery::{NamedChannel, recover};

/// Limit of the initial data of one request with several channels, in bytes. A single channel may exceed it.
const START_BYTES_MAX: usize = 1024 * 1024;
/// Attempts to open the channels of one request. An attempt fails, for example, when a generation switch happens while
/// the snapshots are read.
const SNAPSHOTS_MAX: u32 = 3;

/// An open channel.
pub struct Opened {
    /// Name of the channel.
    pub channel: Arc<str>,
    /// Kind of the channel.
    pub kind: Kind,
    /// Whether the channel's changes are in the log, so that it can be resumed.
    pub is_logged: bool,
    /// Whether staff can see who is subscribed to the channel.
    pub has_presence: bool,
    /// The subscription in the hub, until the caller moves it out.
    pub subscription: Option<Subscription>,
    /// All changes at or before this position are part of `start`, or the client already had them.
    pub position: i64,
    /// The initial data of the channel.
    pub start: Start,
}

/// The initial data of a channel.
pub enum Start {
    /// The current state, as JSON text.
    Snapshot(String),
    /// The changes that the client missed, in log order.
    Recovered(Arc<Batch>),
}

/// The opened channels of a client.
pub struct Session {
    /// The channels, in the order of the request.
    pub channels: Vec<Opened>,
    /// The client's position after it has received the initial data of all channels.
    pub cursor: Cursor,
}

/// Opens channels for a client, all channels of a group at one position. Each channel starts with the changes after the
/// cursor `after`. It starts with a snapshot if there is no cursor, the cursor belongs to another log, or the missed
/// changes exceed a limit.
///
/// The queue is subscribed first; then the log or the read models are read. So a change that happens in between is in
/// the queue. A change that is in both is recognized by its position and sent once.
///
/// # Errors
/// Names and reason of the first refused channel, or of all channels if the reason concerns them together.
pub fn open<'a>(
    api: &'a QueryApi,
    principal: &'a Principal,
    names: &'a [&'a str],
    after: Option<&'a Cursor>,
    queue: &'a Queue,
) -> BoxFuture<'a, Result<Session, (String, SubscribeError)>> {
    // Boxed to keep the tasks of connections small: there are many connections, and few are opening channels.
    open_all(api, principal, names, after, queue).boxed()
}

async fn open_all(
    api: &QueryApi,
    principal: &Principal,
    names: &[&str],
    after: Option<&Cursor>,
    queue: &Queue,
) -> Result<Session, (String, SubscribeError)> {
    let mut channels = Vec::new();
    for name in names.iter().map(|name| (*name).to_owned()) {
        let (channel, id) = match api.channels.find(&name) {
            Ok((channel, id)) => (channel, id.to_owned()),
            Err(refused) => return Err((name, refused)),
        };
        match channel.is_allowed(api, principal, &id).await {
            Ok(true) => channels.push(NamedChannel { channel, name, id }),
            Ok(false) => return Err((name, SubscribeError::Denied)),
            Err(refused) => return Err((name, refused)),
        }
    }
    let subscribe =
        |named: &NamedChannel<'_>| api.hub.subscribe(named.channel.kind(), &named.name, queue, principal.is_staff());
    let subscriptions: Vec<_> = channels.iter().map(subscribe).collect();
    let started = start(api, principal, &channels, after).await.map_err(|refused| (names.join(", "), refused))?;
    let mut cursor = Cursor { epoch: api.store.incarnation().to_owned(), groups: Vec::new() };
    let mut opened = Vec::with_capacity(channels.len());
    for ((named, subscription), InitialData { position, start }) in
        channels.iter().zip(subscriptions).zip(started.initial)
    {
        let (kind, name) = (named.channel.kind(), subscription.channel().clone());
        // The cursor of a group is the lowest position of the group's channels.
        let known = cursor.of(kind.group).map_or(position, |known| known.position.min(position));
        cursor.set(kind.group, known, Received::Nothing);
        let (position, start) = match (start, started.resumed.get(kind.group)) {
            (InitialContent::Snapshot(data), _) => (position, Start::Snapshot(data)),
            (InitialContent::Recovered(changes), resumed) => {
                // The client may have the next change on this channel but not on others.
                let known = resumed.map_or(position, |resumed| resumed.position_on(&named.name, api.cursor_v1_kinds));
                let recovered = Batch::recovered(name.clone(), kind.group, changes);
                (position.max(known), Start::Recovered(Arc::new(recovered)))
            }
        };
        opened.push(Opened {
            channel: name,
            kind,
            is_logged: named.channel.missed.is_some(),
            has_presence: named.channel.has_presence,
            subscription: Some(subscription),
            position,
            start,
        });
    }
    for resumed in started.resumed.into_values() {
        // The position of the group has not moved. So the client keeps its part of the next change, if it has one.
        if cursor.of(&resumed.group).is_some_and(|known| known.position == resumed.position) {
            cursor.set(&resumed.group, resumed.position, resumed.next);
        }
    }
    Ok(Session { channels: opened, cursor })
}

/// The initial data of all channels, in their order.
struct Started {
    initial: Vec<InitialData>,
    /// The groups that were resumed, with their positions in the client's cursor.
    resumed: BTreeMap<Group, GroupCursor>,
}

struct InitialData {
    position: i64,
    start: InitialContent,
}

enum InitialContent {
    Snapshot(String),
    Recovered(Vec<Change>),
}

/// Reads the initial data of each channel. The subscriptions must exist already.
async fn start(
    api: &QueryApi,
    principal: &Principal,
    channels: &[NamedChannel<'_>],
    after: Option<&Cursor>,
) -> Result<Started, SubscribeError> {
    let mut resumed = BTreeMap::new();
    let mut until = BTreeMap::new();
    for group in groups_of(channels) {
        let known = match after.and_then(|after| after.of(group)) {
            Some(known) if is_of_this_log(api, after, known, group).await? => Some(known.clone()),
            _ => None,
        };
        // The client may come from a process that is ahead of this one, so its position counts too. Changes after
        // `until` are in the queue.
        let projected = api.progress.slowest_in(api.store.db(), group).await?;
        let queued = api.hub.complete_after(group);
        until.insert(group, projected.max(queued).max(known.as_ref().map_or(0, |known| known.position)));
        resumed.extend(known.map(|known| (group, known)));
    }
    'again: for _ in 0..SNAPSHOTS_MAX {
        let mut initial = Vec::new();
        let mut bytes = 0;
        // A transaction, begun for the first snapshot. All snapshots are read from one state of the database.
        let mut seen = None;
        for named in channels {
            let (channel, group) = (named.channel, named.channel.group);
            if let Some(known) = resumed.get(group).map(|known| known.position_on(&named.name, api.cursor_v1_kinds))
                && let Some(changes) = recover(api, principal, named, known, until[group]).await?
            {
                bytes += changes.iter().map(|change| change.publication.data().len()).sum::<usize>();
                if bytes > START_BYTES_MAX && channels.len() > 1 {
                    // Too many bytes. Snapshots may be smaller than the missed changes.
                    resumed.clear();
                    continue 'again;
                }
                initial.push(InitialData { position: until[group], start: InitialContent::Recovered(changes) });
                continue;
            }
            let is_logged = channel.missed.is_some();
            let partly = resumed.get(group).filter(|known| known.next != Received::Nothing);
            if is_logged && partly.is_some_and(|known| known.position == until[group]) {
                // A cursor cannot express that the client has the next change on some channels, but not in this
                // snapshot.
                resumed.remove(group);
                continue 'again;
            }
            let (mut tx, serves) = match seen.take() {
                Some(seen) => seen,
                None => {
                    let mut tx = api.store.db().snapshot().await?;
                    let serves = serving(&mut tx).await?;
                    (tx, serves)
                }
            };
            let serving = channel.projection.and_then(|name| serves.get(name));
            let mut position = serving.map_or(0, |serving| serving.position);
            if !is_logged {
                // A channel that is not in the log must not lower the group's position in the cursor.
                position = position.max(until[group]);
            } else if position < until[group] {
                // A snapshot that is older than the recovered changes of other channels would lower the cursor, and the
                // client would later receive those changes again.
                return Err(SubscribeError::Behind);
            }
            let (member, text) = channel.take_snapshot(api, &mut tx, &named.id).await?;
            let data = format!(r#"{{"type":"snapshot","{member}":{text},"position":{position}}}"#);
            bytes += data.len();
            if bytes > START_BYTES_MAX && channels.len() > 1 {
                if resumed.is_empty() {
                    return Err(SubscribeError::TooMuch);
                }
                resumed.clear();
                continue 'again;
            }
            initial.push(InitialData { position, start: InitialContent::Snapshot(data) });
            seen = Some((tx, serves));
        }
        let Some((tx, serves)) = seen else { return Ok(Started { initial, resumed }) };
        drop(tx);
        // PostgreSQL resolves table names by the latest commit, even in an older snapshot of the rows. So after a
        // generation switch during the reads, the transaction would see the new tables with the rows of an earlier
        // time.
        let now = live_generations(api.store.db()).await?;
        let same = |name: &str| now.get(name).map(|now| now.generation) == serves.get(name).map(|s| s.generation);
        if !channels.iter().filter_map(|named| named.channel.projection).all(same) {
            continue;
        }
        // All channels of a group need one position. So the recovered changes must reach the position of the snapshots.
        // Otherwise the cursor would be before the snapshots, and the client would receive their changes again.
        let mut read_at: BTreeMap<Group, i64> = BTreeMap::new();
        for (data, named) in initial.iter().zip(channels) {
            let furthest = read_at.entry(named.channel.group).or_default();
            *furthest = data.position.max(*furthest);
        }
        for (InitialData { position, start }, named) in initial.iter_mut().zip(channels) {
            let read_at = read_at[named.channel.group];
            let (InitialContent::Recovered(changes), Some(known)) = (start, resumed.get(named.channel.group)) else {
                continue;
            };
            if *position < read_at {
                let known = known.position_on(&named.name, api.cursor_v1_kinds);
                let Some(rest) = recover(api, principal, named, known, read_at).await? else {
                    until.insert(named.channel.group, read_at);
                    continue 'again;
                };
                (*position, *changes) = (read_at, rest);
            }
        }
        return Ok(Started { initial, resumed });
    }
    Err(SubscribeError::Behind)
}

fn groups_of(channels: &[NamedChannel<'_>]) -> Vec<Group> {
    let mut groups: Vec<_> = channels.iter().map(|named| named.channel.group).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Whether the client's position in a group is a position of this log.
async fn is_of_this_log(
    api: &QueryApi,
    cursor: Option<&Cursor>,
    known: &GroupCursor,
    group: Group,
) -> Result<bool, Error> {
    let is_same_log = cursor.is_some_and(|cursor| cursor.epoch == api.store.incarnation());
    Ok(is_same_log && (known.position <= api.progress.slowest(group) || known.position <= api.store.head().await?))
}
