//! Any set of channels over plain HTTP: as server-sent events ([`sse`]), or by long polls ([`poll`]). A client resumes
//! either with one cursor, which contains its position in all of its channels.

mod pieces;
pub mod poll;
pub mod sse;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, Request};
use axum::http::HeaderName;
use axum::http::header::AUTHORIZATION;
use platform::auth::{Principal, forbidden};
use platform::problem::Problem;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::access::{TICKET, TOKEN, identify, missing_credentials};
use crate::api::{DeniedAnswer, QueryApi, SubscribeError};
use crate::batch::{Delivered, Ephemeral, sort};
use crate::connections::{CloseHandle, ConnectionSlot};
use crate::cursor::{Cursor, Received};
use crate::frames::EventText;
use crate::merge::Merged;
use crate::metrics::{METRICS, Transport};
use crate::problems::{
    CHANNEL_NOT_FOUND, PROJECTION_BEHIND, TOO_MUCH_AT_ONCE, invalid, too_many_connections, unavailable,
};
use crate::publication::Group;
use crate::queue::queue;
use crate::session::{Opened, Session, Start, open};

/// Most channels in one request.
const CHANNELS_MAX: usize = 128;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

// Schema of the JSON object that [`EventText`] writes.
/// An event on a channel.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code, reason = "the schema of hand-written JSON")]
struct Event {
    /// `snapshot`, `pub`, `join`, `leave` or `reset`. After `reset`, snapshots replace the changes after the cursor,
    /// which could not be recovered.
    event: &'static str,
    /// Name of the channel; absent for `reset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    channel: Option<Arc<str>>,
    /// Position of the change, for `pub` from the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
    /// Position of the previous change on the channel. A client whose position is at or after it has missed nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    prev: Option<i64>,
    /// The change or the snapshot. For `reset`, the channels whose snapshots follow, and the epoch.
    #[schema(value_type = Object)]
    data: Box<RawValue>,
}

/// A message to a client.
pub enum Message {
    /// A change.
    Change(Delivered),
    /// An ephemeral event, which is not in the log.
    Ephemeral(Arc<Ephemeral>),
    /// A snapshot of a channel, or a reset.
    Other {
        /// `snapshot` or `reset`.
        event: &'static str,
        /// Name of the channel of a snapshot; `None` for a reset.
        channel: Option<Arc<str>>,
        /// Encoded event.
        text: EventText,
    },
}

impl Message {
    fn other(event: &'static str, channel: Option<Arc<str>>, data: &str) -> Self {
        let text = EventText::new(event, channel.as_deref(), None, None, data);
        Self::Other { event, channel, text }
    }

    /// Returns the name of the event.
    pub fn event(&self) -> &'static str {
        match self {
            Self::Change(_) => "pub",
            Self::Ephemeral(ephemeral) => ephemeral.event,
            Self::Other { event, .. } => event,
        }
    }

    /// Returns the name of the channel; `None` for a reset.
    pub fn channel(&self) -> Option<&Arc<str>> {
        match self {
            Self::Change(change) => Some(change.channel()),
            Self::Ephemeral(ephemeral) => Some(&ephemeral.channel),
            Self::Other { channel, .. } => channel.as_ref(),
        }
    }

    /// Returns the change, if the message is one.
    pub fn change(&self) -> Option<&Delivered> {
        if let Self::Change(change) = self { Some(change) } else { None }
    }

    /// Returns the encoded event. It is encoded once for all subscribers.
    pub fn text(&self) -> &EventText {
        match self {
            Self::Change(change) => change.event(),
            Self::Ephemeral(ephemeral) => ephemeral.text(),
            Self::Other { text, .. } => text,
        }
    }
}

/// A request to follow channels, by server-sent events or by a poll.
pub struct LiveRequest {
    /// The caller.
    pub principal: Principal,
    /// Value of the header `Last-Event-ID`.
    pub last_event_id: Option<String>,
    /// Closes the connection.
    pub handle: CloseHandle,
    /// The connection's slot, which counts against the connection limits.
    pub slot: ConnectionSlot,
    parameters: Vec<(String, String)>,
}

