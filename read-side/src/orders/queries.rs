//! Order queries: the list of orders, one order (now, or as of a version or time), and an order's history.

use crate::problems::{ORDER_NOT_FOUND, VERSION_NOT_FOUND};
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::order::Order;
use jiff::Timestamp;
use kernel::aggregate::Aggregate;
use platform::auth::Principal;
use platform::body::{Query, parse};
use platform::conditional::{etag, if_none_match};
use platform::problem::Problem;
use projection_engine::dead_letters;
use projection_engine::registry::CORE;
use projection_engine::state::{Versioned, occurred_at, rfc3339};
use projections::orders::details as order_details;
use projections::orders::summaries::{self as order_summaries, Cursor, OrderSummary, Sort};
use projections::orders::view::{OrderJson, OrderStatus, OrderView, payload_view};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use push::api::QueryApi;
use push::consistency::with_position_header;
use push::problems::{invalid, unavailable};

/// Events that are read from the log at once.
const EVENTS_PAGE: i64 = 1_000;

/// Returns the routes of the order queries.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(order)).routes(routes!(history))
}

/// Filters, sort order and page of the order list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only orders with this status.
    #[param(value_type = Option<OrderStatus>, inline)]
    status: Option<String>,
    /// Only orders of this customer. Customers see only their own orders in any case.
    customer_id: Option<String>,
    /// Only orders that have a line of this category.
    category: Option<String>,
    /// Only orders placed at or after this time, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    placed_from: Option<Timestamp>,
    /// Only orders placed before this time, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    placed_to: Option<Timestamp>,
    /// Only orders with at least this total, a decimal string.
    min_total: Option<String>,
    /// Only orders with at most this total, a decimal string.
    max_total: Option<String>,
    /// Only orders with this text in an id, a SKU or a product's name.
    q: Option<String>,
    /// Sort key: `placed_at`, `total` or `updated_at`; with `-` in front, largest first. Default: `-placed_at`.
    sort: Option<String>,
    /// Number of orders in a page, 1 to 200. Default: 50.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    /// `next_cursor` of the previous page. Requires the same `sort`.
    cursor: Option<String>,
    /// Wait until the read model has reached this position.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

/// A page of orders.
#[derive(Debug, Serialize, ToSchema)]
struct Page {
    items: Vec<OrderSummary>,
    /// Send it as `cursor` for the next page. Null on the last page.
    next_cursor: Option<String>,
}

/// Lists orders.
#[utoipa::path(get, path = "/v1/orders", operation_id = "list_orders", tag = "queries", params(ListQuery),
    responses((status = 200, description = "A page of orders.", body = Page)))]
async fn list(
    State(api): State<QueryApi>,
    principal: Principal,
    Query(query): Query<ListQuery>,
) -> Result<Response, Problem> {
    let (min_position, wait_ms) = (query.min_position, query.wait_ms);
    let mut query = read_query(query)?;
    if !principal.is_staff() {
        if query.customer_id.as_ref().is_some_and(|id| *id != principal.subject) {
            // The list of another customer is empty, whether or not that customer exists.
            query.limit = 0;
        }
        query.customer_id = Some(principal.subject);
    }
    let list = || async {
        match query.limit {
            0 => Ok((Vec::new(), None)),
            _ => order_summaries::list(api.store.db(), &query).await,
        }
    };
    let (position, (items, next)) = api.read_at(order_summaries::PROJECTION.name, min_position, wait_ms, list).await?;
    let next_cursor = next.map(|cursor| URL_SAFE_NO_PAD.encode(serde_json::to_vec(&cursor).unwrap_or_default()));
    Ok(with_position_header(position, axum::Json(Page { items, next_cursor })))
}

