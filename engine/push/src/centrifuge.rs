//! `/ws`: the Centrifuge client protocol, version 2, in JSON: connect, subscribe with a snapshot or from where a client
//! was, follow, presence, refresh.
//!
//! The protocol is that of <https://centrifugal.dev/docs/transports/client_protocol>: frames hold one or more JSON
//! objects separated by line feeds; a command has an `id`, its reply the same one; a frame `{}` from the server is a
//! ping and is answered by `{}`. A publication's `offset` is its position in the log, `epoch` is the log's incarnation.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::io::ErrorKind::QuotaExceeded;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::header::SEC_WEBSOCKET_PROTOCOL;
use axum::response::Response;
use axum::routing::get;
use futures::SinkExt;
use jiff::Timestamp;
use platform::auth::{LEEWAY_SECONDS, Principal};
use platform::client_stream::ReadLimit;
use platform::problem::Problem;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{self, error::ProtocolError};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::access::{bearer_protocol, identify};
use crate::api::QueryApi;
use crate::channels::{Refused, find};
use crate::connections::{End, Ender, Full, Place};
use crate::hub::{Deliveries, Delivery, Queue, Subscription, queue};
use crate::metrics::{METRICS, Transport};
use crate::presence::Present;
use crate::publication::push_publication;
use crate::session::{Cursor, Opened, Start, open};

/// Longest message taken from a client, in bytes, in one frame or in fragments; also about how much is sent in one.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// What a client may send from one message to the next: headers of frames, fragments without content and pings among it.
const MESSAGE_BYTES_SENT_MAX: usize = 4 * FRAME_BYTES_MAX;
/// What each connection holds for reading and writing, however idle it is; larger frames take more while they are sent.
const READ_BUFFER_BYTES: usize = 512;
const WRITE_BUFFER_BYTES: usize = 2 * 1024;
/// Bytes of changes after which commands and deadlines get their turn.
const DELIVERED_AT_ONCE: usize = 256 * 1024;
/// Channels of one connection, at most.
const CHANNELS_MAX: usize = 128;
/// How long a client may take to send `connect`.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Time between pings.
const PING_EVERY: Duration = Duration::from_secs(25);
/// How long a pong may take.
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// How long a client may take to read why it is cut off, and to say goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(3);
/// How long an expired token is put up with, so that a client can refresh it.
pub const EXPIRY_GRACE: Duration = Duration::from_secs(25);
/// Commands that a client may send at once, and how many more a second.
const COMMANDS_BURST: f64 = 512.0;
const COMMANDS_PER_SECOND: f64 = 64.0;
/// Commands of one connection that are refused because there were too many; one more ends it.
const REFUSALS_MAX: usize = 10_000;
/// As far as timers reach, in seconds.
const TTL_MAX: i64 = 10 * 365 * 86_400;
/// What a subscriber that wants patches in place of whole views says in `data.delta`.
const MERGE_PATCH: &str = "merge-patch";
/// The subprotocol that SDKs offer for JSON.
const JSON_PROTOCOL: &str = "centrifuge-json";
/// The one for what is not spoken here.
const PROTOBUF_PROTOCOL: &str = "centrifuge-protobuf";

