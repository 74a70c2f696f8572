//! Why a command was not carried out, as clients see it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use axum::http::StatusCode;
use event_store::error::Error;
use kernel::aggregate::{Refusal, RefusalClass};
use platform::problem::Problem;

/// A business reason.
pub fn refused(error: &impl Refusal) -> Problem {
    let status = match error.class() {
        RefusalClass::NotFound => StatusCode::NOT_FOUND,
        RefusalClass::Conflict => StatusCode::CONFLICT,
        RefusalClass::Rule => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let problem = Problem::new(status, error.slug(), error.title()).detail(error.to_string());
    error.pointers().into_iter().fold(problem, |problem, (pointer, reason)| problem.error(pointer, reason))
}

/// A store that is away: try again, and how to do it safely.
pub fn unavailable(error: Error) -> Problem {
    if let Error::Overloaded = error {
        // There may be thousands a second: they are counted.
        tracing::debug!(%error, "store");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many commands wait")
            .detail("More commands wait than can be written in time. Nothing was written: try again in a moment.")
            .retry_after(1);
    }
    if let Error::Storage(_) = error {
        // The store has said so once.
        tracing::debug!(%error, "store");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "disk-low", "The server's disk is full")
            .detail(
                "Nothing was written. The server takes commands again when its disk has room and can be written. Try \
                 again later.",
            )
            .retry_after(10);
    }
    tracing::error!(%error, "store");
    match error {
        Error::Stored(_) => {
            return Problem::internal()
                .detail("The stored events cannot be read, so trying again does not help. Tell the operator.");
        }
        Error::Refused(_) => {
            return Problem::internal()
                .detail("The database refused the change, so trying again does not help. Nothing was written. Tell the operator.");
        }
        Error::Unstorable(_) => {
            return Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "unstorable-value", "The database cannot hold a value")
                .detail("The database cannot hold a value of this request, so trying again does not help. Nothing was written. Send another value, or tell the operator.");
        }
        _ => {}
    }
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", "The store cannot be reached")
        .detail("Retry with the same Idempotency-Key; the command takes effect at most once.")
        .retry_after(1)
}

/// Other commands changed the aggregate each time, or too many wait for it.
pub(crate) fn busy(aggregate_type: &'static str, why: &str) -> Problem {
    let title = format!("The {aggregate_type} is busy");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, busy_slug(aggregate_type), &title)
        .detail(format!("{why} Nothing was written. Try again."))
        .retry_after(1)
}

/// `TYPE-busy`, made once for each type.
fn busy_slug(aggregate_type: &'static str) -> &'static str {
    static SLUGS: Mutex<BTreeMap<&str, &str>> = Mutex::new(BTreeMap::new());
    let mut slugs = SLUGS.lock().unwrap_or_else(PoisonError::into_inner);
    slugs.entry(aggregate_type).or_insert_with(|| Box::leak(format!("{aggregate_type}-busy").into_boxed_str()))
}
