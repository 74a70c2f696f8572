//! What contexts give to live updates, their channels, and what those and the queries work with: [`QueryApi`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::extract::FromRef;
use event_store::db::Tx;
use event_store::error::Error;
use event_store::store::Store;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::stream::StreamId;
use platform::auth::{Authenticator, Principal};
use projection_engine::progress::Progress;
use projection_engine::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::connections::Connections;
use crate::cursor::OldKind;
use crate::hub::{Hub, Kind};
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::publication::Group;
use crate::publisher::AnyPublisher;
use crate::quota::ReplayQuota;
use crate::settings::Settings;

/// Why there is no subscription.
#[derive(Debug)]
pub enum Refused {
    /// Not allowed, or not there: the same answer.
    Denied,
    /// No channel has such a name.
    Unknown,
    /// The read model of the channel is behind the live changes: it is being rebuilt.
    Behind,
    /// The first answers of one request's channels are more than is held for a client that may not read it.
    TooMuch,
    /// The database does not answer.
    Unavailable(Error),
    /// The code of the channel's context failed.
    Panicked,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Unavailable(error)
    }
}

/// What those who may not listen to a channel are answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refusal {
    /// That there is no such channel: whether it exists is nobody's business.
    NotFound,
    /// That it is for staff.
    Staff,
    /// That it is for admins.
    Admin,
}

/// A snapshot: `view` or `items`, and its JSON text. It may be large, so it is not taken apart.
pub type Shown = (&'static str, String);

/// A stream that changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangedStream {
    /// The stream.
    pub stream: StreamId,
    /// How many events it has: all of them are folded. 0 where that is not known.
    pub events: i64,
}

/// Whether a caller may listen to the channel with an id.
pub type Allows = for<'a> fn(&'a QueryApi, &'a Principal, &'a str) -> BoxFuture<'a, Result<bool, Refused>>;
/// What the channel with an id shows, in one state of the database.
pub type TakeSnapshot = for<'a> fn(&'a QueryApi, &'a mut Tx, &'a str) -> BoxFuture<'a, Result<Shown, Error>>;
/// The streams with changes on the channel with an id, after one position up to another; `None` where those are too many
/// to be looked for.
pub type FindChanged =
    for<'a> fn(&'a QueryApi, &'a str, i64, i64) -> BoxFuture<'a, Result<Option<Vec<ChangedStream>>, Error>>;

/// A channel, or all channels with a prefix. A context fills it in and lists it; nothing else has to know of it.
#[derive(Clone, Copy)]
pub struct Channel {
    /// Its name, or the prefix of its names. The characters are lower-case letters, digits and `_ - :`, the first one a
    /// letter.
    pub name: &'static str,
    /// For a prefix: whether an id can follow it. `None` for a whole name.
    pub is_id: Option<fn(&str) -> bool>,
    /// For the documentation: who may listen.
    pub who: &'static str,
    /// For the documentation: what it shows.
    pub shows: &'static str,
    /// The checkpoint group of its read model, whose feed publishes on it.
    pub group: Group,
    /// The projection of its group that its snapshot is read from; `None` where it shows what is in no log.
    pub projection: Option<&'static str>,
    /// Whether somebody may listen.
    pub allows: Allows,
    /// What those who may not are answered.
    pub refusal: Refusal,
    /// What a subscriber gets first.
    pub snapshot: TakeSnapshot,
    /// How the log tells what a subscriber missed; `None` where the channel shows what is in no log.
    pub missed: Option<FindChanged>,
    /// Names of the events that are published on it; none where all can be. Others are folded only.
    pub event_types: &'static [&'static str],
    /// Whether staff see who listens to it.
    pub has_presence: bool,
}

impl Channel {
    /// As the hub knows it.
    pub fn kind(&self) -> Kind {
        Kind { name: self.name, group: self.group }
    }

    /// Its address in documents: with `id` in place of an id.
    pub fn address(&self, id: &str) -> String {
        format!("{}{}", self.name, if self.is_id.is_some() { id } else { "" })
    }

    /// Whether somebody may listen.
    ///
    /// # Errors
    /// It cannot be known now.
    pub async fn is_allowed(&self, api: &QueryApi, principal: &Principal, id: &str) -> Result<bool, Refused> {
        self.guard("allows", async { (self.allows)(api, principal, id).await }).await
    }