/// Close codes: SDKs come back after 3000 to 3499 and 4000 to 4499, and stay away after the others.
mod close {
    /// Of WebSocket itself.
    pub(super) const PROTOCOL: (u16, &str) = (1002, "protocol error");
    pub(super) const NO_UTF_8: (u16, &str) = (1007, "a text must be UTF-8");
    pub(super) const NO_MESSAGE: (u16, &str) = (1008, "too many frames without a whole message");
    pub(super) const TOO_LONG: (u16, &str) = (1009, "a message may have 64 KiB");
    pub(super) const SHUTDOWN: (u16, &str) = (3001, "shutdown");
    pub(super) const SLOW: (u16, &str) = (3008, "slow");
    pub(super) const INSUFFICIENT_STATE: (u16, &str) = (3010, "insufficient state");
    pub(super) const NO_PONG: (u16, &str) = (3012, "no pong");
    pub(super) const INVALID_TOKEN: (u16, &str) = (3500, "invalid token");
    pub(super) const NO_TOKEN: (u16, &str) = (3500, "no token");
    pub(super) const INVALID_TICKET: (u16, &str) = (3500, "invalid ticket");
    pub(super) const BAD_REQUEST: (u16, &str) = (3501, "bad request");
    pub(super) const JSON_ONLY: (u16, &str) = (3501, "bad request: JSON in text frames only");
    pub(super) const STALE: (u16, &str) = (3502, "stale");
    pub(super) const CONNECTION_LIMIT: (u16, &str) = (3504, "connection limit");
    pub(super) const EXPIRED: (u16, &str) = (4401, "token expired");
    pub(super) const FORBIDDEN: (u16, &str) = (4503, "forbidden");
    pub(super) const REVOKED: (u16, &str) = (4503, "token revoked");

    /// As metrics have it.
    pub(super) fn reason(close: (u16, &str)) -> &'static str {
        match close {
            SHUTDOWN => "shutdown",
            SLOW => "slow",
            NO_PONG => "no_pong",
            EXPIRED => "expired",
            FORBIDDEN | REVOKED => "forbidden",
            INVALID_TOKEN | NO_TOKEN | INVALID_TICKET => "invalid_token",
            CONNECTION_LIMIT => "limit",
            _ => "error",
        }
    }
}

/// Error codes of replies.
mod code {
    /// SDKs try again by themselves.
    pub(super) const INTERNAL: (u32, &str) = (100, "internal server error");
    pub(super) const UNAUTHORIZED: (u32, &str) = (101, "unauthorized");
    pub(super) const UNKNOWN_CHANNEL: (u32, &str) = (102, "unknown channel");
    pub(super) const DENIED: (u32, &str) = (103, "permission denied");
    pub(super) const METHOD: (u32, &str) = (104, "method not found");
    pub(super) const ALREADY_SUBSCRIBED: (u32, &str) = (105, "already subscribed");
    pub(super) const LIMIT: (u32, &str) = (106, "limit exceeded");
    pub(super) const BAD_REQUEST: (u32, &str) = (107, "bad request");
    pub(super) const NOT_AVAILABLE: (u32, &str) = (108, "not available");
    /// SDKs ask for a fresh token, and connect with it.
    pub(super) const TOKEN_EXPIRED: (u32, &str) = (109, "token expired");
    /// SDKs try again by themselves.
    pub(super) const TOO_MANY_REQUESTS: (u32, &str) = (111, "too many requests");
}

