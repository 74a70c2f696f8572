//! Revoked tokens. Revocations are stored in the database. Every process applies a new one, and a new ban, within about a
//! second.

use crate::problems::INVALID_REVOCATION;
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
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::bans::{self, TOPIC};

use push::api::QueryApi;
use push::problems::unavailable;

/// Held while the revocations are read and applied, so that an older read never replaces a newer one.
static LOADING: Mutex<()> = Mutex::const_new(());
/// How often the database is read, even without a message.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// Returns the revocation routes.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(revoke, list))
}

/// The tokens to revoke. Exactly one member must be set.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"subject": "c-1"}))]
#[serde(deny_unknown_fields)]
struct Revoke {
    /// Revokes all tokens of this `sub` that were issued until now.
    subject: Option<String>,
    /// Revokes the token with this `jti`.
    token_id: Option<String>,
}

/// A revocation.
#[derive(Debug, Serialize, ToSchema, sqlx_macros::FromRow)]
struct Revocation {
    /// `subject` or `token_id`.
    kind: String,
    /// The revoked `sub` or `jti`.
    value: String,
    /// Time of the revocation, in seconds since 1970. Tokens of the subject that were issued later are valid.
    revoked_at: i64,
    /// Subject of the admin who revoked.
    actor: String,
}

/// All revocations.
#[derive(Debug, Serialize, ToSchema)]
struct Revocations {
    items: Vec<Revocation>,
}

/// Revokes tokens. Every socket, stream and poll that was opened with a revoked token ends within two seconds, on every
/// process.
#[utoipa::path(post, path = "/v1/admin/revocations", operation_id = "create_revocation", tag = "operations", request_body = Revoke,
    responses((status = 201, description = "The tokens are revoked.", body = Revocation)),
    extensions(("x-problems" = json!(["forbidden", "invalid-revocation"]))))]
async fn revoke(
    State(api): State<QueryApi>,
    principal: Principal,
    Json(body): Json<Revoke>,
) -> Result<Response, Problem> {
    principal.admin_only()?;
    let (kind, value) = match (body.subject, body.token_id) {
        (Some(subject), None) => ("subject", subject),
        (None, Some(token_id)) => ("token_id", token_id),
        _ => return Err(unusable("", "Send either subject or token_id.")),
    };
    if value.is_empty() || value.chars().count() > 255 || value.contains('\0') {
        return Err(unusable(&format!("/{kind}"), "Must have 1 to 255 characters and no NUL."));
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
    // Applied in this process at once. If the read fails, the periodic read applies the revocation a second later.
    if let Err(error) = load(&api.store, &api.authenticator).await {
        tracing::warn!(%error, "Could not read the revocations. They are read again in a second.");
    }
    api.store.broadcast(TOPIC, Vec::new()).await;
    tracing::info!(kind, value, actor = principal.subject, "Tokens revoked.");
    let revocation = Revocation { kind: kind.to_owned(), value, revoked_at, actor: principal.subject };
    Ok((StatusCode::CREATED, axum::Json(revocation)).into_response())
}

fn unusable(pointer: &str, message: &str) -> Problem {
    Problem::new(INVALID_REVOCATION).detail(message.to_owned()).error(pointer.to_owned(), message)
}

/// Lists all revocations.
#[utoipa::path(get, path = "/v1/admin/revocations", operation_id = "list_revocations", tag = "operations",
    responses((status = 200, description = "All revocations.", body = Revocations)),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn list(State(api): State<QueryApi>, principal: Principal) -> Result<Response, Problem> {
    principal.admin_only()?;
    let items = rows(&api.store).await.map_err(unavailable)?;
    Ok(axum::Json(Revocations { items }).into_response())
}

async fn rows(store: &Store) -> Result<Vec<Revocation>, Error> {
    let sql = "select kind, value, revoked_at, actor from revocations order by kind, value";
    store.db().fetch_all(sql, vec![]).await
}

/// Reads all revocations from the database and applies them in this process.
///
/// # Errors
/// The database does not answer.
pub async fn load(store: &Store, authenticator: &Authenticator) -> Result<(), Error> {
    let _one_at_a_time = LOADING.lock().await;
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

/// Applies new revocations and bans in this process until `stop`. Processes of every role must run this task.
pub async fn follow(store: Store, authenticator: Authenticator, stop: CancellationToken) {
    let mut messages = store.listen(TOPIC).await;
    loop {
        tokio::select! {
            _ = messages.next() => {}
            () = tokio::time::sleep(POLL_EVERY) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = load(&store, &authenticator).await {
            tracing::warn!(%error, "Could not read the revocations. They are read again in a second.");
        }
        if let Err(error) = bans::load(&store, &authenticator).await {
            tracing::warn!(%error, "Could not read the bans. They are read again in a second.");
        }
    }
}
