//! Bulk commands: NDJSON in, NDJSON out, a result a line in input order, streamed while it reads.
//!
//! Commands to one order keep their order, because they go to one worker; different orders go side by side and share
//! append transactions. Each line costs what a request does: where its principal's rate is used up, the next line is read
//! later. Everything held is bounded in bytes ([`budget`]). Results wait for a client that sends first and reads afterwards
//! ([`spool`]); where they may not grow any more, the client is not read from.

pub(crate) mod budget;
mod spool;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::header::{CONTENT_TYPE, IF_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use domain::order::Command;
use domain::values::OrderId;
use futures::{Stream, StreamExt};
use jiff::Timestamp;
use platform::auth::Principal;
use platform::body;
use platform::client_stream::HalfDuplex;
use platform::conditional::Versions;
use platform::limits::Pace;
use platform::problem::Problem;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::bulk::budget::Held;
use crate::bulk::spool::{Reader, Spool};
use crate::call::IDEMPOTENCY_KEY;
use crate::dispatch::{Accepted, Given, Rejected, WriteSide};
use crate::orders::{AddItem, CancelOrder, ChangeItem, CreateOrder, NoBody, order_id};

/// A line, in bytes, at most.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// What a line counts until its result has been kept: so many bytes, and so many for each of its own. That is what its
/// parsed form and its result may take.
const LINE_OVERHEAD_BYTES: usize = 2 << 10;
const BYTES_PER_LINE_BYTE: usize = 4;
/// Bytes of the buffer that lines are read into which are kept from line to line.
const BUFFER_BYTES_KEPT: usize = 64 << 10;
/// Characters of a line's `id`.
const ID_CHARS_MAX: usize = 255;
/// How long a client may take to send the next line.
const LINE_WITHIN: Duration = Duration::from_secs(120);
/// How long results may be left unread while there is no room for more of them.
const UNREAD_WITHIN: Duration = Duration::from_secs(30);
/// How long the rest of a request is read and thrown away after its last result: the client may read only when all is sent.
const DISCARD_WITHIN: Duration = Duration::from_secs(30);
/// Commands under way at once in one request.
const WORKERS: usize = 128;
/// Lines of one request whose results have not been kept.
const LINES_UNDER_WAY_MAX: usize = 1_024;

/// The route.
pub fn router() -> OpenApiRouter<WriteSide> {
    OpenApiRouter::new().routes(routes!(commands)).layer(DefaultBodyLimit::disable())
}

/// A line of the answer.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LineResult {
    /// Number of the line, from 1.
    line: u64,
    /// The line's own `id`, as it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    /// What the command would have been answered on its own.
    status: u16,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    accepted: Option<Accepted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// What a line says besides the command's own body.
struct Envelope {
    line: u64,
    id: Option<Value>,
    /// `Err` where the line is refused before it is a command.
    given: Result<Given, Box<Problem>>,
    status: StatusCode,
}

/// Id and trace of the request that the lines came with.
type RequestContext = (Option<String>, Option<opentelemetry::Context>);

/// A result, and what its line holds until it has been kept.
type Done = (LineResult, Option<Held>);

struct Task {
    envelope: Envelope,
    reply: oneshot::Sender<Done>,
    held: Held,
}

/// Takes many commands in one request, one JSON object a line:
/// `{"type": "create_order" | "add_item" | "change_item" | "remove_item" | "confirm_order" | "cancel_order", "order_id": …}`
/// with the fields of the command's own body beside them, an optional `id` that is echoed, an optional
/// `expected_version` (as `If-Match`), and for staff an optional `occurred_at`. Each line succeeds or fails alone.
///
/// The answer may be read while the request is sent, or after it: results wait for a client that sends everything first, up
/// to 128 MiB of them (an eighth of the setting `bulk_results_bytes_max`). Where they may not grow any more, the request is
/// read no further until some are read. Each line counts as one request: where the rate is used up, the next line is read
/// later, and none is refused for it.
///
/// Where the server stops, the token is revoked, no line comes for 120 s, or results that have no more room are left unread
/// for 30 s, the last result has the number of the first line that was not read, and a problem that says why.
#[utoipa::path(post, path = "/v1/commands", tag = "commands",
    request_body(content = String, content_type = "application/x-ndjson"),
    responses((status = 200, body = LineResult, content_type = "application/x-ndjson"),
              (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn commands(
    State(state): State<WriteSide>,
    principal: Principal,
    half_duplex: Option<Extension<HalfDuplex>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if let Some(name) = [IDEMPOTENCY_KEY, IF_MATCH.as_str()].into_iter().find(|name| headers.contains_key(*name)) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "unusable-header", "The header has no meaning here").detail(
            format!(
                "{name} is about one command, and here are many: give each create_order an order_id, and a line an \
                 expected_version"
            ),
        ));
    }
    let spool = Arc::new(Spool::new(state.budget.enter(&principal.subject)?, UNREAD_WITHIN));
    let (results, waiting) = mpsc::channel(LINES_UNDER_WAY_MAX);
    let context = (platform::request_id::current(), platform::request_id::current_trace());
    let pace = state.limiter.pace(&principal);
    let reading = Reading { state, principal, context, pace, spool: spool.clone(), unread: CancellationToken::new() };
    tokio::spawn(keep(spool.clone(), waiting, reading.unread.clone()));
    tokio::spawn(async move {
        // Also while nothing of the answer is read.
        let _hold = half_duplex.map(|Extension(connection)| connection.hold());
        reading.read(body, results).await;
    });
    let mut response = Body::from_stream(Reader::new(spool).into_stream()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// Keeps results for the client, in the order of their lines.
async fn keep(spool: Arc<Spool>, mut results: mpsc::Receiver<oneshot::Receiver<Done>>, unread: CancellationToken) {
    let mut bytes = Vec::new();
    while let Some(result) = results.recv().await {
        let Ok((result, held)) = result.await else { continue };
        // Then nothing more is read, and what is under way is kept without a bound.
        if !unread.is_cancelled() && spool.room().await.is_err() {
            unread.cancel();
        }
        bytes.clear();
        if serde_json::to_writer(&mut bytes, &result).is_ok() {
            spool.push(&bytes).await;
        }
        drop(held);
    }
    spool.finish().await;
}

/// Reads the lines of one request.
struct Reading {
    state: WriteSide,
    principal: Principal,
    context: RequestContext,
    pace: Pace,
    spool: Arc<Spool>,
    /// Cancelled when the client leaves too many results unread.
    unread: CancellationToken,
}

impl Reading {
    async fn read(self, body: Body, results: mpsc::Sender<oneshot::Receiver<Done>>) {
        let mut lines = std::pin::pin!(split_lines(body.into_data_stream()));
        if let Err((line, problem)) = self.carry_out(&mut lines, &results).await {
            // What was read is answered; what was not is for the client to send again.
            let (reply, result) = oneshot::channel();
            let status = problem.status().as_u16();
            let last = LineResult { line, id: None, status, accepted: None, problem: Some(problem) };
            let _ = reply.send((last, None));
            let _ = results.send(result).await;
            drop(results);
            let discard = async { while lines.next().await.is_some() {} };
            tokio::select! {
                _ = tokio::time::timeout(DISCARD_WITHIN, discard) => {}
                () = self.state.stop.cancelled() => {}
            }
        }
    }

    /// Gives each line to the worker of its order, and queues the place of its result.
    ///
    /// # Errors
    /// The number of the first line that was not carried out, and why.
    async fn carry_out(
        &self,
        lines: &mut (impl Stream<Item = Result<BytesMut, Box<Problem>>> + Unpin),
        results: &mpsc::Sender<oneshot::Receiver<Done>>,
    ) -> Result<(), (u64, Problem)> {
        let mut workers: [Option<mpsc::Sender<Task>>; WORKERS] = [const { None }; WORKERS];
        for number in 1.. {
            let until_ended = |problem: Problem| (number, problem);
            let next = self.unless_ended(tokio::time::timeout(LINE_WITHIN, lines.next())).await.map_err(until_ended)?;
            let line = match next {
                Err(_) => return Err((number, no_line())),
                Ok(None) => return Ok(()),
                Ok(Some(line)) => line,
            };
            if self.state.has_revoked(&self.principal) {
                return Err((number, revoked()));
            }
            if self.principal.expires_at < Timestamp::now().as_second() {
                return Err((number, expired()));
            }
            // A blank line costs what another one does: else it would keep a request's place for nothing.
            self.unless_ended(self.pace.take()).await.map_err(until_ended)?;
            if line.as_ref().is_ok_and(|line| line.iter().all(u8::is_ascii_whitespace)) {
                tokio::task::yield_now().await;
                continue;
            }
            let bytes = LINE_OVERHEAD_BYTES + BYTES_PER_LINE_BYTE * line.as_ref().map_or(0, |line| line.len());
            let held = self.unless_ended(self.spool.place().bytes(bytes)).await.map_err(until_ended)?;
            let held = held.map_err(until_ended)?;
            let Ok(place) = self.unless_ended(results.reserve()).await.map_err(until_ended)? else { return Ok(()) };
            let envelope = match line {
                Ok(line) => envelope(number, &line, &self.principal, &self.context),
                Err(problem) => Envelope { line: number, id: None, given: Err(problem), status: StatusCode::OK },
            };
            let turn = match &envelope.given {
                Ok(given) => {
                    let mut hasher = DefaultHasher::new();
                    given.order_id.hash(&mut hasher);
                    hasher.finish() as usize
                }
                Err(_) => number as usize,
            };
            let (reply, result) = oneshot::channel();
            place.send(result);
            let worker = workers[turn % WORKERS].get_or_insert_with(|| worker(self.state.clone(), self.spool.clone()));
            if worker.send(Task { envelope, reply, held }).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Waits, unless reading has to end.
    async fn unless_ended<T>(&self, wait: impl Future<Output = T>) -> Result<T, Problem> {
        tokio::select! {
            done = wait => Ok(done),
            () = self.state.stop.cancelled() => Err(stopping()),
            () = self.unread.cancelled() => Err(unread()),
            // Nobody will read it.
            () = self.spool.gone().cancelled() => Err(unread()),
        }
    }
}

fn no_line() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", "Request timeout")
        .detail(format!("no line came for {} s: send this one and what follows again", LINE_WITHIN.as_secs()))
}

fn expired() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "token-expired", "The token has expired")
        .detail("The token expired while commands were read. Send this line and what follows with a fresh one.")
}

fn revoked() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "token-revoked", "Token revoked")
        .detail("the token was revoked: this line and what follows were not read")
}