type Close = (u16, &'static str);
type Code = (u32, &'static str);
type Handled<T> = Result<T, Option<Close>>;

/// The routes.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().route("/ws", get(socket)).route("/ws/admin", get(admin_socket))
}

async fn socket(State(state): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    upgrade(state, request, false).await
}

/// The same for admins alone, so that it can be closed off in front of the server.
async fn admin_socket(State(state): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    upgrade(state, request, true).await
}

async fn upgrade(state: QueryApi, request: Request, admins: bool) -> Result<Response, Problem> {
    let (mut parts, _) = request.into_parts();
    // Browsers and SDKs cannot read why an upgrade is refused, and `connect` may bring a better token: so it answers.
    let principal = match identify(&state, &mut parts).await {
        Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => Err(problem),
        identified => Ok(identified?),
    };
    let ConnectInfo(peer) =
        ConnectInfo::<SocketAddr>::from_request_parts(&mut parts, &state).await.map_err(|_| Problem::internal())?;
    let mut upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &state).await.map_err(|refusal| {
        Problem::new(StatusCode::BAD_REQUEST, "not-a-websocket", "Not a WebSocket").detail(format!(
            "{}; without a WebSocket, GET /v1/live gives the same as server-sent events",
            refusal.body_text()
        ))
    })?;
    // A browser gives up where none of the protocols it offered comes back.
    let offers = parts.headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offers: Vec<_> = offers.flat_map(|offers| offers.split(',')).map(str::trim).collect();
    if offers.contains(&JSON_PROTOCOL) {
        upgrade = upgrade.protocols([JSON_PROTOCOL]);
    } else if let Some(bearer) = bearer_protocol(&parts.headers) {
        upgrade = upgrade.protocols([bearer.to_owned()]);
    } else if offers.contains(&PROTOBUF_PROTOCOL) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "json-only", "JSON only")
            .detail("the Centrifuge protocol is spoken in JSON here, not in Protobuf: use the SDK's JSON client"));
    }
    let read_limit = parts.extensions.remove::<ReadLimit>().unwrap_or_default();
    let ender = Ender::default();
    let place = state.connections.enter(Transport::WebSocket, peer.ip(), &ender).map_err(|_| too_many_connections())?;
    let caller = Caller { principal, admins, read_limit };
    Ok(set_up(upgrade, FRAME_BYTES_MAX).on_upgrade(move |socket| run(socket, state, caller, ender, place)))
}

/// What every socket has: small buffers, and a limit to what it takes.
pub fn set_up(upgrade: WebSocketUpgrade, message_bytes_max: usize) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(8 * 1024 * 1024)
        .max_message_size(message_bytes_max)
        .max_frame_size(message_bytes_max)
}

/// An address has as many connections as it may.
pub fn too_many_connections() -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-connections", "Too many connections")
        .detail("close some of the connections that are open, or ask the operator for more")
        .retry_after(5)
}

struct Caller {
    /// Who it is by what came with the upgrade, or why that is not believed.
    principal: Result<Option<Principal>, Problem>,
    /// Whether only admins may connect.
    admins: bool,
    /// What may still come before the next message is whole.
    read_limit: ReadLimit,
}

/// What a command needs so that it can be answered.
#[derive(serde::Deserialize)]
struct Numbered {
    #[serde(default)]
    id: u32,
}

#[derive(serde::Deserialize)]
struct Command {
    connect: Option<Object<Connect>>,
    subscribe: Option<Object<Subscribe>>,
    unsubscribe: Option<Object<ChannelName>>,
    presence: Option<Object<ChannelName>>,
    presence_stats: Option<Object<ChannelName>>,
    refresh: Option<Object<Connect>>,
    ping: Option<Value>,
    publish: Option<Value>,
    history: Option<Value>,
    rpc: Option<Value>,
}

#[derive(serde::Deserialize)]
struct Connect {
    #[serde(default)]
    token: String,
}

#[derive(serde::Deserialize)]
struct ChannelName {
    channel: String,
}

#[derive(serde::Deserialize)]
struct Subscribe {
    channel: String,
    #[serde(default)]
    recover: bool,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    epoch: String,
    data: Option<Object<SubscribeData>>,
}

#[derive(serde::Deserialize)]
struct SubscribeData {
    delta: Option<String>,
}

/// A `T` from a JSON object: serde would take an array for the members in their order, too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }
        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

struct Connection {
    state: QueryApi,
    client: Arc<str>,
    caller: Caller,
    principal: Option<Principal>,
    place: Place,
    /// When the token has been expired for longer than a client needs to refresh it.
    expires: Option<Instant>,
    next_ping: Instant,
    pong_by: Option<Instant>,
    /// Commands that may be sent now, and when that was counted.
    allowance: (f64, Instant),
    /// Commands beyond that.
    refusals: usize,
    channels: HashMap<Arc<str>, Subscribed>,
    queue: Queue,
    /// Frames that follow the reply to a command.
    notices: Vec<String>,
}

