//! The interface between contexts and live updates: the [`Channel`]s that contexts define, and the [`QueryApi`] that
//! channels and queries use.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

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
use crate::cursor::V1Kind;
use crate::hub::{Hub, Kind};
use crate::metrics::Metrics;
use crate::presence::Presence;
use crate::publication::Group;
use crate::publisher::AnyPublisher;
use crate::quota::ReplayQuota;
use crate::settings::Settings;

/// Why a subscription was refused.
#[derive(Debug)]
pub enum SubscribeError {
    /// The caller is not allowed, or the id does not exist. Both have the same answer, so that clients cannot probe
    /// ids.
    Denied,
    /// There is no channel with this name.
    Unknown,
    /// The channel's read model is behind the live changes, for example during a rebuild.
    Behind,
    /// The initial data of one request's channels exceeds the limit.
    TooMuch,
    /// The database does not answer.
    Unavailable(Error),
    /// The code of the channel's context panicked.
    Panicked,
}

impl From<Error> for SubscribeError {
    fn from(error: Error) -> Self {
        Self::Unavailable(error)
    }
}

/// The answer to callers that are not allowed to subscribe to a channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DeniedAnswer {
    /// 404, so that the caller does not learn whether the id exists.
    NotFound,
    /// 403: the channel is for staff.
    Staff,
    /// 403: the channel is for admins.
    Admin,
}

/// A snapshot: the name of its member, `view` or `items`, and the member's JSON text. The text may be large, so it is
/// passed on without being parsed.
pub type SnapshotMember = (&'static str, String);

/// A stream that changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangedStream {
    /// The stream.
    pub stream: StreamId,
    /// Number of the stream's events, all of which must be folded; 0 if unknown.
    pub events: i64,
}

/// Function that decides whether the caller may subscribe to the channel with this id.
pub type Allows = for<'a> fn(&'a QueryApi, &'a Principal, &'a str) -> BoxFuture<'a, Result<bool, SubscribeError>>;
/// Function that reads the snapshot of the channel with this id, in the given transaction.
pub type TakeSnapshot = for<'a> fn(&'a QueryApi, &'a mut Tx, &'a str) -> BoxFuture<'a, Result<SnapshotMember, Error>>;
/// Function that returns the streams with changes on the channel with this id, after the first position up to the
/// second one. Returns `None` if there are too many to search for.
pub type FindChanged =
    for<'a> fn(&'a QueryApi, &'a str, i64, i64) -> BoxFuture<'a, Result<Option<Vec<ChangedStream>>, Error>>;

/// Definition of a channel, or of all channels with a prefix. A context defines it and lists it in its module.
#[derive(Clone, Copy)]
pub struct Channel {
    /// Name of the channel, or prefix of the channels' names. It consists of lower-case letters, digits and `_ - :`,
    /// and begins with a letter.
    pub name: &'static str,
    /// For a prefix: whether a text is a valid id after it. `None` if `name` is a full name.
    pub is_id: Option<fn(&str) -> bool>,
    /// Who may subscribe; for the documentation.
    pub who: &'static str,
    /// Content of the channel; for the documentation.
    pub shows: &'static str,
    /// Checkpoint group of the channel's read model. The feed of this group publishes on the channel.
    pub group: Group,
    /// Projection of the group from which the snapshot is read; `None` if the channel is not in the log.
    pub projection: Option<&'static str>,
    /// Decides whether a caller may subscribe.
    pub allows: Allows,
    /// Answer to callers that are not allowed.
    pub denied_answer: DeniedAnswer,
    /// Reads the snapshot that a new subscriber receives first.
    pub snapshot: TakeSnapshot,
    /// Finds the streams with changes that a subscriber missed; `None` if the changes of the channel are not in the
    /// log.
    pub missed: Option<FindChanged>,
    /// Names of the events that are published on the channel; empty means all events. A replay folds other events
    /// without publishing them.
    pub event_types: &'static [&'static str],
    /// Whether staff can see who is subscribed to the channel.
    pub has_presence: bool,
}

impl Channel {
    /// Returns the channel's kind, which the hub uses.
    pub fn kind(&self) -> Kind {
        Kind { name: self.name, group: self.group }
    }

