//! Presence: the users and clients that are subscribed to a channel, for staff. Every process sends its clients to the
//! other processes, over NATS if there are others. Entries that are not sent again expire. Nothing is stored.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use event_store::store::Store;
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::hub::Hub;

/// Topic of the messages between processes.
const TOPIC: &str = "presence";
/// How often a process sends all of its clients.
const GOSSIP_EVERY: Duration = Duration::from_secs(5);
/// Time without a message after which the clients of another process expire.
const SILENCE: Duration = Duration::from_secs(12);
/// Longest time between two checks for changes.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// Shortest time between two checks for changes.
const PAUSE: Duration = Duration::from_millis(50);
/// Most clients in one message.
const ENTRIES_PER_MESSAGE_MAX: usize = 2_000;

/// A client on a channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct PresenceEntry {
    channel: Arc<str>,
    client: Arc<str>,
    user: Arc<str>,
}

/// A message between processes.
#[derive(Default, Serialize, Deserialize)]
struct PresenceGossip {
    process: Uuid,
    /// All clients of the process, or those that have just subscribed.
    here: Vec<PresenceEntry>,
    /// Clients that have just left.
    left: Vec<PresenceEntry>,
    /// True in the first message of a process: the others should send their clients now.
    asks: bool,
}

/// Presence of clients on channels. Cheap to clone.
#[derive(Clone)]
pub struct Presence(Arc<Inner>);

struct Inner {
    process: Uuid,
    /// How long a user without clients is still shown, because the user may reconnect.
    grace: Duration,
    entries: Mutex<Entries>,
    /// Notified when a client of this process subscribes or leaves.
    changed: Notify,
}

/// User by client. The instant is the expiry of a client of another process; `None` for clients of this process.
type Clients = HashMap<Arc<str>, (Arc<str>, Option<Instant>)>;

#[derive(Default)]
struct Entries {
    channels: HashMap<Arc<str>, Clients>,
    /// Clients of this process whose change is not sent yet; true if the client is present, false if it has left.
    unsent: HashMap<PresenceEntry, bool>,
    /// Users that are shown, by channel. The instant is set while a user has no client: since when.
    shown: HashMap<Arc<str>, HashMap<Arc<str>, Option<Instant>>>,
}

/// Presence of a client on a channel. Dropping it removes the client.
pub struct PresenceGuard {
    presence: Presence,
    entry: PresenceEntry,
}

impl Presence {
    /// Creates the presence of a process without clients. A user without clients is still shown for the time `grace`.
    pub fn new(grace: Duration) -> Self {
        let process = Uuid::new_v4();
        Self(Arc::new(Inner { process, grace, entries: Mutex::default(), changed: Notify::new() }))
    }

    /// Adds a client of a user to a channel.
    pub fn enter(&self, channel: &Arc<str>, client: &Arc<str>, user: &str) -> PresenceGuard {
        let entry = PresenceEntry { channel: channel.clone(), client: client.clone(), user: user.into() };
        let mut entries = self.lock();
        entries.enter(&entry, None);
        entries.unsent.insert(entry.clone(), true);
        drop(entries);
        self.0.changed.notify_one();
        PresenceGuard { presence: self.clone(), entry }
    }

    /// Returns the clients of a channel on all processes, in the format of the Centrifuge protocol.
    pub fn of(&self, channel: &str) -> Value {
        let entries = self.lock();
        let clients = entries.channels.get(channel).into_iter().flatten();
        let info = |(client, (user, _)): (&Arc<str>, &(Arc<str>, _))| {
            (client.to_string(), json!({"client": client, "user": user}))
        };
        json!(clients.map(info).collect::<BTreeMap<_, _>>())
    }

    /// Returns the number of clients and the number of users of a channel.
    pub fn count(&self, channel: &str) -> (usize, usize) {
        let entries = self.lock();
        let Some(clients) = entries.channels.get(channel) else { return (0, 0) };
        let users: std::collections::HashSet<_> = clients.values().map(|(user, _)| user).collect();
        (clients.len(), users.len())
    }

