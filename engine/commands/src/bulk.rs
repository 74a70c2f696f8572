//! Bulk commands: NDJSON in, NDJSON out. Results are streamed in input order, one per line, while the request is read.
//!
//! Commands to one stream stay in sequence, because one worker handles a stream. Commands to different streams run
//! concurrently and share append transactions. Each line counts as one request of the rate limit: when the principal's
//! rate is used up, the next line is read later. The use of memory and disk is bounded (`budget`). Results are
//! buffered for a client that sends everything before it reads (`spool`); when the buffer is full, the request is
//! read no further.

pub(crate) mod budget;
mod dry_run;
pub mod envelope;
pub mod lines;
mod split;
mod spool;

use crate::problems::{RESULTS_UNREAD, STOPPING, UNUSABLE_HEADER};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::header::{CONTENT_TYPE, IF_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use event_store::event::RecordedEvent;
use futures::{FutureExt, Stream, StreamExt};
use jiff::Timestamp;
use kernel::stream::StreamId;
use platform::auth::{BlockReason, Principal};
use platform::body::Query;
use platform::client_stream::HalfDuplex;
use platform::limits::CommandPacer;
use platform::problem::{Problem, REQUEST_TIMEOUT, TOKEN_EXPIRED};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::CommandApi;
use crate::bulk::budget::Permits;
use crate::bulk::dry_run::DryRun;
use crate::bulk::envelope::{Envelope, RequestContext, envelope};
use crate::bulk::lines::Line;
use crate::bulk::split::split_lines;
use crate::bulk::spool::{Reader, Spool};
use crate::decider::Origin;
use crate::outcome::{Accepted, Executed, Rejected};
use crate::problems::unavailable;
use crate::request::IDEMPOTENCY_KEY;

/// The bytes that a line is charged until its result is in the spool: a fixed amount, and this many for each byte of
/// the line. They cover the parsed line and its result.
const LINE_OVERHEAD_BYTES: usize = 2 << 10;
const BYTES_PER_LINE_BYTE: usize = 4;
/// How long a client may take to send the next line.
const LINE_WITHIN: Duration = Duration::from_secs(120);
/// How long a client may leave results unread while the spool has no room.
const UNREAD_WITHIN: Duration = Duration::from_secs(30);
/// How long the rest of a request is read and discarded after its last result, because the client may read only after
/// it has sent everything.
const DISCARD_WITHIN: Duration = Duration::from_secs(30);
/// Concurrent commands of one request.
const WORKERS: usize = 128;
/// Lines of one request whose results are not in the spool.
const LINES_IN_FLIGHT_MAX: usize = 1_024;

/// Returns the route.
pub fn router() -> OpenApiRouter<CommandApi> {
    OpenApiRouter::new().routes(routes!(commands)).layer(DefaultBodyLimit::disable())
}

/// A line of the response: the result of one command.
#[derive(Debug, Default, Serialize, utoipa::ToSchema)]
pub struct LineResult {
    /// Number of the line, from 1.
    line: u64,
    /// The `id` of the line, as the client sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    /// HTTP status that the command would have as a single request.
    status: u16,
    /// Id, version and position of the aggregate, as in the response to a single request.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    accepted: Option<Accepted>,
    /// True when the command succeeded and had nothing to change.
    #[serde(skip_serializing_if = "is_false")]
    #[schema(required = false)]
    unchanged: bool,
    /// Time of the first event of an aggregate that was there before the line, where the command compares it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    created_at: Option<Timestamp>,
    /// The reason for which the command was not executed. The status is that of the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Problem>)]
    problem: Option<Problem>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Parameters of a bulk request.
#[derive(Debug, Default, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BulkQuery {
    /// Check every line as a real run would, and change nothing. A line sees the effects of earlier lines of the
    /// request. The `position` of a result is 0.
    #[serde(default)]
    dry_run: bool,
}

/// A result, and the permits that its line holds until the result is in the spool.
type Done = (LineResult, Option<Permits>);

/// A line of the request: `type` names the command, and the other members are those of the command's own body.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "the type only documents what `envelope` parses")]
struct CommandLine {
    /// Name of the command.
    r#type: String,
    /// A string or a whole number that the result repeats.
    #[schema(value_type = Option<Value>)]
    id: Option<Value>,
    /// Version that the aggregate must have, as in If-Match.
    expected_version: Option<i64>,
    /// Time at which the command happened, in RFC 3339. For staff.
    occurred_at: Option<String>,
    /// Marks the command as history, which causes no reactions. For staff.
    history: Option<bool>,
}

struct Task {
    envelope: Envelope,
    reply: oneshot::Sender<Done>,
    permits: Permits,
}

/// Executes many commands in one request, one JSON object per line. `type` names the command. The other members are the
/// id of the aggregate, the members of the command's own body, an optional `id` that the result repeats, an optional
/// `expected_version` (as `If-Match`), and for staff an optional `occurred_at`. Each line succeeds or fails alone.
///
/// With `dry_run=true` the same lines get the results of a real run, and nothing changes.
///
/// The client may read the response while it sends the request, or after it. Results are buffered for a client that
/// sends everything first, up to 128 MiB (an eighth of the setting `bulk_results_bytes_max`). When the buffer is full,
/// the request is read no further until the client reads results. Each line counts as one request of the rate limit.
/// When the rate is used up, the next line is read later; no line is refused for it.
///
/// The response ends early when the server stops, when the token expires or is revoked, when no line arrives for 120 s,
/// or when the buffer is full and the client reads too few results for 30 s. Its last result then has the number of the
/// first line that was not read, and a problem with the reason.
#[utoipa::path(post, path = "/v1/commands", operation_id = "send_commands", tag = "commands", params(BulkQuery),
    request_body(content = CommandLine, content_type = "application/x-ndjson", description = "One command in each line, as a JSON object."),
    responses((status = 200, description = "One result for each line, in their sequence.", body = LineResult, content_type = "application/x-ndjson")),
    extensions(("x-problems" = json!(["unusable-header", "too-many-bulk-requests", "bulk-limit", "unsupported-content-encoding"]))))]