fn unread() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "results-unread", "The results were not read").detail(format!(
        "There was no room for more results, and none was read for {} s. This line and what follows were not read: send \
         them again, and read the results while you send, or send fewer lines in each request.",
        UNREAD_WITHIN.as_secs()
    ))
}

fn stopping() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "The server stops")
        .detail("this line and what follows were not read: send them again")
        .retry_after(1)
}

fn worker(state: WriteSide, spool: Arc<Spool>) -> mpsc::Sender<Task> {
    let (tasks, mut waiting) = mpsc::channel::<Task>(8);
    tokio::spawn(async move {
        while let Some(Task { envelope, reply, held }) = waiting.recv().await {
            let Envelope { line, id, given, status } = envelope;
            let outcome = match given {
                Ok(given) => {
                    let _turn = spool.place().command().await;
                    state.dispatch(given).await
                }
                Err(problem) => Err(Rejected::Problem(*problem)),
            };
            let result = match outcome {
                Ok(accepted) => {
                    LineResult { line, id, status: status.as_u16(), accepted: Some(accepted), problem: None }
                }
                Err(Rejected::Problem(problem)) => {
                    LineResult { line, id, status: problem.status().as_u16(), accepted: None, problem: Some(problem) }
                }
                // Lines have no idempotency key.
                Err(Rejected::KeyUsed) => continue,
            };
            let _ = reply.send((result, Some(held)));
        }
    });
    tasks
}

