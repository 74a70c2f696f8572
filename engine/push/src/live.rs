//! `GET /v1/live`: any set of channels as server-sent events, and `GET /v1/poll`: the same, a piece a request.
//!
//! Both are resumed by one cursor: a position of the log says how far a client has come in all of its channels.
//! Server-sent events are those of <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use platform::auth::{Principal, forbidden};
use platform::problem::Problem;
use platform::request_id;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until, timeout_at};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::identify;
use crate::api::{QueryApi, invalid, not_found, unavailable};
use crate::centrifuge::{believed_for, too_many_connections};
use crate::channels::{Channel, Refused, channels, find, rank};
use crate::connections::{End, Ender, Place};
use crate::hub::{Passing, queue};
use crate::metrics::{METRICS, Transport};
use crate::session::{Change, Cursor, Merged, Next, Opened, Start, in_order, open};

/// Channels of one request, at most.
const CHANNELS_MAX: usize = 128;
/// How often a silent stream says that it is alive.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// When a client whose stream ended comes back, in milliseconds; spread, so that not all come at once.
const RETRY_MS: std::ops::Range<u64> = 500..1_500;
/// The same where it has to wait for something.
const COME_BACK_MS: u64 = 2_000;
/// Wait of a poll, in seconds.
const WAIT: u64 = 25;
const WAIT_MAX: u64 = 60;
/// How often a poll tells again what is in no log.
const UNLOGGED_EVERY: Duration = Duration::from_secs(1);

/// Of a large answer, what is handed out at once.
const PIECE_BYTES: usize = 64 * 1024;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells nginx to pass on what it gets.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The stream, which is limited by the number of open ones.
pub fn stream_router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(live))
}

/// The poll, which is a request like others.
pub fn poll_router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(poll))
}

/// Which channels, from where.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes the parameters; they are read one by one, because a channel may come often")]
struct LiveQuery {
    /// A channel; as often as there are channels.
    channel: Vec<String>,
    /// Where to go on, for clients that cannot send `Last-Event-ID`.
    last_event_id: Option<String>,
    /// A ticket of `POST /v1/tickets`, for clients that cannot send `Authorization`.
    ticket: Option<String>,
}

/// Which channels, from where, how long.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes the parameters; they are read one by one, because a channel may come often")]
struct PollQuery {
    /// A channel; as often as there are channels.
    channel: Vec<String>,
    /// The cursor of the answer before; without it, the answer holds snapshots.
    cursor: Option<String>,
    /// Seconds to wait for a change, 0 to 60; 25 where it is left out.
    wait: Option<u64>,
    /// A ticket of `POST /v1/tickets`, for clients that cannot send `Authorization`.
    ticket: Option<String>,
}

/// What happened on the channels.
#[derive(Debug, Serialize, ToSchema)]
struct Polled {
    /// For the next request: everything up to here is known.
    cursor: String,
    /// In the order of the log.
    events: Vec<Event>,
}

/// One thing that happened.
#[derive(Debug, Serialize, ToSchema)]
struct Event {
    /// `snapshot`, `pub`, `join`, `leave`, or `reset`: what follows the cursor is not known, snapshots come.
    event: &'static str,
    /// The channel; none for a reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    channel: Option<Arc<str>>,
    /// Position of a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<i64>,
    /// Position of the change before it on its channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    prev: Option<i64>,
    /// The change, or the snapshot.
    #[schema(value_type = Object)]
    data: Box<RawValue>,
}

impl Event {
    fn change(channel: &Arc<str>, (previous, change): &Change) -> Self {
        Self {
            event: "pub",
            channel: Some(channel.clone()),
            offset: Some(change.position),
            prev: Some(*previous),
            data: RawValue::from_string(change.data.clone()).unwrap_or_default(),
        }
    }

    fn passing(passing: &Passing) -> Self {
        let data = RawValue::from_string(passing.data.clone()).unwrap_or_default();
        Self { event: passing.event, channel: Some(passing.channel.clone()), offset: None, prev: None, data }
    }

