//! Two routes and a channel of live updates.

use std::sync::LazyLock;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use command_engine::api::CommandApi;
use command_engine::outcome::Resource;
use command_engine::problems::refused;
use command_engine::reactions::reactor::payload;
use command_engine::request::CommandRequest;
use compact_str::format_compact;
use futures::FutureExt;
use kernel::aggregate::Aggregate;
use kernel::stream::{StreamId, is_id};
use platform::auth::Principal;
use platform::body::Query;
use platform::problem::Problem;
use push::api::{ChangedStream, Channel, DeniedAnswer, QueryApi};
use push::cache::ResponseCache;
use push::consistency::{Freshness, with_position_header};
use push::publication::Interest;
use push::publisher::Publisher;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::account::{Account, Command, Refused};
use crate::read_model::{ACCOUNTS, AccountView, find};

static RESOURCE: Resource = Resource { id_field: "customer_id", path: "/v1/points/" };

/// Returns the routes of commands.
pub fn commands() -> OpenApiRouter<CommandApi> {
    OpenApiRouter::new().routes(routes!(redeem))
}

/// Returns the routes of queries.
pub fn queries() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(show))
}

/// The body of a redemption.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Redemption {
    /// Points to spend, at least 1.
    points: i64,
}

/// Spends points of a customer's account.
#[utoipa::path(post, path = "/v1/points/{customer_id}/redemptions", operation_id = "redeem_points", tag = "commands", request_body = Redemption,
    params(("customer_id" = String, Path)), responses((status = 200, description = "The points are spent.")),
    extensions(("x-problems" = json!(["account-not-found", "too-few-points", "no-points", "points-account-busy"]))))]
async fn redeem(
    State(api): State<CommandApi>,
    Path(customer_id): Path<String>,
    request: CommandRequest<Redemption>,
) -> Result<Response, Problem> {
    let (request, Redemption { points }) = request.take();
    request.execute::<Account>(&api, &RESOURCE, StatusCode::OK, &customer_id, Command::Redeem { points }).await
}

/// Cached responses: at most 4 MiB, each for at most one minute.
static ANSWERS: LazyLock<ResponseCache> = LazyLock::new(|| ResponseCache::new(4 << 20, Duration::from_secs(60)));

/// Returns the points of a customer.
#[utoipa::path(get, path = "/v1/points/{customer_id}", operation_id = "get_points", tag = "queries", params(("customer_id" = String, Path), Freshness),
    responses((status = 200, description = "The account.", body = AccountView)),
    extensions(("x-problems" = json!(["account-not-found"]))))]
async fn show(
    State(api): State<QueryApi>,
    principal: Principal,
    url: Uri,
    Path(customer_id): Path<String>,
    Query(Freshness { min_position, wait_ms }): Query<Freshness>,
) -> Result<Response, Problem> {
    let query = async || {
        let find = || find(api.store.db(), &customer_id);
        let (position, found) = api.read_at(ACCOUNTS.name, min_position, wait_ms, find).await?;
        let own = found.filter(|account| principal.can_access_customer(&account.customer_id));
        let account = own.ok_or_else(|| refused(&Refused::NotFound))?;
        Ok(with_position_header(position, axum::Json(account).into_response()))
    };
    ANSWERS.answer(&api, &principal, &url, ACCOUNTS.name, query).await
}

/// Prefix of the channel name. The id of the customer follows.
const POINTS_PREFIX: &str = "points:";

/// Returns the channel with the changes of one account.
pub fn channel() -> Channel {
    Channel {
        name: POINTS_PREFIX,
        is_id: Some(is_id),
        who: "the customer, staff, admin",
        shows: "every change of a customer's points",
        group: "loyalty",
        projection: Some(ACCOUNTS.name),
        allows: |_, principal, id| std::future::ready(Ok(principal.can_access_customer(id))).boxed(),
        denied_answer: DeniedAnswer::NotFound,
        snapshot: |_, tx, id| {
            async move { Ok(("view", serde_json::to_string(&find(tx, id).await?).unwrap_or_default())) }.boxed()
        },
        missed: Some(|_, id, _, _| {
            let changed = ChangedStream { stream: StreamId::new(Account::TYPE, id), events: 0 };
            std::future::ready(Ok(Some(vec![changed]))).boxed()
        }),
        event_types: &[],
        has_presence: false,
    }
}

/// Publishes each account when it changes.
pub static PUBLISHER: Publisher<Account> = Publisher {
    group: "loyalty",
    id_member: "customer_id",
    interest: Interest { names: &[], by_stream: &[POINTS_PREFIX], by_prefix: &[] },
    view: |account, json| json.write(&AccountView::of(account)),
    publish: |step| {
        let payload = payload(step.recorded).unwrap_or_default();
        Some(step.publication(payload).on_stream_channel(format_compact!("{POINTS_PREFIX}{}", step.after.id)))
    },
};