    /// Returns the channel's address for documents, with `id` as a placeholder.
    pub fn address(&self, id: &str) -> String {
        format!("{}{}", self.name, if self.is_id.is_some() { id } else { "" })
    }

    /// Decides whether a caller may subscribe to the channel with an id.
    ///
    /// # Errors
    /// The database does not answer, the read model is behind, or the context's code panics.
    pub async fn is_allowed(&self, api: &QueryApi, principal: &Principal, id: &str) -> Result<bool, SubscribeError> {
        self.guard("allows", async { (self.allows)(api, principal, id).await }).await
    }

    /// Reads the snapshot of the channel with an id.
    ///
    /// # Errors
    /// The database does not answer, or the context's code panics.
    pub async fn take_snapshot(&self, api: &QueryApi, tx: &mut Tx, id: &str) -> Result<SnapshotMember, SubscribeError> {
        self.guard("snapshot", async { Ok((self.snapshot)(api, tx, id).await?) }).await
    }

    /// Returns the streams with changes on the channel with an id, after position `after` up to position `until`.
    /// Returns `None` if there are too many, or the channel is not in the log.
    ///
    /// # Errors
    /// The database does not answer, or the context's code panics.
    pub async fn find_changed(
        &self,
        api: &QueryApi,
        id: &str,
        after: i64,
        until: i64,
    ) -> Result<Option<Vec<ChangedStream>>, SubscribeError> {
        let Some(missed) = self.missed else { return Ok(None) };
        self.guard("missed", async { Ok(missed(api, id, after, until).await?) }).await
    }

    /// Runs a context's function. A panic in it becomes an error of this one request.
    async fn guard<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, SubscribeError>>,
    ) -> Result<T, SubscribeError> {
        AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(channel = self.name, what, "A function of a channel panicked. Its context has a fault.");
            Err(SubscribeError::Panicked)
        })
    }
}

/// An invalid list of channels or publishers; the text says what to correct.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidDefinitions(String);

/// The channels of all contexts. A name matches at most one of them. Cheap to clone.
#[derive(Clone)]
pub struct Channels(Arc<[Channel]>);

impl Channels {
    /// Checks the names of some channels.
    ///
    /// # Errors
    /// A name that is invalid, is used twice, or begins with another channel's prefix.
    pub fn new(channels: Vec<Channel>) -> Result<Self, InvalidDefinitions> {
        let is_name = |name: &str| {
            let is_part = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-:".contains(&byte);
            name.starts_with(|first: char| first.is_ascii_lowercase()) && name.bytes().all(is_part)
        };
        for (at, channel) in channels.iter().enumerate() {
            if !is_name(channel.name) || !is_name(channel.group) {
                return Err(InvalidDefinitions(format!(
                    "The name of the channel `{}` or of its group `{}` is invalid: both must consist of lower-case letters, digits and `_ - :`, and begin with a letter.",
                    channel.name, channel.group
                )));
            }
            for other in &channels[..at] {
                let covers = |one: &Channel, two: &Channel| match one.is_id {
                    Some(_) => two.name.starts_with(one.name),
                    None => two.name == one.name,
                };
                if covers(channel, other) || covers(other, channel) {
                    return Err(InvalidDefinitions(format!(
                        "The names of the channels `{}` and `{}` are ambiguous: one equals or begins with the other. Rename one of them.",
                        other.name, channel.name
                    )));
                }
            }
        }
        Ok(Self(channels.into()))
    }

    /// Returns all channels, in the order of the list.
    pub fn iter(&self) -> std::slice::Iter<'_, Channel> {
        self.0.iter()
    }

    /// Finds the channel with a name. Returns its definition and the id in the name; the id is empty for a full name.
    ///
    /// # Errors
    /// [`SubscribeError::Unknown`] if no channel has the name, or the id is not valid or has control characters.
    pub fn find<'a>(&self, name: &'a str) -> Result<(&Channel, &'a str), SubscribeError> {
        for channel in self.iter() {
            match (name.strip_prefix(channel.name), channel.is_id) {
                (Some(id), Some(is_id)) => {
                    return if !id.contains(char::is_control) && is_id(id) {
                        Ok((channel, id))
                    } else {
                        Err(SubscribeError::Unknown)
                    };
                }
                (Some(""), None) => return Ok((channel, "")),
                _ => {}
            }
        }
        Err(SubscribeError::Unknown)
    }

    /// Returns the checkpoint groups of all channels, each once.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<_> = self.iter().map(|channel| channel.group).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// The channels and publishers of all contexts of a program.
