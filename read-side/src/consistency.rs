//! Reading your own writes: a query may ask for a read model that has at least a position.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use platform::problem::Problem;

use crate::state::{ReadSide, invalid};

/// Names the position of the read model that an answer was made from.
pub const DOCKET_POSITION: HeaderName = HeaderName::from_static("docket-position");
/// Longest wait, in milliseconds, that a query may ask for.
pub const WAIT_MS_MAX: u64 = 10_000;
/// Wait where `min_position` is given without `wait_ms`.
const WAIT_MS: u64 = 1_000;

impl ReadSide {
    /// Waits until the read model has `min_position`, and gives the position that it has now. Read before the rows are,
    /// so that the rows are never older than the answer says.
    ///
    /// # Errors
    /// 503 `projection-behind` with both positions, when the wait is over.
    pub async fn at_least(
        &self,
        projection: &'static str,
        min_position: Option<i64>,
        wait_ms: Option<u64>,
    ) -> Result<i64, Problem> {
        let wait_ms = wait_ms.unwrap_or(WAIT_MS);
        if wait_ms > WAIT_MS_MAX {
            return Err(invalid("wait_ms", &format!("at most {WAIT_MS_MAX}")));
        }
        let Some(wanted) = min_position else { return Ok(self.progress.position(projection)) };
        let position = self.progress.wait_for(projection, wanted, Duration::from_millis(wait_ms)).await;
        if position >= wanted {
            return Ok(position);
        }
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "projection-behind", "The read model is not there yet")
            .detail(format!("{projection} is at position {position}, the query asks for {wanted}. Try again."))
            .with("position", position)
            .with("min_position", wanted)
            .retry_after(1))
    }
}

/// An answer with the position that it was made from.
pub fn at(position: i64, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(DOCKET_POSITION, HeaderValue::from(position));
    response
}
