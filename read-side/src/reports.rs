//! Reports on confirmed orders, and the channel `reports:sales`, for staff.

use axum::extract::State;
use axum::response::Response;
use futures::FutureExt;
use jiff::civil::Date;
use platform::auth::Principal;
use platform::body::Query;
use platform::problem::Problem;
use projection_engine::registry::CORE;
use projections::orders::products::{self, By, Product};
use projections::orders::sales::{self, Dimension, Sale};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::json::text;
use crate::orders::channels::changed_in_log_of;

use push::api::{Channel, DeniedAnswer, QueryApi};
use push::consistency::with_position_header;
use push::problems::invalid;

/// Most products in one response.
const LIMIT_MAX: i64 = 1_000;

/// Name of the channel of confirmed orders, for staff.
pub const SALES: &str = "reports:sales";
/// Names of the events that count as a sale.
const SALE_EVENTS: &[&str] = &["OrderConfirmed"];
/// Most events of the log that are searched for missed sales. Sales have no index by position.
const SCANNED_EVENTS_MAX: i64 = 10_000;

/// Returns the channel with newly confirmed orders.
pub fn channel() -> Channel {
    Channel {
        name: SALES,
        is_id: None,
        who: "staff, admin",
        shows: "every order that is confirmed, and so is included in the sales reports",
        group: CORE,
        projection: Some(sales::PROJECTION.name),
        allows: |_, principal, _| std::future::ready(Ok(principal.is_staff())).boxed(),
        denied_answer: DeniedAnswer::Staff,
        snapshot: |_, tx, _| {
            async move { Ok(("items", text(&sales::report(tx, Dimension::Day, None, None).await?))) }.boxed()
        },
        missed: Some(|api, _, after, until| {
            changed_in_log_of(api, after, until, SALE_EVENTS, SCANNED_EVENTS_MAX).boxed()
        }),
        event_types: SALE_EVENTS,
        has_presence: false,
    }
}

/// Returns the report routes.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(sales_report)).routes(routes!(top_products))
}

/// Query parameters of the sales report.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SalesQuery {
    /// Dimension of the report: `day`, `category` or `store`.
    #[param(inline)]
    by: Dimension,
    /// First day, `YYYY-MM-DD`, UTC.
    #[param(value_type = Option<String>, format = Date)]
    from: Option<Date>,
    /// Last day, inclusive, `YYYY-MM-DD`, UTC.
    #[param(value_type = Option<String>, format = Date)]
    to: Option<Date>,
    /// Wait until the read model has reached this position.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

/// Returns confirmed sales by day, category or store, sorted by key. A sale counts on the day on which its order was
/// placed.
#[utoipa::path(get, path = "/v1/reports/sales", operation_id = "report_sales", tag = "queries", params(SalesQuery),
    responses((status = 200, description = "The rows of the report.", body = Vec<Sale>)),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn sales_report(
    State(api): State<QueryApi>,
    principal: Principal,
    Query(query): Query<SalesQuery>,
) -> Result<Response, Problem> {
    principal.staff_only()?;
    let day = |date: Option<Date>| date.map(|date| date.to_string());
    let report = || sales::report(api.store.db(), query.by, day(query.from), day(query.to));
    let (position, report) = api.read_at(sales::PROJECTION.name, query.min_position, query.wait_ms, report).await?;
    Ok(with_position_header(position, axum::Json(report)))
}

/// Query parameters of the list of best sellers.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TopQuery {
    /// Ranking: `revenue` or `quantity`.
    #[param(inline)]
    by: By,
    /// Number of products, 1 to 1000. Default: 10.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<i64>,
    /// Wait until the read model has reached this position.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

/// Lists the best-selling products of confirmed orders.
#[utoipa::path(get, path = "/v1/products/top", operation_id = "list_top_products", tag = "queries", params(TopQuery),
    responses((status = 200, description = "The products, best-selling first.", body = Vec<Product>)),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn top_products(
    State(api): State<QueryApi>,
    principal: Principal,
    Query(query): Query<TopQuery>,
) -> Result<Response, Problem> {
    principal.staff_only()?;
    let limit = query.limit.unwrap_or(10);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(invalid("limit", &format!("Must be 1 to {LIMIT_MAX}.")));
    }
    let top = || products::top(api.store.db(), query.by, limit);
    let (position, top) = api.read_at(products::PROJECTION.name, query.min_position, query.wait_ms, top).await?;
    Ok(with_position_header(position, axum::Json(top)))
}
