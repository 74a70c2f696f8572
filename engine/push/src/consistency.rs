//! Reading your own writes: a query may ask for a read model that has reached a position.

use std::time::{Duration, Instant};

use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use event_store::error::Error;
use platform::problem::Problem;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::QueryApi;
use crate::problems::{invalid, unavailable};

/// Names the position of the read model that an answer was made from.
pub const DOCKET_POSITION: HeaderName = HeaderName::from_static("docket-position");
/// Longest wait, in milliseconds, that a query may ask for.
pub const WAIT_MS_MAX: u64 = 10_000;
/// How often the log's head is read while a query waits for it.
const HEAD_CHECK: Duration = Duration::from_millis(20);
/// Wait where `min_position` is given without `wait_ms`.
const WAIT_MS: u64 = 1_000;

/// The query parameters of a read that may ask for one's own writes, for a route that has no others.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Freshness {
    /// Position that the read model must have reached, as a command answered it.
    pub min_position: Option<i64>,
    /// How long that may be waited for, in milliseconds: 1,000 where it is left out, 10,000 at most.
    pub wait_ms: Option<u64>,
}

impl QueryApi {
    /// Waits until the read model has `min_position`, then runs a query. Gives its rows with the position that they are
    /// not older than.
    ///
    /// # Errors
    /// 503 `projection-behind` with both positions, when the wait is over; the database is away.
    pub async fn read_at<T, F: Future<Output = Result<T, Error>>>(
        &self,
        projection: &'static str,
        min_position: Option<i64>,
        wait_ms: Option<u64>,
        query: impl Fn() -> F,
    ) -> Result<(i64, T), Problem> {
        let until = Instant::now() + wait_limit(wait_ms)?;
        loop {
            if let Some(wanted) = min_position {
                let left = until.saturating_duration_since(Instant::now());
                self.progress.wait_for(projection, wanted, left).await;
            }
            let read = self.progress.read_at(self.store.db(), projection, &query).await;
            let (position, rows) = read.map_err(unavailable)?;
            // It may be less than was waited for: PostgreSQL crashed, and the read model went back.
            match min_position.map_or(Ok(position), |wanted| reached(projection, position, wanted)) {
                Ok(position) => return Ok((position, rows)),
                Err(behind) if Instant::now() >= until => return Err(behind),
                Err(_) => {}
            }
        }
    }

    /// Waits until the log has `min_position`, for an answer that is made from the log itself. Gives the position of its last
    /// event.
    ///
    /// # Errors
    /// As [`Self::read_at`].
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
        _ => Err(invalid("wait_ms", &format!("at most {WAIT_MS_MAX}"))),
    }
}

fn reached(what: &str, position: i64, wanted: i64) -> Result<i64, Problem> {
    if position >= wanted {
        return Ok(position);
    }
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "projection-behind", "The read model is not there yet")
        .detail(format!("{what} is at position {position}, the query asks for {wanted}. Try again."))
        .with("position", position)
        .with("min_position", wanted)
        .retry_after(1))
}

/// Adds the position that an answer was made from.
pub fn with_position_header(position: i64, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    response.headers_mut().insert(DOCKET_POSITION, HeaderValue::from(position));
    response
}
