//! Who asked: the request's id and trace parent, known to everything that runs for the request.

use std::future::Future;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tracing::{Instrument, Span};
use uuid::Uuid;

/// Names the request, in the question and in the answer.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const ID_CHARS_MAX: usize = 128;

tokio::task_local! {
    static CURRENT: Context;
}

/// What identifies one request. Header values, because their clones share one allocation.
#[derive(Clone, Debug)]
pub struct Context {
    id: HeaderValue,
    traceparent: Option<HeaderValue>,
}

impl Context {
    /// Takes `X-Request-Id` (1 to 128 of `A-Z a-z 0-9 _ - .`) and a valid `traceparent`; makes a UUIDv7 where there is
    /// no good id.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let id = headers.get(X_REQUEST_ID).filter(|id| is_request_id(id.as_bytes())).cloned();
        let traceparent = headers.get(TRACEPARENT).filter(|value| is_traceparent(value.as_bytes())).cloned();
        Self { id: id.unwrap_or_else(make), traceparent }
    }

    /// The id, as the answer's header carries it.
    pub fn id(&self) -> &HeaderValue {
        &self.id
    }

    /// Runs `future` as a part of this request: it sees [`current`] and logs within the request's span.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        let span = tracing::info_span!(target: "http", "request", request_id = text(&self.id));
        CURRENT.scope(self, future.instrument(span))
    }
}

/// The id of the request that this task works for; `None` outside of a request.
pub fn current() -> Option<String> {
    CURRENT.try_with(|context| text(&context.id).to_owned()).ok()
}

/// The W3C trace parent that came with the request, when it was valid.
pub fn current_traceparent() -> Option<String> {
    CURRENT.try_with(|context| context.traceparent.as_ref().map(|value| text(value).to_owned())).ok().flatten()
}

/// Takes the present request's identity along, for a future that is spawned or polled elsewhere (a streamed body).
pub fn carry<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let context = CURRENT.try_with(Context::clone).ok();
    let future = future.instrument(Span::current());
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

/// Version 00 of W3C Trace Context: `00-<32 hex>-<16 hex>-<2 hex>` in lower case, no id all zeros.
fn is_traceparent(value: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let id = |part: &[u8]| hex(part) && part.iter().any(|byte| *byte != b'0');
    value.len() == 55
        && value.starts_with(b"00-")
        && id(&value[3..35])
        && value[35] == b'-'
        && id(&value[36..52])
        && value[52] == b'-'
        && hex(&value[53..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(name: HeaderName, value: &str) -> Context {
        Context::from_headers(&HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())]))
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
        assert!(Context::from_headers(&HeaderMap::new()).id() != Context::from_headers(&HeaderMap::new()).id());
    }

    #[tokio::test]
    async fn the_identity_reaches_the_task_and_what_it_spawns() {
        assert_eq!(current(), None);
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut context = context(TRACEPARENT, parent);
        context.id = HeaderValue::from_static("r1");
        context
            .scope(async {
                assert_eq!(current().as_deref(), Some("r1"));
                assert_eq!(current_traceparent().as_deref(), Some(parent));
                assert_eq!(tokio::spawn(async { current() }).await.unwrap(), None);
                assert_eq!(tokio::spawn(carry(async { current() })).await.unwrap().as_deref(), Some("r1"));
            })
            .await;
        assert_eq!(current(), None);
    }

    #[test]
    fn a_bad_trace_parent_is_dropped() {
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(context(TRACEPARENT, bad).traceparent, None, "{bad}");
        }
    }
}
