//! An order as its events leave it: the fold that every read model starts from, and the view that clients see.

use std::sync::Arc;

use domain::order::{Event, Line, Order, Status};
use domain::values::{Currency, format_minor};
use event_store::event::RecordedEvent;
use jiff::Timestamp;
use kernel::aggregate::Aggregate;
use kernel::upcast::Upcasters;
use quick_cache::Weighter;
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

/// The upcasters of orders' events, for the store.
pub fn upcasters() -> Upcasters {
    Upcasters::default().and::<Order>()
}

/// The aggregate type of orders in the log.
pub const ORDER: &str = "order";

/// An event that does not decode, or does not follow from the state it meets.
#[derive(Debug, thiserror::Error)]
#[error("event {position} ({event_type} of order {order_id}): {reason}")]
pub struct FoldError {
    /// Position of the event.
    pub position: i64,
    /// The event's name.
    pub event_type: String,
    /// The order.
    pub order_id: String,
    /// The event's place in the order's stream.
    pub sequence: i64,
    /// Its id.
    pub event_id: String,
    /// Why.
    pub reason: String,
}

impl FoldError {
    pub(crate) fn new(event: &RecordedEvent, reason: String) -> Self {
        Self {
            position: event.position,
            event_type: event.event_type.to_string(),
            order_id: event.aggregate_id.to_string(),
            sequence: event.sequence,
            event_id: event.id(),
            reason,
        }
    }
}

/// An order at a version, with what its events' metadata adds. Times are microseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OrderState {
    /// The order's id.
    pub order_id: String,
    /// The aggregate.
    pub order: Order,
    /// When it was created.
    pub placed_at: i64,
    /// When it last changed.
    pub updated_at: i64,
    /// Sequence of its last event.
    pub version: i64,
    /// Position of its last event.
    pub position: i64,
}

/// Bytes that an order is taken to have, where room for a number of orders is made.
pub const BYTES_PER_ORDER: u64 = 4_096;

/// What an order weighs in a cache, in bytes: a large one takes the place of several.
#[derive(Clone)]
pub struct ByBytes;

impl Weighter<String, Arc<OrderState>> for ByBytes {
    fn weight(&self, _: &String, state: &Arc<OrderState>) -> u64 {
        (state.order.weight() as u64).max(BYTES_PER_ORDER)
    }
}

/// When an event happened, in microseconds since 1970: as its metadata say, or, where foreign code wrote none, when the
/// log took it.
pub fn occurred_at(event: &RecordedEvent) -> i64 {
    event
        .metadata_text("occurred_at")
        .and_then(|text| text.parse::<Timestamp>().ok())
        .map_or(event.recorded_at, Timestamp::as_microsecond)
}

impl OrderState {
    /// Folds one event.
    ///
    /// # Errors
    /// The payload does not decode, or the event is not the next one of its stream.
    pub fn apply(&mut self, recorded: &RecordedEvent) -> Result<Event, FoldError> {
        let failed = |reason: String| FoldError::new(recorded, reason);
        if recorded.sequence != self.version + 1 {
            let follows = format!("sequence {} follows {}", recorded.sequence, self.version);
            return Err(failed(match recorded.sequence > self.version + 1 {
                true => format!("{follows}: what was between is not in the log; a backup may have it"),
                false => follows,
            }));
        }
        if recorded.position <= self.position {
            return Err(failed(format!("its position is not behind {}, that of the event before it", self.position)));
        }
        let event: Event = serde_json::from_str(&recorded.payload).map_err(|e| failed(e.to_string()))?;
        let at = occurred_at(recorded);
        if !self.exists() {
            self.order_id = recorded.aggregate_id.to_string();
            self.placed_at = at;
        }
        self.order.evolve(&event);
        self.updated_at = at;
        self.version = recorded.sequence;
        self.position = recorded.position;
        Ok(event)
    }

    /// Why an event of an order cannot be read, whatever the order; `None` where it can.
    pub fn unreadable(recorded: &RecordedEvent) -> Option<String> {
        let read = || serde_json::from_str::<Event>(&recorded.payload);
        if recorded.aggregate_type == ORDER { read().err().map(|error| error.to_string()) } else { None }
    }

