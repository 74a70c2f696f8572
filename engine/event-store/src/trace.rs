//! Where an event stands in the trace of the request that led to it. Spans are made for sampled requests only; the
//! others cost a look into the metadata.

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{Link, SpanBuilder, SpanContext, SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue, global};

use crate::event::RecordedEvent;

/// A span; it ends when dropped.
pub struct Span(Context);

impl Span {
    /// Where it stands, for links and children.
    pub fn context(&self) -> &Context {
        &self.0
    }

    /// Says more of it.
    pub fn describe(&self, attributes: impl IntoIterator<Item = KeyValue>) {
        self.0.span().set_attributes(attributes);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

/// Begins a span of what is done with an event; `None` where its request is not traced.
pub fn of_event(name: &'static str, kind: SpanKind, event: &RecordedEvent) -> Option<Span> {
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

/// Begins the span of a transaction that several requests share: a trace of its own, linked to theirs.
pub(crate) fn shared(name: &'static str, of: impl Iterator<Item = SpanContext>) -> Option<Span> {
    let links: Vec<_> = of.filter(SpanContext::is_sampled).map(Link::with_context).collect();
    let first = links.first()?.span_context.clone();
    // Part of the first one's trace, so that it is sampled as that is.
    let parent = Context::new().with_remote_span_context(first);
    Some(begin(SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_links(links), &parent))
}

fn begin(builder: SpanBuilder, parent: &Context) -> Span {
    Span(parent.with_span(global::tracer("docket").build_with_context(builder, parent)))
}

/// Writes where a span stands into a message's headers.
pub(crate) fn inject(span: &Span, headers: &mut async_nats::HeaderMap) {
    global::get_text_map_propagator(|propagator| propagator.inject_context(span.context(), &mut Headers(headers)));
}

/// The flag of W3C Trace Context, its last digit.
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
