//! Spans of the work on events, as parts of the traces of the requests that led to the events. Spans are created for
//! sampled requests only; for other events the cost is one search in the metadata.

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{Link, SpanBuilder, SpanContext, SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};

use crate::event::RecordedEvent;

/// A span that ends when it is dropped.
pub struct Span(Context);

impl Span {
    /// Returns the span's context, for links and child spans.
    pub fn context(&self) -> &Context {
        &self.0
    }

    /// Sets attributes of the span.
    pub fn set_attributes(&self, attributes: impl IntoIterator<Item = KeyValue>) {
        self.0.span().set_attributes(attributes);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

/// Starts a span for work on an event; `None` when the event's request is not sampled.
pub fn event_span(name: &'static str, kind: SpanKind, event: &RecordedEvent) -> Option<Span> {
    let parent = event.metadata_text("traceparent").filter(|value| is_sampled(value))?;
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(&Traceparent(parent)));
    if !parent.span().span_context().is_valid() {
        return None;
    }
    let attributes = vec![
        KeyValue::new("docket.aggregate.type", event.aggregate_type.to_string()),
        KeyValue::new("docket.aggregate.id", event.aggregate_id.to_string()),
        KeyValue::new("docket.event.type", event.event_type.to_string()),
        KeyValue::new("docket.event.position", event.position),
    ];
    let builder = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes);
    Some(begin(builder, &parent))
}

/// Starts the span of a transaction that several requests share, with links to the spans of all sampled requests;
/// `None` when no request is sampled.
pub(crate) fn shared_span(name: &'static str, of: impl Iterator<Item = SpanContext>) -> Option<Span> {
    let links: Vec<_> = of.filter(SpanContext::is_sampled).map(Link::with_context).collect();
    let first = links.first()?.span_context.clone();
    // The span becomes a child of the first request's span, so that it is sampled as well.
    let parent = Context::new().with_remote_span_context(first);
    Some(begin(SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_links(links), &parent))
}

fn begin(builder: SpanBuilder, parent: &Context) -> Span {
    Span(parent.with_span(global::tracer("docket").build_with_context(builder, parent)))
}

/// Writes a span's context into the headers of a message.
pub(crate) fn inject(span: &Span, headers: &mut async_nats::HeaderMap) {
    global::get_text_map_propagator(|propagator| propagator.inject_context(span.context(), &mut Headers(headers)));
}

/// Returns whether the `sampled` flag of a W3C `traceparent` is set: the lowest bit of its last digit.
fn is_sampled(traceparent: &str) -> bool {
    traceparent.len() == 55 && traceparent.bytes().last().is_some_and(|digit| matches!(digit, b'1' | b'3'))
}

struct Traceparent<'a>(&'a str);

impl Extractor for Traceparent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

struct Headers<'a>(&'a mut async_nats::HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(key, value);
        }
    }
}