    /// Passes over an event that an operator has discarded.
    pub fn pass_over(&mut self, recorded: &RecordedEvent) {
        self.order_id = recorded.aggregate_id.to_string();
        self.version = recorded.sequence;
        self.position = recorded.position;
    }

    /// Whether there is an order: events alone, without an `OrderCreated` that could be read, do not make one.
    pub fn exists(&self) -> bool {
        self.order.customer_id.is_some()
    }

    /// The owner; empty where there is no order.
    pub fn customer_id(&self) -> &str {
        self.order.customer_id.as_ref().map_or("", |id| id.as_str())
    }

    /// Pieces in all lines.
    pub fn quantity(&self) -> i64 {
        self.order.lines.iter().map(|line| i64::from(line.quantity)).sum()
    }

    /// The day on which it was placed, UTC.
    pub fn day(&self) -> String {
        rfc3339(self.placed_at)[..10].to_owned()
    }

    /// The attribute that names the store, if any.
    pub fn store_id(&self) -> Option<&str> {
        self.order.attributes.get("store_id")
    }

    /// Whether it counts as a sale.
    pub fn is_confirmed(&self) -> bool {
        self.order.status == Status::Confirmed
    }

    /// The order as `GET /v1/orders/{id}` answers it.
    pub fn view(&self) -> OrderView<'_> {
        OrderView(self)
    }
}

/// Serializes an [`OrderState`] as clients see it.
pub struct OrderView<'a>(&'a OrderState);

impl Serialize for OrderView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct View<'a> {
            order_id: &'a str,
            customer_id: &'a str,
            status: Status,
            currency: Currency,
            total: String,
            quantity: i64,
            lines: Lines<'a>,
            attributes: &'a domain::values::Attributes,
            placed_at: String,
            updated_at: String,
            version: i64,
            position: i64,
        }
        let state = self.0;
        let order = &state.order;
        View {
            order_id: &state.order_id,
            customer_id: state.customer_id(),
            status: order.status,
            currency: order.currency,
            total: format_minor(order.total, order.currency),
            quantity: state.quantity(),
            lines: Lines(&order.lines, order.currency),
            attributes: &order.attributes,
            placed_at: rfc3339(state.placed_at),
            updated_at: rfc3339(state.updated_at),
            version: state.version,
            position: state.position,
        }
        .serialize(serializer)
    }
}

struct Lines<'a>(&'a [Line], Currency);

impl Serialize for Lines<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct LineView<'a> {
            sku: &'a str,
            name: Option<&'a str>,
            category: Option<&'a str>,
            quantity: u32,
            unit_price: String,
            line_total: String,
        }
        let mut lines = serializer.serialize_seq(Some(self.0.len()))?;
        for line in self.0 {
            lines.serialize_element(&LineView {
                sku: line.sku.as_str(),
                name: line.name.as_ref().map(|name| name.as_str()),
                category: line.category.as_ref().map(|category| category.as_str()),
                quantity: line.quantity,
                unit_price: format_minor(line.unit_price, self.1),
                line_total: format_minor(line.total(), self.1),
            })?;
        }
        lines.end()
    }
}

/// An event's payload as clients see it: money as decimal strings of the order's currency.
pub fn payload_view(event: &Event, currency: Currency) -> Value {
    let money = |minor: i64| Value::String(format_minor(minor, currency));
    match event {
        Event::ItemAdded { sku, quantity, unit_price, name, category } => {
            let mut payload = json!({"sku": sku, "quantity": quantity, "unit_price": money(*unit_price)});
            if let Some(name) = name {
                payload["name"] = json!(name);
            }
            if let Some(category) = category {
                payload["category"] = json!(category);
            }
            payload
        }
        Event::OrderConfirmed { total, currency } => {
            json!({"total": format_minor(*total, *currency), "currency": currency})
        }
        other => match serde_json::to_value(other) {
            // Externally tagged: {"Name": {…}}.
            Ok(Value::Object(tagged)) => tagged.into_iter().next().map_or(Value::Null, |(_, payload)| payload),
            _ => Value::Null,
        },
    }
}

/// Microseconds since 1970 as RFC 3339, UTC.
pub fn rfc3339(us: i64) -> String {
    Timestamp::from_microsecond(us).unwrap_or_default().to_string()
}