#[derive(Clone)]
pub struct ContextDefinitions {
    /// All channels.
    pub channels: Vec<Channel>,
    /// All publishers.
    pub publishers: Vec<&'static dyn AnyPublisher>,
    /// The kinds of channel of cursor format 1, in its publishing order. Frozen, because old cursors count in this
    /// order.
    pub cursor_v1_kinds: &'static [V1Kind],
}

impl ContextDefinitions {
    /// Checks that names are unique, and that channels, publishers and projections match.
    ///
    /// # Errors
    /// A sentence that says what is wrong, with the names of the channels, publishers or projections.
    pub fn check(&self, registry: &Registry) -> Result<Channels, InvalidDefinitions> {
        let channels = Channels::new(self.channels.clone())?;
        check_publishers(&channels, &self.publishers)?;
        check_channels(&channels, &self.publishers)?;
        check_projections(&channels, registry)?;
        Ok(channels)
    }
}

/// The shared state of queries and live updates in a process. Cheap to clone.
#[derive(Clone)]
pub struct QueryApi {
    /// The log and the read models' database.
    pub store: Store,
    /// Positions of the read models.
    pub progress: Progress,
    /// Verifies tokens.
    pub authenticator: Authenticator,
    /// Settings of live updates.
    pub settings: Settings,
    /// The channels of all contexts.
    pub channels: Channels,
    /// The publishers of all contexts.
    pub publishers: Arc<[&'static dyn AnyPublisher]>,
    /// The kinds of channel of cursor format 1, in its publishing order.
    pub cursor_v1_kinds: &'static [V1Kind],
    /// Subscribers by channel.
    pub hub: Hub,
    /// The open connections.
    pub connections: Connections,
    /// Replay quotas of customers.
    pub quota: ReplayQuota,
    /// Presence of clients on channels.
    pub presence: Presence,
    /// Cancelled when the process stops.
    pub stop: CancellationToken,
}

impl QueryApi {
    /// Creates the query API of a process, without subscribers.
    ///
    /// # Errors
    /// The lists of channels and publishers are invalid; see [`ContextDefinitions::check`].
    pub fn new(
        store: Store,
        progress: Progress,
        authenticator: Authenticator,
        settings: Settings,
        definitions: ContextDefinitions,
        stop: CancellationToken,
    ) -> Result<Self, InvalidDefinitions> {
        let channels = definitions.check(progress.registry())?;
        let ContextDefinitions { publishers, cursor_v1_kinds, .. } = definitions;
        let presence = Presence::new(Duration::from_secs(settings.push_presence_grace_seconds.into()));
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
            cursor_v1_kinds,
            hub: Hub::default(),
            connections,
            quota: ReplayQuota::default(),
            presence,
            stop,
        })
    }

    /// Returns the publisher of an aggregate type in a group.
    pub fn publisher(&self, aggregate_type: &str, group: Group) -> Option<&'static dyn AnyPublisher> {
        let is_it =
            |publisher: &&&dyn AnyPublisher| (publisher.aggregate_type(), publisher.group()) == (aggregate_type, group);
        self.publishers.iter().find(is_it).copied()
    }
}