async fn commands(
    State(api): State<CommandApi>,
    principal: Principal,
    half_duplex: Option<Extension<HalfDuplex>>,
    Query(BulkQuery { dry_run }): Query<BulkQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if let Some(name) = [IDEMPOTENCY_KEY, IF_MATCH.as_str()].into_iter().find(|name| headers.contains_key(*name)) {
        return Err(Problem::new(UNUSABLE_HEADER).detail(format!(
            "{name} applies to one command, and this request holds many. Give each new aggregate an id of its own, \
                 and set expected_version in a line."
        )));
    }
    let spool = Arc::new(Spool::new(api.budget().enter(&principal.subject)?, UNREAD_WITHIN));
    let (results, waiting) = mpsc::channel(LINES_IN_FLIGHT_MAX);
    let context = (platform::request_id::current(), platform::request_id::current_trace());
    let pace = api.limiter.pace(&principal);
    let unread = CancellationToken::new();
    let reading = Reading { api, principal, context, dry_run, pace, spool: spool.clone(), unread };
    tokio::spawn(spool_results(spool.clone(), waiting, reading.unread.clone()));
    tokio::spawn(async move {
        // Suspends the write timeout of the connection while the request is read, because the client may not read the
        // response during that time.
        let _hold = half_duplex.map(|Extension(connection)| connection.hold());
        reading.read(body, results).await;
    });
    let mut response = Body::from_stream(Reader::new(spool).into_stream()).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// Moves results to the spool in the order of their lines.
async fn spool_results(
    spool: Arc<Spool>,
    mut results: mpsc::Receiver<oneshot::Receiver<Done>>,
    unread: CancellationToken,
) {
    let mut bytes = Vec::new();
    while let Some(result) = results.recv().await {
        let Ok((result, permits)) = result.await else { continue };
        // After this, no further line is read, and the results of lines in progress are added without a limit.
        if !unread.is_cancelled() && spool.room().await.is_err() {
            unread.cancel();
        }
        bytes.clear();
        if serde_json::to_writer(&mut bytes, &result).is_ok() {
            spool.push(&bytes).await;
        }
        drop(permits);
    }
    spool.finish().await;
}

/// Reads and executes the lines of one request.
struct Reading {
    api: CommandApi,
    principal: Principal,
    context: RequestContext,
    /// Whether commands are checked only.
    dry_run: bool,
    pace: CommandPacer,
    spool: Arc<Spool>,
    /// Cancelled when the client leaves too many results unread.
    unread: CancellationToken,
}

impl Reading {
    async fn read(self, body: Body, results: mpsc::Sender<oneshot::Receiver<Done>>) {
        let mut lines = std::pin::pin!(split_lines(body.into_data_stream()));
        if let Err((line, problem)) = self.execute_lines(&mut lines, &results).await {
            // Lines that were read get their results. The client must send the other lines again.
            let (reply, result) = oneshot::channel();
            let status = problem.status().as_u16();
            let last = LineResult::refused(line, None, status, problem);
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

    /// Sends each line to the worker of its stream, and queues a receiver for its result.
    ///
    /// # Errors
    /// The number of the first line that was not executed, and the reason.
    async fn execute_lines(
        &self,
        lines: &mut (impl Stream<Item = Result<BytesMut, Box<Problem>>> + Unpin),
        results: &mpsc::Sender<oneshot::Receiver<Done>>,
    ) -> Result<(), (u64, Problem)> {
        let mut workers: [Option<mpsc::Sender<Task>>; WORKERS] = [const { None }; WORKERS];
        for number in 1.. {
            let at_line = |problem: Problem| (number, problem);
            let next = self.or_stopped(tokio::time::timeout(LINE_WITHIN, lines.next())).await.map_err(at_line)?;
            let line = match next {
                Err(_) => return Err((number, no_line())),
                Ok(None) => return Ok(()),
                Ok(Some(line)) => line,
            };
            if let Some(reason) = self.api.block_reason(&self.principal) {
                return Err((number, blocked(reason)));
            }
            if self.principal.expires_at < Timestamp::now().as_second() {
                return Err((number, expired()));
            }
            // A blank line is charged like any other line. Otherwise blank lines would keep a request open at no cost.
            self.or_stopped(self.pace.take()).await.map_err(at_line)?;
            if line.as_ref().is_ok_and(|line| line.iter().all(u8::is_ascii_whitespace)) {
                tokio::task::yield_now().await;
                continue;
            }
            let bytes = LINE_OVERHEAD_BYTES + BYTES_PER_LINE_BYTE * line.as_ref().map_or(0, |line| line.len());
            let permits = self.or_stopped(self.spool.slot().bytes(bytes)).await.map_err(at_line)?;
            let permits = permits.map_err(at_line)?;
            let Ok(permit) = self.or_stopped(results.reserve()).await.map_err(at_line)? else { return Ok(()) };
            let mut envelope = match line {
                Ok(line) => envelope(number, &line, &self.principal, &self.context, self.api.lines()),
                Err(problem) => Envelope { number, id: None, command: Err(problem) },
            };
            if let Ok((Line { unless_banned: Some((subject, problem)), .. }, origin)) = &envelope.command
                && !origin.is_history
                && self.api.is_banned(subject)
            {
                envelope.command = Err(Box::new(problem()));
            }
            let slot = match &envelope.command {
                Ok((line, _)) => self.api.decider().hash_of(&line.step.stream()),
                Err(_) => number as usize,
            };
            let (reply, result) = oneshot::channel();
            permit.send(result);
            let worker = workers[slot % WORKERS]
                .get_or_insert_with(|| worker(self.api.clone(), self.spool.clone(), self.dry_run));
            if worker.send(Task { envelope, reply, permits }).await.is_err() {
                return Err((number, Problem::internal()));
            }
        }
        Ok(())
    }

    /// Waits for `wait`.
    ///
    /// # Errors
    /// The reason for which reading must end first.
    async fn or_stopped<T>(&self, wait: impl Future<Output = T>) -> Result<T, Problem> {
        tokio::select! {
            done = wait => Ok(done),
            () = self.api.stop.cancelled() => Err(stopping()),
            () = self.unread.cancelled() => Err(unread()),
            // The client has disconnected, so nobody reads this problem.
            () = self.spool.gone().cancelled() => Err(unread()),
        }
    }
}

fn no_line() -> Problem {
    Problem::new(REQUEST_TIMEOUT).detail(format!(
        "No line arrived for {} s. Send this line and the lines after it again.",
        LINE_WITHIN.as_secs()
    ))
}

fn expired() -> Problem {
    Problem::new(TOKEN_EXPIRED)
        .detail("The token expired while commands were read. Send this line and the lines after it with a new token.")
}

fn blocked(reason: BlockReason) -> Problem {
    reason.problem().detail(match reason {
        BlockReason::Revoked => {
            "The token was revoked. This line and the lines after it were not read. Send them with another token."
        }
        BlockReason::Banned => "The subject of the token was banned. This line and the lines after it were not read.",
    })
}

fn unread() -> Problem {
    Problem::new(RESULTS_UNREAD).detail(format!(
        "There was no room for more results, and too few were read for {} s. This line and the lines after it were \
         not read. Send them again, and read the results while you send, or send fewer lines in each request.",
        UNREAD_WITHIN.as_secs()
    ))
}

fn stopping() -> Problem {
    Problem::new(STOPPING).detail("This line and the lines after it were not read. Send them again.").retry_after(1)
}

fn worker(api: CommandApi, spool: Arc<Spool>, is_dry_run: bool) -> mpsc::Sender<Task> {
    let (tasks, mut waiting) = mpsc::channel::<Task>(8);
    tokio::spawn(async move {
        let mut dry_run = DryRun::default();
        while let Some(Task { envelope, reply, permits }) = waiting.recv().await {
            let Envelope { number, id, command } = envelope;
            let result = match command {
                Err(problem) => LineResult::refused(number, id, problem.status().as_u16(), *problem),
                Ok((line, origin)) => {
                    let _permits = spool.slot().command().await;
                    let dry_run = is_dry_run.then_some(&mut dry_run);
                    let execution = AssertUnwindSafe(execute(&api, line, &origin, dry_run)).catch_unwind();
                    match execution.await.unwrap_or_else(|_| Some(LineResult::from(Problem::internal()))) {
                        Some(result) => LineResult { line: number, id, ..result },
                        None => continue,
                    }
                }
            };
            let _ = reply.send((result, Some(permits)));
        }
    });
    tasks
}

/// Executes or checks the command of a line. The result has no line number yet. `None` is unreachable: lines have no
/// idempotency key.
async fn execute(api: &CommandApi, line: Line, origin: &Origin, dry_run: Option<&mut DryRun>) -> Option<LineResult> {
    let Line { step, id, resource, status, reports_creation, .. } = line;
    let mut steps = [step];
    let outcome = match dry_run {
        Some(dry_run) => dry_run.execute(api.decider(), steps[0].as_mut(), origin).await,
        None => api.decider().execute(&mut steps, origin).await,
    };
    let (mut result, existed) = match outcome {
        Ok(Executed { versions, position }) => {
            let version = versions.first().copied().unwrap_or_default();
            let unchanged = steps[0].events() == 0;
            let existed = unchanged || version > steps[0].events() as i64;
            let status = if existed && status == StatusCode::CREATED { StatusCode::OK } else { status };
            let accepted = Accepted { resource, id, version, position };
            let accepted =
                LineResult { status: status.as_u16(), accepted: Some(accepted), unchanged, ..LineResult::default() };
            (accepted, existed)
        }
        Err(Rejected::Problem(problem)) => {
            let existed = problem.status() == StatusCode::CONFLICT;
            (problem.into(), existed)
        }
        Err(Rejected::KeyUsed) => return None,
    };
    if reports_creation && existed {
        let StreamId { aggregate_type, aggregate_id } = steps[0].stream();
        match api.store().read_stream(&aggregate_type, &aggregate_id, 0, 1, 1).await {
            Ok(events) => result.created_at = events.first().and_then(created_at),
            Err(error) => return Some(unavailable(error).into()),
        }
    }
    Some(result)
}

/// Returns when an event happened, to the microsecond.
fn created_at(event: &RecordedEvent) -> Option<Timestamp> {
    let at = event.metadata_text("occurred_at").and_then(|text| text.parse::<Timestamp>().ok());
    at.or_else(|| Timestamp::from_microsecond(event.recorded_at).ok())
}

impl LineResult {
    fn refused(line: u64, id: Option<Value>, status: u16, problem: Problem) -> Self {
        Self { line, id, status, problem: Some(problem), ..Self::default() }
    }
}

impl From<Problem> for LineResult {
    fn from(problem: Problem) -> Self {
        Self::refused(0, None, problem.status().as_u16(), problem)
    }
}
