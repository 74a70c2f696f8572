//! `GET /v1/poll`: channels by long polls.

use std::fmt::Write;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use platform::problem::Problem;
use platform::request_id;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::QueryApi;
use crate::connections::{CloseReason, ConnectionSlot};
use crate::cursor::{Cursor, Received};
use crate::frames::EventText;
use crate::live::pieces::Pieces;
use crate::live::{Event, InitialEvents, LiveRequest, Message};
use crate::merge::Next;
use crate::metrics::Transport;
use crate::problems::invalid;
use crate::tokens::token_lifetime;

/// Default and longest wait of a poll, in seconds.
const WAIT: u64 = 25;
const WAIT_MAX: u64 = 60;
/// Longest wait of a poll with a cursor whose channels are all not in the log. Each such poll returns a new snapshot.
const UNLOGGED_EVERY: Duration = Duration::from_secs(1);
/// Piece size of a large response, in bytes.
const PIECE_BYTES: usize = 64 * 1024;

/// Returns the route of polls. Polls count against the request rate limit.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(poll))
}

/// Query parameters of a poll.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the schema of parameters that are parsed by hand, because `channel` may be repeated")]
struct PollQuery {
    /// Name of a channel. Repeat the parameter for each channel.
    channel: Vec<String>,
    /// The cursor of the previous response. Without it, the response contains snapshots.
    cursor: Option<String>,
    /// Seconds to wait for a change, 0 to 60. Default: 25.
    #[param(maximum = 60)]
    wait: Option<u64>,
    /// A ticket from `POST /v1/tickets`, for clients that cannot send `Authorization`.
    ticket: Option<String>,
    /// A token, for clients that can send neither a header nor a cookie. Accepted only with the setting
    /// `token_in_query`.
    token: Option<String>,
}

/// Events on the channels.
#[derive(Debug, Serialize, ToSchema)]
#[allow(dead_code, reason = "the schema of hand-written JSON")]
struct Polled {
    /// The client's position after these events. Send it with the next request.
    cursor: String,
    /// The events, in log order.
    events: Vec<Event>,
}

/// Returns the events after the cursor. If there are none, waits up to `wait` seconds for the next change.
#[utoipa::path(get, path = "/v1/poll", operation_id = "poll_changes", tag = "live-updates", params(PollQuery),
    responses((status = 200, description = "The events after the cursor; none if nothing changed within the wait.", body = Polled)),
    extensions(("x-problems" = json!(["channel-not-found", "forbidden", "invalid-ticket", "origin-not-allowed", "too-many-connections", "projection-behind", "too-much-at-once"]))))]
