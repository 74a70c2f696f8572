//! Opens a listener's channels, over whatever transport: from a snapshot or from the log, with no race between that and the
//! live changes that could lose a change or repeat it.

use std::collections::BTreeMap;
use std::sync::Arc;

use event_store::error::Error;
use futures::FutureExt;
use futures::future::BoxFuture;
use platform::auth::Principal;
use projection_engine::generation::{serving, serving_now};

use crate::api::{QueryApi, Refused};
use crate::batch::{Batch, Change};
use crate::cursor::{Cursor, GroupCursor, Known};
use crate::hub::{Kind, Subscription};
use crate::publication::Group;
use crate::queue::Queue;
use crate::recovery::{Named, recover};

/// Bytes of the first answers of several channels of one request.
const START_BYTES_MAX: usize = 1024 * 1024;
/// How often a snapshot is read again because another generation began to serve meanwhile.
const SNAPSHOTS_MAX: u32 = 3;

/// An open channel.
pub struct Opened {
    /// Its name.
    pub channel: Arc<str>,
    /// Its kind.
    pub kind: Kind,
    /// Whether it shows what is in the log.
    pub is_logged: bool,
    /// Whether staff see who listens to it.
    pub has_presence: bool,
    /// Its place in the hub, until somebody takes it.
    pub subscription: Option<Subscription>,
    /// Whatever lies at or before it is part of `start`, or was known before.
    pub position: i64,
    /// What the listener gets first.
    pub start: Start,
}

/// What a listener gets first.
pub enum Start {
    /// How it is now: JSON text.
    Snapshot(String),
    /// What was missed, in order.
    Recovered(Arc<Batch>),
}

/// Channels that somebody listens to from now on.
pub struct Session {
    /// The channels, in the order in which they were asked for.
    pub channels: Vec<Opened>,
    /// How far the listener has come once it has got what each channel starts with.
    pub cursor: Cursor,
}

/// Opens channels for somebody, all of a group at one position: with what follows `after`, or, without it or where that is
/// too much or of another log, with snapshots.
///
/// First the queue is attached, then the log or the read models are read. What happens in between is in the queue, and
/// what is in both is known by its position.
///
/// # Errors
/// The first channel that is refused.
pub fn open<'a>(
    api: &'a QueryApi,
    principal: &'a Principal,
    names: &'a [&'a str],
    after: Option<&'a Cursor>,
    queue: &'a Queue,
) -> BoxFuture<'a, Result<Session, (String, Refused)>> {
    // Boxed: connections are many, and few of them are being opened.
    open_all(api, principal, names, after, queue).boxed()
}