impl LiveRequest {
    /// Reads and authenticates a request. It may have the parameters `channel`, `ticket`, `token` and
    /// those in `known`.
    ///
    /// # Errors
    /// 401 or 403 for credentials or an origin that is not accepted, 400 for an invalid parameter, 429 for a connection
    /// limit.
    pub async fn read(api: &QueryApi, request: Request, transport: Transport, known: &[&str]) -> Result<Self, Problem> {
        let (mut parts, _) = request.into_parts();
        let principal = match identify(api, &mut parts).await? {
            Some(principal) => principal,
            None => api.authenticator.authenticate(&mut parts).map_err(|problem| {
                // A request with this header has its own reason.
                match parts.headers.contains_key(AUTHORIZATION) {
                    true => problem,
                    false => problem.detail(missing_credentials(api, parts.uri.query())),
                }
            })?,
        };
        let ConnectInfo(peer) =
            ConnectInfo::<SocketAddr>::from_request_parts(&mut parts, api).await.map_err(|_| Problem::internal())?;
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        let parameters: Vec<(String, String)> = form_urlencoded::parse(query).into_owned().collect();
        let is_known = |name: &str| {
            name == "channel"
                || name == TICKET
                || (name == TOKEN && api.settings.token_in_query)
                || known.contains(&name)
        };
        if let Some((unknown, _)) = parameters.iter().find(|(name, _)| !is_known(name)) {
            return Err(invalid(unknown, "This parameter does not exist."));
        }
        let mut once = HashSet::new();
        if let Some((doubled, _)) = parameters.iter().find(|(name, _)| name != "channel" && !once.insert(name)) {
            return Err(invalid(doubled, "Send this parameter once."));
        }
        let handle = CloseHandle::default();
        let slot = api.connections.enter(transport, peer.ip(), &handle).map_err(|_| too_many_connections())?;
        slot.set_principal(&principal).map_err(|_| too_many_connections())?;
        // A revocation or a ban between the authentication and `set_principal` has not closed this connection, so it is
        // checked here.
        if let Some(reason) = api.authenticator.block_reason(&principal) {
            return Err(reason.problem());
        }
        let last_event_id = parts.headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        Ok(Self { principal, parameters, last_event_id, handle, slot })
    }

