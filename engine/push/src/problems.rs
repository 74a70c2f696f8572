//! The problem responses that queries and live updates share.

use event_store::error::Error;
use platform::problem::{INVALID_QUERY, Problem, STORE_UNAVAILABLE};
use platform::problem_types;

problem_types! {
    /// The read model is behind the position that the query requires, or it is being rebuilt. Send the query again
    /// after Retry-After seconds.
    PROJECTION_BEHIND = SERVICE_UNAVAILABLE, "projection-behind", "The read model is behind";
    /// The network address or the token has too many open connections. Close some of them.
    TOO_MANY_CONNECTIONS = TOO_MANY_REQUESTS, "too-many-connections", "Too many connections";
    /// The ticket is unknown, was used, or has expired, or its token has expired or was revoked. Request a new one.
    INVALID_TICKET = UNAUTHORIZED, "invalid-ticket", "Invalid ticket";
    /// Pages of this origin may not use live updates of this server.
    ORIGIN_NOT_ALLOWED = FORBIDDEN, "origin-not-allowed", "Origin not allowed";
    /// The path accepts WebSockets only.
    NOT_A_WEBSOCKET = BAD_REQUEST, "not-a-websocket", "Not a WebSocket";
    /// The server does not support the Protobuf form of the Centrifuge protocol. Use the JSON client of the SDK.
    JSON_ONLY = BAD_REQUEST, "json-only", "JSON only";
    /// The channel does not exist, or you may not see it.
    CHANNEL_NOT_FOUND = NOT_FOUND, "channel-not-found", "There is no such channel";
    /// The snapshots of the channels in one request are too large together. Open fewer channels at once.
    TOO_MUCH_AT_ONCE = UNPROCESSABLE_ENTITY, "too-much-at-once", "The initial data is too large";
}

/// Returns a 503 if the database does not answer, and a 400 if the database rejects a value of the request.
pub fn unavailable(error: Error) -> Problem {
    if error.is_data_error() {
        return Problem::new(INVALID_QUERY)
            .detail("The database rejects a text in the query. Send texts without NUL characters, or shorter texts.");
    }
    tracing::error!(%error, "Could not run a query.");
    Problem::new(STORE_UNAVAILABLE).detail("Try again in a moment.").retry_after(1)
}

/// Returns a 400 for an invalid query parameter. `message` is a sentence that says what is valid.
pub fn invalid(parameter: &str, message: &str) -> Problem {
    Problem::new(INVALID_QUERY).detail(format!("{parameter}: {message}")).error(format!("/{parameter}"), message)
}

/// Returns a 429 for an address or a customer that has reached its connection limit.
pub fn too_many_connections() -> Problem {
    Problem::new(TOO_MANY_CONNECTIONS)
        .detail(
            "Your network address or your token has too many open connections. Close some of them, or ask the operator to \
             raise the limit.",
        )
        .retry_after(5)
}
