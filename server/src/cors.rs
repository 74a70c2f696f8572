//! CORS: which web pages may call the API.

use std::time::Duration;

use anyhow::anyhow;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method};
use push::access;
use push::settings::header_names;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// Request headers that pages of other origins may send: the headers that the API reads, and headers that browser
/// libraries add, such as tracing agents and replacements of `EventSource`.
const REQUEST_HEADERS: &str = "authorization, baggage, cache-control, content-encoding, content-type, idempotency-key, if-match, if-none-match, \
     last-event-id, pragma, prefer, sentry-trace, traceparent, tracestate, x-request-id, x-requested-with";
/// Response headers that pages of other origins may read.
const ANSWER_HEADERS: &str = "allow, docket-position, etag, idempotency-replayed, location, ratelimit, ratelimit-policy, \
     retry-after, www-authenticate, x-request-id";

/// Returns the CORS layer for the allowed origins; None when no origin is allowed.
pub fn cors(settings: &push::settings::Settings) -> anyhow::Result<Option<CorsLayer>> {
    let allowed_origins = settings.allowed_origins.clone();
    if allowed_origins.is_empty() {
        return Ok(None);
    }
    let names = |ours: &str, theirs: &str| {
        header_names(&format!("{ours},{theirs}"))
            .map_err(|name| anyhow!("cors_request_headers, cors_answer_headers: `{name}` is not a header name."))
    };
    let is_allowed = move |origin: &HeaderValue, _: &Parts| {
        origin.to_str().is_ok_and(|origin| access::is_allowed(&allowed_origins, origin, None))
    };
    Ok(Some(
        CorsLayer::new()
            .allow_origin(AllowOrigin::predicate(is_allowed))
            .allow_credentials(true)
            .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
            .allow_headers(names(REQUEST_HEADERS, &settings.cors_request_headers)?)
            .expose_headers(names(ANSWER_HEADERS, &settings.cors_answer_headers)?)
            .max_age(Duration::from_secs(600)),
    ))
}
