//! The Centrifuge protocol: the commands of clients, their size limits, and the error and close codes.

use std::error::Error;
use std::fmt;
use std::io::ErrorKind::QuotaExceeded;
use std::marker::PhantomData;

use axum::extract::ws::WebSocketUpgrade;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use tokio_tungstenite::tungstenite::{self, error::ProtocolError};

/// Longest accepted message, in bytes, in one frame or in fragments. Also the approximate size at which a frame of
/// replies is sent.
pub(super) const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Most bytes that a client may send from one complete message to the next, including frame headers, empty fragments
/// and pings.
pub(super) const MESSAGE_BYTES_SENT_MAX: usize = 4 * FRAME_BYTES_MAX;
/// Buffers of each connection, including idle ones. A larger frame uses more memory while it is sent.
const READ_BUFFER_BYTES: usize = 512;
const WRITE_BUFFER_BYTES: usize = 2 * 1024;
/// Value of `data.delta` with which a subscriber requests patches in place of views.
pub(super) const MERGE_PATCH: &str = "merge-patch";

/// Close codes. SDKs reconnect after 3000 to 3499 and 4000 to 4499, and do not reconnect after the others.
pub(super) mod close {
    // Codes below 3000 are those of RFC 6455.
    pub const PROTOCOL: (u16, &str) = (1002, "protocol error");
    pub const NO_UTF_8: (u16, &str) = (1007, "a text must be UTF-8");
    pub const NO_MESSAGE: (u16, &str) = (1008, "too many frames without a whole message");
    pub const TOO_LONG: (u16, &str) = (1009, "a message can have at most 64 KiB");
    pub const SHUTDOWN: (u16, &str) = (3001, "shutdown");
    pub const SLOW: (u16, &str) = (3008, "slow");
    pub const INSUFFICIENT_STATE: (u16, &str) = (3010, "insufficient state");
    pub const NO_PONG: (u16, &str) = (3012, "no pong");
    pub const INVALID_TOKEN: (u16, &str) = (3500, "invalid token");
    pub const NO_TOKEN: (u16, &str) = (3500, "no token");
    pub const INVALID_TICKET: (u16, &str) = (3500, "invalid ticket");
    pub const BAD_REQUEST: (u16, &str) = (3501, "bad request");
    pub const JSON_ONLY: (u16, &str) = (3501, "bad request: JSON in text frames only");
    pub const STALE: (u16, &str) = (3502, "stale");
    pub const CONNECTION_LIMIT: (u16, &str) = (3504, "connection limit");
    pub const EXPIRED: (u16, &str) = (4401, "token expired");
    pub const FORBIDDEN: (u16, &str) = (4503, "forbidden");
    pub const REVOKED: (u16, &str) = (4503, "token revoked");
    pub const BANNED: (u16, &str) = (4503, "banned");

    /// Returns the value of the metric label `reason`.
    pub fn reason(close: (u16, &str)) -> &'static str {
        match close {
            SHUTDOWN => "shutdown",
            SLOW => "slow",
            NO_PONG => "no_pong",
            EXPIRED => "expired",
            FORBIDDEN | REVOKED | BANNED => "forbidden",
            INVALID_TOKEN | NO_TOKEN | INVALID_TICKET => "invalid_token",
            CONNECTION_LIMIT => "limit",
            _ => "error",
        }
    }
}

/// Error codes of replies.
pub(super) mod code {
    /// SDKs retry automatically.
    pub const INTERNAL: (u32, &str) = (100, "internal server error");
    pub const UNAUTHORIZED: (u32, &str) = (101, "unauthorized");
    pub const UNKNOWN_CHANNEL: (u32, &str) = (102, "unknown channel");
    pub const DENIED: (u32, &str) = (103, "permission denied");
    pub const METHOD: (u32, &str) = (104, "method not found");
    pub const ALREADY_SUBSCRIBED: (u32, &str) = (105, "already subscribed");
    pub const LIMIT: (u32, &str) = (106, "limit exceeded");
    pub const BAD_REQUEST: (u32, &str) = (107, "bad request");
    pub const NOT_AVAILABLE: (u32, &str) = (108, "not available");
    /// SDKs request a new token and connect with it.
    pub const TOKEN_EXPIRED: (u32, &str) = (109, "token expired");
    /// SDKs retry automatically.
    pub const TOO_MANY_REQUESTS: (u32, &str) = (111, "too many requests");
}

/// The code and the reason of a close.
pub(super) type Close = (u16, &'static str);
/// The code and the message of an error.
pub(super) type Code = (u32, &'static str);

/// The id of a command, parsed first so that an otherwise invalid command can be answered.
#[derive(serde::Deserialize)]
pub(super) struct Numbered {
    #[serde(default)]
    pub(super) id: u32,
}

#[derive(serde::Deserialize)]
pub(super) struct Command {
    pub(super) connect: Option<Object<Connect>>,
    pub(super) subscribe: Option<Object<Subscribe>>,
    pub(super) unsubscribe: Option<Object<ChannelName>>,
    pub(super) presence: Option<Object<ChannelName>>,
    pub(super) presence_stats: Option<Object<ChannelName>>,
    pub(super) refresh: Option<Object<Connect>>,
    pub(super) ping: Option<Value>,
    pub(super) publish: Option<Value>,
    pub(super) history: Option<Value>,
    pub(super) rpc: Option<Value>,
}

#[derive(serde::Deserialize)]
pub(super) struct Connect {
    #[serde(default)]
    pub(super) token: String,
}

#[derive(serde::Deserialize)]
pub(super) struct ChannelName {
    pub(super) channel: String,
}

#[derive(serde::Deserialize)]
pub(super) struct Subscribe {
    pub(super) channel: String,
    #[serde(default)]
    pub(super) recover: bool,
    #[serde(default)]
    pub(super) offset: u64,
    #[serde(default)]
    pub(super) epoch: String,
    pub(super) data: Option<Object<SubscribeData>>,
}

#[derive(serde::Deserialize)]
pub(super) struct SubscribeData {
    pub(super) delta: Option<String>,
}

/// A `T` that deserializes from a JSON object only. By itself, serde also accepts an array of the members in order.
pub(super) struct Object<T>(pub(super) T);

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

/// Configures a socket: small buffers, and a limit on the length of messages.
pub fn configure_socket(upgrade: WebSocketUpgrade, message_bytes_max: usize) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(8 * 1024 * 1024)
        .max_message_size(message_bytes_max)
        .max_frame_size(message_bytes_max)
}

/// Returns the close code and reason for a read error; `None` if the client has disconnected.
pub fn close_for_error(error: &axum::Error) -> Option<(u16, &'static str)> {
    match error.source().and_then(|cause| cause.downcast_ref()) {
        Some(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => None,
        Some(tungstenite::Error::Protocol(_)) => Some(close::PROTOCOL),
        Some(tungstenite::Error::Utf8(_)) => Some(close::NO_UTF_8),
        Some(tungstenite::Error::Capacity(_)) => Some(close::TOO_LONG),
        Some(tungstenite::Error::Io(error)) if error.kind() == QuotaExceeded => Some(close::NO_MESSAGE),
        _ => None,
    }
}