struct Subscribed {
    _subscription: Subscription,
    /// Whatever lies at or before it has been sent.
    position: i64,
    patched: bool,
    _present: Option<Present>,
}

/// Serves a socket until it closes, and closes it with the reason.
async fn run(mut socket: WebSocket, state: QueryApi, caller: Caller, ender: Ender, place: Place) {
    let (queue, mut deliveries) = queue(ender.clone());
    let now = Instant::now();
    let mut connection = Connection {
        state,
        client: Uuid::now_v7().to_string().into(),
        caller,
        principal: None,
        place,
        expires: None,
        next_ping: now + CONNECT_WITHIN,
        pong_by: None,
        allowance: (COMMANDS_BURST, now),
        refusals: 0,
        channels: HashMap::new(),
        queue,
        notices: Vec::new(),
    };
    let served = tokio::select! {
        biased;
        // Also while a frame waits for a client that does not read.
        end = ender.ended() => Some(match end {
            End::Slow => close::SLOW,
            End::Shutdown => close::SHUTDOWN,
            End::Revoked => close::REVOKED,
        }),
        Err(closed) = connection.serve(&mut socket, &mut deliveries) => closed,
    };
    METRICS.closed(served.map_or("client", close::reason));
    // Nothing more is queued for it, and what was is let go.
    connection.channels.clear();
    drop(deliveries);
    if let Some((code, reason)) = served {
        let frame = CloseFrame { code, reason: reason.into() };
        let goodbye = async {
            if socket.send(Message::Close(Some(frame))).await.is_ok() {
                // The client answers with its own Close; what it had sent before is read and dropped.
                while let Some(Ok(_)) = socket.recv().await {}
            }
        };
        let _ = timeout(GOODBYE_WITHIN, goodbye).await;
    }
}

