//! Reading one's own writes: a query can wait until the read model has reached a position.

use std::time::{Duration, Instant};

use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use event_store::error::Error;
use platform::problem::Problem;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::QueryApi;
use crate::problems::{PROJECTION_BEHIND, invalid, unavailable};

/// Response header with the position of the read model that the response was computed from.
pub const DOCKET_POSITION: HeaderName = HeaderName::from_static("docket-position");
/// Greatest accepted `wait_ms`, in milliseconds.
pub const WAIT_MS_MAX: u64 = 10_000;
/// How often the log's head is read while a query waits for a position.
const HEAD_CHECK: Duration = Duration::from_millis(20);
/// Default of `wait_ms`, in milliseconds.
const WAIT_MS: u64 = 1_000;

/// Query parameters for reading one's own writes, for a route without other parameters.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Freshness {
    /// Position that the read model must have reached. Use the position from the response to a command.
    pub min_position: Option<i64>,
    /// Longest wait for `min_position`, in milliseconds, at most 10000. Default: 1000.
    #[param(maximum = 10_000)]
    pub wait_ms: Option<u64>,
}

impl QueryApi {
    /// Waits until the read model has reached `min_position`, then runs a query. Returns the rows with a position; the
    /// rows are not older than this position.
    ///
    /// # Errors
    /// 503 `projection-behind` with both positions if the wait times out, and while a new read model is built; 503 `store-unavailable` if the database does
    /// not answer; 400 `invalid-query` for an invalid `wait_ms` or a query that the database rejects.
    pub async fn read_at<T, F: Future<Output = Result<T, Error>>>(
        &self,
        projection: &'static str,
        min_position: Option<i64>,
        wait_ms: Option<u64>,
        query: impl Fn() -> F,
    ) -> Result<(i64, T), Problem> {
        let until = Instant::now() + wait_limit(wait_ms)?;
        if self.progress.is_being_built(projection) {
            return Err(Problem::new(PROJECTION_BEHIND)
                .detail("The read model is new in this release and is being built. Try again when it is complete.")
                .retry_after(5));
        }
        loop {
            if let Some(wanted) = min_position {
                let left = until.saturating_duration_since(Instant::now());
                self.progress.wait_for(projection, wanted, left).await;
            }
            let read = self.progress.read_at(self.store.db(), projection, &query).await;
            let (position, rows) = read.map_err(unavailable)?;
            // The position may be less than `min_position` again: a crash of PostgreSQL can reset the read model to an
            // earlier position.
            match min_position.map_or(Ok(position), |wanted| reached(projection, position, wanted)) {
                Ok(position) => return Ok((position, rows)),
                Err(behind) if Instant::now() >= until => return Err(behind),
                Err(_) => {}
            }
        }
    }

    /// Waits until the log has reached `min_position`, for responses that are computed from the log itself. Returns the
    /// position of the log's last event.
    ///
    /// # Errors
    /// The errors of [`Self::read_at`].
    pub async fn wait_for_position(&self, min_position: Option<i64>, wait_ms: Option<u64>) -> Result<i64, Problem> {
        let until = Instant::now() + wait_limit(wait_ms)?;
        let wanted = min_position.unwrap_or(0);
        loop {
            let head = self.store.head().await.map_err(unavailable)?;
            if head >= wanted || Instant::now() >= until {
                return reached("the log", head, wanted);
            }
            tokio::time::sleep(HEAD_CHECK).await;
        }
    }
}

fn wait_limit(wait_ms: Option<u64>) -> Result<Duration, Problem> {
    match wait_ms.unwrap_or(WAIT_MS) {
        wait_ms @ 0..=WAIT_MS_MAX => Ok(Duration::from_millis(wait_ms)),
        _ => Err(invalid("wait_ms", &format!("Must be at most {WAIT_MS_MAX}."))),
    }
}

fn reached(what: &str, position: i64, wanted: i64) -> Result<i64, Problem> {
    if position >= wanted {
        return Ok(position);
    }
    Err(Problem::new(PROJECTION_BEHIND)
        .detail(format!("The position of {what} is {position}, but the query requires {wanted}. Try again."))
        .with("position", position)
        .with("min_position", wanted)
        .retry_after(1))
}

/// Adds the `Docket-Position` header with the position that a response was computed from.
pub fn with_position_header(position: i64, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(DOCKET_POSITION, HeaderValue::from(position));
    response
}