fn read_query(query: ListQuery) -> Result<order_summaries::Query, Problem> {
    if let Some(status) = &query.status
        && !["draft", "confirmed", "cancelled"].contains(&status.as_str())
    {
        return Err(invalid("status", "Must be draft, confirmed or cancelled."));
    }
    let limit = query.limit.unwrap_or(50);
    if !(1..=200).contains(&limit) {
        return Err(invalid("limit", "Must be 1 to 200."));
    }
    let sort = query.sort.as_deref().unwrap_or("-placed_at");
    let (descending, name) = match sort.strip_prefix('-') {
        Some(name) => (true, name),
        None => (false, sort),
    };
    let sort = match name {
        "placed_at" => Sort::PlacedAt,
        "total" => Sort::Total,
        "updated_at" => Sort::UpdatedAt,
        _ => return Err(invalid("sort", "Must be placed_at, total or updated_at; `-` in front sorts descending.")),
    };
    let after = query.cursor.as_deref().map(|text| cursor(text, sort, descending)).transpose()?;
    for (name, text) in [("q", &query.q), ("category", &query.category)] {
        if text.as_ref().is_some_and(|text| text.chars().count() > 100 || text.chars().any(char::is_control)) {
            return Err(invalid(name, "Must have at most 100 characters and no control characters."));
        }
    }
    Ok(order_summaries::Query {
        status: query.status,
        customer_id: query.customer_id,
        category: query.category,
        placed_from: query.placed_from.map(Timestamp::as_microsecond),
        placed_to: query.placed_to.map(Timestamp::as_microsecond),
        min_total: milli("min_total", query.min_total)?,
        max_total: milli("max_total", query.max_total)?,
        q: query.q,
        sort,
        descending,
        limit,
        after,
    })
}

fn cursor(text: &str, sort: Sort, descending: bool) -> Result<Cursor, Problem> {
    let read = URL_SAFE_NO_PAD.decode(text).ok().and_then(|json| parse::<Cursor>(&json, "").ok());
    read.filter(|cursor| (cursor.sort, cursor.descending) == (sort, descending))
        .ok_or_else(|| invalid("cursor", "Send next_cursor of the previous page, with the same sort."))
}

/// Converts a decimal string to thousandths.
fn milli(parameter: &str, text: Option<String>) -> Result<Option<i64>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(decimals) || decimals.len() > 3 {
        return Err(invalid(parameter, "Must be a decimal number with at most 3 decimals, for example 2.55."));
    }
    format!("{whole}{decimals:0<3}").parse().map(Some).map_err(|_| invalid(parameter, "The number is too large."))
}

/// Query parameters for one order.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OrderQuery {
    /// Version, or time in RFC 3339, of the order state to return. Default: the current state.
    as_of: Option<String>,
    /// Wait until the read model has reached this position; with `as_of`, until the log has reached it.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

fn no_such_order() -> Problem {
    Problem::new(ORDER_NOT_FOUND).detail("The order does not exist, or you may not see it.")
}

/// Returns an order with its lines: the current state, or the state as of a version or time.
#[utoipa::path(get, path = "/v1/orders/{id}", operation_id = "get_order", tag = "queries",
    params(("id" = String, Path), OrderQuery, ("If-None-Match" = Option<String>, Header, description = "ETags that the client already has, or an asterisk.")),
    responses((status = 200, description = "The order with its lines.", body = OrderJson, headers(("ETag" = String, description = "The version of the order, in double quotes."))), (status = 304, description = "If-None-Match contains the current version.")),
    extensions(("x-problems" = json!(["order-not-found", "version-not-found"]))))]
async fn order(
    State(api): State<QueryApi>,
    principal: Principal,
    Path(id): Path<String>,
    headers: HeaderMap,
    Query(query): Query<OrderQuery>,
) -> Result<Response, Problem> {
    if let Some(as_of) = query.as_of {
        let position = api.wait_for_position(query.min_position, query.wait_ms).await?;
        let (json, version) = order_as_of(&api, &principal, &id, &as_of).await?;
        return Ok(with_position_header(position, view(&headers, json, version)));
    }
    let find = || order_details::find(api.store.db(), &id);
    let (position, order) =
        api.read_at(order_details::PROJECTION.name, query.min_position, query.wait_ms, find).await?;
    let order = order.filter(|order| principal.can_access_customer(&order.customer_id)).ok_or_else(no_such_order)?;
    Ok(with_position_header(position, view(&headers, order.view, order.version)))
}

/// Returns an order's JSON with its version as `ETag`, or a 304 if the client has this version.
fn view(request: &HeaderMap, json: String, version: i64) -> Response {
    if if_none_match(request).is_some_and(|known| known.include(version)) {
        return (StatusCode::NOT_MODIFIED, [(ETAG, etag(version))]).into_response();
    }
    let mut response = json.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ETAG, etag(version));
    response
}