fn envelope(line: u64, bytes: &[u8], principal: &Principal, context: &RequestContext) -> Envelope {
    let mut id = None;
    let mut status = StatusCode::OK;
    let given = (|| {
        let mut fields: Map<String, Value> = body::parse(bytes, "")?;
        id = match fields.remove("id") {
            Some(Value::String(text)) if text.chars().count() > ID_CHARS_MAX => {
                return Err(field("/id", "may have 255 characters"));
            }
            // Another number would come back in another form: 1e2 as 100.0, one of 20 digits rounded.
            Some(Value::Number(number)) if !number.is_i64() && !number.is_u64() => {
                return Err(field("/id", "must be a text or a whole number of at most 64 bits"));
            }
            id @ (None | Some(Value::Null | Value::String(_) | Value::Number(_))) => id,
            Some(_) => return Err(field("/id", "must be a text or a number")),
        };
        if principal.expires_at < Timestamp::now().as_second() {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "token-expired", "The token has expired")
                .detail("The token expired while commands were read: send the rest with a fresh one."));
        }
        let occurred_at = occurred_at(&mut fields, principal)?;
        let expected_version = match fields.remove("expected_version") {
            None | Some(Value::Null) => None,
            Some(version) => {
                let version =
                    version.as_i64().ok_or_else(|| field("/expected_version", "must be a version, e.g. 3"))?;
                Some(Versions::Listed(vec![version]))
            }
        };
        let Some(Value::String(kind)) = fields.remove("type") else {
            return Err(field("/type", "must name the command, e.g. \"add_item\""));
        };
        if kind == "create_order" {
            status = StatusCode::CREATED;
        }
        let (order_id, command) = command(&kind, fields, principal)?;
        Ok(Given {
            principal: principal.clone(),
            order_id,
            command,
            expected_version,
            idempotency: None,
            occurred_at,
            is_patient: true,
            request_id: context.0.clone(),
            trace: context.1.clone(),
        })
    })();
    Envelope { line, id, given: given.map_err(Box::new), status }
}

