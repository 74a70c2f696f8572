//! The answers to requests that cannot be answered, as every query gives them.

use axum::http::StatusCode;
use event_store::error::Error;
use platform::problem::Problem;

/// 404. A resource that does not exist and one of somebody else get the same answer.
pub fn not_found(slug: &'static str, title: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, slug, title)
}

/// 503 where the database does not answer; 400 where it refuses a text of the request.
pub fn unavailable(error: Error) -> Problem {
    if error.is_about_the_data() {
        return Problem::new(StatusCode::BAD_REQUEST, "invalid-query", "The query cannot be used")
            .detail("The database takes no such text: it may hold a NUL, or be too long.");
    }
    tracing::error!(%error, "query");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "The database cannot be reached")
        .detail("Try again in a moment.")
        .retry_after(1)
}

/// 400 for a parameter of the query string.
pub fn invalid(parameter: &str, message: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid-query", "The query cannot be used")
        .detail(format!("{parameter}: {message}"))
        .error(format!("/{parameter}"), message)
}

/// 401 for a token that was revoked.
pub fn revoked() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "token-revoked", "Token revoked").detail("the token was revoked")
}

/// 429 for an address or a customer that has all the connections it may have.
pub fn too_many_connections() -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-connections", "Too many connections")
        .detail("close some of the connections that are open, or ask the operator for more")
        .retry_after(5)
}