    /// Returns the value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Opens the requested channels.
    ///
    /// # Errors
    /// A refused channel, no channel, or more than 128 channels.
    pub async fn open(&self, api: &QueryApi, after: Option<&Cursor>) -> Result<(Merged, Session), Problem> {
        let mut names: Vec<&str> =
            self.parameters.iter().filter(|(name, _)| name == "channel").map(|(_, name)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        if !(1..=CHANNELS_MAX).contains(&names.len()) {
            return Err(invalid(
                "channel",
                &format!("Send 1 to {CHANNELS_MAX} channels, each as its own parameter channel=…."),
            ));
        }
        let (queue, deliveries) = queue(self.handle.clone());
        let opened = open(api, &self.principal, &names, after, &queue).await;
        let mut session = opened.map_err(|(channel, refused)| refuse(api, &channel, refused))?;
        if after.is_some() {
            for opened in &session.channels {
                METRICS.resumed(matches!(opened.start, Start::Recovered(_)));
            }
        }
        let merged = Merged::new(&api.hub, deliveries, &mut session.channels);
        Ok((merged, session))
    }
}

fn refuse(api: &QueryApi, name: &str, refused: SubscribeError) -> Problem {
    let found = api.channels.find(name).map(|(channel, _)| channel);
    match refused {
        SubscribeError::Denied | SubscribeError::Unknown => match found.as_ref().map(|channel| channel.denied_answer) {
            Ok(DeniedAnswer::Staff) => forbidden("staff"),
            Ok(DeniedAnswer::Admin) => forbidden("admin"),
            Ok(DeniedAnswer::NotFound) => no_such_channel(format!("There is no channel {name}.")),
            Err(_) if name.contains(',') => {
                no_such_channel(format!("There is no channel {name}. Send each channel as its own channel=…."))
            }
            Err(_) => {
                let names: Vec<_> = api.channels.iter().map(|channel| channel.address("ID")).collect();
                no_such_channel(format!("There is no channel {name}. The channels are {}.", names.join(", ")))
            }
        },
        SubscribeError::Behind => Problem::new(PROJECTION_BEHIND)
            .detail(format!("The read model behind {name} is being rebuilt. Try again shortly."))
            .retry_after(1),
        SubscribeError::TooMuch => Problem::new(TOO_MUCH_AT_ONCE).detail(
            "The snapshots of one request's channels can have at most 1 MiB together. Open fewer channels at once.",
        ),
        SubscribeError::Unavailable(error) => unavailable(error),
        SubscribeError::Panicked => Problem::internal(),
    }
}

fn no_such_channel(detail: String) -> Problem {
    Problem::new(CHANNEL_NOT_FOUND).detail(detail)
}

/// The first messages to a client, in order.
pub struct InitialEvents {
    /// The messages.
    pub messages: Vec<Message>,
    /// Whether all messages are changes; true for an empty list.
    pub are_changes: bool,
    /// Whether there are messages, and all are snapshots of channels that are not in the log.
    pub are_unlogged: bool,
}

impl InitialEvents {
    /// Creates the messages from the initial data of the channels. `resuming` means that the client sent a cursor; then
    /// a `reset` precedes snapshots that replace changes that could not be recovered.
    pub fn new(epoch: &str, opened: Vec<Opened>, resuming: bool) -> Self {
        let (mut messages, mut changes, mut reset) = (Vec::new(), Vec::new(), Vec::new());
        for Opened { channel, start, is_logged, .. } in opened {
            match start {
                Start::Snapshot(data) => {
                    messages.push(Message::other("snapshot", Some(channel.clone()), &data));
                    reset.extend(is_logged.then_some(channel));
                }
                Start::Recovered(batch) => changes.extend(Delivered::after(&batch, i64::MIN)),
            }
        }
        let are_changes = messages.is_empty();
        let are_unlogged = reset.is_empty() && changes.is_empty() && !messages.is_empty();
        if resuming && !reset.is_empty() {
            let why = json!({"channels": reset, "epoch": epoch}).to_string();
            messages.insert(0, Message::other("reset", None, &why));
        }
        sort(&mut changes);
        messages.extend(changes.into_iter().map(Message::Change));
        Self { messages, are_changes, are_unlogged }
    }
}

/// Tracks the cursor of a client while changes are sent to it one after the other.
pub struct CursorTracker {
    /// The client's position after the last sent change.
    pub cursor: Cursor,
    /// The channels, sorted by group and name.
    channels: Vec<(Group, Arc<str>)>,
}

impl CursorTracker {
    /// Creates a tracker for a client with these channels that is at a cursor.
    pub fn new(cursor: Cursor, channels: &[Opened]) -> Self {
        let mut channels: Vec<_> = channels.iter().map(|opened| (opened.kind.group, opened.channel.clone())).collect();
        channels.sort_unstable();
        Self { cursor, channels }
    }