impl Connection {
    /// `Err(None)`: the client is gone. `Err(Some(…))`: it is to be told why.
    async fn serve(
        &mut self,
        socket: &mut WebSocket,
        deliveries: &mut Deliveries,
    ) -> Handled<std::convert::Infallible> {
        let mut timer = pin!(sleep_until(self.next_ping));
        self.caller.read_limit.set(MESSAGE_BYTES_SENT_MAX);
        loop {
            let due = [self.expires, self.pong_by].into_iter().flatten().fold(self.next_ping, Instant::min);
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                () = &mut timer => self.due(socket).await?,
                message = socket.recv() => match message {
                    Some(Ok(Message::Text(text))) => {
                        self.caller.read_limit.set(MESSAGE_BYTES_SENT_MAX);
                        // Boxed: connections are many, and most of them are silent.
                        Box::pin(self.commands(socket, &text, deliveries)).await?;
                    }
                    Some(Ok(Message::Binary(_))) => return Err(Some(close::JSON_ONLY)),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) if self.is_allowed_another() => {}
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => self.refuse()?,
                    Some(Ok(Message::Close(_))) => {
                        // The answer to it is written already, and goes out.
                        let _ = timeout(GOODBYE_WITHIN, socket.flush()).await;
                        return Err(None);
                    }
                    Some(Err(error)) => return Err(violation(&error)),
                    None => return Err(None),
                },
                delivery = deliveries.next() => self.deliver(socket, delivery, deliveries).await?,
            }
        }
    }

    /// A deadline has passed.
    async fn due(&mut self, socket: &mut WebSocket) -> Handled<()> {
        let now = Instant::now();
        if self.principal.is_none() {
            return Err(Some(close::STALE));
        }
        if self.expires.is_some_and(|expires| expires <= now) {
            return Err(Some(close::EXPIRED));
        }
        if self.pong_by.is_some_and(|pong_by| pong_by <= now) {
            return Err(Some(close::NO_PONG));
        }
        if self.next_ping <= now {
            self.next_ping = now + PING_EVERY;
            self.pong_by = Some(now + PONG_WITHIN);
            send(socket, Utf8Bytes::from_static("{}")).await?;
        }
        Ok(())
    }

    /// One frame of commands, answered in order, in one frame or, where the answers are large, in several.
    async fn commands(&mut self, socket: &mut WebSocket, frame: &str, queued: &mut Deliveries) -> Handled<()> {
        let mut replies = String::new();
        for line in frame.lines().filter(|line| !line.trim().is_empty()) {
            if line.trim() == "{}" {
                // One for each ping is asked for.
                if self.pong_by.take().is_none() && !self.is_allowed_another() {
                    self.refuse()?;
                }
                continue;
            }
            if !line.trim_start().starts_with('{') {
                return Err(Some(close::BAD_REQUEST));
            }
            let Numbered { id } = serde_json::from_str(line).map_err(|_| Some(close::BAD_REQUEST))?;
            let reply = match serde_json::from_str::<Command>(line) {
                _ if !self.is_allowed_another() => {
                    self.refuse()?;
                    Err(code::TOO_MANY_REQUESTS)
                }
                Ok(command) => self.command(command).await?,
                Err(_) => Err(code::BAD_REQUEST),
            };
            if !replies.is_empty() {
                replies.push('\n');
            }
            replies.push_str(&match reply {
                Ok(reply) => format!(r#"{{"id":{id},{reply}}}"#),
                Err((code, message)) => {
                    let temporary = [code::INTERNAL, code::TOO_MANY_REQUESTS].contains(&(code, message));
                    json!({"id": id, "error": {"code": code, "message": message, "temporary": temporary}}).to_string()
                }
            });
            for notice in self.notices.drain(..) {
                replies.push('\n');
                replies.push_str(&notice);
            }
            // What happens meanwhile does not wait for the rest of the frame, or it would pile up.
            let delivery = queued.try_next();
            if replies.len() >= FRAME_BYTES_MAX || delivery.is_some() {
                send(socket, std::mem::take(&mut replies).into()).await?;
            }
            if let Some(delivery) = delivery {
                self.deliver(socket, delivery, queued).await?;
            }
        }
        if replies.is_empty() { Ok(()) } else { send(socket, replies.into()).await }
    }

    /// Takes one command off what the client may send.
    fn is_allowed_another(&mut self) -> bool {
        let (left, counted) = self.allowance;
        let left = (left + counted.elapsed().as_secs_f64() * COMMANDS_PER_SECOND).min(COMMANDS_BURST);
        let allowed = left >= 1.0;
        self.allowance = (left - f64::from(u8::from(allowed)), Instant::now());
        allowed
    }

    /// One command too many. Who has not said who it is gets no more than those, nor who does not listen to the refusals.
    fn refuse(&mut self) -> Handled<()> {
        self.refusals += 1;
        if self.principal.is_none() || self.refusals > REFUSALS_MAX { Err(Some(close::BAD_REQUEST)) } else { Ok(()) }
    }

    /// The reply's field, as JSON text.
    async fn command(&mut self, command: Command) -> Handled<Result<String, Code>> {
        if let Some(Object(connect)) = command.connect {
            if self.principal.is_some() {
                return Err(Some(close::BAD_REQUEST));
            }
            return self.connect(&connect.token).map(|reply| reply.map(|reply| format!(r#""connect":{reply}"#)));
        }
        let Some(principal) = self.principal.clone() else { return Ok(Err(code::UNAUTHORIZED)) };
        if let Some(Object(subscribe)) = command.subscribe {
            return Ok(self.subscribe(&principal, subscribe).await.map(|reply| format!(r#""subscribe":{reply}"#)));
        }
        if let Some(Object(ChannelName { channel })) = command.unsubscribe {
            self.channels.remove(&*channel);
            return Ok(Ok(r#""unsubscribe":{}"#.to_owned()));
        }
        if let Some(Object(refresh)) = command.refresh {
            let reply = self.refresh(&principal, &refresh.token).await?;
            return Ok(reply.map(|reply| format!(r#""refresh":{reply}"#)));
        }
        if command.ping.is_some() {
            return Ok(Ok(r#""ping":{}"#.to_owned()));
        }
        if let Some(Object(ChannelName { channel })) = command.presence {
            return Ok(self.may_see_presence(&principal, &channel).map(|()| {
                let presence = json!({"presence": self.state.presence.of(&channel)});
                format!(r#""presence":{presence}"#)
            }));
        }
        if let Some(Object(ChannelName { channel })) = command.presence_stats {
            return Ok(self.may_see_presence(&principal, &channel).map(|()| {
                let (clients, users) = self.state.presence.count(&channel);
                format!(r#""presence_stats":{{"num_clients":{clients},"num_users":{users}}}"#)
            }));
        }
        Ok(Err(if command.publish.is_some() || command.rpc.is_some() {
            // Changes come from commands over HTTP, and from nowhere else.
            code::DENIED
        } else if command.history.is_some() {
            code::NOT_AVAILABLE
        } else {
            code::METHOD
        }))
    }

    fn connect(&mut self, token: &str) -> Handled<Result<Value, Code>> {
        if !token.is_empty() {
            // It counts in place of whatever came before, also where it is not believed.
            self.caller.principal = self.state.authenticator.verify(token).map(Some);
        }
        let principal = match &self.caller.principal {
            Ok(Some(principal)) => principal.clone(),
            Ok(None) => return Err(Some(close::NO_TOKEN)),
            Err(problem) if problem.slug() == "token-expired" => return Ok(Err(code::TOKEN_EXPIRED)),
            Err(problem) if problem.slug() == "unknown-key" => return Ok(Err(code::INTERNAL)),
            Err(problem) => return Err(Some(why_refused(problem))),
        };
        self.caller.principal = Ok(None);
        if self.caller.admins && !principal.is_admin() {
            return Err(Some(close::FORBIDDEN));
        }
        self.belongs_to(&principal)?;
        self.next_ping = Instant::now() + PING_EVERY;
        let reply = json!({
            "client": &*self.client,
            "version": concat!("docket ", env!("CARGO_PKG_VERSION")),
            "expires": true,
            "ttl": ttl(&principal),
            "ping": PING_EVERY.as_secs(),
            "pong": true,
        });
        self.expires = Some(expiry(&principal));
        self.principal = Some(principal);
        Ok(Ok(reply))
    }

    fn belongs_to(&self, principal: &Principal) -> Handled<()> {
        self.place.belongs_to(principal).map_err(|_: Full| Some(close::CONNECTION_LIMIT))?;
        // What was revoked before it was known whose connection this is has passed it by.
        if self.state.authenticator.has_revoked(principal) { Err(Some(close::REVOKED)) } else { Ok(()) }
    }

    /// A fresh token of the same subject. Its role may be another one: channels that it does not allow are left.
    async fn refresh(&mut self, principal: &Principal, token: &str) -> Handled<Result<Value, Code>> {
        let fresh = match self.state.authenticator.verify(token) {
            Ok(fresh) => fresh,
            Err(problem) if problem.slug() == "unknown-key" => return Ok(Err(code::INTERNAL)),
            Err(problem) => return Err(Some(why_refused(&problem))),
        };
        if fresh.subject != principal.subject || (self.caller.admins && !fresh.is_admin()) {
            return Err(Some(close::INVALID_TOKEN));
        }
        self.belongs_to(&fresh)?;
        if fresh.role != principal.role && self.authorize_anew(&fresh).await.is_err() {
            return Ok(Err(code::INTERNAL));
        }
        let reply = json!({"client": &*self.client, "expires": true, "ttl": ttl(&fresh)});
        self.expires = Some(expiry(&fresh));
        self.principal = Some(fresh);
        Ok(Ok(reply))
    }

    async fn authorize_anew(&mut self, principal: &Principal) -> Result<(), Refused> {
        for name in self.channels.keys().cloned().collect::<Vec<_>>() {
            let allowed = match find(&name) {
                Ok((kind, id)) => (kind.allows)(&self.state, principal, id).await?,
                Err(_) => false,
            };
            if !allowed {
                self.channels.remove(&name);
                self.notices.push(format!(
                    r#"{{"push":{{"channel":"{name}","unsubscribe":{{"code":2000,"reason":"permission denied"}}}}}}"#
                ));
            } else if let Some(channel) = self.channels.get_mut(&name) {
                // Attached again before the old place is left: nothing is missed, and nothing counts twice.
                channel._subscription = self.state.hub.subscribe(&name, &self.queue, principal.is_staff());
            }
        }
        Ok(())
    }

    fn may_see_presence(&self, principal: &Principal, channel: &str) -> Result<(), Code> {
        match find(channel) {
            Ok((kind, _)) if !kind.has_presence => Err(code::NOT_AVAILABLE),
            Ok(_) if principal.is_staff() => Ok(()),
            Ok(_) | Err(Refused::Denied) => Err(code::DENIED),
            Err(_) => Err(code::UNKNOWN_CHANNEL),
        }
    }

    async fn subscribe(&mut self, principal: &Principal, subscribe: Subscribe) -> Result<String, Code> {
        let Subscribe { channel, recover, offset, epoch, data } = subscribe;
        if self.channels.contains_key(&*channel) {
            return Err(code::ALREADY_SUBSCRIBED);
        }
        if self.channels.len() >= CHANNELS_MAX {
            return Err(code::LIMIT);
        }
        let patched = match data.and_then(|Object(data)| data.delta).as_deref() {
            None => false,
            Some(MERGE_PATCH) => true,
            Some(_) => return Err(code::BAD_REQUEST),
        };
        let after = recover.then(|| Cursor::at(i64::try_from(offset).unwrap_or(i64::MAX), &epoch));
        let opened = open(&self.state, principal, &[&channel], after.as_ref(), &self.queue).await;
        let opened = opened.map_err(|(_, refused)| match refused {
            Refused::Denied => code::DENIED,
            Refused::Unknown => code::UNKNOWN_CHANNEL,
            Refused::Behind => code::INTERNAL,
            Refused::TooMuch => code::LIMIT,
            Refused::Unavailable(error) => {
                tracing::warn!(%error, channel, "subscribe");
                code::INTERNAL
            }
        })?;
        let Some(Opened { channel: name, subscription: Some(subscription), position, start }) =
            opened.into_iter().next()
        else {
            return Err(code::INTERNAL);
        };
        if recover {
            METRICS.resumed(&[&start]);
        }
        let kind = find(&name).ok().map(|(kind, _)| kind);
        let mut reply = format!(r#"{{"was_recovering":{recover}"#);
        // Who is told a position comes back with it.
        if kind.is_some_and(|kind| !kind.is_in_no_log()) {
            let epoch = json!(self.state.store.incarnation());
            reply += &format!(r#","recoverable":true,"positioned":true,"epoch":{epoch},"offset":{position}"#);
        }
        match start {
            Start::Snapshot(snapshot) => reply.push_str(&format!(r#","recovered":false,"data":{snapshot}}}"#)),
            Start::Recovered(changes) => {
                reply.push_str(r#","recovered":true,"publications":["#);
                for (at, (previous, change)) in changes.iter().enumerate() {
                    reply.push_str(if at > 0 { "," } else { "" });
                    push_publication(&mut reply, *previous, change, patched);
                }
                reply.push_str("]}");
            }
        }
        let has_presence = kind.is_some_and(|kind| kind.has_presence);
        let present = has_presence.then(|| self.state.presence.enter(&name, &self.client, &principal.subject));
        self.channels.insert(name, Subscribed { _subscription: subscription, position, patched, _present: present });
        Ok(reply)
    }

    /// Sends what is queued: written one after the other, flushed once; not so much that commands and deadlines would have
    /// to wait.
    async fn deliver(&mut self, socket: &mut WebSocket, first: Delivery, queued: &mut Deliveries) -> Handled<()> {
        let mut next = Some(first);
        let mut bytes = 0;
        while let Some(delivery) = next {
            if let Some(frame) = self.frame(&delivery)? {
                bytes += frame.len();
                socket.feed(Message::Text(frame)).await.map_err(|_| None)?;
            }
            next = if bytes < DELIVERED_AT_ONCE { queued.try_next() } else { None };
        }
        socket.flush().await.map_err(|_| None)
    }

    /// What a client has not got of a delivery, as a frame.
    fn frame(&mut self, delivery: &Delivery) -> Handled<Option<Utf8Bytes>> {
        match delivery {
            Delivery::Changes(batch) => {
                let Some(channel) = self.channels.get_mut(&batch.channel) else { return Ok(None) };
                let position = channel.position;
                if batch.follows() > position {
                    // Never silently: the client comes back and gets what is missing from the log.
                    tracing::error!(channel = &*batch.channel, position, follows = batch.follows(), "a gap");
                    return Err(Some(close::INSUFFICIENT_STATE));
                }
                channel.position = batch.last().max(position);
                Ok(if batch.first() > position {
                    Some(batch.frame(channel.patched))
                } else if batch.last() > position {
                    Some(batch.frame_after(position, channel.patched))
                } else {
                    None
                })
            }
            Delivery::Passing(passing) => {
                let (channel, event, data) = (&passing.channel, passing.event, &passing.data);
                let field = if event == "pub" { "data" } else { "info" };
                let frame = || format!(r#"{{"push":{{"channel":"{channel}","{event}":{{"{field}":{data}}}}}}}"#).into();
                Ok(self.channels.contains_key(channel).then(frame))
            }
        }
    }
}

/// How a connection is closed on which nothing more can be read; `None` where there is nobody left to be told.
pub fn violation(error: &axum::Error) -> Option<(u16, &'static str)> {
    match error.source().and_then(|cause| cause.downcast_ref()) {
        Some(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => None,
        Some(tungstenite::Error::Protocol(_)) => Some(close::PROTOCOL),
        Some(tungstenite::Error::Utf8(_)) => Some(close::NO_UTF_8),
        Some(tungstenite::Error::Capacity(_)) => Some(close::TOO_LONG),
        Some(tungstenite::Error::Io(error)) if error.kind() == QuotaExceeded => Some(close::NO_MESSAGE),
        _ => None,
    }
}

/// Why a token ends the connection.
fn why_refused(problem: &Problem) -> Close {
    match problem.slug() {
        "token-expired" => close::EXPIRED,
        "token-revoked" => close::REVOKED,
        "invalid-ticket" => close::INVALID_TICKET,
        _ => close::INVALID_TOKEN,
    }
}

fn expiry(principal: &Principal) -> Instant {
    Instant::now() + Duration::from_secs(ttl(principal)) + EXPIRY_GRACE
}

/// How long a token is still believed.
pub fn believed_for(principal: &Principal) -> Duration {
    Duration::from_secs(
        (principal.expires_at + LEEWAY_SECONDS as i64 - Timestamp::now().as_second()).clamp(0, TTL_MAX) as u64
    )
}

/// Seconds for which a token is still valid.
pub fn ttl(principal: &Principal) -> u64 {
    (principal.expires_at - Timestamp::now().as_second()).clamp(0, TTL_MAX) as u64
}

/// A client that takes nothing holds this up until its queue is full, or until the connection has waited too long to
/// write.
async fn send(socket: &mut WebSocket, frame: Utf8Bytes) -> Handled<()> {
    socket.send(Message::Text(frame)).await.map_err(|_| None)
}
