//! The problem responses that queries and live updates share.

use axum::http::StatusCode;
use event_store::error::Error;
use platform::problem::Problem;

/// Returns a 404. A resource that does not exist and a resource of another customer have the same answer.
pub fn not_found(slug: &'static str, title: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, slug, title)
}

/// Returns a 503 if the database does not answer or the read model is still being built, and a 400 if the database
/// rejects a value of the request.
pub fn unavailable(error: Error) -> Problem {
    if error.is_missing_table() {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "projection-behind", "The read model is behind")
            .detail("The read model is being rebuilt for this release. Try again when the rebuild has ended.")
            .retry_after(5);
    }
    if error.is_data_error() {
        return Problem::new(StatusCode::BAD_REQUEST, "invalid-query", "The query cannot be used")
            .detail("The database rejects a text in the query. Send texts without NUL characters, or shorter texts.");
    }
    tracing::error!(%error, "Could not run a query.");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "The database cannot be reached")
        .detail("Try again in a moment.")
        .retry_after(1)
}

/// Returns a 400 for an invalid query parameter. `message` is a sentence that says what is valid.
pub fn invalid(parameter: &str, message: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "invalid-query", "The query cannot be used")
        .detail(format!("{parameter}: {message}"))
        .error(format!("/{parameter}"), message)
}

/// Returns a 401 for a revoked token.
pub fn revoked() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "token-revoked", "Token revoked")
        .detail("The token was revoked. Use another token.")
}

/// Returns a 429 for an address or a customer that has reached its connection limit.
pub fn too_many_connections() -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-connections", "Too many connections")
        .detail(
            "Your network address or your token has too many open connections. Close some of them, or ask the operator to \
             raise the limit.",
        )
        .retry_after(5)
}
