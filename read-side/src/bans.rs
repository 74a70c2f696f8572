//! Banned subjects. A ban refuses every token of a subject, however new it is, until the subject is reinstated. It is
//! not a revocation, which refuses the tokens that were issued before it. Every process applies a ban within about a
//! second.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use event_store::bans::Ban as StoredBan;
use event_store::error::Error;
use event_store::now_us;
use event_store::store::Store;
use jiff::Timestamp;
use kernel::id;
use platform::auth::{Authenticator, Principal};
use platform::body::{Json, Query};
use platform::problem::Problem;
use projection_engine::state::rfc3339;
use push::api::QueryApi;
use push::problems::unavailable;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::problems::{BAN_NOT_FOUND, INVALID_BAN};

/// Topic of the messages between processes that announce a change of the bans or of the revocations.
pub(crate) const TOPIC: &str = "revoked";
/// Held while the bans are read and applied, so that an older read never replaces a newer one.
static LOADING: Mutex<()> = Mutex::const_new(());
/// Longest reason, in characters.
const REASON_CHARS_MAX: usize = 500;

/// Returns the routes of bans.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(ban, list, reinstate))
}

/// The subject to ban.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewBan {
    /// Subject of the tokens to refuse; for a customer, the customer's id.
    #[schema(example = "auth0|65f3a0c2")]
    subject: String,
    /// Reason of the ban, 1 to 500 characters. Only admins can read it.
    #[schema(example = "chargeback fraud")]
    reason: String,
    /// Time at which the ban ends by itself, RFC 3339. Without it, the ban lasts until the subject is reinstated.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

/// A ban.
#[derive(Debug, Serialize, ToSchema)]
struct Ban {
    /// The banned subject.
    subject: String,
    /// Reason of the ban.
    reason: String,
    /// Time of the ban, RFC 3339.
    banned_at: String,
    /// Time at which the ban ends by itself, RFC 3339; null when it does not.
    until: Option<String>,
    /// Subject of the admin who banned.
    actor: String,
}

/// All bans that have not ended, ordered by subject.
#[derive(Debug, Serialize, ToSchema)]
struct Bans {
    items: Vec<Ban>,
}

impl From<StoredBan> for Ban {
    fn from(ban: StoredBan) -> Self {
        let StoredBan { subject, reason, actor, banned_at, until } = ban;
        Self { subject, reason, actor, banned_at: rfc3339(banned_at), until: until.map(rfc3339) }
    }
}

/// Bans a subject: every token of it is refused, also a token that is issued later. Every socket, stream, poll and bulk
/// request of the subject ends within two seconds, on every process, and its tickets are refused. A second ban of the
/// same subject replaces the first.
#[utoipa::path(post, path = "/v1/admin/bans", operation_id = "create_ban", tag = "operations", request_body = NewBan,
    responses((status = 201, description = "The subject is banned.", body = Ban)),
    extensions(("x-problems" = json!(["forbidden", "invalid-ban"]))))]
async fn ban(State(api): State<QueryApi>, principal: Principal, Json(body): Json<NewBan>) -> Result<Response, Problem> {
    principal.admin_only()?;
    let NewBan { subject, reason, until } = body;
    let (reason, now) = (reason.trim(), now_us());
    if !id::is_valid(&subject, id::CHARS_MAX) {
        return Err(unusable("/subject", &format!("Must have 1 to {} characters {}.", id::CHARS_MAX, id::RULE)));
    }
    if subject == principal.subject {
        return Err(unusable("/subject", "Must not be your own subject: you could not reinstate it."));
    }
    if reason.is_empty() || reason.chars().count() > REASON_CHARS_MAX || reason.chars().any(char::is_control) {
        return Err(unusable("/reason", "Must have 1 to 500 characters and no control characters."));
    }
    let until = until.map(|until| until.as_microsecond());
    if until.is_some_and(|until| until <= now) {
        return Err(unusable("/until", "Must be in the future."));
    }
    let stored =
        StoredBan { subject, reason: reason.to_owned(), actor: principal.subject.clone(), banned_at: now, until };
    api.store.bans().ban(&stored).await.map_err(unavailable)?;
    changed(&api).await;
    tracing::info!(subject = stored.subject, reason = stored.reason, actor = stored.actor, "Subject banned.");
    Ok((StatusCode::CREATED, axum::Json(Ban::from(stored))).into_response())
}

fn unusable(pointer: &str, message: &str) -> Problem {
    Problem::new(INVALID_BAN).detail(message.to_owned()).error(pointer.to_owned(), message)
}

/// Lists all bans that have not ended.
#[utoipa::path(get, path = "/v1/admin/bans", operation_id = "list_bans", tag = "operations",
    responses((status = 200, description = "All bans that have not ended.", body = Bans)),
    extensions(("x-problems" = json!(["forbidden"]))))]
async fn list(State(api): State<QueryApi>, principal: Principal) -> Result<Response, Problem> {
    principal.admin_only()?;
    let items = api.store.bans().list().await.map_err(unavailable)?;
    Ok(axum::Json(Bans { items: items.into_iter().map(Ban::from).collect() }).into_response())
}

/// The subject to reinstate.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Reinstated {
    /// The banned subject.
    subject: String,
}

/// Ends the ban of a subject. Tokens that were revoked stay revoked.
#[utoipa::path(delete, path = "/v1/admin/bans", operation_id = "delete_ban", tag = "operations", params(Reinstated),
    responses((status = 204, description = "The subject is no longer banned.")),
    extensions(("x-problems" = json!(["forbidden", "ban-not-found"]))))]
async fn reinstate(
    State(api): State<QueryApi>,
    principal: Principal,
    Query(query): Query<Reinstated>,
) -> Result<Response, Problem> {
    principal.admin_only()?;
    let was_banned = api.store.bans().reinstate(&query.subject).await.map_err(unavailable)?;
    changed(&api).await;
    if !was_banned {
        return Err(Problem::new(BAN_NOT_FOUND).detail("The subject is not banned."));
    }
    tracing::info!(subject = query.subject, actor = principal.subject, "Subject reinstated.");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Applies a change in this process at once, and announces it to the others.
async fn changed(api: &QueryApi) {
    // If the read fails, the periodic read applies the change a second later.
    if let Err(error) = load(&api.store, &api.authenticator).await {
        tracing::warn!(%error, "Could not read the bans. They are read again in a second.");
    }
    api.store.broadcast(TOPIC, Vec::new()).await;
}

/// Reads all bans from the database and applies them in this process.
///
/// # Errors
/// The database does not answer.
pub async fn load(store: &Store, authenticator: &Authenticator) -> Result<(), Error> {
    let _one_at_a_time = LOADING.lock().await;
    let bans = store.bans().list().await?;
    authenticator.ban(bans.into_iter().map(|ban| (ban.subject, ban.until.unwrap_or(i64::MAX))).collect());
    Ok(())
}