fn command(kind: &str, mut fields: Map<String, Value>, principal: &Principal) -> Result<(OrderId, Command), Problem> {
    if kind == "create_order" {
        if !fields.contains_key("order_id") {
            fields.insert("order_id".into(), Uuid::now_v7().to_string().into());
        }
        return body::from_value::<CreateOrder>(fields.into())?.command(principal);
    }
    let id = match fields.remove("order_id") {
        Some(Value::String(id)) => order_id(&id)?,
        _ => return Err(field("/order_id", "must name the order")),
    };
    let command = match kind {
        "add_item" => Command::AddItem(body::from_value::<AddItem>(fields.into())?.into()),
        "change_item" => {
            let sku = sku(&mut fields)?;
            Command::ChangeQuantity { sku, quantity: body::from_value::<ChangeItem>(fields.into())?.quantity }
        }
        "remove_item" => {
            let sku = sku(&mut fields)?;
            body::from_value::<NoBody>(fields.into())?;
            Command::RemoveItem { sku }
        }
        "confirm_order" => {
            body::from_value::<NoBody>(fields.into())?;
            Command::Confirm
        }
        "cancel_order" => Command::Cancel { reason: body::from_value::<CancelOrder>(fields.into())?.reason },
        _ => {
            return Err(field(
                "/type",
                "must be one of create_order, add_item, change_item, remove_item, confirm_order, cancel_order",
            ));
        }
    };
    Ok((id, command))
}

fn sku(fields: &mut Map<String, Value>) -> Result<domain::values::Sku, Problem> {
    match fields.remove("sku") {
        Some(Value::String(sku)) => sku.parse().map_err(|e: domain::values::Error| field("/sku", &e.to_string())),
        _ => Err(field("/sku", "must name the item")),
    }
}

