//! `GET /v1/live`: channels as server-sent events, as specified in
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use std::fmt::Write;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use platform::auth::BlockReason;
use platform::problem::Problem;
use serde::Deserialize;
use tokio::time::{Instant, sleep_until};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::QueryApi;
use crate::connections::{CloseHandle, CloseReason, ConnectionSlot};
use crate::cursor::Cursor;
use crate::live::pieces::Pieces;
use crate::live::{CursorTracker, InitialEvents, LiveRequest, Message};
use crate::merge::{Merged, Next};
use crate::metrics::{METRICS, Transport};
use crate::tokens::token_lifetime;

/// Interval of keep-alive comments on an idle stream.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Reconnect delay that a client is given, in milliseconds. Random within the range, so that clients do not reconnect
/// all at once.
const RETRY_MS: std::ops::Range<u64> = 500..1_500;
/// Reconnect delay after a 503 or 429, in milliseconds.
const RECONNECT_LATER_MS: u64 = 2_000;

/// Header that disables response buffering in nginx.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Returns the route of event streams. It is limited by the number of open connections, not by the request rate.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(live))
}

/// Query parameters of a stream.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the schema of parameters that are parsed by hand, because `channel` may be repeated")]
struct LiveQuery {
    /// Name of a channel. Repeat the parameter for each channel.
    channel: Vec<String>,
    /// The id of the last received event, for clients that cannot send `Last-Event-ID`.
    last_event_id: Option<String>,
    /// A ticket from `POST /v1/tickets`, for clients that cannot send `Authorization`.
    ticket: Option<String>,
    /// A token, for clients that can send neither a header nor a cookie. Accepted only with the setting
    /// `token_in_query`.
    token: Option<String>,
}

/// Streams channels as server-sent events. A stream starts with a `snapshot`, or with the changes after
/// `Last-Event-ID`. Then each change is a `pub` event. `reset` precedes snapshots that replace changes that could not
/// be recovered. `auth_expired` precedes the end of a stream whose token has expired or was revoked, or whose subject
/// was banned.
#[utoipa::path(get, path = "/v1/live", operation_id = "stream_changes", tag = "live-updates", params(LiveQuery),
    responses((status = 200, description = "Server-sent events until the client disconnects.", body = String, content_type = "text/event-stream")),
    extensions(("x-problems" = json!(["channel-not-found", "forbidden", "invalid-ticket", "origin-not-allowed", "too-many-connections", "projection-behind", "too-much-at-once"]))))]
async fn live(State(api): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    let accepts = request.headers().get(ACCEPT).and_then(|accepts| accepts.to_str().ok());
    let is_event_source = accepts.is_some_and(|accepts| accepts.contains("text/event-stream"));
    follow(api, request).await.or_else(|problem| match problem.status() {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS if is_event_source => {
            Ok(reconnect_later(&problem))
        }
        _ => Err(problem),
    })
}

/// Returns an event stream that ends at once. An `EventSource` stops permanently when the response is not an event
/// stream; after this response it reconnects with the id of its last event.
fn reconnect_later(problem: &Problem) -> Response {
    let text = format!("retry: {RECONNECT_LATER_MS}\n: {}\n\n", problem.slug());
    ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store, no-transform")], text).into_response()
}

