//! The problems that clients receive when a command is not executed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use axum::http::StatusCode;
use event_store::error::Error;
use kernel::aggregate::{Refusal, RefusalClass};
use platform::problem::Problem;

/// Returns the problem for a business refusal: 404, 409 or 422, by the class of the refusal.
pub fn refused(error: &impl Refusal) -> Problem {
    let status = match error.class() {
        RefusalClass::NotFound => StatusCode::NOT_FOUND,
        RefusalClass::Conflict => StatusCode::CONFLICT,
        RefusalClass::Rule => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let problem = Problem::new(status, error.slug(), error.title()).detail(error.to_string());
    error.pointers().into_iter().fold(problem, |problem, (pointer, reason)| problem.error(pointer, reason))
}

/// Returns the problem for an error of the store. It says whether and how the client can retry safely.
pub fn unavailable(error: Error) -> Problem {
    if let Error::Overloaded = error {
        // Thousands of these can occur in a second. A metric counts them, so the log has them at debug level only.
        tracing::debug!(%error, "The store is overloaded.");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many commands are waiting")
            .detail(
                "More commands are waiting than the server can write in time. Nothing was written. Try again in a \
                 moment.",
            )
            .retry_after(1);
    }
    if let Error::Storage(_) = error {
        // The store itself logs this condition once.
        tracing::debug!(%error, "The store cannot write to its disk.");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "disk-low", "The server cannot write to its disk")
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
            return Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "unstorable-value",
                "The database cannot store a value",
            )
            .detail(
                "The database cannot store a value of this request. Nothing was written. A retry does not help. Send \
                 another value, or contact the operator.",
            );
        }
        _ => {}
    }
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "The store cannot be reached")
        .detail("Retry with the same Idempotency-Key; the command takes effect at most once.")
        .retry_after(1)
}

/// Returns 503 for an aggregate that other commands changed at every attempt, or that too many commands wait for. `why`
/// is a sentence.
pub(crate) fn busy(aggregate_type: &'static str, why: &str) -> Problem {
    let title = format!("The {aggregate_type} is busy");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, busy_slug(aggregate_type), &title)
        .detail(format!("{why} Nothing was written. Try again."))
        .retry_after(1)
}

/// Returns the slug `TYPE-busy`. The text is leaked once for each type, because a slug must be static.
fn busy_slug(aggregate_type: &'static str) -> &'static str {
    static SLUGS: Mutex<BTreeMap<&str, &str>> = Mutex::new(BTreeMap::new());
    let mut slugs = SLUGS.lock().unwrap_or_else(PoisonError::into_inner);
    slugs.entry(aggregate_type).or_insert_with(|| Box::leak(format!("{aggregate_type}-busy").into_boxed_str()))
}
