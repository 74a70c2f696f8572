//! The JSON of an order and of its events for clients.

use domain::order::{Event, Line, Order, Status};
use domain::values::{Currency, format_minor};
use projection_engine::state::{Versioned, rfc3339};
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

/// Serializes an order as the JSON that `GET /v1/orders/{id}` returns.
pub struct OrderView<'a>(pub &'a Versioned<Order>);

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
        let Self(versioned) = self;
        let order = &versioned.state;
        View {
            order_id: &versioned.id,
            customer_id: order.owner(),
            status: order.status,
            currency: order.currency,
            total: format_minor(order.total, order.currency),
            quantity: order.quantity(),
            lines: Lines(&order.lines, order.currency),
            attributes: &order.attributes,
            placed_at: rfc3339(versioned.created_at),
            updated_at: rfc3339(versioned.updated_at),
            version: versioned.version,
            position: versioned.position,
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

/// Returns an event's payload as JSON for clients. Amounts are decimal strings in the major unit of the order's
/// currency.
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
            // Events serialize externally tagged, as {"Name": {…}}: the payload is the only member.
            Ok(Value::Object(tagged)) => tagged.into_iter().next().map_or(Value::Null, |(_, payload)| payload),
            _ => Value::Null,
        },
    }
}