    /// What a subscriber gets first.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn take_snapshot(&self, api: &QueryApi, tx: &mut Tx, id: &str) -> Result<Shown, Refused> {
        self.guard("snapshot", async { Ok((self.snapshot)(api, tx, id).await?) }).await
    }

    /// The streams with changes after one position up to another.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn find_changed(
        &self,
        api: &QueryApi,
        id: &str,
        after: i64,
        until: i64,
    ) -> Result<Option<Vec<ChangedStream>>, Refused> {
        let Some(missed) = self.missed else { return Ok(None) };
        self.guard("missed", async { Ok(missed(api, id, after, until).await?) }).await
    }

    /// A fault of a context is an error of the one request that met it.
    async fn guard<T>(&self, what: &str, work: impl Future<Output = Result<T, Refused>>) -> Result<T, Refused> {
        AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(channel = self.name, what, "a channel panicked");
            Err(Refused::Panicked)
        })
    }
}

/// A list of channels or publishers that cannot work.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct BadList(String);

/// The channels of all contexts: every name belongs to one of them at most. Cheap to clone.
#[derive(Clone)]
pub struct Channels(Arc<[Channel]>);

impl Channels {
    /// # Errors
    /// A name that is not valid, comes twice, or begins with another channel's prefix.
    pub fn new(channels: Vec<Channel>) -> Result<Self, BadList> {
        let is_name = |name: &str| {
            let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-:".contains(&byte);
            name.starts_with(|first: char| first.is_ascii_lowercase()) && name.bytes().all(is_part)
        };
        for (at, channel) in channels.iter().enumerate() {
            if !is_name(channel.name) || !is_name(channel.group) {
                return Err(BadList(format!(
                    "The channel `{}` of group `{}` needs names of lower-case letters, digits and `_ - :` that begin with a letter.",
                    channel.name, channel.group
                )));
            }
            for other in &channels[..at] {
                let covers = |one: &Channel, two: &Channel| match one.is_id {
                    Some(_) => two.name.starts_with(one.name),
                    None => two.name == one.name,
                };
                if covers(channel, other) || covers(other, channel) {
                    return Err(BadList(format!(
                        "The channels `{}` and `{}` cannot be told apart: rename one of them.",
                        other.name, channel.name
                    )));
                }
            }
        }
        Ok(Self(channels.into()))
    }

    /// All of them, in the order of the list.
    pub fn iter(&self) -> std::slice::Iter<'_, Channel> {
        self.0.iter()
    }

    /// The channel with a name, and the id in the name.
    ///
    /// # Errors
    /// No channel has it. Nor has any a name that JSON would escape.
    pub fn find<'a>(&self, name: &'a str) -> Result<(&Channel, &'a str), Refused> {
        for channel in self.iter() {
            match (name.strip_prefix(channel.name), channel.is_id) {
                (Some(id), Some(is_id)) => {
                    let is_plain = !id.contains(|c: char| c.is_control() || c == '"' || c == '\\');
                    return if is_plain && is_id(id) { Ok((channel, id)) } else { Err(Refused::Unknown) };
                }
                (Some(""), None) => return Ok((channel, "")),
                _ => {}
            }
        }
        Err(Refused::Unknown)
    }

    /// The checkpoint groups, each once.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<_> = self.iter().map(|channel| channel.group).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// What the contexts of a program give to live updates.
#[derive(Clone)]
pub struct Lists {
    /// Every channel.
    pub channels: Vec<Channel>,
    /// What is published of each aggregate.
    pub publishers: Vec<&'static dyn AnyPublisher>,
    /// The kinds of channel of the first edition, in the order in which it published on them. Frozen: cursors of then count
    /// them.
    pub old_kinds: &'static [OldKind],
}

impl Lists {
    /// Checks that names are used once, and that channels, publishers and projections fit together.
    ///
    /// # Errors
    /// What cannot work, and the names that it is about.
    pub fn check(&self, registry: &Registry) -> Result<Channels, BadList> {
        let channels = Channels::new(self.channels.clone())?;
        check_publishers(&channels, &self.publishers)?;
        check_channels(&channels, &self.publishers)?;
        check_projections(&channels, registry)?;
        Ok(channels)
    }
}

