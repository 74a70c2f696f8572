//! The customer query and the channel `customer:ID`.

use crate::problems::CUSTOMER_NOT_FOUND;
use axum::extract::{Path, State};
use axum::response::Response;
use event_store::error::Error;
use futures::FutureExt;
use kernel::stream::is_id;
use platform::auth::Principal;
use platform::body::Query;
use platform::problem::Problem;
use projection_engine::registry::CORE;
use projections::orders::customers::{self, Customer};
use projections::orders::summaries;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::json::text;
use crate::orders::channels::find_changed;

use push::api::{ChangedStream, Channel, DeniedAnswer, QueryApi};
use push::consistency::with_position_header;
use push::recovery::RECOVERED_MAX;

/// Prefix of the channel of one customer; the customer's id follows.
pub const CUSTOMER_PREFIX: &str = "customer:";

/// Returns the channel with the changes of one customer's orders.
pub fn channel() -> Channel {
    Channel {
        name: CUSTOMER_PREFIX,
        is_id: Some(is_id),
        who: "that customer, staff, admin",
        shows: "every change of every order of one customer",
        group: CORE,
        projection: Some(customers::PROJECTION.name),
        allows: |_, principal, id| std::future::ready(Ok(principal.can_access_customer(id))).boxed(),
        denied_answer: DeniedAnswer::NotFound,
        snapshot: |_, tx, id| async move { Ok(("view", text(&customers::find(tx, id).await?))) }.boxed(),
        missed: Some(|api, id, after, until| changed_orders(api, id, after, until).boxed()),
        event_types: &[],
        has_presence: false,
    }
}

async fn changed_orders(
    api: &QueryApi,
    customer_id: &str,
    after: i64,
    until: i64,
) -> Result<Option<Vec<ChangedStream>>, Error> {
    let find = || async {
        let ids = summaries::changed(api.store.db(), customer_id, after, RECOVERED_MAX + 1).await?;
        Ok((ids.len() as i64 <= RECOVERED_MAX).then_some(ids))
    };
    let (projected, changed) = find_changed(api, after, until, find).await?;
    // While the read model is before `until`, it may not contain all orders of the customer.
    Ok(changed.filter(|_| projected >= until))
}

/// Returns the customer route.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(customer)).routes(routes!(customer_by_query))
}

/// Query parameters for reading one's own writes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Freshness {
    /// Wait until the read model has reached this position.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

/// Returns the order count and spend of a customer. Customers may read only their own; staff may read all.
#[utoipa::path(get, path = "/v1/customers/{id}", operation_id = "get_customer", tag = "queries", params(("id" = String, Path), Freshness),
    responses((status = 200, description = "The customer.", body = Customer)),
    extensions(("x-problems" = json!(["customer-not-found"]))))]
async fn customer(
    State(api): State<QueryApi>,
    principal: Principal,
    Path(id): Path<String>,
    Query(query): Query<Freshness>,
) -> Result<Response, Problem> {
    find_customer(&api, &principal, &id, query.min_position, query.wait_ms).await
}

/// The customer, where the id is inconvenient in a path: subjects of identity providers may be URLs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CustomerQuery {
    /// Id of the customer: the `sub` of the customer's token.
    customer_id: String,
    /// Wait until the read model has reached this position.
    min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    wait_ms: Option<u64>,
}

/// Returns the order count and spend of the customer in the query. Customers may read only their own; staff may read all.
#[utoipa::path(get, path = "/v1/customers", operation_id = "find_customer", tag = "queries", params(CustomerQuery),
    responses((status = 200, description = "The customer.", body = Customer)),
    extensions(("x-problems" = json!(["customer-not-found"]))))]
async fn customer_by_query(
    State(api): State<QueryApi>,
    principal: Principal,
    Query(query): Query<CustomerQuery>,
) -> Result<Response, Problem> {
    find_customer(&api, &principal, &query.customer_id, query.min_position, query.wait_ms).await
}

async fn find_customer(
    api: &QueryApi,
    principal: &Principal,
    id: &str,
    min_position: Option<i64>,
    wait_ms: Option<u64>,
) -> Result<Response, Problem> {
    let missing = || Problem::new(CUSTOMER_NOT_FOUND);
    if !principal.can_access_customer(id) {
        return Err(missing());
    }
    let find = || customers::find(api.store.db(), id);
    let (position, customer) = api.read_at(customers::PROJECTION.name, min_position, wait_ms, find).await?;
    Ok(with_position_header(position, axum::Json(customer.ok_or_else(missing)?)))
}
