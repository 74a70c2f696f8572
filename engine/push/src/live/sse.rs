//! `GET /v1/live`: channels as server-sent events, those of
//! <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use std::fmt::Write;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::Stream;
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

/// How often a silent stream says that it is alive.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// When a client whose stream ended comes back, in milliseconds; spread, so that not all come at once.
const RETRY_MS: std::ops::Range<u64> = 500..1_500;
/// The same where it has to wait for something.
const COME_BACK_MS: u64 = 2_000;

/// Tells nginx to pass on what it gets.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The route. It is limited by the number of open streams.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(live))
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

/// Follows channels as server-sent events: `snapshot` first, or what followed `Last-Event-ID`; then `pub` for each
/// change; `reset` before snapshots that had to replace what was missed; `auth_expired` before the stream ends with its
/// token.
#[utoipa::path(get, path = "/v1/live", tag = "live updates", params(LiveQuery),
    responses((status = 200, body = String, content_type = "text/event-stream"),
        (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn live(State(api): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    let accepts = request.headers().get(ACCEPT).and_then(|accepts| accepts.to_str().ok());
    let is_event_source = accepts.is_some_and(|accepts| accepts.contains("text/event-stream"));
    follow(api, request).await.or_else(|problem| match problem.status() {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS if is_event_source => Ok(come_back(&problem)),
        _ => Err(problem),
    })
}

/// An `EventSource` gives up for good where the answer is not a stream. So it gets one that ends, and comes back with the id
/// that it has.
fn come_back(problem: &Problem) -> Response {
    let text = format!("retry: {COME_BACK_MS}\n: {}\n\n", problem.slug());
    ([(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store, no-transform")], text).into_response()
}

async fn follow(api: QueryApi, request: Request) -> Result<Response, Problem> {
    let mut asked = LiveRequest::read(&api, request, Transport::Sse, &["last_event_id"]).await?;
    let header = asked.last_event_id.take();
    let after = header.or_else(|| asked.parameter("last_event_id").map(str::to_owned));
    // An id that is not a cursor is answered by a reset: an EventSource cannot be made to forget its id.
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

/// An open stream of events.
struct Live {
    merged: Merged,
    ready: Pieces,
    /// How far everything has been sent.
    tracker: CursorTracker,
    comment_at: Instant,
    expires: Instant,
    handle: CloseHandle,
    /// Why it ends; unless something else sets it, because its client went.
    why: &'static str,
    _slot: ConnectionSlot,
}

impl Drop for Live {
    fn drop(&mut self) {
        // A stream that was cut off while it was writing was not polled any more.
        METRICS.closed(if self.why == "client" {
            self.handle.why().map_or(self.why, CloseReason::as_str)
        } else {
            self.why
        });
    }
}

impl Live {
    /// The events that come first, after which the client is at a cursor. Changes each have their id; among snapshots only
    /// with the last event the client knows what lies before it on all channels.
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

    /// Moves the id of the client on, without an event.
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

    /// Makes ready what is sent next; an error is the last of it.
    async fn next(&mut self) -> Result<(), Option<Bytes>> {
        let next = tokio::select! {
            biased;
            reason = self.handle.closed() => {
                self.why = reason.as_str();
                let is_revoked = reason == CloseReason::Revoked;
                return Err(is_revoked.then(|| Bytes::from_static(b"event: auth_expired\ndata: {\"reason\":\"revoked\"}\n\n")));
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
