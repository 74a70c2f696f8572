//! Answers of queries in memory, for routes of modules.
//!
//! An answer is kept under its URL, its caller and the state of the read model that it was made from. So nobody gets the
//! answer of somebody else, and no answer is older than the read model as this process knows it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use platform::auth::{Principal, Role};
use platform::problem::Problem;
use projection_engine::progress::Reading;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::api::QueryApi;

/// Says that an answer came from memory: `hit`.
pub const DOCKET_CACHE: HeaderName = HeaderName::from_static("docket-cache");
/// A longer answer is not kept.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// What an entry takes besides its bytes, about.
const ENTRY_OVERHEAD_BYTES: usize = 512;

/// Answers of the routes of a module.
pub struct ResponseCache {
    answers: Cache<Key, Arc<Answer>, Bytewise>,
    time_to_live: Duration,
}

/// The same key, the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    url: String,
    subject: String,
    role: Role,
    reading: Reading,
}

struct Answer {
    headers: HeaderMap,
    body: Bytes,
    made: Instant,
}

#[derive(Clone)]
struct Bytewise;

impl Weighter<Key, Arc<Answer>> for Bytewise {
    fn weight(&self, key: &Key, answer: &Arc<Answer>) -> u64 {
        (key.url.len() + key.subject.len() + answer.body.len() + ENTRY_OVERHEAD_BYTES) as u64
    }
}

impl ResponseCache {
    /// A cache of so many bytes. An answer is made again after `time_to_live`, whatever the read model does: for values
    /// that no event changes, such as the age of something.
    pub fn new(bytes_max: u64, time_to_live: Duration) -> Self {
        let entries = (bytes_max as usize / (4 * ENTRY_OVERHEAD_BYTES)).max(1);
        Self { answers: Cache::with_weighter(entries, bytes_max, Bytewise), time_to_live }
    }

    /// The answer to a `GET` over one read model: from memory where it is there, else made by `query` and kept. Only
    /// answers with 200 and at most 256 KiB are kept.
    ///
    /// # Errors
    /// Those of `query`.
    pub async fn answer(
        &self,
        api: &QueryApi,
        principal: &Principal,
        url: &Uri,
        projection: &str,
        query: impl AsyncFnOnce() -> Result<Response, Problem>,
    ) -> Result<Response, Problem> {
        let reading = api.progress.reading(projection);
        // A database that may have gone back is read again before anything is believed.
        let is_known = reading.epoch == api.store.db().epoch();
        let key = Key { url: url.to_string(), subject: principal.subject.clone(), role: principal.role, reading };
        if is_known && let Some(answer) = self.answers.get(&key) {
            if answer.made.elapsed() < self.time_to_live {
                return Ok(answer.respond());
            }
            self.answers.remove(&key);
        }
        let response = query().await?;
        if !is_known || response.status() != StatusCode::OK {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        // A body that is not in memory already, or is too long, cannot be kept.
        let is_short =
            axum::body::HttpBody::size_hint(&body).exact().is_some_and(|bytes| bytes <= ANSWER_BYTES_MAX as u64);
        if !is_short {
            return Ok(Response::from_parts(parts, body));
        }
        let Ok(body) = to_bytes(body, ANSWER_BYTES_MAX).await else { return Err(Problem::internal()) };
        let answer = Answer { headers: parts.headers.clone(), body: body.clone(), made: Instant::now() };
        self.answers.insert(key, Arc::new(answer));
        Ok(Response::from_parts(parts, Body::from(body)))
    }
}

impl Answer {
    fn respond(&self) -> Response {
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.headers_mut() = self.headers.clone();
        response.headers_mut().insert(DOCKET_CACHE, HeaderValue::from_static("hit"));
        response
    }
}