    /// Moves the cursor past a sent change. `next` is the next change of the same group. If `next` has the same
    /// position, the cursor names the last channel before the channel of `next`: on all channels up to that one, the
    /// client has the change at this position, either sent just now or received earlier.
    pub fn sent(&mut self, change: &Delivered, next: Option<&Delivered>) {
        let (group, position) = (change.group(), change.position());
        match next.filter(|next| next.position() == position) {
            Some(next) => {
                let before = |(of, name): &(Group, Arc<str>)| (*of, &**name) < (group, &**next.channel());
                let name = self.channels[..self.channels.partition_point(before)].last();
                let name = name.map_or_else(|| change.channel().to_string(), |(_, name)| name.to_string());
                self.cursor.set(group, position - 1, Received::UpTo(name));
            }
            None => self.cursor.set(group, position, Received::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Batch, Change};
    use crate::cursor::V1Kind;
    use crate::hub::Kind;
    use crate::testing::{ALL, ONE, OTHER, OWNED, created};

    fn opened(kind: Kind, name: &str, positions: &[i64]) -> Opened {
        let changes = positions.iter().map(|position| Change::new(0, created("a", *position))).collect();
        let (channel, position): (Arc<str>, _) = (name.into(), positions.last().copied().unwrap_or(0));
        let start = Start::Recovered(Arc::new(Batch::recovered(channel.clone(), kind.group, changes)));
        Opened { channel, kind, is_logged: true, has_presence: false, subscription: None, position, start }
    }

    /// Returns the id that a client has after each of its recovered changes.
    fn ids(cursor: &str, opened: Vec<Opened>) -> Vec<(String, i64, String)> {
        let mut tracker = CursorTracker::new(cursor.parse().expect("a cursor"), &opened);
        let changes: Vec<_> = InitialEvents::new("e", opened, true)
            .messages
            .iter()
            .map(|message| message.change().expect("a change").clone())
            .collect();
        let sent = changes.iter().enumerate().map(|(at, change)| {
            let next = changes[at + 1..].iter().find(|next| next.group() == change.group());
            tracker.sent(change, next);
            (change.channel().to_string(), change.position(), tracker.cursor.to_string())
        });
        sent.collect()
    }

    #[test]
    fn inside_a_change_the_cursor_names_the_last_channel() {
        let opened = vec![
            opened(ONE, "counter:a", &[8]),
            opened(OWNED, "owner:ada", &[8, 9]),
            opened(ALL, "counters", &[8, 9]),
            opened(ONE, "counter:z", &[]),
        ];
        let expected = [
            ("counter:a", 8, "2.e.core=7+counter:z"),
            ("counters", 8, "2.e.core=7+counters"),
            ("owner:ada", 8, "2.e.core=8"),
            ("counters", 9, "2.e.core=8+counters"),
            ("owner:ada", 9, "2.e.core=9"),
        ];
        let expected = expected.map(|(channel, position, id)| (channel.to_owned(), position, id.to_owned()));
        assert_eq!(ids("2.e.core=7", opened), expected);
    }

    /// With the format 1 cursor `7+1`, the client has position 8 on the channel of the stream, but not on the others,
    /// one of which has a smaller name. No id in between may claim less than the client already has.
    #[test]
    fn a_format_1_cursor_inside_a_position_is_not_lowered() {
        let v1_kinds = [V1Kind::Prefix("one:"), V1Kind::Prefix("by:"), V1Kind::Name("ones")];
        let kind = |name| Kind { name, ..ALL };
        let opened = vec![
            opened(kind("by:"), "by:ada", &[8]),
            opened(kind("one:"), "one:o-1", &[]),
            opened(kind("ones"), "ones", &[8]),
        ];
        let old: Cursor = "7+1.e".parse().expect("a cursor");
        let known = |cursor: &Cursor| {
            ["by:ada", "one:o-1", "ones"].map(|channel| cursor.groups[0].position_on(channel, &v1_kinds))
        };
        assert_eq!(known(&old), [7, 8, 7], "two channels recover position 8");
        let ids = ids("7+1.e", opened);
        assert_eq!(ids[0], ("by:ada".into(), 8, "2.e.core=7+one:o-1".into()));
        assert_eq!(known(&ids[0].2.parse().expect("a cursor")), [8, 8, 7]);
        assert_eq!(ids[1], ("ones".into(), 8, "2.e.core=8".into()));
    }

    #[test]
    fn a_cursor_has_a_position_for_each_group() {
        let opened = vec![opened(ALL, "counters", &[101, 103]), opened(OTHER, "points", &[60])];
        let expected = [
            ("points", 60, "2.e.core=100.loyalty=60"),
            ("counters", 101, "2.e.core=101.loyalty=60"),
            ("counters", 103, "2.e.core=103.loyalty=60"),
        ];
        let expected = expected.map(|(channel, position, id)| (channel.to_owned(), position, id.to_owned()));
        assert_eq!(ids("2.e.core=100.loyalty=50", opened), expected);
    }

    #[test]
    fn a_reset_precedes_snapshots_that_replace_missed_changes() {
        let snapshot =
            |name: &str, is_logged| Opened { start: Start::Snapshot("{}".into()), is_logged, ..opened(ALL, name, &[]) };
        let events = |initial: &InitialEvents| initial.messages.iter().map(Message::event).collect::<Vec<_>>();
        let initial = InitialEvents::new("e", vec![snapshot("counters", true), snapshot("status", false)], true);
        assert_eq!(events(&initial), ["reset", "snapshot", "snapshot"]);
        let reset = r#"{"event":"reset","data":{"channels":["counters"],"epoch":"e"}}"#;
        assert_eq!((initial.messages[0].text().json(), initial.are_unlogged), (reset.into(), false));
        let initial = InitialEvents::new("e", vec![snapshot("status", false)], true);
        assert_eq!((events(&initial), initial.are_unlogged), (vec!["snapshot"], true));
        let initial = InitialEvents::new("e", vec![snapshot("counters", true)], false);
        assert_eq!((events(&initial), initial.are_changes), (vec!["snapshot"], false));
    }
}