    fn other(event: &'static str, channel: Option<Arc<str>>, data: String) -> Self {
        let data = RawValue::from_string(data).unwrap_or_default();
        Self { event, channel, offset: None, prev: None, data }
    }
}

/// Follows channels as server-sent events: `snapshot` first, or what followed `Last-Event-ID`; then `pub` for each
/// change; `reset` before snapshots that had to replace what was missed; `auth_expired` before the stream ends with its
/// token.
#[utoipa::path(get, path = "/v1/live", tag = "live updates", params(LiveQuery),
    responses((status = 200, body = String, content_type = "text/event-stream"),
        (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn live(State(state): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    let accepts = request.headers().get(ACCEPT).and_then(|accepts| accepts.to_str().ok());
    let is_event_source = accepts.is_some_and(|accepts| accepts.contains("text/event-stream"));
    follow(state, request).await.or_else(|problem| match problem.status() {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS if is_event_source => Ok(come_back(&problem)),
        _ => Err(problem),
    })
}

/// An `EventSource` gives up for good where it is answered anything but a stream: so it gets one that ends, and comes back
/// with the id that it has.
fn come_back(problem: &Problem) -> Response {
    let text = format!("retry: {COME_BACK_MS}\n: {}\n\n", problem.slug());
    ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store, no-transform")], text).into_response()
}

async fn follow(state: QueryApi, request: Request) -> Result<Response, Problem> {
    let mut asked = Asked::read(&state, request, Transport::Sse, &["last_event_id"]).await?;
    let header = asked.last_event_id.take();
    let after = header.or_else(|| asked.parameter("last_event_id").map(str::to_owned));
    // What is no cursor of ours is answered with a reset: an EventSource cannot be told to forget its id.
    let after = after.filter(|id| !id.is_empty()).map(|id| id.parse().ok());
    let (merged, opened) = asked.open(&state, after.clone().flatten().as_ref()).await?;
    let starts = Starts::new(&state, opened, after.is_some());
    let mut stream = Live {
        cursor: starts.cursor,
        merged,
        ready: VecDeque::new(),
        epoch: state.store.incarnation().into(),
        comment_at: Instant::now() + COMMENT_EVERY,
        expires: Instant::now() + believed_for(&asked.principal),
        ender: asked.ender,
        why: "client",
        _place: asked.place,
    };
    stream.start(starts.events);
    Ok((
        [
            (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform")),
            (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
        ],
        Body::from_stream(stream.into_stream()),
    )
        .into_response())
}

/// What follows the cursor on the channels, or, where nothing does, the next change within `wait` seconds.
#[utoipa::path(get, path = "/v1/poll", tag = "live updates", params(PollQuery),
    responses((status = 200, body = Polled), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn poll(State(state): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    let asked = Asked::read(&state, request, Transport::Poll, &["cursor", "wait"]).await?;
    let wait = match asked.parameter("wait").map(str::parse) {
        None => WAIT,
        Some(Ok(wait @ 0..=WAIT_MAX)) => wait,
        Some(_) => return Err(invalid("wait", &format!("0 to {WAIT_MAX} seconds"))),
    };
    let now = Instant::now();
    let until = now + Duration::from_secs(wait).min(believed_for(&asked.principal));
    let after = match asked.parameter("cursor") {
        None | Some("") => None,
        Some(text) => Some(
            text.parse()
                .map_err(|()| invalid("cursor", "give the cursor of the answer before, or none for snapshots"))?,
        ),
    };
    let (mut merged, opened) = asked.open(&state, after.as_ref()).await?;
    let mut starts = Starts::new(&state, opened, after.is_some());
    // What is in no log comes as a snapshot every time: not sooner than it may have changed.
    let only_unlogged = after.is_some() && starts.are_unlogged();
    let until = if only_unlogged { until.min(now + UNLOGGED_EVERY) } else { until };
    if starts.events.is_empty() || only_unlogged {
        request_id::set_waits();
        let next = tokio::select! {
            biased;
            end = asked.ender.ended() => match end {
                End::Revoked => return Err(revoked()),
                End::Slow | End::Shutdown => None,
            },
            next = timeout_at(until, merged.next()) => next.ok(),
        };
        match next {
            Some(Next::Changes(changes)) => {
                // Between its own cursor and where it was opened there was nothing.
                let (opened, known) = (starts.cursor, after.map_or(starts.cursor, |after| after.position));
                for (channel, (previous, change)) in changes {
                    let previous = if previous <= opened { previous.min(known) } else { previous };
                    starts.cursor = change.position;
                    starts.events.push(Event::change(&channel, &(previous, change)));
                }
            }
            Some(Next::Passing(passing)) => {
                // What is told now is newer than the snapshot.
                starts.events.retain(|event| event.channel.as_ref() != Some(&passing.channel));
                starts.events.push(Event::passing(&passing));
            }
            // The cursor stays where it is, and the next poll reads the log.
            Some(Next::Gap) => {}
            None => starts.cursor = merged.idle_at().map_or(starts.cursor, |at| at.max(starts.cursor)),
        }
    }
    let cursor = Cursor::at(starts.cursor, state.store.incarnation());
    let polled = Polled { cursor: cursor.to_string(), events: starts.events };
    // Texts and numbers always serialize.
    let text = Bytes::from(serde_json::to_vec(&polled).unwrap_or_default());
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((json, held_until_sent(text, asked.place)).into_response())
}

/// A body during which a client has its place: who does not read its answers shall not get many.
fn held_until_sent(text: Bytes, place: Place) -> Body {
    if text.len() <= PIECE_BYTES {
        return text.into();
    }
    let pieces = futures::stream::unfold((text, place), async |(mut text, place)| {
        let piece = text.split_to(PIECE_BYTES.min(text.len()));
        (!piece.is_empty()).then_some((Ok::<_, std::convert::Infallible>(piece), (text, place)))
    });
    Body::from_stream(pieces)
}

/// A request for channels.
struct Asked {
    principal: Principal,
    parameters: Vec<(String, String)>,
    last_event_id: Option<String>,
    ender: Ender,
    place: Place,
}

impl Asked {
    async fn read(state: &QueryApi, request: Request, transport: Transport, known: &[&str]) -> Result<Self, Problem> {
        let (mut parts, _) = request.into_parts();
        let principal = match identify(state, &mut parts).await? {
            Some(principal) => principal,
            None => state.authenticator.authenticate(&mut parts).map_err(|problem| {
                problem.detail(
                    "send the header Authorization: Bearer <JWT>, ?ticket= of POST /v1/tickets, or, from an allowed origin, the cookie docket_token",
                )
            })?,
        };
        let ConnectInfo(peer) =
            ConnectInfo::<SocketAddr>::from_request_parts(&mut parts, state).await.map_err(|_| Problem::internal())?;
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        let parameters: Vec<(String, String)> = form_urlencoded::parse(query).into_owned().collect();
        let is_known = |name: &str| name == "channel" || name == "ticket" || known.contains(&name);
        if let Some((unknown, _)) = parameters.iter().find(|(name, _)| !is_known(name)) {
            return Err(invalid(unknown, "there is no such parameter"));
        }
        let mut once = HashSet::new();
        if let Some((doubled, _)) = parameters.iter().find(|(name, _)| name != "channel" && !once.insert(name)) {
            return Err(invalid(doubled, "give it once"));
        }
        let ender = Ender::default();
        let place = state.connections.enter(transport, peer.ip(), &ender).map_err(|_| too_many_connections())?;
        place.belongs_to(&principal).map_err(|_| too_many_connections())?;
        // What was revoked before it was known whose connection this is has passed it by.
        if state.authenticator.has_revoked(&principal) {
            return Err(revoked());
        }
        let last_event_id = parts.headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        Ok(Self { principal, parameters, last_event_id, ender, place })
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    async fn open(&self, state: &QueryApi, after: Option<&Cursor>) -> Result<(Merged, Vec<Opened>), Problem> {
        let mut names: Vec<&str> =
            self.parameters.iter().filter(|(name, _)| name == "channel").map(|(_, name)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        if !(1..=CHANNELS_MAX).contains(&names.len()) {
            return Err(invalid("channel", &format!("give 1 to {CHANNELS_MAX} of them, each as channel=…")));
        }
        let (queue, deliveries) = queue(self.ender.clone());
        let mut opened = open(state, &self.principal, &names, after, &queue).await.map_err(refused)?;
        if after.is_some() {
            METRICS.resumed(&opened.iter().map(|channel| &channel.start).collect::<Vec<_>>());
        }
        let merged = Merged::new(state, deliveries, &mut opened);
        Ok((merged, opened))
    }
}

fn channel_names() -> String {
    let name = |channel: &Channel| format!("{}{}", channel.name, if channel.has_id { "ID" } else { "" });
    channels().iter().map(name).collect::<Vec<_>>().join(", ")
}

fn refused((channel, refused): (String, Refused)) -> Problem {
    match refused {
        Refused::Denied if ["orders", "reports:sales"].contains(&&*channel) => forbidden("staff"),
        Refused::Denied if channel == "projections" => forbidden("admin"),
        Refused::Denied | Refused::Unknown => {
            not_found("channel-not-found", "There is no such channel").detail(match channel.contains(',') {
                true => format!("there is no channel {channel}: give each one as channel=…"),
                false if find(&channel).is_err() => {
                    format!("there is no channel {channel}: there are {}", channel_names())
                }
                false => format!("there is no channel {channel}"),
            })
        }
        Refused::Behind => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "projection-behind", "The read model is not there yet")
                .detail(format!("what {channel} begins with is being built anew: try again in a moment"))
                .retry_after(1)
        }
        Refused::TooMuch => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "too-much-at-once", "These channels begin with too much")
                .detail("What several channels of one request begin with may have 1 MiB: open fewer of them at once.")
        }
        Refused::Unavailable(error) => unavailable(error),
    }
}

fn revoked() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "token-revoked", "Token revoked").detail("the token was revoked")
}

/// What a listener gets first.
struct Starts {
    events: Vec<Event>,
    cursor: i64,
}

impl Starts {
    /// Whether there is nothing but how it is with what is in no log.
    fn are_unlogged(&self) -> bool {
        let is_unlogged = |event: &Event| {
            event.channel.as_ref().is_some_and(|name| find(name).is_ok_and(|(kind, _)| kind.is_in_no_log()))
        };
        !self.events.is_empty() && self.events.iter().all(is_unlogged)
    }

    /// `resuming` says that there was a cursor: then snapshots are what could not be avoided.
    fn new(state: &QueryApi, opened: Vec<Opened>, resuming: bool) -> Self {
        let cursor = opened.iter().map(|opened| opened.position).min().unwrap_or(0);
        let mut events = Vec::new();
        let mut changes = Vec::new();
        for Opened { channel, start, .. } in opened {
            match start {
                Start::Snapshot(data) => events.push(Event::other("snapshot", Some(channel), data)),
                Start::Recovered(recovered) => {
                    changes.extend(recovered.into_iter().map(|change| (channel.clone(), change)));
                }
            }
        }
        let lost =
            |event: &Event| event.channel.clone().filter(|name| find(name).is_ok_and(|(kind, _)| !kind.is_in_no_log()));
        let channels: Vec<_> = events.iter().filter_map(lost).collect();
        if resuming && !channels.is_empty() {
            let why = json!({"channels": channels, "epoch": state.store.incarnation()}).to_string();
            events.insert(0, Event::other("reset", None, why));
        }
        in_order(&mut changes);
        events.extend(changes.iter().map(|(channel, change)| Event::change(channel, change)));
        Self { events, cursor }
    }
}

/// An open stream of events.
struct Live {
    merged: Merged,
    ready: VecDeque<Bytes>,
    epoch: Arc<str>,
    /// Position up to which everything has been sent.
    cursor: i64,
    comment_at: Instant,
    expires: Instant,
    ender: Ender,
    /// Why it ends; unless somebody says so, because its client went.
    why: &'static str,
    _place: Place,
}

impl Drop for Live {
    fn drop(&mut self) {
        // Cut off while it was writing, it was not asked any more.
        METRICS.closed(if self.why == "client" { self.ender.why().map_or(self.why, End::as_str) } else { self.why });
    }
}

impl Live {
    /// The events that come first. Changes each have their id; among snapshots only with the last event the client knows
    /// what lies before it on all channels.
    fn start(&mut self, events: Vec<Event>) {
        let spread = u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * (RETRY_MS.end - RETRY_MS.start) / 256;
        let mut text = format!("retry: {}\n\n", RETRY_MS.start + spread);
        let only_changes = events.iter().all(|event| event.offset.is_some());
        for (at, event) in events.iter().enumerate() {
            let id = match events.get(at + 1) {
                None => Some(self.at(self.cursor)),
                Some(next) if only_changes => Some(self.after(event, next.offset)),
                Some(_) => None,
            };
            self.write(&mut text, event, id);
        }
        if events.is_empty() {
            self.write_cursor(&mut text);
        }
        self.ready.push_back(text.into());
    }

    fn at(&self, position: i64) -> Cursor {
        Cursor::at(position, &self.epoch)
    }

    /// How far a client has come with a change, after which one at another position comes, or the same on another channel.
    fn after(&self, event: &Event, next: Option<i64>) -> Cursor {
        let position = event.offset.unwrap_or(self.cursor);
        match &event.channel {
            Some(channel) if next == Some(position) => Cursor { kinds: rank(channel) + 1, ..self.at(position - 1) },
            _ => self.at(position),
        }
    }

    fn write(&self, text: &mut String, event: &Event, id: Option<Cursor>) {
        let _ = writeln!(text, "event: {}", event.event);
        if let Some(cursor) = id {
            let _ = writeln!(text, "id: {cursor}");
        }
        // JSON on one line.
        let _ = writeln!(text, "data: {}\n", serde_json::to_string(event).unwrap_or_default());
    }

    /// Moves the id of the client on, without an event.
    fn write_cursor(&self, text: &mut String) {
        let _ = writeln!(text, ": alive\nid: {}\n", self.at(self.cursor));
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures::stream::unfold(Some(self), |live| async {
            let mut live = live?;
            let ready = match live.ready.pop_front() {
                Some(ready) => ready,
                None => match live.next().await {
                    Ok(ready) => ready,
                    Err(Some(farewell)) => return Some((Ok(farewell), None)),
                    Err(None) => return None,
                },
            };
            Some((Ok(ready), Some(live)))
        })
    }

    /// What is sent next; an error is the last of it.
    async fn next(&mut self) -> Result<Bytes, Option<Bytes>> {
        let mut text = String::new();
        let next = tokio::select! {
            biased;
            end = self.ender.ended() => {
                self.why = end.as_str();
                let expired = end == End::Revoked;
                return Err(expired.then(|| Bytes::from_static(b"event: auth_expired\ndata: {\"reason\":\"revoked\"}\n\n")));
            }
            () = sleep_until(self.expires) => {
                self.why = "expired";
                return Err(Some(Bytes::from_static(b"event: auth_expired\ndata: {\"reason\":\"expired\"}\n\n")));
            }
            next = self.merged.next() => Some(next),
            () = sleep_until(self.comment_at) => None,
        };
        self.comment_at = Instant::now() + COMMENT_EVERY;
        match next {
            // The client comes back with its cursor, and gets what is missing from the log.
            Some(Next::Gap) => {
                self.why = "error";
                return Err(None);
            }
            Some(Next::Passing(passing)) => {
                self.write(&mut text, &Event::passing(&passing), None);
            }
            Some(Next::Changes(changes)) => {
                for (at, (channel, change)) in changes.iter().enumerate() {
                    let event = Event::change(channel, change);
                    let next = changes.get(at + 1).map(|(_, (_, next))| next.position);
                    self.write(&mut text, &event, Some(self.after(&event, next)));
                }
                self.cursor = changes.last().map_or(self.cursor, |(_, (_, last))| last.position.max(self.cursor));
            }
            None => {
                self.cursor = self.merged.idle_at().map_or(self.cursor, |at| at.max(self.cursor));
                self.write_cursor(&mut text);
            }
        }
        Ok(text.into())
    }
}
