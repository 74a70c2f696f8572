//! Reports over confirmed orders, for staff.

use axum::extract::State;
use axum::response::Response;
use jiff::civil::Date;
use platform::auth::Principal;
use platform::body::Query;
use platform::problem::Problem;
use projections::orders::products::{self, By, Product};
use projections::orders::sales::{self, Dimension, Sale};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use push::api::{QueryApi, invalid};
use push::consistency::at;

/// Products in one answer, at most.
const LIMIT_MAX: i64 = 1_000;

/// The routes.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(sales_report)).routes(routes!(top_products))
}

/// Which sales.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SalesQuery {
    /// `day`, `category` or `store`.
    by: Dimension,
    /// First day, `YYYY-MM-DD`, UTC.
    #[param(value_type = Option<String>, format = Date)]
    from: Option<Date>,
    /// Last day, included.
    #[param(value_type = Option<String>, format = Date)]
    to: Option<Date>,
    /// Wait until the read model has this position.
    min_position: Option<i64>,
    /// Longest wait in milliseconds, at most 10 000.
    wait_ms: Option<u64>,
}

/// Confirmed sales by day, category or store, ordered by key. A sale counts on the day on which its order was placed.
#[utoipa::path(get, path = "/v1/reports/sales", tag = "queries", params(SalesQuery),
    responses((status = 200, body = Vec<Sale>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn sales_report(
    State(state): State<QueryApi>,
    principal: Principal,
    Query(query): Query<SalesQuery>,
) -> Result<Response, Problem> {
    principal.staff_only()?;
    let day = |date: Option<Date>| date.map(|date| date.to_string());
    let report = || sales::report(state.store.db(), query.by, day(query.from), day(query.to));
    let (position, report) = state.read_at(sales::PROJECTION.name, query.min_position, query.wait_ms, report).await?;
    Ok(at(position, axum::Json(report)))
}

/// Which products.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TopQuery {
    /// `revenue` or `quantity`.
    by: By,
    /// How many, 1 to 1000; 10 where it is left out.
    limit: Option<i64>,
    /// Wait until the read model has this position.
    min_position: Option<i64>,
    /// Longest wait in milliseconds, at most 10 000.
    wait_ms: Option<u64>,
}

/// The best sellers in confirmed orders.
#[utoipa::path(get, path = "/v1/products/top", tag = "queries", params(TopQuery),
    responses((status = 200, body = Vec<Product>), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn top_products(
    State(state): State<QueryApi>,
    principal: Principal,
    Query(query): Query<TopQuery>,
) -> Result<Response, Problem> {
    principal.staff_only()?;
    let limit = query.limit.unwrap_or(10);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(invalid("limit", &format!("1 to {LIMIT_MAX}")));
    }
    let top = || products::top(state.store.db(), query.by, limit);
    let (position, top) = state.read_at(products::PROJECTION.name, query.min_position, query.wait_ms, top).await?;
    Ok(at(position, axum::Json(top)))
}
