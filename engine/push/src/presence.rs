//! Who looks at an order. Every process knows its own clients and tells the others, over NATS where there are others;
//! what was not heard again is forgotten. Nothing of it is kept anywhere.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use crate::api::QueryApi;

/// The message between processes.
const TOPIC: &str = "presence";
/// How often a process tells of its clients.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// After which silence the clients of another process are no longer there.
const SILENCE: Duration = Duration::from_secs(12);
/// How long somebody is still shown, who may come back.
const GRACE: Duration = Duration::from_secs(15);
/// How often it is looked who has gone.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Between two looks.
const REST: Duration = Duration::from_millis(50);
/// Clients in one message.
const TOLD_AT_ONCE: usize = 2_000;

/// A client of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Seat {
    channel: Arc<str>,
    client: Arc<str>,
    user: Arc<str>,
}

/// What a process tells.
#[derive(Default, Serialize, Deserialize)]
struct Told {
    process: Uuid,
    /// Its clients, or those that just came.
    here: Vec<Seat>,
    /// Those that just left.
    left: Vec<Seat>,
    /// A process that just started asks the others for theirs.
    asks: bool,
}

/// Who is where; cheap to clone.
#[derive(Clone)]
pub struct Presence(Arc<Inner>);

struct Inner {
    process: Uuid,
    seats: Mutex<Seats>,
    /// Somebody came or left.
    moved: Notify,
}

/// The user of each client; of another process's client, until when it is believed to be there.
type Clients = HashMap<Arc<str>, (Arc<str>, Option<Instant>)>;

#[derive(Default)]
struct Seats {
    channels: HashMap<Arc<str>, Clients>,
    /// What the other processes have not been told: of each client of a channel, whether it is there.
    untold: HashMap<Seat, bool>,
    /// The users that are shown, and since when they are gone.
    shown: HashMap<Arc<str>, HashMap<Arc<str>, Option<Instant>>>,
}

/// A client's place on a channel; leaves it when dropped.
pub struct Present {
    presence: Presence,
    seat: Seat,
}

impl Default for Presence {
    fn default() -> Self {
        Self(Arc::new(Inner { process: Uuid::new_v4(), seats: Mutex::default(), moved: Notify::new() }))
    }
}

impl Presence {
    /// A client of a user comes to a channel.
    pub fn enter(&self, channel: &Arc<str>, client: &Arc<str>, user: &str) -> Present {
        let seat = Seat { channel: channel.clone(), client: client.clone(), user: user.into() };
        let mut seats = self.lock();
        seats.take(&seat, None);
        seats.untold.insert(seat.clone(), true);
        drop(seats);
        self.0.moved.notify_one();
        Present { presence: self.clone(), seat }
    }

    /// The clients of a channel, on all processes, as the Centrifuge protocol has them.
    pub fn of(&self, channel: &str) -> Value {
        let seats = self.lock();
        let clients = seats.channels.get(channel).into_iter().flatten();
        let info = |(client, (user, _)): (&Arc<str>, &(Arc<str>, _))| {
            (client.to_string(), json!({"client": client, "user": user}))
        };
        json!(clients.map(info).collect::<BTreeMap<_, _>>())
    }

    /// The numbers of a channel's clients and users.
    pub fn count(&self, channel: &str) -> (usize, usize) {
        let seats = self.lock();
        let Some(clients) = seats.channels.get(channel) else { return (0, 0) };
        let users: std::collections::HashSet<_> = clients.values().map(|(user, _)| user).collect();
        (clients.len(), users.len())
    }

    /// Tells the other processes and listens to them, and shows who comes and goes, until the process stops.
    pub async fn run(state: QueryApi) {
        let this = state.presence.clone();
        let mut told = state.store.told(TOPIC).await;
        let mut tell_at = Instant::now();
        state.store.tell(TOPIC, this.encode(Told { asks: true, ..Told::default() })).await;
        loop {
            tokio::select! {
                Some(message) = told.next() => {
                    // All that have come: others may tell more often than this looks.
                    let mut next = Some(message);
                    while let Some(message) = next {
                        if let Ok(message) = serde_json::from_slice::<Told>(&message) && message.process != this.0.process {
                            tell_at = if message.asks { Instant::now() } else { tell_at };
                            this.hear(message);
                        }
                        next = told.next().now_or_never().flatten();
                    }
                }
                () = this.0.moved.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = state.stop.cancelled() => break,
            }
            for message in this.untold(&mut tell_at) {
                state.store.tell(TOPIC, this.encode(message)).await;
            }
            for (channel, event, user) in this.changes() {
                state.hub.pass(&channel, event, json!({"client": "", "user": user}).to_string(), true);
            }
            // Many may come at once; one look is enough for them.
            tokio::time::sleep(REST).await;
        }
        for message in this.goodbye() {
            state.store.tell(TOPIC, this.encode(message)).await;
        }
    }

    fn hear(&self, told: Told) {
        let until = Some(Instant::now() + SILENCE);
        let mut seats = self.lock();
        told.here.iter().for_each(|seat| seats.take(seat, until));
        told.left.iter().for_each(|seat| seats.leave(seat));
    }

