//! Request context: id, trace and user of the current request, available to all code that runs for it.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context as Trace;
use opentelemetry::trace::TraceContextExt;
use uuid::Uuid;

use crate::trace;

/// Header with the request id, in requests and responses.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ID_CHARS_MAX: usize = 128;

tokio::task_local! {
    static CURRENT: Context;
}

/// The identity of one request. Clones share the annotations.
#[derive(Clone)]
pub struct Context {
    id: HeaderValue,
    trace: Option<Trace>,
    annotations: Arc<Annotations>,
}

/// Values that handlers add while they process the request.
#[derive(Default)]
struct Annotations {
    user: OnceLock<String>,
    long_poll: AtomicBool,
}

impl Context {
    /// Creates the context of a request. The id is the value of `X-Request-Id` if the request has exactly one and it
    /// consists of 1 to 128 characters of `A-Z a-z 0-9 _ - .`; else it is a new UUIDv7. `trace` is the span of the
    /// request; without it, the trace context comes from a valid `traceparent` header.
    pub fn new(headers: &HeaderMap, trace: Option<&Trace>) -> Self {
        let mut ids = headers.get_all(X_REQUEST_ID).iter();
        let id = ids.next().filter(|id| is_request_id(id.as_bytes()) && ids.next().is_none()).cloned();
        let given = || headers.contains_key("traceparent").then(|| trace::context_from_headers(headers)).flatten();
        let trace = trace.cloned().or_else(given);
        Self { id: id.unwrap_or_else(new_request_id), trace, annotations: Arc::default() }
    }

    /// Returns the id, as a value for the response header.
    pub fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// Runs `future` within this request: [`current`] returns the id, and log lines contain it.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }
}

/// Returns the id of the current request; `None` outside of a request.
pub fn current() -> Option<String> {
    CURRENT.try_with(|context| text(&context.id).to_owned()).ok()
}

/// Returns the trace context of the current request.
pub fn current_trace() -> Option<Trace> {
    CURRENT.try_with(|context| context.trace.clone()).ok().flatten()
}

/// Returns the W3C `traceparent` of the current request, to pass to work that the request causes.
pub fn current_traceparent() -> Option<String> {
    Some(trace::traceparent(current_trace()?.span().span_context()))
}

/// Returns the subject of the authenticated principal; `None` before authentication.
pub fn current_user() -> Option<String> {
    CURRENT.try_with(|context| context.annotations.user.get().cloned()).ok().flatten()
}

/// Sets the subject of the principal, for the access log.
pub fn set_user(subject: &str) {
    let _ = CURRENT.try_with(|context| drop(context.annotations.user.set(subject.to_owned())));
}

/// Marks the request as waiting on purpose (a long poll), so that its duration is not counted as the server's latency.
pub fn mark_long_poll() {
    let _ = CURRENT.try_with(|context| context.annotations.long_poll.store(true, Relaxed));
}

/// Whether [`mark_long_poll`] was called for the current request.
pub(crate) fn is_long_poll() -> bool {
    CURRENT.try_with(|context| context.annotations.long_poll.load(Relaxed)).unwrap_or(false)
}

/// Wraps a future in the context of the current request. Use it for futures that are spawned or polled elsewhere, such
/// as a streamed body.
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let context = CURRENT.try_with(Context::clone).ok();
    async move {
        match context {
            Some(context) => CURRENT.scope(context, future).await,
            None => future.await,
        }
    }
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().expect("the checks above accept only ASCII")
}

fn new_request_id() -> HeaderValue {
    let mut buffer = Uuid::encode_buffer();
    let id = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
    HeaderValue::from_str(id).expect("a UUID is ASCII")
}

fn is_request_id(id: &[u8]) -> bool {
    (1..=ID_CHARS_MAX).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(name: HeaderName, value: &str) -> Context {
        Context::new(&HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())]), None)
    }

    #[test]
    fn a_valid_id_is_accepted() {
        for id in ["a", "A-z_0.9", &"x".repeat(128)] {
            assert_eq!(context(X_REQUEST_ID, id).id(), id);
        }
    }

    #[test]
    fn an_invalid_or_missing_id_is_replaced() {
        for id in ["", "a b", "a/b", "\"a\"", &"x".repeat(129)] {
            let made = context(X_REQUEST_ID, id);
            assert_eq!(Uuid::try_parse(text(made.id())).unwrap().get_version_num(), 7, "{id}");
        }
        let two = ["a", "b"].map(|id| (X_REQUEST_ID, HeaderValue::from_static(id))).into_iter().collect();
        assert!(Uuid::try_parse(text(Context::new(&two, None).id())).is_ok());
        let none = HeaderMap::new();
        assert!(Context::new(&none, None).id() != Context::new(&none, None).id());
    }

    #[tokio::test]
    async fn the_identity_can_be_carried_into_spawned_tasks() {
        assert_eq!(current(), None);
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut context = context("traceparent".parse().unwrap(), parent);
        context.id = HeaderValue::from_static("r1");
        context
            .scope(async {
                assert_eq!(current().as_deref(), Some("r1"));
                assert_eq!(current_traceparent().as_deref(), Some(parent));
                set_user("ada");
                assert_eq!(tokio::spawn(async { current() }).await.unwrap(), None);
                let carried = tokio::spawn(carry(async { (current(), current_user()) })).await.unwrap();
                assert_eq!(carried, (Some("r1".to_owned()), Some("ada".to_owned())));
            })
            .await;
        assert_eq!(current(), None);
    }

    #[test]
    fn a_bad_trace_parent_is_dropped() {
        assert!(
            context("traceparent".parse().unwrap(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331")
                .trace
                .is_none()
        );
    }
}