    /// Exchanges clients with the other processes, and publishes `join` and `leave`, until the process stops.
    pub async fn run(self, store: Store, hub: Hub, stop: CancellationToken) {
        let mut gossip = store.listen(TOPIC).await;
        let mut send_at = Instant::now();
        store.broadcast(TOPIC, self.encode(PresenceGossip { asks: true, ..PresenceGossip::default() })).await;
        loop {
            tokio::select! {
                Some(message) = gossip.next() => {
                    // Reads all waiting messages, because other processes may send more often than this loop runs.
                    let mut next = Some(message);
                    while let Some(message) = next {
                        if let Ok(message) = serde_json::from_slice::<PresenceGossip>(&message) && message.process != self.0.process {
                            send_at = if message.asks { Instant::now() } else { send_at };
                            self.receive(message);
                        }
                        next = gossip.next().now_or_never().flatten();
                    }
                }
                () = self.0.changed.notified() => {}
                () = tokio::time::sleep(CHECK_EVERY) => {}
                () = stop.cancelled() => break,
            }
            for message in self.unsent(&mut send_at) {
                store.broadcast(TOPIC, self.encode(message)).await;
            }
            for (channel, event, user) in self.changes() {
                hub.publish_ephemeral(&channel, event, json!({"client": "", "user": user}).to_string(), true);
            }
            // Clients may subscribe in bursts; one iteration handles a burst.
            tokio::time::sleep(PAUSE).await;
        }
        for message in self.goodbye() {
            store.broadcast(TOPIC, self.encode(message)).await;
        }
    }

    fn receive(&self, gossip: PresenceGossip) {
        let until = Some(Instant::now() + SILENCE);
        let mut entries = self.lock();
        gossip.here.iter().for_each(|entry| entries.enter(entry, until));
        gossip.left.iter().for_each(|entry| entries.leave(entry));
    }

    /// Returns the messages to send now: the unsent changes, and at `send_at` all clients of this process.
    fn unsent(&self, send_at: &mut Instant) -> Vec<PresenceGossip> {
        let mut entries = self.lock();
        let mut gossip = PresenceGossip::default();
        for (entry, is_here) in std::mem::take(&mut entries.unsent) {
            if is_here { &mut gossip.here } else { &mut gossip.left }.push(entry);
        }
        if Instant::now() >= *send_at {
            *send_at = Instant::now() + GOSSIP_EVERY;
            gossip.here = entries.own();
        }
        split_message(gossip)
    }

    /// Returns messages that say that all clients of this process have left.
    fn goodbye(&self) -> Vec<PresenceGossip> {
        split_message(PresenceGossip { left: self.lock().own(), ..PresenceGossip::default() })
    }

    fn encode(&self, gossip: PresenceGossip) -> Vec<u8> {
        // Strings always serialize.
        serde_json::to_vec(&PresenceGossip { process: self.0.process, ..gossip }).unwrap_or_default()
    }

