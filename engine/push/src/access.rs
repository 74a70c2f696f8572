//! Authentication of live updates: by header, and by ticket, subprotocol or cookie for clients (mostly browsers) that
//! cannot send a header.

use axum::extract::State;
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use event_store::now_us;
use event_store::table::Value;
use platform::auth::{BlockReason, Principal};
use platform::problem::Problem;
use platform::request_id;
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::api::QueryApi;
use crate::problems::{INVALID_TICKET, ORIGIN_NOT_ALLOWED, unavailable};
use crate::tokens::token_lifetime;

/// Header in which a browser states the relation between the page and the server (Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Lifetime of an unused ticket.
const TICKET_SECONDS: i64 = 60;
/// Name of the query parameter that contains a ticket.
pub(crate) const TICKET: &str = "ticket";
/// Name of the query parameter that contains a token, with the setting `token_in_query`.
pub(crate) const TOKEN: &str = "token";
/// Prefix of a WebSocket subprotocol that contains a token in base64url.
const BEARER_PROTOCOL: &str = "bearer.";

/// Returns the route that issues tickets.
pub fn router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().routes(routes!(ticket))
}

/// A single-use ticket.
#[derive(Debug, Serialize, ToSchema)]
struct Ticket {
    /// Opens one socket, stream or poll, as the query parameter `?ticket=…`.
    ticket: String,
    /// Seconds until the ticket expires.
    expires_in: i64,
}

/// Issues a ticket that replaces the caller's token where a client cannot send a header. It is valid once, on any
/// process.
#[utoipa::path(post, path = "/v1/tickets", operation_id = "create_ticket", tag = "live-updates",
    responses((status = 201, description = "The ticket.", body = Ticket)))]
async fn ticket(State(state): State<QueryApi>, principal: Principal) -> Result<Response, Problem> {
    let ticket = URL_SAFE_NO_PAD.encode([Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()].concat());
    let now = now_us();
    let claims = serde_json::to_string(&principal).map_err(|_| Problem::internal())?;
    let values = vec![hash(&ticket), claims.into(), (now + TICKET_SECONDS * 1_000_000).into()];
    let kept = async {
        let mut tx = state.store.db().begin().await?;
        tx.execute("delete from tickets where expires_at < $1", vec![now.into()]).await?;
        tx.execute("insert into tickets (hash, principal, expires_at) values ($1, $2, $3)", values).await?;
        tx.commit().await
    };
    kept.await.map_err(unavailable)?;
    Ok((StatusCode::CREATED, axum::Json(Ticket { ticket, expires_in: TICKET_SECONDS })).into_response())
}

fn hash(ticket: &str) -> Value {
    format!("{:x}", Sha256::digest(ticket)).into()
}

async fn redeem(state: &QueryApi, ticket: &str) -> Result<Principal, Problem> {
    let redeemed = async {
        // Anybody can send a ticket, so unknown ones must not cost a transaction.
        let known: Vec<(i64,)> =
            state.store.db().fetch_all("select expires_at from tickets where hash = $1", vec![hash(ticket)]).await?;
        if known.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = state.store.db().begin().await?;
        let sql = "delete from tickets where hash = $1 returning principal, expires_at";
        let rows: Vec<(String, i64)> = tx.fetch_all(sql, vec![hash(ticket)]).await?;
        tx.commit().await?;
        Ok(rows)
    };
    let rows = redeemed.await.map_err(unavailable)?;
    let live = rows.into_iter().find(|(_, expires_at)| *expires_at >= now_us());
    let principal: Option<Principal> = live.and_then(|(principal, _)| serde_json::from_str(&principal).ok());
    let blocked = principal.as_ref().and_then(|principal| state.authenticator.block_reason(principal));
    match principal {
        Some(_) if blocked == Some(BlockReason::Banned) => Err(BlockReason::Banned.problem()),
        Some(principal) if blocked.is_none() && !token_lifetime(&principal).is_zero() => Ok(principal),
        _ => Err(Problem::new(INVALID_TICKET)
            .detail("The ticket is unknown, was already used, or has expired, or its token has expired or was revoked. Request a new ticket with POST /v1/tickets.")),
    }
}

/// Authenticates the caller by the first of these credentials: the `Authorization` header, a `bearer.…` subprotocol, a
/// `?ticket=`, with the setting `token_in_query` a `?token=`, or the cookie (from an allowed origin only). Returns `None`
/// if the request has none of them.
///
/// # Errors
/// 403 for a page of an origin that is not allowed; 401 for invalid credentials.
pub async fn identify(state: &QueryApi, parts: &mut Parts) -> Result<Option<Principal>, Problem> {
    let principal = by_credentials(state, parts).await?;
    if let Some(principal) = &principal {
        request_id::set_user(&principal.subject);
    }
    Ok(principal)
}

