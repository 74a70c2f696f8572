//! A listener's channels, over whatever transport: opened from a snapshot or from the log, then live, with no race in
//! between that could lose a change or repeat it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use domain::order::Order;
use event_store::error::Error;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::aggregate::Aggregate;
use platform::auth::Principal;
use projection_engine::registry::CORE;
use projection_engine::state::Versioned;
use projection_engine::{dead_letters, generation};
use projections::orders::summaries as order_summaries;
use tokio::sync::watch;

use crate::allowance::FOLDED_MAX;
use crate::api::QueryApi;
use crate::channels::{Channel, ORDER_PREFIX, Refused, find, rank};
use crate::hub::{Deliveries, Delivery, Passing, Queue, Subscription};
use crate::publication::{Batch, Publication};

/// Changes that are handed out of the log at once; who missed more gets a fresh snapshot.
pub const RECOVERED_MAX: i64 = 300;
/// Bytes of such changes.
const RECOVERED_BYTES_MAX: usize = 256 * 1024;

/// Bytes with which several channels of one request may begin.
const START_BYTES_MAX: usize = 1024 * 1024;

/// Events that are folded before others get their turn.
const FOLDED_AT_ONCE: usize = 500;
/// How often a snapshot is read again because another generation began to serve meanwhile.
const SNAPSHOTS_MAX: u32 = 3;

/// How far a listener has come: a position in the log of an epoch. The same for any set of channels, on any process.
/// As text `7.EPOCH`, or `7+2.EPOCH`.
#[derive(Debug, Clone, PartialEq)]
pub struct Cursor {
    /// The log's incarnation.
    pub epoch: String,
    /// Whatever lies at or before it is known.
    pub position: i64,
    /// A change is told on one channel after the other: on so many kinds of channel, in their order, the one at the next
    /// position is known, too.
    pub kinds: usize,
}

impl Cursor {
    /// All up to a position is known.
    pub fn at(position: i64, epoch: &str) -> Self {
        Self { epoch: epoch.to_owned(), position, kinds: 0 }
    }

    /// Whatever lies at or before it is known on a kind of channel.
    fn position_of(&self, channel: &Channel) -> i64 {
        self.position.saturating_add(i64::from(channel.rank() < self.kinds))
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, position, kinds } = self;
        if *kinds > 0 { write!(f, "{position}+{kinds}.{epoch}") } else { write!(f, "{position}.{epoch}") }
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (known, epoch) = text.split_once('.').ok_or(())?;
        let (position, kinds) = known.split_once('+').unwrap_or((known, "0"));
        let position: i64 = position.parse().map_err(|_| ())?;
        let kinds = kinds.parse().map_err(|_| ())?;
        if position < 0 || epoch.is_empty() || epoch.len() > 64 {
            return Err(());
        }
        Ok(Self { epoch: epoch.to_owned(), position, kinds })
    }
}

/// A change, with the position of the one before it on its channel.
pub type Change = (i64, Arc<Publication>);

/// An open channel.
pub struct Opened {
    /// Its name.
    pub channel: Arc<str>,
    /// Its place in the hub, until somebody takes it.
    pub subscription: Option<Subscription>,
    /// Whatever lies at or before it is part of `start`.
    pub position: i64,
    /// What the listener gets first.
    pub start: Start,
}

/// What a listener gets first.
pub enum Start {
    /// How it is now: JSON text.
    Snapshot(String),
    /// What it missed, in order.
    Recovered(Vec<Change>),
}

/// Opens channels for somebody, all at one position: with what follows `after`, or, without it or where that is too much
/// or of another epoch, with snapshots.
///
/// First the queue is attached, then the log or the read models are read. What happens in between is in the queue, and
/// what is in both is known by its position.
///
/// # Errors
/// The first channel that is refused.
pub fn open<'a>(
    state: &'a QueryApi,
    principal: &'a Principal,
    names: &'a [&'a str],
    after: Option<&'a Cursor>,
    queue: &'a Queue,
) -> BoxFuture<'a, Result<Vec<Opened>, (String, Refused)>> {
    // Boxed: connections are many, and few of them are being opened.
    open_all(state, principal, names, after, queue).boxed()
}