async fn open_all(
    api: &QueryApi,
    principal: &Principal,
    names: &[&str],
    after: Option<&Cursor>,
    queue: &Queue,
) -> Result<Session, (String, Refused)> {
    let mut channels = Vec::new();
    for name in names.iter().map(|name| (*name).to_owned()) {
        let (channel, id) = match api.channels.find(&name) {
            Ok((channel, id)) => (channel, id.to_owned()),
            Err(refused) => return Err((name, refused)),
        };
        match channel.is_allowed(api, principal, &id).await {
            Ok(true) => channels.push(Named { channel, name, id }),
            Ok(false) => return Err((name, Refused::Denied)),
            Err(refused) => return Err((name, refused)),
        }
    }
    let subscribe =
        |named: &Named<'_>| api.hub.subscribe(named.channel.kind(), &named.name, queue, principal.is_staff());
    let subscriptions: Vec<_> = channels.iter().map(subscribe).collect();
    let started = start(api, principal, &channels, after).await.map_err(|refused| (names.join(", "), refused))?;
    let mut cursor = Cursor { epoch: api.store.incarnation().to_owned(), groups: Vec::new() };
    let mut opened = Vec::with_capacity(channels.len());
    for ((named, subscription), First { position, start }) in channels.iter().zip(subscriptions).zip(started.firsts) {
        let (kind, name) = (named.channel.kind(), subscription.channel().clone());
        // A cursor is not further than the slowest of a group's channels.
        let known = cursor.of(kind.group).map_or(position, |known| known.position.min(position));
        cursor.set(kind.group, known, Known::Nothing);
        let (position, start) = match (start, started.resumed.get(kind.group)) {
            (FirstAnswer::Snapshot(data), _) => (position, Start::Snapshot(data)),
            (FirstAnswer::Recovered(changes), resumed) => {
                // A change may be known on this channel and not on others.
                let known = resumed.map_or(position, |resumed| resumed.position_on(&named.name, api.old_kinds));
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
        // Nothing was added to what the listener knew, part of a change perhaps.
        if cursor.of(&resumed.group).is_some_and(|known| known.position == resumed.position) {
            cursor.set(&resumed.group, resumed.position, resumed.next);
        }
    }
    Ok(Session { channels: opened, cursor })
}

/// What channels start with, in their order.
struct Started {
    firsts: Vec<First>,
    /// The groups that went on from a cursor.
    resumed: BTreeMap<Group, GroupCursor>,
}

struct First {
    position: i64,
    start: FirstAnswer,
}

enum FirstAnswer {
    Snapshot(String),
    Recovered(Vec<Change>),
}

/// What each channel gets first. The subscriptions exist already.
async fn start(
    api: &QueryApi,
    principal: &Principal,
    channels: &[Named<'_>],
    after: Option<&Cursor>,
) -> Result<Started, Refused> {
    let mut resumed = BTreeMap::new();
    let mut until = BTreeMap::new();
    for group in groups_of(channels) {
        let known = match after.and_then(|after| after.of(group)) {
            Some(known) if is_of_this_log(api, after, known, group).await? => Some(known.clone()),
            _ => None,
        };
        // Another process may be further than this one, and the listener may come from there. What lies beyond is in the
        // queue.
        let projected = api.progress.slowest_in(api.store.db(), group).await?;
        let queued = *api.hub.through(group).borrow();
        until.insert(group, projected.max(queued).max(known.as_ref().map_or(0, |known| known.position)));
        resumed.extend(known.map(|known| (group, known)));
    }
    'again: for _ in 0..SNAPSHOTS_MAX {
        let mut firsts = Vec::new();
        let mut bytes = 0;
        // Opened for the first snapshot: all are of one state of the database.
        let mut seen = None;
        for named in channels {
            let (channel, group) = (named.channel, named.channel.group);
            if let Some(known) = resumed.get(group).map(|known| known.position_on(&named.name, api.old_kinds))
                && let Some(changes) = recover(api, principal, named, known, until[group]).await?
            {
                bytes += changes.iter().map(|change| change.publication.data().len()).sum::<usize>();
                if bytes > START_BYTES_MAX && channels.len() > 1 {
                    // Snapshots may be less than what was missed.
                    resumed.clear();
                    continue 'again;
                }
                firsts.push(First { position: until[group], start: FirstAnswer::Recovered(changes) });
                continue;
            }
            let is_logged = channel.missed.is_some();
            let partly = resumed.get(group).filter(|known| known.next != Known::Nothing);
            if is_logged && partly.is_some_and(|known| known.position == until[group]) {
                // A cursor cannot say that the next change is known on the others and not in this snapshot.
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
                // It holds nobody's cursor back.
                position = position.max(until[group]);
            } else if position < until[group] {
                // A snapshot before what others recover would take their cursor back, and repeat their changes.
                return Err(Refused::Behind);
            }
            let (field, shown) = channel.take_snapshot(api, &mut tx, &named.id).await?;
            let data = format!(r#"{{"type":"snapshot","{field}":{shown},"position":{position}}}"#);
            bytes += data.len();
            if bytes > START_BYTES_MAX && channels.len() > 1 {
                if resumed.is_empty() {
                    return Err(Refused::TooMuch);
                }
                resumed.clear();
                continue 'again;
            }
            firsts.push(First { position, start: FirstAnswer::Snapshot(data) });
            seen = Some((tx, serves));
        }
        let Some((tx, serves)) = seen else { return Ok(Started { firsts, resumed }) };
        drop(tx);
        // PostgreSQL finds tables by what is committed, whatever the transaction sees of their rows: a generation that
        // began to serve in between would be read as it was before that.
        let now = serving_now(api.store.db()).await?;
        let same = |name: &str| now.get(name).map(|now| now.generation) == serves.get(name).map(|s| s.generation);
        if !channels.iter().filter_map(|named| named.channel.projection).all(same) {
            continue;
        }
        // One position for all of a group: what was recovered must reach as far as what was read, or a cursor before it
        // would bring back what the snapshots hold.
        let mut read_at: BTreeMap<Group, i64> = BTreeMap::new();
        for (first, named) in firsts.iter().zip(channels) {
            let furthest = read_at.entry(named.channel.group).or_default();
            *furthest = first.position.max(*furthest);
        }
        for (First { position, start }, named) in firsts.iter_mut().zip(channels) {
            let read_at = read_at[named.channel.group];
            let (FirstAnswer::Recovered(changes), Some(known)) = (start, resumed.get(named.channel.group)) else {
                continue;
            };
            if *position < read_at {
                let known = known.position_on(&named.name, api.old_kinds);
                let Some(rest) = recover(api, principal, named, known, read_at).await? else {
                    until.insert(named.channel.group, read_at);
                    continue 'again;
                };
                (*position, *changes) = (read_at, rest);
            }
        }
        return Ok(Started { firsts, resumed });
    }
    Err(Refused::Behind)
}

fn groups_of(channels: &[Named<'_>]) -> Vec<Group> {
    let mut groups: Vec<_> = channels.iter().map(|named| named.channel.group).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Whether a group can go on from a position.
async fn is_of_this_log(
    api: &QueryApi,
    cursor: Option<&Cursor>,
    known: &GroupCursor,
    group: Group,
) -> Result<bool, Error> {
    let is_same_log = cursor.is_some_and(|cursor| cursor.epoch == api.store.incarnation());
    Ok(is_same_log && (known.position <= api.progress.slowest(group) || known.position <= api.store.head().await?))
}
