//! Tokens that are believed no more: kept in the database, known to every process within a second.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use event_store::error::Error;
use event_store::now_us;
use event_store::store::Store;
use futures::StreamExt;
use platform::auth::{Authenticator, Principal, Revoked};
use platform::body::Json;
use platform::problem::Problem;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use push::api::QueryApi;
use push::problems::unavailable;

/// The message between processes that there is a new one.
const TOPIC: &str = "revoked";
/// How often the database is asked, whatever the others tell.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The routes.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(revoke, list))
}

/// What to revoke: one of the two.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Revoke {
    /// Every token of this `sub` that was issued until now.
    subject: Option<String>,
    /// The token with this `jti`.
    token_id: Option<String>,
}

/// A revocation.
#[derive(Debug, Serialize, ToSchema, sqlx_macros::FromRow)]
struct Revocation {
    /// `subject` or `token_id`.
    kind: String,
    /// Which.
    value: String,
    /// Seconds since 1970. Tokens of the subject that were issued later are believed.
    revoked_at: i64,
    /// Who revoked it.
    actor: String,
}

/// All revocations.
#[derive(Debug, Serialize, ToSchema)]
struct Revocations {
    items: Vec<Revocation>,
}

/// Believes tokens no more. Every socket, stream and poll that was opened with one ends within two seconds, on every
/// process.
#[utoipa::path(post, path = "/v1/admin/revocations", tag = "operations", request_body = Revoke,
    responses((status = 201, body = Revocation), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn revoke(
    State(api): State<QueryApi>,
    principal: Principal,
    Json(body): Json<Revoke>,
) -> Result<Response, Problem> {
    principal.admin_only()?;
    let (kind, value) = match (body.subject, body.token_id) {
        (Some(subject), None) => ("subject", subject),
        (None, Some(token_id)) => ("token_id", token_id),
        _ => return Err(unusable("", "give either subject or token_id")),
    };
    if value.is_empty() || value.chars().count() > 255 || value.contains('\0') {
        return Err(unusable(&format!("/{kind}"), "1 to 255 characters, no NUL"));
    }
    let revoked_at = now_us() / 1_000_000;
    let kept = async {
        let mut tx = api.store.db().begin_durably().await?;
        tx.execute(
            "insert into revocations (kind, value, revoked_at, actor) values ($1, $2, $3, $4)
             on conflict (kind, value) do update set revoked_at = excluded.revoked_at, actor = excluded.actor",
            vec![kind.into(), value.as_str().into(), revoked_at.into(), principal.subject.as_str().into()],
        )
        .await?;
        tx.commit().await
    };
    kept.await.map_err(unavailable)?;
    // Here at once; a failure to read it back is made good by the look a second later.
    if let Err(error) = load(&api.store, &api.authenticator).await {
        tracing::warn!(%error, "revocations cannot be read");
    }
    api.store.broadcast(TOPIC, Vec::new()).await;
    tracing::info!(kind, value, actor = principal.subject, "revoked");
    let revocation = Revocation { kind: kind.to_owned(), value, revoked_at, actor: principal.subject };
    Ok((StatusCode::CREATED, axum::Json(revocation)).into_response())
}

fn unusable(pointer: &str, message: &str) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-revocation", "The revocation cannot be used")
        .detail(message.to_owned())
        .error(pointer.to_owned(), message)
}

/// What is revoked.
#[utoipa::path(get, path = "/v1/admin/revocations", tag = "operations",
    responses((status = 200, body = Revocations), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn list(State(api): State<QueryApi>, principal: Principal) -> Result<Response, Problem> {
    principal.admin_only()?;
    let items = rows(&api.store).await.map_err(unavailable)?;
    Ok(axum::Json(Revocations { items }).into_response())
}

async fn rows(store: &Store) -> Result<Vec<Revocation>, Error> {
    let sql = "select kind, value, revoked_at, actor from revocations order by kind, value";
    store.db().fetch_all(sql, vec![]).await
}

/// Reads what is revoked.
///
/// # Errors
/// When the database is away.
pub async fn load(store: &Store, authenticator: &Authenticator) -> Result<(), Error> {
    let mut revoked = Revoked::default();
    for row in rows(store).await? {
        match row.kind.as_str() {
            "subject" => drop(revoked.subjects.insert(row.value, row.revoked_at)),
            _ => drop(revoked.token_ids.insert(row.value)),
        }
    }
    authenticator.revoke(revoked);
    Ok(())
}

/// Keeps this process informed, until `stop`. Every role needs it.
pub async fn follow(store: Store, authenticator: Authenticator, stop: CancellationToken) {
    let mut told = store.listen(TOPIC).await;
    loop {
        tokio::select! {
            _ = told.next() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = load(&store, &authenticator).await {
            tracing::warn!(%error, "revocations cannot be read");
        }
    }
}
