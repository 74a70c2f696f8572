//! The main loop of a connection: commands, deadlines and deliveries.

use std::pin::pin;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures::SinkExt;
use serde_json::json;
use tokio::time::{Instant, sleep_until, timeout};

use crate::api::QueryApi;
use crate::centrifuge::commands::{Caller, Client, Handled, PING_EVERY, close_for_block};
use crate::centrifuge::protocol::{
    Command, FRAME_BYTES_MAX, MESSAGE_BYTES_SENT_MAX, Numbered, close, close_for_error, code,
};
use crate::connections::{CloseHandle, CloseReason, ConnectionSlot};
use crate::metrics::METRICS;
use crate::queue::{Deliveries, Delivery, queue};

/// Bytes of deliveries that are sent before commands and deadlines are processed again.
const DELIVERED_AT_ONCE: usize = 256 * 1024;
/// Time limit for the `connect` command.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Time limit for the answer to a ping.
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// Time limit for the closing handshake, in which the client reads the close reason.
const CLOSE_HANDSHAKE_WITHIN: Duration = Duration::from_secs(3);
/// Rate limit of a client's commands: the burst, and the refill per second.
const COMMANDS_BURST: f64 = 512.0;
const COMMANDS_PER_SECOND: f64 = 64.0;
/// Commands of one connection that may be refused by the rate limit. One more closes the connection.
const REFUSALS_MAX: usize = 10_000;

struct Connection {
    client: Client,
    next_ping: Instant,
    pong_by: Option<Instant>,
    /// Commands that the rate limit allows now, and when this was last updated.
    throttle_budget: (f64, Instant),
    /// Number of commands that the rate limit has refused.
    refusals: usize,
}

/// Serves a socket until it ends, and closes it with a reason.
pub(super) async fn run(
    mut socket: WebSocket,
    api: QueryApi,
    caller: Caller,
    handle: CloseHandle,
    slot: ConnectionSlot,
) {
    let (queue, mut deliveries) = queue(handle.clone());
    let now = Instant::now();
    let mut connection = Connection {
        client: Client::new(api, caller, slot, queue),
        next_ping: now + CONNECT_WITHIN,
        pong_by: None,
        throttle_budget: (COMMANDS_BURST, now),
        refusals: 0,
    };
    let served = tokio::select! {
        biased;
        // Polled beside `serve`, so that a close takes effect even while `serve` is blocked on a client that does not
        // read.
        reason = handle.closed() => Some(match reason {
            CloseReason::Slow => close::SLOW,
            CloseReason::Incomplete => close::INSUFFICIENT_STATE,
            CloseReason::Shutdown => close::SHUTDOWN,
            CloseReason::Blocked(reason) => close_for_block(reason),
        }),
        Err(closed) = connection.serve(&mut socket, &mut deliveries) => closed,
    };
    METRICS.closed(served.map_or("client", close::reason));
    // Unsubscribes and frees the queue before the closing handshake.
    connection.client.channels.clear();
    drop(deliveries);
    if let Some((code, reason)) = served {
        let frame = CloseFrame { code, reason: reason.into() };
        let handshake = async {
            if socket.send(Message::Close(Some(frame))).await.is_ok() {
                // Reads until the client's own Close; discards messages that it sent before.
                while let Some(Ok(_)) = socket.recv().await {}
            }
        };
        let _ = timeout(CLOSE_HANDSHAKE_WITHIN, handshake).await;
    }
}