async fn open_all(
    state: &QueryApi,
    principal: &Principal,
    names: &[&str],
    after: Option<&Cursor>,
    queue: &Queue,
) -> Result<Vec<Opened>, (String, Refused)> {
    let mut opened = Vec::new();
    for name in names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>() {
        let (kind, id) = find(&name).map_err(|refused| (name.clone(), refused))?;
        match (kind.allows)(state, principal, id).await {
            Ok(true) => opened.push((kind, id.to_owned(), name)),
            Ok(false) => return Err((name, Refused::Denied)),
            Err(refused) => return Err((name, refused)),
        }
    }
    let subscribe = |(_, _, name): &(_, _, String)| state.hub.subscribe(name, queue, principal.is_staff());
    let subscriptions: Vec<_> = opened.iter().map(subscribe).collect();
    let channels: Vec<_> = opened.into_iter().map(|(kind, id, _)| (kind, id)).collect();
    let starts = starts(state, principal, &channels, after).await.map_err(|refused| (names.join(", "), refused))?;
    let opened = |(subscription, (position, start)): (Subscription, _)| Opened {
        channel: subscription.channel().clone(),
        subscription: Some(subscription),
        position,
        start,
    };
    Ok(subscriptions.into_iter().zip(starts).map(opened).collect())
}

