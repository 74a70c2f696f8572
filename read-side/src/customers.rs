//! A customer's figures.

use axum::extract::{Path, State};
use axum::response::Response;
use platform::auth::Principal;
use platform::body::Query;
use platform::problem::Problem;
use projections::orders::customers::{self, Customer};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use push::api::{QueryApi, not_found};
use push::consistency::at;

/// The route.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(customer))
}

/// How fresh the answer must be.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Freshness {
    /// Wait until the read model has this position.
    min_position: Option<i64>,
    /// Longest wait in milliseconds, at most 10 000.
    wait_ms: Option<u64>,
}

/// Orders and spend of a customer: one's own, or, for staff, anybody's.
#[utoipa::path(get, path = "/v1/customers/{id}", tag = "queries", params(("id" = String, Path), Freshness),
    responses((status = 200, body = Customer), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn customer(
    State(state): State<QueryApi>,
    principal: Principal,
    Path(id): Path<String>,
    Query(query): Query<Freshness>,
) -> Result<Response, Problem> {
    let missing = || not_found("customer-not-found", "There is no such customer");
    if !principal.may_see(&id) {
        return Err(missing());
    }
    let find = || customers::find(state.store.db(), &id);
    let (position, customer) =
        state.read_at(customers::PROJECTION.name, query.min_position, query.wait_ms, find).await?;
    Ok(at(position, axum::Json(customer.ok_or_else(missing)?)))
}
