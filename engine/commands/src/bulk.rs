//! Bulk commands: NDJSON in, NDJSON out, a result a line in input order, streamed while it reads.
//!
//! Commands to one stream stay in sequence, because they go to one worker; different streams go side by side and share
//! append transactions. Each line costs what a request does: where its principal's rate is used up, the next line is read
//! later. Everything held is bounded in bytes ([`budget`]). Results wait for a client that sends first and reads afterwards
//! ([`spool`]); where they may not grow any more, the client is not read from.

pub(crate) mod budget;
pub mod envelope;
pub mod lines;
mod split;
mod spool;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::header::{CONTENT_TYPE, IF_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use futures::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use platform::auth::Principal;
use platform::client_stream::HalfDuplex;
use platform::limits::Pace;
use platform::problem::Problem;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::CommandApi;
use crate::bulk::budget::Held;
use crate::bulk::envelope::{Envelope, RequestContext, envelope};
use crate::bulk::lines::Line;
use crate::bulk::split::split_lines;
use crate::bulk::spool::{Reader, Spool};
use crate::outcome::{Accepted, Executed, Rejected};
use crate::request::IDEMPOTENCY_KEY;

/// What a line counts until its result has been kept: so many bytes, and so many for each of its own. That is what its
/// parsed form and its result may take.
const LINE_OVERHEAD_BYTES: usize = 2 << 10;
const BYTES_PER_LINE_BYTE: usize = 4;
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
pub fn router() -> OpenApiRouter<CommandApi> {
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
    /// The id of the aggregate, its version and its position, as the command would have been answered on its own.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = std::collections::BTreeMap<String, Value>)]
    accepted: Option<Accepted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// A result, and what its line holds until it has been kept.
type Done = (LineResult, Option<Held>);

struct Task {
    envelope: Envelope,
    reply: oneshot::Sender<Done>,
    held: Held,
}

/// Takes many commands in one request, one JSON object a line: `type` names the command, beside it are the id of the
/// aggregate and the fields of the command's own body, an optional `id` that is echoed, an optional `expected_version` (as
/// `If-Match`), and for staff an optional `occurred_at`. Each line succeeds or fails alone.
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
    State(api): State<CommandApi>,
    principal: Principal,
    half_duplex: Option<Extension<HalfDuplex>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if let Some(name) = [IDEMPOTENCY_KEY, IF_MATCH.as_str()].into_iter().find(|name| headers.contains_key(*name)) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "unusable-header", "The header has no meaning here").detail(
            format!(
                "{name} is about one command, and here are many: give each new aggregate an id of its own, and a line an \
                 expected_version"
            ),
        ));
    }
    let spool = Arc::new(Spool::new(api.budget().enter(&principal.subject)?, UNREAD_WITHIN));
    let (results, waiting) = mpsc::channel(LINES_UNDER_WAY_MAX);
    let context = (platform::request_id::current(), platform::request_id::current_trace());
    let pace = api.limiter.pace(&principal);
    let reading = Reading { api, principal, context, pace, spool: spool.clone(), unread: CancellationToken::new() };
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
    api: CommandApi,
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
        if let Err((line, problem)) = self.execute_lines(&mut lines, &results).await {
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
                () = self.api.stop.cancelled() => {}
            }
        }
    }

    /// Gives each line to the worker of its stream, and queues the place of its result.
    ///
    /// # Errors
    /// The number of the first line that was not carried out, and why.
    async fn execute_lines(
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
            if self.api.has_revoked(&self.principal) {
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
                Ok(line) => envelope(number, &line, &self.principal, &self.context, self.api.lines()),
                Err(problem) => Envelope { number, id: None, command: Err(problem) },
            };
            let slot = match &envelope.command {
                Ok((line, _)) => self.api.decider().number_of(&line.step.stream()),
                Err(_) => number as usize,
            };
            let (reply, result) = oneshot::channel();
            place.send(result);
            let worker = workers[slot % WORKERS].get_or_insert_with(|| worker(self.api.clone(), self.spool.clone()));
            if worker.send(Task { envelope, reply, held }).await.is_err() {
                return Err((number, Problem::internal()));
            }
        }
        Ok(())
    }

    /// Waits, unless reading has to end.
    async fn unless_ended<T>(&self, wait: impl Future<Output = T>) -> Result<T, Problem> {
        tokio::select! {
            done = wait => Ok(done),
            () = self.api.stop.cancelled() => Err(stopping()),
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

fn worker(api: CommandApi, spool: Arc<Spool>) -> mpsc::Sender<Task> {
    let (tasks, mut waiting) = mpsc::channel::<Task>(8);
    tokio::spawn(async move {
        while let Some(Task { envelope, reply, held }) = waiting.recv().await {
            let Envelope { number: line, id, command } = envelope;
            let outcome = match command {
                Ok((command, origin)) => {
                    let Line { step, id, resource, status } = command;
                    let _turn = spool.place().command().await;
                    let mut steps = [step];
                    let executed = AssertUnwindSafe(api.decider().execute(&mut steps, &origin)).catch_unwind();
                    let executed = executed.await.unwrap_or_else(|_| Err(Problem::internal().into()));
                    executed.map(|Executed { versions, position }| {
                        let version = versions.first().copied().unwrap_or_default();
                        (status, Accepted { resource, id, version, position })
                    })
                }
                Err(problem) => Err(Rejected::Problem(*problem)),
            };
            let result = match outcome {
                Ok((status, accepted)) => {
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