    /// What the others have to be told now: what changed, and, every few seconds, all.
    fn untold(&self, tell_at: &mut Instant) -> Vec<Told> {
        let mut seats = self.lock();
        let mut told = Told::default();
        for (seat, is_here) in std::mem::take(&mut seats.untold) {
            if is_here { &mut told.here } else { &mut told.left }.push(seat);
        }
        if Instant::now() >= *tell_at {
            *tell_at = Instant::now() + TELL_EVERY;
            told.here = seats.own();
        }
        in_parts(told)
    }

    /// That all clients of this process leave.
    fn goodbye(&self) -> Vec<Told> {
        in_parts(Told { left: self.lock().own(), ..Told::default() })
    }

    fn encode(&self, told: Told) -> Vec<u8> {
        // Texts always serialize.
        serde_json::to_vec(&Told { process: self.0.process, ..told }).unwrap_or_default()
    }

    /// Who came and who left since the last look: users, not clients, and only those who stay away.
    fn changes(&self) -> Vec<(Arc<str>, &'static str, Arc<str>)> {
        let now = Instant::now();
        let mut guard = self.lock();
        let Seats { channels, shown, .. } = &mut *guard;
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
                match (here, now - since >= GRACE) {
                    (true, _) => *gone = None,
                    (false, false) => {}
                    (false, true) => changes.push((channel.clone(), "leave", user.clone())),
                }
                here || now - since < GRACE
            });
            !users.is_empty()
        });
        changes
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.0.seats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn in_parts(told: Told) -> Vec<Told> {
    let mut parts: Vec<_> =
        told.here.chunks(TOLD_AT_ONCE).map(|here| Told { here: here.to_vec(), ..Told::default() }).collect();
    parts.extend(told.left.chunks(TOLD_AT_ONCE).map(|left| Told { left: left.to_vec(), ..Told::default() }));
    parts
}

impl Seats {
    fn take(&mut self, seat: &Seat, until: Option<Instant>) {
        let clients = self.channels.entry(seat.channel.clone()).or_default();
        clients.insert(seat.client.clone(), (seat.user.clone(), until));
    }

    fn leave(&mut self, seat: &Seat) {
        if let Some(clients) = self.channels.get_mut(&seat.channel) {
            clients.remove(&seat.client);
            if clients.is_empty() {
                self.channels.remove(&seat.channel);
            }
        }
    }

    /// The clients of this process.
    fn own(&self) -> Vec<Seat> {
        let seats = self.channels.iter().flat_map(|(channel, clients)| clients.iter().map(move |seat| (channel, seat)));
        seats
            .filter(|(_, (_, (_, until)))| until.is_none())
            .map(|(channel, (client, (user, _)))| Seat {
                channel: channel.clone(),
                client: client.clone(),
                user: user.clone(),
            })
            .collect()
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut seats = self.presence.lock();
        seats.leave(&self.seat);
        seats.untold.insert(self.seat.clone(), false);
        drop(seats);
        self.presence.0.moved.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(changes: Vec<(Arc<str>, &'static str, Arc<str>)>) -> Vec<String> {
        changes.iter().map(|(channel, what, user)| format!("{channel} {what} {user}")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_joins_with_the_first_client_and_leaves_after_the_last_one() {
        let presence = Presence::default();
        let (channel, client): (Arc<str>, _) = ("order:a".into(), |name: &str| Arc::<str>::from(name));
        let one = presence.enter(&channel, &client("1"), "ada");
        let two = presence.enter(&channel, &client("2"), "ada");
        assert_eq!(users(presence.changes()), ["order:a join ada"]);
        assert_eq!(presence.count("order:a"), (2, 1));
        drop((one, two));
        assert_eq!(users(presence.changes()), Vec::<String>::new());
        tokio::time::advance(GRACE / 2).await;
        let back = presence.enter(&channel, &client("3"), "ada");
        assert_eq!(users(presence.changes()), Vec::<String>::new());
        drop(back);
        assert_eq!(users(presence.changes()), Vec::<String>::new());
        tokio::time::advance(GRACE).await;
        assert_eq!(users(presence.changes()), ["order:a leave ada"]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_and_goes_at_once_is_where_they_were_last() {
        let (here, there) = (Presence::default(), Presence::default());
        let (channel, client): (Arc<str>, Arc<str>) = ("order:a".into(), "9".into());
        let mut at = Instant::now() + TELL_EVERY;
        let mut bob = there.enter(&channel, &client, "bob");
        for _ in 0..2 {
            drop(bob);
            bob = there.enter(&channel, &client, "bob");
        }
        there.untold(&mut at).into_iter().for_each(|told| here.hear(told));
        assert_eq!(here.count("order:a"), (1, 1));
        drop(there.enter(&channel, &"10".into(), "eve"));
        drop(bob);
        there.untold(&mut at).into_iter().for_each(|told| here.hear(told));
        assert_eq!(here.count("order:a"), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn clients_of_a_silent_process_are_forgotten() {
        let (here, there) = (Presence::default(), Presence::default());
        let _bob = there.enter(&"order:a".into(), &"9".into(), "bob");
        let mut at = Instant::now();
        there.untold(&mut at).into_iter().for_each(|told| here.hear(told));
        assert_eq!(users(here.changes()), ["order:a join bob"]);
        assert_eq!(here.of("order:a")["9"]["user"], "bob");
        tokio::time::advance(SILENCE).await;
        assert_eq!(users(here.changes()), Vec::<String>::new());
        assert_eq!(here.count("order:a"), (0, 0));
        tokio::time::advance(GRACE).await;
        assert_eq!(users(here.changes()), ["order:a leave bob"]);
    }
}