async fn follow(api: QueryApi, request: Request) -> Result<Response, Problem> {
    let mut asked = LiveRequest::read(&api, request, Transport::Sse, &["last_event_id"]).await?;
    let header = asked.last_event_id.take();
    let after = header.or_else(|| asked.parameter("last_event_id").map(str::to_owned));
    // An id that is not a cursor leads to a reset, not to an error: an EventSource would send the same id again and
    // again.
    let after: Option<Option<Cursor>> = after.filter(|id| !id.is_empty()).map(|id| id.parse().ok());
    let (merged, session) = asked.open(&api, after.as_ref().and_then(Option::as_ref)).await?;
    let mut from = after.clone().flatten().unwrap_or_else(|| session.cursor.clone());
    from.groups.retain(|known| session.cursor.of(&known.group).is_some());
    let tracker = CursorTracker::new(from, &session.channels);
    let initial = InitialEvents::new(api.store.incarnation(), session.channels, after.is_some());
    let mut stream = Live {
        tracker,
        merged,
        ready: Pieces::default(),
        comment_at: Instant::now() + COMMENT_EVERY,
        expires: Instant::now() + token_lifetime(&asked.principal),
        handle: asked.handle,
        why: "client",
        _slot: asked.slot,
    };
    stream.start(initial, session.cursor);
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

/// Returns the last event of a stream whose caller may no longer read it.
fn auth_expired(reason: &str) -> Bytes {
    format!("event: auth_expired\ndata: {{\"reason\":\"{reason}\"}}\n\n").into()
}

/// An open event stream.
struct Live {
    merged: Merged,
    ready: Pieces,
    /// Position up to which everything has been written.
    tracker: CursorTracker,
    comment_at: Instant,
    expires: Instant,
    handle: CloseHandle,
    /// Why the stream ends, for metrics; `client` unless the server ends it.
    why: &'static str,
    _slot: ConnectionSlot,
}

impl Drop for Live {
    fn drop(&mut self) {
        // A stream that was closed while its client did not read is dropped without another poll, so `why` was not set.
        METRICS.closed(if self.why == "client" {
            self.handle.why().map_or(self.why, CloseReason::as_str)
        } else {
            self.why
        });
    }
}

impl Live {
    /// Writes the first events, after which the client is at `cursor`. If all of them are changes, each has its id. If
    /// there are snapshots, only the last event has an id, because before it the client does not have all channels.
    fn start(&mut self, initial: InitialEvents, cursor: Cursor) {
        let spread = u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * (RETRY_MS.end - RETRY_MS.start) / 256;
        let _ = write!(self.ready.text(), "retry: {}\n\n", RETRY_MS.start + spread);
        let InitialEvents { messages, are_changes, .. } = initial;
        for (at, message) in messages.iter().enumerate() {
            let is_last = at + 1 == messages.len();
            if let (Some(change), true) = (message.change(), are_changes) {
                let mut later = messages[at + 1..].iter().filter_map(Message::change);
                self.tracker.sent(change, later.find(|next| next.group() == change.group()));
            }
            if is_last {
                self.tracker.cursor = cursor.clone();
            }
            self.write(message, are_changes || is_last);
        }
        self.tracker.cursor = cursor;
        if messages.is_empty() {
            self.write_cursor();
        }
    }

    fn write(&mut self, message: &Message, with_id: bool) {
        let text = self.ready.text();
        let _ = writeln!(text, "event: {}", message.event());
        if with_id {
            let _ = writeln!(text, "id: {}", self.tracker.cursor);
        }
        self.ready.share(message.text().data_line());
    }

    /// Writes a keep-alive comment that advances the client's id without an event.
    fn write_cursor(&mut self) {
        let _ = writeln!(self.ready.text(), ": alive\nid: {}\n", self.tracker.cursor);
    }

    fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
        futures::stream::unfold(Some(self), |live| async {
            let mut live = live?;
            loop {
                if let Some(piece) = live.ready.next(usize::MAX) {
                    return Some((Ok(piece), Some(live)));
                }
                match live.next().await {
                    Ok(()) => {}
                    Err(Some(farewell)) => return Some((Ok(farewell), None)),
                    Err(None) => return None,
                }
            }
        })
    }

    /// Waits for the next item and writes it. An error ends the stream, with a last event if it contains one.
    async fn next(&mut self) -> Result<(), Option<Bytes>> {
        let next = tokio::select! {
            biased;
            reason = self.handle.closed() => {
                self.why = reason.as_str();
                return Err(match reason {
                    CloseReason::Blocked(BlockReason::Revoked) => Some(auth_expired("revoked")),
                    CloseReason::Blocked(BlockReason::Banned) => Some(auth_expired("banned")),
                    _ => None,
                });
            }
            () = sleep_until(self.expires) => {
                self.why = "expired";
                return Err(Some(auth_expired("expired")));
            }
            next = self.merged.next() => Some(next),
            () = sleep_until(self.comment_at) => None,
        };
        self.comment_at = Instant::now() + COMMENT_EVERY;
        match next {
            // The client reconnects with its cursor, and receives the missing changes from the log.
            Some(Next::Gap) => {
                self.why = "error";
                return Err(None);
            }
            Some(Next::Ephemeral(ephemeral)) => self.write(&Message::Ephemeral(ephemeral), false),
            Some(Next::Changes(changes)) => {
                for (at, change) in changes.iter().enumerate() {
                    self.tracker.sent(change, changes.get(at + 1));
                    self.write(&Message::Change(change.clone()), true);
                }
            }
            None => {
                for (group, position) in self.merged.idle_at() {
                    self.tracker.cursor.advance(group, position);
                }
                self.write_cursor();
            }
        }
        Ok(())
    }
}