/// Checks that each aggregate type has at most one publisher per group, and that publishers name only channels of their
/// group.
fn check_publishers(channels: &Channels, publishers: &[&'static dyn AnyPublisher]) -> Result<(), InvalidDefinitions> {
    for (at, publisher) in publishers.iter().enumerate() {
        let (aggregate_type, group) = (publisher.aggregate_type(), publisher.group());
        if publishers[..at].iter().any(|other| (other.aggregate_type(), other.group()) == (aggregate_type, group)) {
            return Err(InvalidDefinitions(format!(
                "The aggregate `{aggregate_type}` has two publishers in group `{group}`."
            )));
        }
        let interest = publisher.interest();
        for name in interest.names.iter().chain(interest.by_stream).chain(interest.by_prefix) {
            if !channels.iter().any(|channel| channel.kind() == Kind { name, group }) {
                return Err(InvalidDefinitions(format!(
                    "The publisher of `{aggregate_type}` names `{name}`, which is not a channel of group `{group}`."
                )));
            }
        }
    }
    Ok(())
}

/// Checks that each channel whose changes are in the log has a publisher.
fn check_channels(channels: &Channels, publishers: &[&'static dyn AnyPublisher]) -> Result<(), InvalidDefinitions> {
    for channel in channels.iter().filter(|channel| channel.missed.is_some()) {
        let kind = channel.kind();
        let publishes = |publisher: &&dyn AnyPublisher| {
            let interest = publisher.interest();
            let mut names = interest.names.iter().chain(interest.by_stream).chain(interest.by_prefix);
            publisher.group() == kind.group && names.any(|name| *name == kind.name)
        };
        if !publishers.iter().any(publishes) {
            return Err(InvalidDefinitions(format!(
                "The channel `{}` has no publisher. Name it in the interest of a publisher of group `{}`.",
                kind.name, kind.group
            )));
        }
    }
    Ok(())
}

/// Checks that each channel's snapshot is read from a projection of the channel's group.
fn check_projections(channels: &Channels, registry: &Registry) -> Result<(), InvalidDefinitions> {
    let shown = |channel: &Channel| Some((channel.name, channel.projection?, channel.group));
    for (name, projection, group) in channels.iter().filter_map(shown) {
        if registry.find(projection).is_none_or(|(of, _)| of.name != group) {
            return Err(InvalidDefinitions(format!(
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
            denied_answer: DeniedAnswer::NotFound,
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
    fn ambiguous_and_invalid_channel_names_are_refused() {
        for (one, two) in [
            (("counter:", true), ("counter:", true)),
            (("counter:", true), ("counter:special:", true)),
            (("counter:special", false), ("counter:", true)),
            (("counters", false), ("counters", false)),
        ] {
            let text = error(vec![named(one.0, one.1), named(two.0, two.1)]);
            assert!(text.contains("are ambiguous") && text.contains(one.0) && text.contains(two.0), "{text}");
        }
        Channels::new(vec![named("counters", false), named("counters:all", false), named("counter:", true)]).unwrap();
        for name in ["", "7", "Counters", "a b", "a\"", "-a"] {
            assert!(error(vec![named(name, false)]).contains("and begin with a letter"), "{name}");
        }
    }

    #[test]
    fn a_channel_is_found_by_its_name_and_id() {
        let channels = Channels::new(vec![named("counter:", true), named("counters", false)]).unwrap();
        let found = |name| channels.find(name).map(|(channel, id)| (channel.name, id)).ok();
        assert_eq!(found("counter:o-1"), Some(("counter:", "o-1")));
        assert_eq!(found("counters"), Some(("counters", "")));
        assert_eq!(found("counter:https://idp/7 \"\u{e9}\""), Some(("counter:", "https://idp/7 \"\u{e9}\"")));
        for name in ["counter:", "counter:a ", "counters2", "count", "", "counter:e\u{301}", "counter:.."] {
            assert_eq!(found(name), None, "{name}");
        }
        let free = Channels::new(vec![Channel { is_id: Some(|_| true), ..named("counter:", true) }]).unwrap();
        assert!(free.find("counter:e\u{301}").is_ok() && free.find("counter:\n").is_err());
    }

    #[tokio::test]
    async fn a_panic_of_a_channel_fails_one_request() {
        let channel = named("counters", false);
        let outcome = channel.guard("allows", async { panic!("a fault") }).await;
        assert!(matches!(outcome, Err::<bool, _>(SubscribeError::Panicked)));
        assert!(matches!(channel.guard("allows", async { Ok(true) }).await, Ok(true)));
    }

    #[test]
    fn publishers_must_use_channels_of_their_group() {
        let all = vec![channel(ALL, false), channel(ONE, true), channel(OWNED, true), channel(OTHER, false)];
        let check = |channels: &[Channel], publishers: &[&'static dyn AnyPublisher]| {
            check_publishers(&Channels::new(channels.to_vec()).unwrap(), publishers).map_err(|error| error.to_string())
        };
        assert_eq!(check(&all, &[&PUBLISHER]), Ok(()));
        assert!(check(&all, &[&PUBLISHER, &PUBLISHER]).unwrap_err().contains("two publishers"));
        assert!(check(&all[..2], &[&PUBLISHER]).unwrap_err().contains("`owner:`"));
    }
}