/// Returns an order's JSON and version, as of a version or time.
async fn order_as_of(api: &QueryApi, principal: &Principal, id: &str, as_of: &str) -> Result<(String, i64), Problem> {
    let is_version = as_of.bytes().all(|byte| byte.is_ascii_digit());
    let (to, until) = match (as_of.parse::<i64>(), as_of.parse::<Timestamp>()) {
        (Ok(version), _) if is_version && version > 0 => (version, i64::MAX),
        (Err(_), Ok(time)) => (i64::MAX, time.as_microsecond()),
        _ => return Err(invalid("as_of", "Must be a version or a time in RFC 3339, e.g. 2017-01-01T11:53:26Z.")),
    };
    let discarded = dead_letters::discarded(api.store.db(), CORE).await.map_err(unavailable)?;
    let mut order = Versioned::<Order>::default();
    'history: loop {
        let page = api.store.read_stream(Order::TYPE, id, order.version, to, EVENTS_PAGE).await.map_err(unavailable)?;
        let last = (page.len() as i64) < EVENTS_PAGE;
        for event in page {
            if occurred_at(&event) > until {
                break 'history;
            }
            match discarded.holds(&event) {
                true => order.skip(&event),
                false => drop(order.apply(&event).map_err(unreadable)?),
            }
        }
        if last {
            break;
        }
    }
    if !order.exists() || !principal.can_access_customer(order.state.owner()) {
        return Err(no_such_order());
    }
    if to != i64::MAX && order.version < to {
        return Err(
            Problem::new(VERSION_NOT_FOUND).detail(format!("The current version of the order is {}.", order.version))
        );
    }
    let json = serde_json::to_string(&OrderView(&order)).map_err(|e| unreadable(e.to_string()))?;
    Ok((json, order.version))
}

fn unreadable(error: impl std::fmt::Display) -> Problem {
    tracing::error!(%error, "Could not read the history of an order.");
    Problem::internal()
}

/// Query parameters of an order's history.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Only events after this version. Default: from the first event.
    after: Option<i64>,
    /// Number of events in a page, 1 to 200. Default: 50.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<i64>,
    /// Wait until the log has reached this position.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

/// An event of an order.
#[derive(Debug, Serialize, ToSchema)]
struct HistoryEvent {
    version: i64,
    position: i64,
    #[serde(rename = "type")]
    event_type: String,
    occurred_at: String,
    /// Content of the event; amounts of money are decimal strings. Null if the event cannot be read.
    payload: Value,
}

#[derive(Debug, Serialize, ToSchema)]
struct History {
    items: Vec<HistoryEvent>,
    /// Send it as `after` for the next page. Null on the last page.
    next_after: Option<i64>,
}

/// Lists the events of an order, oldest first.
#[utoipa::path(get, path = "/v1/orders/{id}/events", operation_id = "list_order_events", tag = "queries", params(("id" = String, Path), HistoryQuery),
    responses((status = 200, description = "A page of the order's events, oldest first.", body = History)),
    extensions(("x-problems" = json!(["order-not-found"]))))]
async fn history(
    State(api): State<QueryApi>,
    principal: Principal,
    Path(id): Path<String>,
    Query(query): Query<HistoryQuery>,
) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(50);
    if !(1..=200).contains(&limit) {
        return Err(invalid("limit", "Must be 1 to 200."));
    }
    let position = api.wait_for_position(query.min_position, query.wait_ms).await?;
    // The first event contains the owner and the currency, which never change.
    let first = api.store.read_stream(Order::TYPE, &id, 0, 1, 1).await.map_err(unavailable)?;
    let mut order = Versioned::<Order>::default();
    if !first.first().is_some_and(|first| order.apply(first).is_ok() && order.exists())
        || !principal.can_access_customer(order.state.owner())
    {
        return Err(no_such_order());
    }
    let after = query.after.unwrap_or(0).max(0);
    let events = api.store.read_stream(Order::TYPE, &id, after, i64::MAX, limit).await.map_err(unavailable)?;
    let mut items = Vec::with_capacity(events.len());
    for event in events {
        items.push(HistoryEvent {
            version: event.sequence,
            position: event.position,
            occurred_at: rfc3339(occurred_at(&event)),
            payload: serde_json::from_str(&event.payload)
                .map_or(Value::Null, |payload| payload_view(&payload, order.state.currency)),
            event_type: event.event_type.into(),
        });
    }
    let next_after = items.last().filter(|_| items.len() as i64 == limit).map(|event| event.version);
    Ok(with_position_header(position, axum::Json(History { items, next_after })))
}
