//! `/ws`: the Centrifuge client protocol, version 2, in JSON, as far as an unmodified SDK needs it to connect, subscribe
//! with a snapshot, follow, refresh its token and unsubscribe.
//!
//! The protocol is that of <https://centrifugal.dev/docs/transports/client_protocol>: frames hold one or more JSON
//! objects separated by line feeds; a command has an `id`, its reply the same one; a frame `{}` from the server is a
//! ping and is answered by `{}`. A publication's `offset` is its position in the log, `epoch` is the log's incarnation.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::get;
use jiff::Timestamp;
use platform::auth::Principal;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::push::channels::{Refused, Snapshot, open};
use crate::push::hub::{Delivery, QUEUE_MAX, Subscription};
use crate::state::ReadSide;

/// Longest frame taken from a client, in bytes.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Channels of one connection, at most.
const CHANNELS_MAX: usize = 128;
/// How long a client may take to send `connect`.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Time between pings.
const PING_EVERY: Duration = Duration::from_secs(25);
/// How long a pong may take.
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// How long a frame may wait for the client's socket.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// How long an expired token is put up with, so that a client can refresh it.
const EXPIRY_GRACE: Duration = Duration::from_secs(25);

/// Close codes: SDKs come back after 3000 to 3499 and 4000 to 4499, and stay away after the others.
mod close {
    pub(super) const SHUTDOWN: (u16, &str) = (3001, "shutdown");
    pub(super) const SLOW: (u16, &str) = (3008, "slow");
    pub(super) const NO_PONG: (u16, &str) = (3012, "no pong");
    pub(super) const INVALID_TOKEN: (u16, &str) = (3500, "invalid token");
    pub(super) const BAD_REQUEST: (u16, &str) = (3501, "bad request");
    pub(super) const STALE: (u16, &str) = (3502, "stale");
    pub(super) const EXPIRED: (u16, &str) = (4401, "token expired");
}

/// Error codes of replies.
mod code {
    pub(super) const UNAUTHORIZED: (u32, &str) = (101, "unauthorized");
    pub(super) const UNKNOWN_CHANNEL: (u32, &str) = (102, "unknown channel");
    pub(super) const DENIED: (u32, &str) = (103, "permission denied");
    pub(super) const METHOD: (u32, &str) = (104, "method not found");
    pub(super) const ALREADY_SUBSCRIBED: (u32, &str) = (105, "already subscribed");
    pub(super) const LIMIT: (u32, &str) = (106, "limit exceeded");
    pub(super) const NOT_AVAILABLE: (u32, &str) = (108, "not available");
    /// Codes below 400 with `temporary` set make an SDK try again by itself.
    pub(super) const INTERNAL: (u32, &str) = (100, "internal server error");
}

