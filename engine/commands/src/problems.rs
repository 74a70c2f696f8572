//! The problems that clients receive when a command is not executed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use axum::http::StatusCode;
use event_store::error::Error;
use kernel::aggregate::{Refusal, RefusalClass, RefusalType};
use platform::problem::{Problem, ProblemType, STORE_UNAVAILABLE};
use platform::problem_types;

problem_types! {
    /// More commands wait than the server can write in time. Nothing was written. Send the command again after
    /// Retry-After seconds.
    OVERLOADED = SERVICE_UNAVAILABLE, "overloaded", "Too many commands are waiting";
    /// The disk of the server is full or not writable. Nothing was written. The server accepts commands again when its
    /// disk has free space and is writable.
    DISK_LOW = SERVICE_UNAVAILABLE, "disk-low", "The server cannot write to its disk";
    /// The database cannot store a value of the request. Nothing was written. Send another value.
    UNSTORABLE_VALUE = UNPROCESSABLE_ENTITY, "unstorable-value", "The database cannot store a value";
    /// The id of a new aggregate has characters that ids must not have, or too many. Send another id.
    INVALID_ID = UNPROCESSABLE_ENTITY, "invalid-id", "Invalid id";
    /// The aggregate has another version than If-Match or expected_version names. Read it again, and decide again.
    VERSION_MISMATCH = PRECONDITION_FAILED, "version-mismatch", "The version does not match";
    /// An Idempotency-Key must have 1 to 255 printable ASCII characters, for example a UUID.
    INVALID_IDEMPOTENCY_KEY = BAD_REQUEST, "invalid-idempotency-key", "Invalid Idempotency-Key";
    /// The key was used with another method, path or body. Use a new key for a new request.
    IDEMPOTENCY_KEY_REUSED = UNPROCESSABLE_ENTITY, "idempotency-key-reused", "The Idempotency-Key belongs to another request";
    /// The first request with this key is not answered yet. Send the request again with the same key in a moment.
    REQUEST_IN_FLIGHT = CONFLICT, "request-in-flight", "The first request with this key is still in progress";
    /// Idempotency-Key and If-Match apply to one command, and this request holds many.
    UNUSABLE_HEADER = BAD_REQUEST, "unusable-header", "The header cannot be used here";
    /// A deadline of a process was reached, and no event of the process ended it. Correct the process.
    DEADLINE_NOT_ENDED = UNPROCESSABLE_ENTITY, "deadline-not-ended", "The deadline was not ended";
    /// A line of a bulk request is too long. Send a shorter line.
    LINE_TOO_LONG = PAYLOAD_TOO_LARGE, "line-too-long", "The line is too long";
    /// The client read too few results of a bulk request for too long. Send the remaining lines again, and read the
    /// results while you send.
    RESULTS_UNREAD = REQUEST_TIMEOUT, "results-unread", "The results were not read";
    /// The server stops. Send the remaining lines again.
    STOPPING = SERVICE_UNAVAILABLE, "stopping", "The server is stopping";
    /// The sender has too many bulk requests in progress. Send more commands in each request.
    TOO_MANY_BULK_REQUESTS = TOO_MANY_REQUESTS, "too-many-bulk-requests", "Too many bulk requests of one sender";
    /// The server has too many bulk requests in progress. Send the request again after Retry-After seconds.
    BULK_LIMIT = SERVICE_UNAVAILABLE, "bulk-limit", "Too many bulk requests";
}

/// Returns the problem type of a business refusal: 404, 409 or 422, by its class.
pub fn problem_type(refusal: &RefusalType) -> ProblemType {
    let status = match refusal.class {
        RefusalClass::NotFound => StatusCode::NOT_FOUND,
        RefusalClass::Conflict => StatusCode::CONFLICT,
        RefusalClass::Rule => StatusCode::UNPROCESSABLE_ENTITY,
    };
    ProblemType { status, slug: refusal.slug, title: refusal.title, meaning: refusal.meaning }
}

/// Returns the problem for a business refusal: 404, 409 or 422, by the class of the refusal.
pub fn refused(error: &impl Refusal) -> Problem {
    let problem = Problem::new(problem_type(error.refusal_type())).detail(error.to_string());
    error.pointers().into_iter().fold(problem, |problem, (pointer, reason)| problem.error(pointer, reason))
}

/// Returns the problem for an error of the store. It says whether and how the client can retry safely.
pub fn unavailable(error: Error) -> Problem {
    if let Error::Overloaded = error {
        // Thousands of these can occur in a second. A metric counts them, so the log has them at debug level only.
        tracing::debug!(%error, "The store is overloaded.");
        return Problem::new(OVERLOADED)
            .detail(
                "More commands are waiting than the server can write in time. Nothing was written. Try again in a \
                 moment.",
            )
            .retry_after(1);
    }
    if let Error::Storage(_) = error {
        // The store itself logs this condition once.
        tracing::debug!(%error, "The store cannot write to its disk.");
        return Problem::new(DISK_LOW)
            .detail(
                "The disk is full or not writable. Nothing was written. The server accepts commands again when its \
                 disk has free space and is writable. Try again later.",
            )
            .retry_after(10);
    }
    tracing::error!(%error, "The store failed.");
    match error {
        Error::CorruptData(_) => {
            return Problem::internal()
                .detail("The stored events cannot be read. A retry does not help. Contact the operator.");
        }
        Error::ConstraintViolated(_) => {
            return Problem::internal().detail(
                "The database refused the change. Nothing was written. A retry does not help. Contact the operator.",
            );
        }
        Error::InvalidValue(_) => {
            return Problem::new(UNSTORABLE_VALUE).detail(
                "The database cannot store a value of this request. Nothing was written. A retry does not help. Send \
                 another value, or contact the operator.",
            );
        }
        _ => {}
    }
    Problem::new(STORE_UNAVAILABLE)
        .detail("Retry with the same Idempotency-Key; the command takes effect at most once.")
        .retry_after(1)
}

/// Returns 503 for an aggregate that other commands changed at every attempt, or that too many commands wait for. `why`
/// is a sentence.
pub(crate) fn busy(aggregate_type: &'static str, why: &str) -> Problem {
    Problem::new(busy_type(aggregate_type)).detail(format!("{why} Nothing was written. Try again.")).retry_after(1)
}

/// Returns the problem type `TYPE-busy`. The texts are leaked once for each aggregate type, because a problem type has
/// static texts.
pub fn busy_type(aggregate_type: &'static str) -> ProblemType {
    static TYPES: Mutex<BTreeMap<&str, ProblemType>> = Mutex::new(BTreeMap::new());
    let mut types = TYPES.lock().unwrap_or_else(PoisonError::into_inner);
    *types.entry(aggregate_type).or_insert_with(|| ProblemType {
        status: StatusCode::SERVICE_UNAVAILABLE,
        slug: format!("{aggregate_type}-busy").leak(),
        title: format!("The {aggregate_type} is busy").leak(),
        meaning: format!(
            "Other commands change the {aggregate_type} at the same time. Nothing was written. Send the command again \
             after Retry-After seconds."
        )
        .leak(),
    })
}
