//! What operators ask: the projections and the log.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use event_store::event::RecordedEvent;
use platform::auth::Principal;
use platform::body::Query;
use platform::problem::Problem;
use projection_engine::progress::Status;
use projection_engine::state::{occurred_at, rfc3339};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use push::api::{QueryApi, invalid, unavailable};
use push::consistency::at;

/// Events in one answer, at most.
const LIMIT_MAX: i64 = 1_000;

/// The routes.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(projections)).routes(routes!(events))
}

/// Every projection and the log's head.
#[derive(Debug, Serialize, ToSchema)]
struct Projections {
    items: Vec<Status>,
    /// Position of the last event in the log.
    head: i64,
}

/// How far each read model has come.
#[utoipa::path(get, path = "/v1/projections", tag = "operations",
    responses((status = 200, body = Projections), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn projections(State(state): State<QueryApi>, principal: Principal) -> Result<Response, Problem> {
    principal.admin_only()?;
    let (items, head) = state.progress.status(&state.store).await.map_err(unavailable)?;
    Ok(at(items.iter().map(|status| status.position).min().unwrap_or(0), axum::Json(Projections { items, head })))
}

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// After this position; from the first event where it is left out.
    after: Option<i64>,
    /// How many, 1 to 1000; 100 where it is left out.
    limit: Option<i64>,
    /// Wait until the log has this position.
    min_position: Option<i64>,
    /// Wait at most so long, in milliseconds; 1000 where it is left out, at most 10000.
    wait_ms: Option<u64>,
}

/// An event as the log holds it: amounts of money are integers in minor units.
#[derive(Debug, Serialize, ToSchema)]
struct LogEvent {
    position: i64,
    event_id: String,
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    #[serde(rename = "type")]
    event_type: String,
    version: String,
    occurred_at: String,
    payload: Value,
    metadata: Value,
}

#[derive(Debug, Serialize, ToSchema)]
struct LogPage {
    items: Vec<LogEvent>,
    /// Give it as `after` to go on; null at the end of the log.
    next_after: Option<i64>,
}

impl From<RecordedEvent> for LogEvent {
    fn from(event: RecordedEvent) -> Self {
        let payload = match serde_json::from_str(&event.payload) {
            // Stored tagged by the event's name: {"Name": {…}}.
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

/// The log, in order of position; NDJSON with `Accept: application/x-ndjson`.
#[utoipa::path(get, path = "/v1/events", tag = "operations", params(LogQuery),
    responses((status = 200, body = LogPage), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn events(
    State(state): State<QueryApi>,
    principal: Principal,
    headers: HeaderMap,
    Query(query): Query<LogQuery>,
) -> Result<Response, Problem> {
    principal.admin_only()?;
    let limit = query.limit.unwrap_or(100);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(invalid("limit", &format!("1 to {LIMIT_MAX}")));
    }
    state.log_at_least(query.min_position, query.wait_ms).await?;
    let after = query.after.unwrap_or(0).max(0);
    let events = state.store.read(after, limit).await.map_err(unavailable)?;
    let position = events.last().map_or(after, |event| event.position);
    let next_after = (events.len() as i64 == limit).then_some(position);
    let items = events.into_iter().map(LogEvent::from);
    if headers.get(ACCEPT).is_some_and(|accept| accept == "application/x-ndjson") {
        let lines: String = items.filter_map(|event| Some(serde_json::to_string(&event).ok()? + "\n")).collect();
        let mut response = Body::from(lines).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        return Ok(at(position, response));
    }
    Ok(at(position, axum::Json(LogPage { items: items.collect(), next_after })))
}
