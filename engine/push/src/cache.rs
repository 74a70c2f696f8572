//! A response cache in memory, for query routes of modules.
//!
//! The cache key consists of the URL, the caller, and the state of the read model that the response was computed from.
//! So no caller receives another caller's response, and no response is older than the read model as this process knows
//! it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use platform::auth::{Principal, Role};
use platform::problem::Problem;
use projection_engine::progress::ReadModelState;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::api::QueryApi;

/// Response header with the value `hit` on responses from the cache.
pub const DOCKET_CACHE: HeaderName = HeaderName::from_static("docket-cache");
/// Longest body that is cached, in bytes.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Approximate size of an entry besides its body and key, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 512;

/// A response cache for the routes of a module.
pub struct ResponseCache {
    answers: Cache<Key, Arc<Answer>, Bytewise>,
    time_to_live: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    url: String,
    subject: String,
    role: Role,
    state: ReadModelState,
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
    /// Creates a cache of at most `bytes_max` bytes. A response expires after `time_to_live` even if the read model
    /// does not change. That is for values that change without an event, such as an age.
    pub fn new(bytes_max: u64, time_to_live: Duration) -> Self {
        let entries = (bytes_max as usize / (4 * ENTRY_OVERHEAD_BYTES)).max(1);
        Self { answers: Cache::with_weighter(entries, bytes_max, Bytewise), time_to_live }
    }

    /// Answers a `GET` over one read model: from the cache if possible, else by running `query` and caching its
    /// response. Only responses with status 200 and at most 256 KiB are cached.
    ///
    /// # Errors
    /// Errors of `query`.
    pub async fn answer(
        &self,
        api: &QueryApi,
        principal: &Principal,
        url: &Uri,
        projection: &str,
        query: impl AsyncFnOnce() -> Result<Response, Problem>,
    ) -> Result<Response, Problem> {
        let state = api.progress.read_model_state(projection);
        // When the counts differ, read models may have lost commits. The cache is bypassed until this process has read
        // their positions again.
        let is_known = state.connections_opened == api.store.db().connections_opened();
        let key = Key { url: url.to_string(), subject: principal.subject.clone(), role: principal.role, state };
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
        // A streamed body, or one that is too long, is not cached.
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