/// What each channel gets first; the subscriptions stand already.
async fn starts(
    state: &QueryApi,
    principal: &Principal,
    channels: &[(&'static Channel, String)],
    after: Option<&Cursor>,
) -> Result<Vec<(i64, Start)>, Refused> {
    let mut after = match after {
        Some(cursor) if is_of_this_log(state, cursor).await? => Some(cursor),
        _ => None,
    };
    // Whatever lies beyond is in the queue.
    let queued = *state.hub.through().borrow();
    // Another process may be further than this one, and the listener may come from there.
    let projected = state.progress.slowest_in(state.store.db(), CORE).await?;
    let mut until = projected.max(queued).max(after.map_or(0, |after| after.position));
    'again: for _ in 0..SNAPSHOTS_MAX {
        let mut starts = Vec::new();
        let mut bytes = 0;
        // Opened for the first snapshot: all are of one state of the database.
        let mut seen = None;
        for (channel, id) in channels {
            if let Some(known) = after.map(|after| after.position_of(channel))
                && let Some(changes) = recover(state, principal, channel, id, known, until).await?
            {
                bytes += changes.iter().map(|(_, change)| change.data.len()).sum::<usize>();
                if bytes > START_BYTES_MAX && channels.len() > 1 {
                    // What there is may be less than what was missed.
                    after = None;
                    continue 'again;
                }
                starts.push((until, Start::Recovered(changes)));
                continue;
            }
            let (mut tx, serving) = match seen.take() {
                Some(seen) => seen,
                None => {
                    let mut tx = state.store.db().snapshot().await?;
                    let serving = generation::serving(&mut tx).await?;
                    (tx, serving)
                }
            };
            let mut position = serving.get(channel.projection).map_or(0, |serving| serving.position);
            if channel.is_in_no_log() {
                // It holds nobody's cursor back.
                position = position.max(until);
            } else if position < until {
                // A snapshot before what others recover would take their cursor back, and repeat their changes.
                return Err(Refused::Behind);
            }
            let (field, shown) = (channel.snapshot)(state, &mut tx, id).await?;
            let data = format!(r#"{{"type":"snapshot","{field}":{shown},"position":{position}}}"#);
            bytes += data.len();
            if bytes > START_BYTES_MAX && channels.len() > 1 {
                if after.take().is_some() {
                    continue 'again;
                }
                return Err(Refused::TooMuch);
            }
            starts.push((position, Start::Snapshot(data)));
            seen = Some((tx, serving));
        }
        let Some((tx, serving)) = seen else { return Ok(starts) };
        drop(tx);
        // PostgreSQL finds tables by what is committed, whatever the transaction sees of their rows: a generation that
        // began to serve in between would be read as it was before that.
        let now = generation::serving_now(state.store.db()).await?;
        let same = |name: &str| now.get(name).map(|now| now.generation) == serving.get(name).map(|s| s.generation);
        if !channels.iter().all(|(channel, _)| same(channel.projection)) {
            continue;
        }
        // One position for all: what was recovered must reach as far as what was read, or a cursor before it would bring
        // back what the snapshots hold.
        let read_at = starts.iter().map(|(position, _)| *position).max().unwrap_or(until);
        for ((position, start), (channel, id)) in starts.iter_mut().zip(channels) {
            let (Start::Recovered(changes), Some(after)) = (start, after) else { continue };
            if *position < read_at {
                let known = after.position_of(channel);
                let Some(rest) = recover(state, principal, channel, id, known, read_at).await? else {
                    until = read_at;
                    continue 'again;
                };
                (*position, *changes) = (read_at, rest);
            }
        }
        return Ok(starts);
    }
    Err(Refused::Behind)
}

/// Whether there is such a position to go on from.
async fn is_of_this_log(state: &QueryApi, cursor: &Cursor) -> Result<bool, Error> {
    Ok(cursor.epoch == state.store.incarnation()
        && (cursor.position <= state.progress.slowest(CORE) || cursor.position <= state.store.head().await?))
}

/// What happened on a channel after a position, up to another one; `None` where it is too much.
async fn recover(
    state: &QueryApi,
    principal: &Principal,
    channel: &Channel,
    id: &str,
    after: i64,
    until: i64,
) -> Result<Option<Vec<Change>>, Error> {
    if channel.is_in_no_log() {
        return Ok(None);
    }
    if after >= until {
        return Ok(Some(Vec::new()));
    }
    let db = state.store.db();
    let read = || async {
        let Some(orders) = (channel.missed)(state, id, after, until).await? else { return Ok(None) };
        let lengths = order_summaries::lengths(db, &orders).await?;
        Ok(Some((orders, lengths)))
    };
    // The position and the rows belong together: after a crash of PostgreSQL both go back.
    let (projected, missed) = state.progress.read_at(db, order_summaries::PROJECTION.name, read).await?;
    if channel.looks_up_orders() && projected < until {
        // While that read model is behind, nobody knows which orders they are.
        return Ok(None);
    }
    let Some((mut orders, mut lengths)) = missed else { return Ok(None) };
    if projected >= until {
        lengths.retain(|order| order.position > after);
        orders = lengths.iter().map(|order| order.order_id.clone()).collect();
    }
    let events = lengths.iter().map(|order| order.version).sum();
    if events > FOLDED_MAX || !state.allowance.take(principal, events) {
        return Ok(None);
    }
    if orders.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let discarded = dead_letters::discarded(db, CORE).await?;
    let (mut changes, mut bytes) = (Vec::new(), 0);
    let mut order = None;
    for (number, event) in state.store.read_streams(Order::TYPE, &orders, until + 1).await?.into_iter().enumerate() {
        if number % FOLDED_AT_ONCE == 0 {
            tokio::task::yield_now().await;
        }
        if event.sequence == 1 {
            order = Some(None::<Arc<Versioned<Order>>>);
        }
        // An event that does not apply is parked by the projections, and what follows it in its stream.
        let Some(before) = order.take() else { continue };
        if discarded.holds(&event) {
            let mut state = before.map_or_else(Versioned::<Order>::default, Arc::unwrap_or_clone);
            state.skip(&event);
            order = Some(Some(Arc::new(state)));
        } else if event.position <= after || !(channel.concerns)(&event) {
            let mut state = before.map_or_else(Versioned::<Order>::default, Arc::unwrap_or_clone);
            order = state.apply(&event).is_ok().then(|| Some(Arc::new(state)));
        } else if let Ok((publication, state)) = Publication::of(before, &event) {
            if publication.has_order() && (channel.selects)(&publication) {
                bytes += publication.data.len();
                changes.push(Arc::new(publication));
                // One is handed out however large it is.
                if changes.len() as i64 > RECOVERED_MAX || (bytes > RECOVERED_BYTES_MAX && changes.len() > 1) {
                    return Ok(None);
                }
            }
            order = Some(Some(state));
        }
    }
    changes.sort_unstable_by_key(|change| change.position);
    let mut last = after;
    let with_previous = |change: Arc<Publication>| {
        let before = std::mem::replace(&mut last, change.position);
        (if channel.name == ORDER_PREFIX { change.previous_of_order() } else { before }, change)
    };
    Ok(Some(changes.into_iter().map(with_previous).collect()))
}

/// Sorts changes by position, and one change's channels by their kind.
pub fn in_order(changes: &mut [(Arc<str>, Change)]) {
    changes.sort_by(|(this, (_, a)), (other, (_, b))| {
        a.position.cmp(&b.position).then_with(|| rank(this).cmp(&rank(other)))
    });
}

/// Channels whose changes are merged in the order of the log, so that one position says how far a listener has come in
/// all of them.
pub struct Merged {
    deliveries: Deliveries,
    through: watch::Receiver<i64>,
    /// Position of the last change, a channel.
    last: HashMap<Arc<str>, i64>,
    /// Changes of a round, of which others may still come.
    held: Vec<(Arc<str>, Change)>,
    round: Option<i64>,
    _subscriptions: Vec<Subscription>,
}

/// What comes next.
pub enum Next {
    /// Changes, in order, each with its channel.
    Changes(Vec<(Arc<str>, Change)>),
    /// What is in no log.
    Passing(Arc<Passing>),
    /// Something is missing: the listener has to go on from the log.
    Gap,
}

impl Merged {
    /// Goes live with open channels, and takes their places in the hub.
    pub fn new(state: &QueryApi, deliveries: Deliveries, opened: &mut [Opened]) -> Self {
        let last = opened.iter().map(|opened| (opened.channel.clone(), opened.position)).collect();
        let subscriptions = opened.iter_mut().filter_map(|opened| opened.subscription.take()).collect();
        let (through, held) = (state.hub.through(), Vec::new());
        Self { deliveries, through, last, held, round: None, _subscriptions: subscriptions }
    }

    /// Waits for what comes next: what was published together, and no more, for the client may be slow to take it. Nothing
    /// is lost when the wait is given up.
    pub async fn next(&mut self) -> Next {
        loop {
            let round = match self.round {
                Some(round) => round,
                None => match self.deliveries.next().await {
                    Delivery::Passing(passing) => return Next::Passing(passing),
                    Delivery::Changes(batch) => {
                        self.round = Some(batch.round);
                        if !self.hold(&batch) {
                            return Next::Gap;
                        }
                        batch.round
                    }
                },
            };
            // Its other channels are being queued. The hub lives as long as the process.
            let _ = self.through.wait_for(|through| *through >= round).await;
            while let Some(batch) = self.deliveries.try_next_of(round) {
                if !self.hold(&batch) {
                    return Next::Gap;
                }
            }
            // Cut off in the middle of a round, the queue lacks what the hub says it has queued.
            if !self.deliveries.is_whole() {
                return Next::Gap;
            }
            self.round = None;
            let mut ready = std::mem::take(&mut self.held);
            if !ready.is_empty() {
                in_order(&mut ready);
                return Next::Changes(ready);
            }
        }
    }

    /// Keeps what is new of a batch; false where something is missing before it.
    fn hold(&mut self, batch: &Batch) -> bool {
        // Every channel that is subscribed has its place here.
        let last = self.last.entry(batch.channel.clone()).or_default();
        if batch.follows() > *last {
            return false;
        }
        let new = batch.changes.iter().filter(|(_, change)| change.position > *last);
        self.held.extend(new.map(|change| (batch.channel.clone(), change.clone())));
        *last = batch.last().max(*last);
        true
    }

    /// A position up to which everything has been handed out, if nothing waits.
    pub fn idle_at(&mut self) -> Option<i64> {
        let through = *self.through.borrow_and_update();
        (self.round.is_none() && self.deliveries.is_empty() && self.deliveries.is_whole()).then_some(through)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::channels::ORDERS;
    use crate::connections::{End, Ender};
    use crate::hub::tests::created;
    use crate::hub::{Hub, queue};

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
        for text in ["7.epoch", "7+2.epoch", "0.e-1"] {
            assert_eq!(text.parse::<Cursor>().unwrap().to_string(), text);
        }
        for text in ["", "7", "-1.e", "7+.e", "7+-1.e", "+2.e", "7.", "x.e", "99999999999999999999.e"] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }

    /// The hub says that it has queued a round, of which this queue has not got everything.
    #[tokio::test]
    async fn a_queue_that_was_cut_off_hands_nothing_out() {
        let (hub, ender) = (Hub::default(), Ender::default());
        let (queue, deliveries) = queue(ender.clone());
        let subscription = hub.subscribe(ORDERS, &queue, true);
        let last = HashMap::from([(subscription.channel().clone(), 0)]);
        let (through, held) = (hub.through(), Vec::new());
        let mut merged = Merged { deliveries, through, last, held, round: None, _subscriptions: vec![subscription] };
        hub.publish(&[created("a", 1)], 1);
        ender.end(End::Slow);
        assert!(matches!(merged.next().await, Next::Gap));
        assert_eq!(merged.idle_at(), None);
    }
}
