//! Who asked: the request's id, trace and user, known to everything that runs for the request.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context as Trace;
use opentelemetry::trace::TraceContextExt;
use uuid::Uuid;

use crate::trace;

/// Names the request, in the question and in the answer.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ID_CHARS_MAX: usize = 128;

tokio::task_local! {
    static CURRENT: Context;
}

/// What identifies one request. Clones speak of the same.
#[derive(Clone)]
pub struct Context {
    id: HeaderValue,
    trace: Option<Trace>,
    told: Arc<Annotations>,
}

/// What handlers tell of the request that they answer.
#[derive(Default)]
struct Annotations {
    user: OnceLock<String>,
    waits: AtomicBool,
}

impl Context {
    /// Takes `X-Request-Id` (1 to 128 of `A-Z a-z 0-9 _ - .`); makes a UUIDv7 where there is not exactly one good one. `trace` is the
    /// request's span; where there is none, what a valid `traceparent` says.
    pub fn new(headers: &HeaderMap, trace: Option<&Trace>) -> Self {
        let mut ids = headers.get_all(X_REQUEST_ID).iter();
        let id = ids.next().filter(|id| is_request_id(id.as_bytes()) && ids.next().is_none()).cloned();
        let given = || headers.contains_key("traceparent").then(|| trace::of_headers(headers)).flatten();
        let trace = trace.cloned().or_else(given);
        Self { id: id.unwrap_or_else(make), trace, told: Arc::default() }
    }

    /// The id, as the answer's header carries it.
    pub fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// Runs `future` as a part of this request: it sees [`current`], and its log lines carry it.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }
}

/// The id of the request that this task works for; `None` outside of a request.
pub fn current() -> Option<String> {
    CURRENT.try_with(|context| text(&context.id).to_owned()).ok()
}

/// Where the request stands in its trace.
pub fn current_trace() -> Option<Trace> {
    CURRENT.try_with(|context| context.trace.clone()).ok().flatten()
}

/// The W3C trace parent for what the request leads to.
pub fn current_traceparent() -> Option<String> {
    Some(trace::traceparent(current_trace()?.span().span_context()))
}

/// The principal that the request's token names, once that is known.
pub fn current_user() -> Option<String> {
    CURRENT.try_with(|context| context.told.user.get().cloned()).ok().flatten()
}

/// Makes the principal known, for the access log.
pub fn set_user(subject: &str) {
    let _ = CURRENT.try_with(|context| drop(context.told.user.set(subject.to_owned())));
}

/// Says that the answer waits because that was asked for (a long poll): its time says nothing of the server.
pub fn set_waits() {
    let _ = CURRENT.try_with(|context| context.told.waits.store(true, Relaxed));
}

/// Whether [`set_waits`] was said.
pub(crate) fn waits() -> bool {
    CURRENT.try_with(|context| context.told.waits.load(Relaxed)).unwrap_or(false)
}

/// Takes the present request's identity along, for a future that is spawned or polled elsewhere (a streamed body).
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
    value.to_str().expect("only ASCII passes the checks above")
}

fn make() -> HeaderValue {
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
    fn a_good_id_is_taken() {
        for id in ["a", "A-z_0.9", &"x".repeat(128)] {
            assert_eq!(context(X_REQUEST_ID, id).id(), id);
        }
    }

    #[test]
    fn a_bad_or_missing_id_is_made() {
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
    async fn the_identity_reaches_the_task_and_what_it_spawns() {
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