/// What queries and live updates work with. Cheap to clone.
#[derive(Clone)]
pub struct QueryApi {
    /// The log and the read models' database.
    pub store: Store,
    /// How far the read models have come.
    pub progress: Progress,
    /// Checks tokens.
    pub authenticator: Authenticator,
    /// What operators set.
    pub settings: Settings,
    /// The channels of all contexts.
    pub channels: Channels,
    /// What contexts publish of their aggregates.
    pub publishers: Arc<[&'static dyn AnyPublisher]>,
    /// The kinds of channel that cursors of the first edition count.
    pub old_kinds: &'static [OldKind],
    /// Who listens to which channel.
    pub hub: Hub,
    /// The open connections.
    pub connections: Connections,
    /// How much of the past customers may still ask for.
    pub quota: ReplayQuota,
    /// Who looks at what.
    pub presence: Presence,
    /// When it is cancelled, the process stops.
    pub stop: CancellationToken,
}

impl QueryApi {
    /// The query API of a process, with nobody listening yet.
    ///
    /// # Errors
    /// The lists of channels and publishers do not fit together.
    pub fn new(
        store: Store,
        progress: Progress,
        authenticator: Authenticator,
        settings: Settings,
        lists: Lists,
        stop: CancellationToken,
    ) -> Result<Self, BadList> {
        let channels = lists.check(progress.registry())?;
        let Lists { publishers, old_kinds, .. } = lists;
        let connections =
            Connections::new(settings.push_connections_per_address_max, settings.push_connections_per_customer_max);
        Metrics::begin();
        Ok(Self {
            store,
            progress,
            authenticator,
            settings,
            channels,
            publishers: publishers.into(),
            old_kinds,
            hub: Hub::default(),
            connections,
            quota: ReplayQuota::default(),
            presence: Presence::default(),
            stop,
        })
    }

    /// The publisher of an aggregate in a group.
    pub fn publisher(&self, aggregate_type: &str, group: Group) -> Option<&'static dyn AnyPublisher> {
        let is_it =
            |publisher: &&&dyn AnyPublisher| (publisher.aggregate_type(), publisher.group()) == (aggregate_type, group);
        self.publishers.iter().find(is_it).copied()
    }
}

