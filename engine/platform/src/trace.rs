//! OpenTelemetry spans. If the export of traces is disabled, spans cost nothing, and a caller's `traceparent` is passed
//! on unchanged.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use axum::http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Enables the creation of spans.
pub(crate) fn enable() {
    ENABLED.store(true, Relaxed);
}

/// Whether spans are created.
pub fn is_enabled() -> bool {
    ENABLED.load(Relaxed)
}

/// An open span, or none if the span is not recorded. The span ends when the value is dropped.
pub struct OpenSpan(Option<Context>);

impl OpenSpan {
    /// No span.
    pub const NONE: Self = Self(None);

    /// Returns the trace context of the span, to use as a parent in other tasks and processes.
    pub fn context(&self) -> Option<&Context> {
        self.0.as_ref()
    }

    /// Returns the W3C `traceparent` of the span.
    pub fn traceparent(&self) -> Option<String> {
        self.0.as_ref().map(|context| traceparent(context.span().span_context()))
    }

    /// Adds attributes. `attributes` is called only if the span is recorded.
    pub fn set_attributes(&self, attributes: impl FnOnce() -> Vec<KeyValue>) {
        if let Some(context) = self.recorded() {
            context.span().set_attributes(attributes());
        }
    }

    /// Marks the span as failed.
    pub fn failed(&self, why: impl Into<Cow<'static, str>>) {
        if let Some(context) = self.recorded() {
            context.span().set_status(Status::error(why));
        }
    }

    fn recorded(&self) -> Option<&Context> {
        self.0.as_ref().filter(|context| context.span().is_recording())
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// Starts the span of a request, in the trace that the request headers name.
pub(crate) fn server(name: impl FnOnce() -> String, headers: &HeaderMap) -> OpenSpan {
    if !is_enabled() {
        return OpenSpan::NONE;
    }
    let parent = context_from_headers(headers).unwrap_or_default();
    OpenSpan(Some(begin(SpanBuilder::from_name(name()).with_kind(SpanKind::Server), &parent)))
}

/// Starts a child span. Returns no span if the parent is not sampled.
pub fn child(name: &'static str, kind: SpanKind, parent: Option<&Context>) -> OpenSpan {
    match parent.filter(|parent| parent.span().span_context().is_sampled()) {
        Some(parent) => OpenSpan(Some(begin(SpanBuilder::from_name(name).with_kind(kind), parent))),
        None => OpenSpan::NONE,
    }
}

fn begin(builder: SpanBuilder, parent: &Context) -> Context {
    parent.with_span(global::tracer("docket").build_with_context(builder, parent))
}

/// Returns the caller's trace context from the W3C headers of a request; `None` if they are missing or invalid.
pub(crate) fn context_from_headers(headers: &HeaderMap) -> Option<Context> {
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
    context.span().span_context().is_valid().then_some(context)
}

/// Returns the `traceparent` of a span if it is sampled or came from another process.
pub fn propagated_traceparent(context: &Context) -> Option<String> {
    let span = context.span();
    let span = span.span_context();
    (span.is_sampled() || span.is_remote()).then(|| traceparent(span))
}

/// Formats a span context as a `traceparent` of W3C Trace Context.
pub fn traceparent(context: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(traceparent: &str) -> HeaderMap {
        HeaderMap::from_iter([("traceparent".parse().unwrap(), traceparent.parse().unwrap())])
    }

    #[test]
    fn a_trace_parent_is_read_and_written() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(traceparent(context_from_headers(&headers(good)).unwrap().span().span_context()), good);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(context_from_headers(&headers(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn without_a_collector_there_are_no_spans() {
        assert!(server(|| "GET /".into(), &headers("x")).context().is_none());
        assert!(child("decide", SpanKind::Internal, None).traceparent().is_none());
    }
}