async fn by_credentials(state: &QueryApi, parts: &mut Parts) -> Result<Option<Principal>, Problem> {
    let from_page = check_origin(&state.settings.allowed_origins, &parts.headers)?;
    if parts.headers.contains_key(AUTHORIZATION) {
        return state.authenticator.authenticate(parts).map(Some);
    }
    if let Some(offered) = bearer_protocol(&parts.headers) {
        let bytes = URL_SAFE_NO_PAD.decode(&offered[BEARER_PROTOCOL.len()..]).unwrap_or_default();
        return state.authenticator.verify(std::str::from_utf8(&bytes).unwrap_or_default()).map(Some);
    }
    if let Some(ticket) = parameter(parts.uri.query(), TICKET) {
        return redeem(state, &ticket).await.map(Some);
    }
    if state.settings.token_in_query
        && let Some(token) = parameter(parts.uri.query(), TOKEN)
    {
        return state.authenticator.verify(&token).map(Some);
    }
    match cookie(&parts.headers, &state.settings.cookie_name) {
        // Any page can make a browser send this cookie, so the cookie counts only together with an allowed origin.
        Some(token) if from_page => state.authenticator.verify(token).map(Some),
        _ => Ok(None),
    }
}

fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<std::borrow::Cow<'a, str>> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .find(|(known, _)| known == name)
        .map(|(_, value)| value)
}

/// Returns what a caller without credentials can send.
pub(crate) fn missing_credentials(api: &QueryApi, query: Option<&str>) -> String {
    let (cookie, in_query) = (&api.settings.cookie_name, api.settings.token_in_query);
    if !in_query && parameter(query, TOKEN).is_some() {
        return "This server accepts no token in the query: it would be in logs and histories. Send the header \
                Authorization: Bearer <JWT>, or a ticket from POST /v1/tickets as ?ticket=. The operator can allow it with \
                the setting token_in_query."
            .to_owned();
    }
    let or_query = if in_query { "a token as ?token=, or, " } else { "" };
    format!(
        "Send the header Authorization: Bearer <JWT>, or a ticket from POST /v1/tickets as ?ticket=, or {or_query}from an \
         allowed origin, the cookie {cookie}."
    )
}

/// Returns the subprotocol that contains a token, if the client offers one.
pub fn bearer_protocol(headers: &HeaderMap) -> Option<&str> {
    let offers = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    offers.flat_map(|offers| offers.split(',')).map(str::trim).find(|offer| offer.starts_with(BEARER_PROTOCOL))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, token)| token)
}

/// Whether the request comes from a page of an allowed origin. False for programs, which send no `Origin`. Refuses
/// pages of other origins with 403.
fn check_origin(allowed: &str, headers: &HeaderMap) -> Result<bool, Problem> {
    let Some(origin) = headers.get(ORIGIN) else {
        // Browsers send no `Origin` with same-origin GET requests, but send this header, which a page cannot set
        // itself.
        return Ok(headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "same-origin"));
    };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    match is_allowed(allowed, origin, host) {
        true => Ok(true),
        false => Err(Problem::new(ORIGIN_NOT_ALLOWED).detail(format!(
            "Pages of {origin} may not use live updates of this server. Add the origin to the setting allowed_origins."
        ))),
    }
}

/// Whether pages of an origin may use live updates: true for the request's own host, and for the origins in the
/// comma-separated list `allowed`. The entry `loopback` matches any port of this machine.
pub fn is_allowed(allowed: &str, origin: &str, host: Option<&str>) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let same_host = host.is_some_and(|host| host.eq_ignore_ascii_case(authority));
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    };
    let loopback = ["http", "https"].contains(&scheme) && ["localhost", "127.0.0.1", "[::1]"].contains(&name);
    same_host
        || allowed
            .split(',')
            .map(str::trim)
            .any(|entry| entry.eq_ignore_ascii_case(origin) || (entry == "loopback" && loopback))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_whole() {
        let allowed = "https://shop.example, http://localhost:5173";
        for (origin, host, expected) in [
            ("https://shop.example", None, true),
            ("https://shop.example.evil.test", None, false),
            ("http://shop.example", None, false),
            ("http://localhost:5173", None, true),
            ("http://localhost:5174", None, false),
            ("https://docket.example", Some("docket.example"), true),
            ("https://evil.test", Some("docket.example"), false),
            ("null", Some("docket.example"), false),
        ] {
            assert_eq!(is_allowed(allowed, origin, host), expected, "{origin}");
        }
        assert!(is_allowed("loopback", "http://127.0.0.1:3000", None));
        assert!(is_allowed("loopback", "http://[::1]:3000", None));
        assert!(!is_allowed("loopback", "http://localhost.evil.test", None));
    }
}