async fn poll(State(api): State<QueryApi>, request: Request) -> Result<Response, Problem> {
    let asked = LiveRequest::read(&api, request, Transport::Poll, &["cursor", "wait"]).await?;
    let wait = match asked.parameter("wait").map(str::parse) {
        None => WAIT,
        Some(Ok(wait @ 0..=WAIT_MAX)) => wait,
        Some(_) => return Err(invalid("wait", &format!("Must be 0 to {WAIT_MAX} seconds."))),
    };
    let now = Instant::now();
    let until = now + Duration::from_secs(wait).min(token_lifetime(&asked.principal));
    let after: Option<Cursor> = match asked.parameter("cursor") {
        None | Some("") => None,
        Some(text) => Some(
            text.parse()
                .map_err(|()| invalid("cursor", "Send the cursor of the previous response, or none for snapshots."))?,
        ),
    };
    let (mut merged, session) = asked.open(&api, after.as_ref()).await?;
    let mut cursor = session.cursor;
    let initial = InitialEvents::new(api.store.incarnation(), session.channels, after.is_some());
    // A channel that is not in the log returns a snapshot at every poll. The poll waits first, so that a client does
    // not poll in a tight loop.
    let only_unlogged = after.is_some() && initial.are_unlogged;
    let mut events: Vec<_> = initial.messages.into_iter().map(PolledEvent::from).collect();
    let until = if only_unlogged { until.min(now + UNLOGGED_EVERY) } else { until };
    if events.is_empty() || only_unlogged {
        request_id::mark_long_poll();
        let next = tokio::select! {
            biased;
            reason = asked.handle.closed() => match reason {
                CloseReason::Blocked(reason) => return Err(reason.problem()),
                CloseReason::Slow | CloseReason::Incomplete | CloseReason::Shutdown => None,
            },
            next = timeout_at(until, merged.next()) => next.ok(),
        };
        match next {
            Some(Next::Changes(changes)) => {
                // No change is between the client's cursor and the position at which the channels were opened. So a
                // `prev` in between is replaced by the client's position, which the client can compare with its cursor.
                let group = changes.first().map_or("", |change| change.group());
                let opened = cursor.of(group).map_or(0, |known| known.position);
                let known = after.as_ref().and_then(|after| after.of(group)).map_or(opened, |known| known.position);
                for change in changes {
                    cursor.set(group, change.position(), Received::Nothing);
                    let previous = change.previous();
                    events.push(if known < previous && previous <= opened {
                        let text = change.event().with_previous(change.channel(), change.position(), known);
                        PolledEvent { message: Message::Change(change), other_text: Some(text) }
                    } else {
                        Message::Change(change).into()
                    });
                }
            }
            Some(Next::Ephemeral(ephemeral)) => {
                // The ephemeral event is newer than the channel's snapshot, and replaces it.
                events.retain(|event| event.message.channel() != Some(&ephemeral.channel));
                events.push(Message::Ephemeral(ephemeral).into());
            }
            // The cursor is unchanged, so the next poll reads the missing change from the log.
            Some(Next::Gap) => {}
            None => merged.idle_at().into_iter().for_each(|(group, position)| cursor.advance(group, position)),
        }
    }
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((json, held_until_sent(answer(&cursor, &events), asked.slot)).into_response())
}

/// An event of the response.
struct PolledEvent {
    message: Message,
    /// Text for this client, in place of the text that is shared with other clients.
    other_text: Option<EventText>,
}

impl From<Message> for PolledEvent {
    fn from(message: Message) -> Self {
        Self { message, other_text: None }
    }
}

/// Builds the response body. The events' texts are shared with other clients.
fn answer(cursor: &Cursor, events: &[PolledEvent]) -> Pieces {
    let mut pieces = Pieces::default();
    // A cursor contains no characters that need JSON escaping.
    let _ = write!(pieces.text(), r#"{{"cursor":"{cursor}","events":["#);
    for (at, event) in events.iter().enumerate() {
        pieces.text().push_str(if at > 0 { "," } else { "" });
        pieces.share(&event.other_text.as_ref().unwrap_or_else(|| event.message.text()).json());
    }
    pieces.text().push_str("]}");
    pieces
}

/// Returns a body that keeps the connection slot until it is sent. So a client that does not read its responses cannot
/// collect many of them. A short body is returned at once, without the slot.
fn held_until_sent(mut pieces: Pieces, slot: ConnectionSlot) -> Body {
    if pieces.len() <= PIECE_BYTES {
        let pieces: Vec<_> = std::iter::from_fn(|| pieces.next(PIECE_BYTES)).collect();
        return match pieces.as_slice() {
            [whole] => whole.clone().into(),
            several => several.concat().into(),
        };
    }
    Body::from_stream(futures::stream::unfold((pieces, slot), async |(mut pieces, slot)| {
        let piece = pieces.next(PIECE_BYTES)?;
        Some((Ok::<_, std::convert::Infallible>(piece), (pieces, slot)))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_json_with_all_its_events() {
        let event = |number: i64| {
            let text = EventText::new("pub", Some("counters"), Some(number), Some(0), &number.to_string());
            PolledEvent { message: Message::Other { event: "pub", channel: None, text }, other_text: None }
        };
        let cursor = Cursor::of_group("e", "core", 2);
        let text = |events: &[PolledEvent]| {
            let mut pieces = answer(&cursor, events);
            std::iter::from_fn(|| pieces.next(usize::MAX)).collect::<Vec<_>>().concat()
        };
        assert_eq!(text(&[]), br#"{"cursor":"2.e.core=2","events":[]}"#);
        let json: serde_json::Value = serde_json::from_slice(&text(&[event(1), event(2)])).unwrap();
        assert_eq!((&json["events"][1]["offset"], json["events"].as_array().map(Vec::len)), (&2.into(), Some(2)));
    }
}