type Close = (u16, &'static str);

/// The route.
pub fn router() -> OpenApiRouter<ReadSide> {
    OpenApiRouter::new().route("/ws", get(upgrade))
}

async fn upgrade(State(state): State<ReadSide>, upgrade: WebSocketUpgrade, header: HeaderPrincipal) -> Response {
    upgrade
        .read_buffer_size(4 * 1024)
        .write_buffer_size(4 * 1024)
        .max_write_buffer_size(8 * 1024 * 1024)
        .max_message_size(FRAME_BYTES_MAX)
        .max_frame_size(FRAME_BYTES_MAX)
        .on_upgrade(move |socket| async move { run(socket, state, header.0).await })
}

/// The principal of the `Authorization` header, for clients that can set one.
struct HeaderPrincipal(Option<Principal>);

impl FromRequestParts<ReadSide> for HeaderPrincipal {
    type Rejection = platform::problem::Problem;

    async fn from_request_parts(parts: &mut Parts, state: &ReadSide) -> Result<Self, Self::Rejection> {
        match parts.headers.contains_key(axum::http::header::AUTHORIZATION) {
            true => Ok(Self(Some(Principal::from_request_parts(parts, state).await?))),
            false => Ok(Self(None)),
        }
    }
}

#[derive(Deserialize)]
struct Command {
    #[serde(default)]
    id: u32,
    connect: Option<Connect>,
    subscribe: Option<ChannelName>,
    unsubscribe: Option<ChannelName>,
    refresh: Option<Connect>,
    ping: Option<Value>,
    publish: Option<Value>,
    presence: Option<Value>,
    presence_stats: Option<Value>,
    history: Option<Value>,
    rpc: Option<Value>,
}

#[derive(Deserialize)]
struct Connect {
    #[serde(default)]
    token: String,
}

#[derive(Deserialize)]
struct ChannelName {
    channel: String,
}

struct Connection {
    state: ReadSide,
    client: String,
    principal: Option<Principal>,
    header: Option<Principal>,
    /// When the token has been expired for longer than a client needs to refresh it.
    expires: Option<Instant>,
    subscriptions: HashMap<String, (Subscription, Snapshot)>,
    queue: mpsc::Sender<Delivery>,
    slow: CancellationToken,
}

/// Serves a socket until it closes, and closes it with the reason.
async fn run(mut socket: WebSocket, state: ReadSide, header: Option<Principal>) {
    let (queue, deliveries) = mpsc::channel(QUEUE_MAX);
    let mut connection = Connection {
        state,
        client: Uuid::now_v7().to_string(),
        principal: None,
        header,
        expires: None,
        subscriptions: HashMap::new(),
        queue,
        slow: CancellationToken::new(),
    };
    if let Err(Some((code, reason))) = connection.serve(&mut socket, deliveries).await {
        connection.subscriptions.clear();
        let frame = CloseFrame { code, reason: reason.into() };
        let goodbye = async {
            if socket.send(Message::Close(Some(frame))).await.is_ok() {
                // The client answers with its own Close; what it had sent before is read and dropped.
                while let Some(Ok(_)) = socket.recv().await {}
            }
        };
        let _ = timeout(Duration::from_secs(3), goodbye).await;
    }
}

impl Connection {
    /// `Err(None)`: the client is gone. `Err(Some(…))`: it is to be told why.
    async fn serve(
        &mut self,
        socket: &mut WebSocket,
        mut deliveries: mpsc::Receiver<Delivery>,
    ) -> Result<(), Option<Close>> {
        let connect_by = Instant::now() + CONNECT_WITHIN;
        let mut next_ping = Instant::now() + PING_EVERY;
        let mut pong_by: Option<Instant> = None;
        let (stop, slow) = (self.state.stop.clone(), self.slow.clone());
        loop {
            tokio::select! {
                // What ends the connection comes first: a busy channel or client must not put it off.
                biased;
                () = slow.cancelled() => return Err(Some(close::SLOW)),
                () = stop.cancelled() => return Err(Some(close::SHUTDOWN)),
                () = sleep_until(self.expires.unwrap_or(next_ping)), if self.expires.is_some() => {
                    return Err(Some(close::EXPIRED));
                }
                () = sleep_until(pong_by.unwrap_or(next_ping)), if pong_by.is_some() => return Err(Some(close::NO_PONG)),
                () = sleep_until(connect_by), if self.principal.is_none() => return Err(Some(close::STALE)),
                () = sleep_until(next_ping), if self.principal.is_some() => {
                    next_ping = Instant::now() + PING_EVERY;
                    pong_by = Some(Instant::now() + PONG_WITHIN);
                    send(socket, "{}".into()).await?;
                }
                message = socket.recv() => match message {
                    Some(Ok(Message::Text(text))) => {
                        if text.as_str().trim() == "{}" {
                            pong_by = None;
                        } else {
                            self.commands(socket, &text).await?;
                        }
                    }
                    Some(Ok(Message::Binary(_))) => return Err(Some(close::BAD_REQUEST)),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(None),
                },
                Some(delivery) = deliveries.recv() => self.deliver(socket, delivery, &mut deliveries).await?,
            }
        }
    }

    /// One frame of commands, answered in order, in one frame or, where the answers are large, in several.
    async fn commands(&mut self, socket: &mut WebSocket, frame: &str) -> Result<(), Option<Close>> {
        let mut replies = String::new();
        for line in frame.lines().filter(|line| !line.trim().is_empty()) {
            let command: Command = serde_json::from_str(line).map_err(|_| Some(close::BAD_REQUEST))?;
            if let Some(reply) = self.command(command).await? {
                if !replies.is_empty() {
                    replies.push('\n');
                }
                // Writing to a string cannot fail.
                let _ = write!(replies, "{reply}");
            }
            if replies.len() >= FRAME_BYTES_MAX {
                send(socket, std::mem::take(&mut replies)).await?;
            }
        }
        if replies.is_empty() { Ok(()) } else { send(socket, replies).await }
    }

    async fn command(&mut self, command: Command) -> Result<Option<Value>, Option<Close>> {
        let id = command.id;
        let error = |(code, message): (u32, &str)| json!({"id": id, "error": {"code": code, "message": message}});
        if let Some(connect) = command.connect {
            if self.principal.is_some() {
                return Err(Some(close::BAD_REQUEST));
            }
            return self.connect(&connect.token).map(|reply| Some(json!({"id": id, "connect": reply})));
        }
        let Some(principal) = self.principal.clone() else { return Ok(Some(error(code::UNAUTHORIZED))) };
        if let Some(ChannelName { channel }) = command.subscribe {
            return Ok(Some(match self.subscribe(&principal, channel).await {
                Ok(reply) => json!({"id": id, "subscribe": reply}),
                Err(code::INTERNAL) => {
                    let (code, message) = code::INTERNAL;
                    json!({"id": id, "error": {"code": code, "message": message, "temporary": true}})
                }
                Err(code) => error(code),
            }));
        }
        if let Some(ChannelName { channel }) = command.unsubscribe {
            self.subscriptions.remove(&channel);
            return Ok(Some(json!({"id": id, "unsubscribe": {}})));
        }
        if let Some(refresh) = command.refresh {
            let fresh = self.state.authenticator.verify(&refresh.token).map_err(|_| Some(close::INVALID_TOKEN))?;
            if fresh.subject != principal.subject || fresh.role != principal.role {
                return Err(Some(close::INVALID_TOKEN));
            }
            let reply = json!({"client": self.client, "expires": true, "ttl": ttl(&fresh)});
            self.expires = Some(expiry(&fresh));
            self.principal = Some(fresh);
            return Ok(Some(json!({"id": id, "refresh": reply})));
        }
        if command.ping.is_some() {
            return Ok(Some(json!({"id": id, "ping": {}})));
        }
        if command.publish.is_some() || command.rpc.is_some() {
            // Changes come from commands over HTTP, and from nowhere else.
            return Ok(Some(error(code::DENIED)));
        }
        if command.presence.is_some() || command.presence_stats.is_some() || command.history.is_some() {
            return Ok(Some(error(code::NOT_AVAILABLE)));
        }
        Ok(Some(error(code::METHOD)))
    }

    fn connect(&mut self, token: &str) -> Result<Value, Option<Close>> {
        let principal = match (token, self.header.take()) {
            ("", Some(principal)) => principal,
            (token, _) => self.state.authenticator.verify(token).map_err(|_| Some(close::INVALID_TOKEN))?,
        };
        let reply = json!({
            "client": self.client,
            "version": concat!("docket ", env!("CARGO_PKG_VERSION")),
            "expires": true,
            "ttl": ttl(&principal),
            "ping": PING_EVERY.as_secs(),
            "pong": true,
        });
        self.expires = Some(expiry(&principal));
        self.principal = Some(principal);
        Ok(reply)
    }

    /// Attach first, read the snapshot then: what happens in between is in the queue, and what the snapshot holds
    /// already is dropped from it.
    async fn subscribe(&mut self, principal: &Principal, channel: String) -> Result<Value, (u32, &'static str)> {
        if self.subscriptions.contains_key(&channel) {
            return Err(code::ALREADY_SUBSCRIBED);
        }
        if self.subscriptions.len() >= CHANNELS_MAX {
            return Err(code::LIMIT);
        }
        let subscription = self.state.hub.subscribe(&channel, self.queue.clone(), self.slow.clone());
        let mut snapshot = open(&self.state, principal, &channel).await.map_err(|refused| match refused {
            Refused::Denied => code::DENIED,
            Refused::Unknown => code::UNKNOWN_CHANNEL,
            Refused::Unavailable(error) => {
                tracing::warn!(%error, channel, "subscribe");
                code::INTERNAL
            }
        })?;
        let reply = json!({
            "data": snapshot.data.take(),
            "epoch": self.state.store.incarnation(),
            "offset": snapshot.position,
            "positioned": false,
            "recoverable": false,
        });
        self.subscriptions.insert(channel, (subscription, snapshot));
        Ok(reply)
    }

    /// Sends what is queued, as many changes in one frame as are there.
    async fn deliver(
        &mut self,
        socket: &mut WebSocket,
        first: Delivery,
        deliveries: &mut mpsc::Receiver<Delivery>,
    ) -> Result<(), Option<Close>> {
        let mut frame = String::new();
        let mut next = Some(first);
        while let Some((channel, publication)) = next {
            let live = self.subscriptions.get(&*channel).is_some_and(|(_, snapshot)| !snapshot.holds(&publication));
            if live {
                if !frame.is_empty() {
                    frame.push('\n');
                }
                let (data, offset) = (&publication.data, publication.position);
                // `open` lets through no channel whose name holds what JSON escapes.
                let _ =
                    write!(frame, r#"{{"push":{{"channel":"{channel}","pub":{{"data":{data},"offset":{offset}}}}}}}"#);
            }
            next = if frame.len() < FRAME_BYTES_MAX { deliveries.try_recv().ok() } else { None };
        }
        if frame.is_empty() { Ok(()) } else { send(socket, frame).await }
    }
}

fn expiry(principal: &Principal) -> Instant {
    Instant::now() + Duration::from_secs(ttl(principal)) + EXPIRY_GRACE
}

/// Seconds for which a token is still valid.
fn ttl(principal: &Principal) -> u64 {
    (principal.expires_at - Timestamp::now().as_second()).max(0) as u64
}

async fn send(socket: &mut WebSocket, frame: String) -> Result<(), Option<Close>> {
    match timeout(WRITE_WITHIN, socket.send(Message::Text(frame.into()))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(None),
        Err(_) => Err(Some(close::SLOW)),
    }
}