    /// Returns the joins and leaves since the last call, per user rather than per client. A user leaves after the
    /// grace time without a client.
    fn changes(&self) -> Vec<(Arc<str>, &'static str, Arc<str>)> {
        let now = Instant::now();
        let mut guard = self.lock();
        let Entries { channels, shown, .. } = &mut *guard;
        channels.retain(|_, clients| {
            clients.retain(|_, (_, until)| until.is_none_or(|until| until > now));
            !clients.is_empty()
        });
        let mut changes = Vec::new();
        for (channel, clients) in &*channels {
            let shown = shown.entry(channel.clone()).or_default();
            for (user, _) in clients.values() {
                if shown.insert(user.clone(), None).is_none() {
                    changes.push((channel.clone(), "join", user.clone()));
                }
            }
        }
        shown.retain(|channel, users| {
            let clients = channels.get(channel);
            users.retain(|user, gone| {
                let here = clients.is_some_and(|clients| clients.values().any(|(present, _)| present == user));
                let since = *gone.get_or_insert(now);
                match (here, now - since >= self.0.grace) {
                    (true, _) => *gone = None,
                    (false, false) => {}
                    (false, true) => changes.push((channel.clone(), "leave", user.clone())),
                }
                here || now - since < self.0.grace
            });
            !users.is_empty()
        });
        changes
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn split_message(gossip: PresenceGossip) -> Vec<PresenceGossip> {
    let mut parts: Vec<_> = gossip
        .here
        .chunks(ENTRIES_PER_MESSAGE_MAX)
        .map(|here| PresenceGossip { here: here.to_vec(), ..PresenceGossip::default() })
        .collect();
    parts.extend(
        gossip
            .left
            .chunks(ENTRIES_PER_MESSAGE_MAX)
            .map(|left| PresenceGossip { left: left.to_vec(), ..PresenceGossip::default() }),
    );
    parts
}

impl Entries {
    fn enter(&mut self, entry: &PresenceEntry, until: Option<Instant>) {
        let clients = self.channels.entry(entry.channel.clone()).or_default();
        clients.insert(entry.client.clone(), (entry.user.clone(), until));
    }

    fn leave(&mut self, entry: &PresenceEntry) {
        if let Some(clients) = self.channels.get_mut(&entry.channel) {
            clients.remove(&entry.client);
            if clients.is_empty() {
                self.channels.remove(&entry.channel);
            }
        }
    }

    /// Returns the clients of this process.
    fn own(&self) -> Vec<PresenceEntry> {
        let entries =
            self.channels.iter().flat_map(|(channel, clients)| clients.iter().map(move |entry| (channel, entry)));
        entries
            .filter(|(_, (_, (_, until)))| until.is_none())
            .map(|(channel, (client, (user, _)))| PresenceEntry {
                channel: channel.clone(),
                client: client.clone(),
                user: user.clone(),
            })
            .collect()
    }
}

impl Drop for PresenceGuard {
    fn drop(&mut self) {
        let mut entries = self.presence.lock();
        entries.leave(&self.entry);
        entries.unsent.insert(self.entry.clone(), false);
        drop(entries);
        self.presence.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(15);

    fn users(changes: Vec<(Arc<str>, &'static str, Arc<str>)>) -> Vec<String> {
        changes.iter().map(|(channel, what, user)| format!("{channel} {what} {user}")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_joins_with_the_first_client_and_leaves_after_the_last_one() {
        let presence = Presence::new(GRACE);
        let (channel, client): (Arc<str>, _) = ("counter:a".into(), |name: &str| Arc::<str>::from(name));
        let one = presence.enter(&channel, &client("1"), "ada");
        let two = presence.enter(&channel, &client("2"), "ada");
        assert_eq!(users(presence.changes()), ["counter:a join ada"]);
        assert_eq!(presence.count("counter:a"), (2, 1));
        drop((one, two));
        assert_eq!(users(presence.changes()), Vec::<String>::new());
        tokio::time::advance(GRACE / 2).await;
        let back = presence.enter(&channel, &client("3"), "ada");
        assert_eq!(users(presence.changes()), Vec::<String>::new());
        drop(back);
        assert_eq!(users(presence.changes()), Vec::<String>::new());
        tokio::time::advance(GRACE).await;
        assert_eq!(users(presence.changes()), ["counter:a leave ada"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_change_of_a_client_wins() {
        let (here, there) = (Presence::new(GRACE), Presence::new(GRACE));
        let (channel, client): (Arc<str>, Arc<str>) = ("counter:a".into(), "9".into());
        let mut at = Instant::now() + GOSSIP_EVERY;
        let mut bob = there.enter(&channel, &client, "bob");
        for _ in 0..2 {
            drop(bob);
            bob = there.enter(&channel, &client, "bob");
        }
        there.unsent(&mut at).into_iter().for_each(|gossip| here.receive(gossip));
        assert_eq!(here.count("counter:a"), (1, 1));
        drop(there.enter(&channel, &"10".into(), "eve"));
        drop(bob);
        there.unsent(&mut at).into_iter().for_each(|gossip| here.receive(gossip));
        assert_eq!(here.count("counter:a"), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn clients_of_a_silent_process_are_removed() {
        let (here, there) = (Presence::new(GRACE), Presence::new(GRACE));
        let _bob = there.enter(&"counter:a".into(), &"9".into(), "bob");
        let mut at = Instant::now();
        there.unsent(&mut at).into_iter().for_each(|gossip| here.receive(gossip));
        assert_eq!(users(here.changes()), ["counter:a join bob"]);
        assert_eq!(here.of("counter:a")["9"]["user"], "bob");
        tokio::time::advance(SILENCE).await;
        assert_eq!(users(here.changes()), Vec::<String>::new());
        assert_eq!(here.count("counter:a"), (0, 0));
        tokio::time::advance(GRACE).await;
        assert_eq!(users(here.changes()), ["counter:a leave bob"]);
    }
}