impl Connection {
    /// Runs until the connection ends. `Err(None)`: the client has disconnected. `Err(Some(…))`: close with this
    /// reason.
    async fn serve(
        &mut self,
        socket: &mut WebSocket,
        deliveries: &mut Deliveries,
    ) -> Handled<std::convert::Infallible> {
        let mut timer = pin!(sleep_until(self.next_ping));
        self.client.caller.read_limit.set(MESSAGE_BYTES_SENT_MAX);
        loop {
            let due = [self.client.expires, self.pong_by].into_iter().flatten().fold(self.next_ping, Instant::min);
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
            tokio::select! {
                () = &mut timer => self.due(socket).await?,
                message = socket.recv() => match message {
                    Some(Ok(Message::Text(text))) => {
                        self.client.caller.read_limit.set(MESSAGE_BYTES_SENT_MAX);
                        // Boxed to keep the tasks of connections small: there are many, and most of them are idle.
                        Box::pin(self.commands(socket, &text, deliveries)).await?;
                    }
                    Some(Ok(Message::Binary(_))) => return Err(Some(close::JSON_ONLY)),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) if self.take_command_permit() => {}
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => self.refuse()?,
                    Some(Ok(Message::Close(_))) => {
                        // The library has already buffered the answering Close; flush it.
                        let _ = timeout(CLOSE_HANDSHAKE_WITHIN, socket.flush()).await;
                        return Err(None);
                    }
                    Some(Err(error)) => return Err(close_for_error(&error)),
                    None => return Err(None),
                },
                delivery = deliveries.next() => self.deliver(socket, delivery, deliveries).await?,
            }
        }
    }

    /// Handles the deadlines that have passed.
    async fn due(&mut self, socket: &mut WebSocket) -> Handled<()> {
        let now = Instant::now();
        if self.client.principal.is_none() {
            return Err(Some(close::STALE));
        }
        if self.client.expires.is_some_and(|expires| expires <= now) {
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

    /// Executes the commands of one frame. The replies are in the order of the commands, in one frame or in several.
    async fn commands(&mut self, socket: &mut WebSocket, frame: &str, queued: &mut Deliveries) -> Handled<()> {
        let mut replies = String::new();
        for line in frame.lines().filter(|line| !line.trim().is_empty()) {
            if line.trim() == "{}" {
                // A pong that answers a ping is free; additional ones count against the rate limit.
                if self.pong_by.take().is_none() && !self.take_command_permit() {
                    self.refuse()?;
                }
                continue;
            }
            if !line.trim_start().starts_with('{') {
                return Err(Some(close::BAD_REQUEST));
            }
            let Numbered { id } = serde_json::from_str(line).map_err(|_| Some(close::BAD_REQUEST))?;
            let reply = match serde_json::from_str::<Command>(line) {
                _ if !self.take_command_permit() => {
                    self.refuse()?;
                    Err(code::TOO_MANY_REQUESTS)
                }
                Ok(command) => {
                    let is_new = self.client.principal.is_none();
                    let reply = self.client.command(command).await?;
                    if is_new && self.client.principal.is_some() {
                        self.next_ping = Instant::now() + PING_EVERY;
                    }
                    reply
                }
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
            for push in self.client.pending_pushes.drain(..) {
                replies.push('\n');
                replies.push_str(&push);
            }
            // Sends queued deliveries between the commands of a long frame, so that the queue does not overflow.
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

    /// Charges one command to the client's rate limit; false when it is exhausted.
    fn take_command_permit(&mut self) -> bool {
        let (left, counted) = self.throttle_budget;
        let left = (left + counted.elapsed().as_secs_f64() * COMMANDS_PER_SECOND).min(COMMANDS_BURST);
        let allowed = left >= 1.0;
        self.throttle_budget = (left - f64::from(u8::from(allowed)), Instant::now());
        allowed
    }

    /// Counts a command that the rate limit refuses. Closes the connection if the client has not connected yet, or has
    /// exceeded [`REFUSALS_MAX`].
    fn refuse(&mut self) -> Handled<()> {
        self.refusals += 1;
        if self.client.principal.is_none() || self.refusals > REFUSALS_MAX {
            Err(Some(close::BAD_REQUEST))
        } else {
            Ok(())
        }
    }

    /// Sends queued deliveries with one flush. Stops after [`DELIVERED_AT_ONCE`] bytes, so that commands and deadlines
    /// do not wait too long.
    async fn deliver(&mut self, socket: &mut WebSocket, first: Delivery, queued: &mut Deliveries) -> Handled<()> {
        let mut next = Some(first);
        let mut bytes = 0;
        while let Some(delivery) = next {
            if let Some(frame) = self.client.frame(&delivery)? {
                bytes += frame.len();
                socket.feed(Message::Text(frame)).await.map_err(|_| None)?;
            }
            next = if bytes < DELIVERED_AT_ONCE { queued.try_next() } else { None };
        }
        socket.flush().await.map_err(|_| None)
    }
}

/// Sends a frame. Blocks while the client reads nothing, until its queue is full or the connection's write timeout ends
/// it.
async fn send(socket: &mut WebSocket, frame: Utf8Bytes) -> Handled<()> {
    socket.send(Message::Text(frame)).await.map_err(|_| None)
}