fn occurred_at(fields: &mut Map<String, Value>, principal: &Principal) -> Result<Option<Timestamp>, Problem> {
    match fields.remove("occurred_at") {
        None | Some(Value::Null) => Ok(None),
        Some(_) if !principal.is_staff() => Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed")
            .detail("Only staff may say when a command happened.")
            .error("/occurred_at", "only staff may set it")),
        Some(at) => at
            .as_str()
            .and_then(|text| text.parse::<Timestamp>().ok())
            .and_then(|at| Timestamp::from_microsecond(at.as_microsecond()).ok())
            // What RFC 3339 can say.
            .filter(|at| (0..=9999).contains(&jiff::tz::Offset::UTC.to_datetime(*at).year()))
            .map(Some)
            .ok_or_else(|| field("/occurred_at", "must be RFC 3339, e.g. \"2017-01-01T11:53:26Z\"")),
    }
}

fn field(pointer: &str, message: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-body", "The line cannot be taken")
        .detail(format!("{} {message}", pointer.trim_start_matches('/')))
        .error(pointer, message)
}

/// Lines of a body; one that is too long is passed over and reported as such.
fn split_lines(
    body: impl Stream<Item = Result<Bytes, axum::Error>>,
) -> impl Stream<Item = Result<BytesMut, Box<Problem>>> {
    struct Reader<S> {
        body: std::pin::Pin<Box<S>>,
        buffer: BytesMut,
        searched: usize,
        too_long: bool,
        done: bool,
    }
    let reader = Reader { body: Box::pin(body), buffer: BytesMut::new(), searched: 0, too_long: false, done: false };
    futures::stream::unfold(reader, |mut reader| async move {
        loop {
            if let Some(at) = reader.buffer[reader.searched..].iter().position(|byte| *byte == b'\n') {
                let line = reader.buffer.split_to(reader.searched + at + 1);
                reader.searched = 0;
                let line = if std::mem::take(&mut reader.too_long) { Err(too_long()) } else { Ok(line) };
                return Some((line, reader));
            }
            // The last line has been carried out: its memory is given back.
            if reader.buffer.is_empty() && reader.buffer.capacity() > BUFFER_BYTES_KEPT {
                reader.buffer = BytesMut::new();
            }
            if reader.buffer.len() > LINE_BYTES_MAX {
                reader.too_long = true;
                reader.buffer.clear();
            }
            reader.searched = reader.buffer.len();
            if reader.done {
                let line = std::mem::take(&mut reader.buffer);
                reader.searched = 0;
                let too_long_line = std::mem::take(&mut reader.too_long);
                return match (line.is_empty(), too_long_line) {
                    (_, true) => Some((Err(too_long()), reader)),
                    (true, false) => None,
                    (false, false) => Some((Ok(line), reader)),
                };
            }
            match reader.body.next().await {
                Some(Ok(bytes)) => reader.buffer.extend_from_slice(&bytes),
                // Cut in the middle: the last line is not whole, so it is not a command.
                Some(Err(_)) => {
                    reader.buffer.clear();
                    reader.too_long = false;
                    reader.done = true;
                    reader.searched = 0;
                    return Some((Err(cut_off()), reader));
                }
                None => reader.done = true,
            }
        }
    })
}

fn cut_off() -> Box<Problem> {
    Box::new(
        Problem::new(StatusCode::BAD_REQUEST, "unreadable-body", "Unreadable body")
            .detail("The body broke off here. This line and what follows were not read: send them again."),
    )
}

fn too_long() -> Box<Problem> {
    Box::new(
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "line-too-long", "The line is too long")
            .detail(format!("A line holds at most {LINE_BYTES_MAX} bytes.")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(chunks: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        split_lines(futures::stream::iter(chunks)).map(|line| line.ok().map(Vec::from)).collect().await
    }

    #[tokio::test]
    async fn lines_may_be_cut_anywhere() {
        let expected = vec![Some(b"ab\n".to_vec()), Some(b"\n".to_vec()), Some(b"cd".to_vec())];
        assert_eq!(lines(&[b"ab\n\ncd"]).await, expected);
        assert_eq!(lines(&[b"a", b"b", b"\n\nc", b"d"]).await, expected);
    }

    #[tokio::test]
    async fn a_line_too_long_is_one_refusal_and_the_next_line_is_read() {
        let long = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(lines(&[&long, &long, b"\nok\n"]).await, vec![None, Some(b"ok\n".to_vec())]);
    }
}
