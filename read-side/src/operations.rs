//! Queries for operators: the projections and the log, and the channel `projections`.

use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use event_store::error::Error;
use event_store::event::RecordedEvent;
use futures::FutureExt;
use platform::auth::Principal;
use platform::body::Query;
use platform::problem::Problem;
use projection_engine::progress::Status;
use projection_engine::registry::CORE;
use projection_engine::state::{occurred_at, rfc3339};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::json::text;

use push::api::{Channel, DeniedAnswer, QueryApi, SnapshotMember};
use push::consistency::with_position_header;
use push::problems::{invalid, unavailable};

/// Most events in one response.
const LIMIT_MAX: i64 = 1_000;

/// Name of the channel with the status of the projections, for admins.
const PROJECTIONS: &str = "projections";
/// How often the projections' status is read while the channel has subscribers.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Returns the channel with the status of the projections.
pub fn channel() -> Channel {
    Channel {
        name: PROJECTIONS,
        is_id: None,
        who: "admin",
        shows: "the status of the projections, once a second while it changes",
        group: CORE,
        projection: None,
        allows: |_, principal, _| std::future::ready(Ok(principal.is_admin())).boxed(),
        denied_answer: DeniedAnswer::Admin,
        snapshot: |api, _, _| status(api).boxed(),
        missed: None,
        event_types: &[],
        has_presence: false,
    }
}

async fn status(api: &QueryApi) -> Result<SnapshotMember, Error> {
    Ok(("items", text(&api.progress.status(&api.store).await?.0)))
}

/// Publishes the projections' status when it changes and the channel has subscribers, until the process stops.
pub async fn publish_status(api: QueryApi) {
    let mut published = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(STATUS_EVERY) => {}
            () = api.stop.cancelled() => return,
        }
        if !api.hub.has(PROJECTIONS) {
            continue;
        }
        match status(&api).await {
            Ok((field, items)) => {
                let now = format!(r#"{{"{field}":{items}}}"#);
                if published != now {
                    api.hub.publish_ephemeral(PROJECTIONS, "pub", now.clone(), false);
                    published = now;
                }
            }
            Err(error) => tracing::warn!(%error, "Could not read the status of the projections."),
        }
    }
}

/// Returns the routes of the projections and the log.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(projections)).routes(routes!(events))
}

/// All projections and the log's head.
#[derive(Debug, Serialize, ToSchema)]
struct Projections {
    items: Vec<Status>,
    /// Position of the last event in the log.
    head: i64,
}

/// Returns the status of each read model.
#[utoipa::path(get, path = "/v1/projections", operation_id = "list_projections", tag = "operations",
    responses((status = 200, description = "The status of each read model.", body = Projections)),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn projections(State(api): State<QueryApi>, principal: Principal) -> Result<Response, Problem> {
    principal.admin_only()?;
    let (items, head) = api.progress.status(&api.store).await.map_err(unavailable)?;
    Ok(with_position_header(
        items.iter().map(|status| status.position).min().unwrap_or(0),
        axum::Json(Projections { items, head }),
    ))
}

/// Query parameters of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// Only events after this position. Default: from the first event.
    after: Option<i64>,
    /// Number of events in a page, 1 to 1000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Wait until the log has reached this position.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

/// An event as stored in the log. Amounts of money are integers in minor units.
#[derive(Debug, Serialize, ToSchema)]
struct LogEvent {
    position: i64,
    event_id: String,
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    #[serde(rename = "type")]
    event_type: String,
    /// Version of the event type.
    #[schema(example = "1.0")]
    version: String,
    occurred_at: String,
    payload: Value,
    metadata: Value,
}

#[derive(Debug, Serialize, ToSchema)]
struct LogPage {
    items: Vec<LogEvent>,
    /// Send it as `after` for the next page. Null at the end of the log.
    next_after: Option<i64>,
}

impl From<RecordedEvent> for LogEvent {
    fn from(event: RecordedEvent) -> Self {
        let payload = match serde_json::from_str(&event.payload) {
            // The stored payload is tagged with the event's name: {"Name": {…}}.
            Ok(Value::Object(mut tagged)) => match tagged.remove(&*event.event_type) {
                Some(payload) => payload,
                None => Value::Object(tagged),
            },
            other => other.unwrap_or_default(),
        };
        Self {
            position: event.position,
            event_id: event.id(),
            occurred_at: rfc3339(occurred_at(&event)),
            metadata: serde_json::from_str(&event.metadata).unwrap_or_default(),
            payload,
            aggregate_type: event.aggregate_type.into(),
            aggregate_id: event.aggregate_id.into(),
            sequence: event.sequence,
            event_type: event.event_type.into(),
            version: event.event_version.into(),
        }
    }
}

/// Lists the events of the log, in order of position. Returns NDJSON with `Accept: application/x-ndjson`.
#[utoipa::path(get, path = "/v1/events", operation_id = "list_events", tag = "operations", params(LogQuery),
    responses((status = 200, description = "A page of the log.", content((LogPage = "application/json"), (LogEvent = "application/x-ndjson")))),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn events(
    State(api): State<QueryApi>,
    principal: Principal,
    headers: HeaderMap,
    Query(query): Query<LogQuery>,
) -> Result<Response, Problem> {
    principal.admin_only()?;
    let limit = query.limit.unwrap_or(100);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(invalid("limit", &format!("Must be 1 to {LIMIT_MAX}.")));
    }
    api.wait_for_position(query.min_position, query.wait_ms).await?;
    let after = query.after.unwrap_or(0).max(0);
    let events = api.store.read(after, limit).await.map_err(unavailable)?;
    let position = events.last().map_or(after, |event| event.position);
    let next_after = (events.len() as i64 == limit).then_some(position);
    let items = events.into_iter().map(LogEvent::from);
    if headers.get(ACCEPT).is_some_and(|accept| accept == "application/x-ndjson") {
        let lines: String = items.filter_map(|event| Some(serde_json::to_string(&event).ok()? + "\n")).collect();
        let mut response = Body::from(lines).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        return Ok(with_position_header(position, response));
    }
    Ok(with_position_header(position, axum::Json(LogPage { items: items.collect(), next_after })))
}