/// Makes sure that each aggregate has one publisher in a group, which names channels of that group only.
fn check_publishers(channels: &Channels, publishers: &[&'static dyn AnyPublisher]) -> Result<(), BadList> {
    for (at, publisher) in publishers.iter().enumerate() {
        let (aggregate_type, group) = (publisher.aggregate_type(), publisher.group());
        if publishers[..at].iter().any(|other| (other.aggregate_type(), other.group()) == (aggregate_type, group)) {
            return Err(BadList(format!("The aggregate `{aggregate_type}` has two publishers in group `{group}`.")));
        }
        let interest = publisher.interest();
        for name in interest.names.iter().chain(interest.by_stream).chain(interest.by_prefix) {
            if !channels.iter().any(|channel| channel.kind() == Kind { name, group }) {
                return Err(BadList(format!(
                    "The publisher of `{aggregate_type}` names `{name}`, which is no channel of group `{group}`."
                )));
            }
        }
    }
    Ok(())
}

/// Makes sure that somebody publishes on each channel that promises what was missed.
fn check_channels(channels: &Channels, publishers: &[&'static dyn AnyPublisher]) -> Result<(), BadList> {
    for channel in channels.iter().filter(|channel| channel.missed.is_some()) {
        let kind = channel.kind();
        let publishes = |publisher: &&dyn AnyPublisher| {
            let interest = publisher.interest();
            let mut names = interest.names.iter().chain(interest.by_stream).chain(interest.by_prefix);
            publisher.group() == kind.group && names.any(|name| *name == kind.name)
        };
        if !publishers.iter().any(publishes) {
            return Err(BadList(format!(
                "Nothing is ever published on the channel `{}`: name it in the interest of a publisher of group `{}`.",
                kind.name, kind.group
            )));
        }
    }
    Ok(())
}

/// Makes sure that each channel's snapshot is read from a projection of its group.
fn check_projections(channels: &Channels, registry: &Registry) -> Result<(), BadList> {
    let shown = |channel: &Channel| Some((channel.name, channel.projection?, channel.group));
    for (name, projection, group) in channels.iter().filter_map(shown) {
        if registry.find(projection).is_none_or(|(of, _)| of.name != group) {
            return Err(BadList(format!(
                "The channel `{name}` shows the projection `{projection}`, which is not in group `{group}`."
            )));
        }
    }
    Ok(())
}

impl FromRef<QueryApi> for Authenticator {
    fn from_ref(api: &QueryApi) -> Self {
        api.authenticator.clone()
    }
}

#[cfg(test)]
mod tests {
    use kernel::stream::is_id;

    use super::*;
    use crate::testing::{ALL, ONE, OTHER, OWNED, PUBLISHER};

    fn channel(kind: Kind, is_prefix: bool) -> Channel {
        Channel {
            name: kind.name,
            is_id: is_prefix.then_some(is_id as fn(&str) -> bool),
            who: "anybody",
            shows: "counters",
            group: kind.group,
            projection: None,
            allows: |_, _, _| std::future::ready(Ok(true)).boxed(),
            refusal: Refusal::NotFound,
            snapshot: |_, _, _| std::future::ready(Ok(("view", "null".to_owned()))).boxed(),
            missed: None,
            event_types: &[],
            has_presence: false,
        }
    }

    fn named(name: &'static str, is_prefix: bool) -> Channel {
        channel(Kind { name, ..ALL }, is_prefix)
    }

    fn error(channels: Vec<Channel>) -> String {
        Channels::new(channels).map(|_| ()).expect_err("it is refused").to_string()
    }

    #[test]
    fn a_name_belongs_to_one_channel() {
        for (one, two) in [
            (("counter:", true), ("counter:", true)),
            (("counter:", true), ("counter:special:", true)),
            (("counter:special", false), ("counter:", true)),
            (("counters", false), ("counters", false)),
        ] {
            let text = error(vec![named(one.0, one.1), named(two.0, two.1)]);
            assert!(text.contains("cannot be told apart") && text.contains(one.0) && text.contains(two.0), "{text}");
        }
        Channels::new(vec![named("counters", false), named("counters:all", false), named("counter:", true)]).unwrap();
        for name in ["", "7", "Counters", "a b", "a\"", "-a"] {
            assert!(error(vec![named(name, false)]).contains("begin with a letter"), "{name}");
        }
    }

    #[test]
    fn a_name_is_found_with_its_id() {
        let channels = Channels::new(vec![named("counter:", true), named("counters", false)]).unwrap();
        let found = |name| channels.find(name).map(|(channel, id)| (channel.name, id)).ok();
        assert_eq!(found("counter:o-1"), Some(("counter:", "o-1")));
        assert_eq!(found("counters"), Some(("counters", "")));
        for name in ["counter:", "counter:a b", "counters2", "count", "", "counter:\u{e9}"] {
            assert_eq!(found(name), None, "{name}");
        }
        let free = Channels::new(vec![Channel { is_id: Some(|_| true), ..named("counter:", true) }]).unwrap();
        assert!(free.find("counter:caf\u{e9}").is_ok() && free.find("counter:\"").is_err(), "JSON would escape it");
    }

    #[tokio::test]
    async fn a_panic_of_a_channel_is_an_error_of_the_one_who_asked() {
        let channel = named("counters", false);
        let outcome = channel.guard("allows", async { panic!("a fault") }).await;
        assert!(matches!(outcome, Err::<bool, _>(Refused::Panicked)));
        assert!(matches!(channel.guard("allows", async { Ok(true) }).await, Ok(true)));
    }

    #[test]
    fn publishers_name_channels_of_their_group() {
        let all = vec![channel(ALL, false), channel(ONE, true), channel(OWNED, true), channel(OTHER, false)];
        let check = |channels: &[Channel], publishers: &[&'static dyn AnyPublisher]| {
            check_publishers(&Channels::new(channels.to_vec()).unwrap(), publishers).map_err(|error| error.to_string())
        };
        assert_eq!(check(&all, &[&PUBLISHER]), Ok(()));
        assert!(check(&all, &[&PUBLISHER, &PUBLISHER]).unwrap_err().contains("two publishers"));
        assert!(check(&all[..2], &[&PUBLISHER]).unwrap_err().contains("`owner:`"));
    }
}
