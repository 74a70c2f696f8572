//! The JSON of an order and of its events for clients.

use domain::order::{Event, Line, Order, Status};
use domain::values::{Currency, format_minor};
use projection_engine::state::{Versioned, rfc3339};
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use utoipa::ToSchema;

/// Serializes an order as the JSON that `GET /v1/orders/{id}` returns.
pub struct OrderView<'a>(pub &'a Versioned<Order>);

impl Serialize for OrderView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(versioned) = self;
        let order = &versioned.state;
        OrderJson {
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

/// An order with its lines.
#[derive(Serialize, ToSchema)]
#[schema(as = Order)]
pub struct OrderJson<'a> {
    /// Id of the order.
    order_id: &'a str,
    /// Id of the customer who owns the order.
    customer_id: &'a str,
    /// Status of the order.
    #[schema(value_type = OrderStatus)]
    status: Status,
    /// Currency of all prices, as an ISO 4217 code.
    #[schema(value_type = String)]
    currency: Currency,
    /// Total as a decimal string in the major unit.
    total: String,
    /// Sum of the quantities of all lines.
    quantity: i64,
    /// The lines, in the order in which they were added.
    #[schema(value_type = Vec<LineJson>)]
    lines: Lines<'a>,
    /// Free labels by name.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    attributes: &'a domain::values::Attributes,
    /// Time at which the order was created, in RFC 3339.
    placed_at: String,
    /// Time of the last change, in RFC 3339.
    updated_at: String,
    /// Version of the order. Send it in If-Match to change exactly this version.
    version: i64,
    /// Position of the order's last event in the log.
    position: i64,
}

/// The status of an order.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum OrderStatus {
    /// The order can be changed.
    Draft,
    /// The order counts as a sale and cannot be changed.
    Confirmed,
    /// The order cannot be changed.
    Cancelled,
}

/// A line of an order.
#[derive(Serialize, ToSchema)]
#[schema(as = Line)]
struct LineJson<'a> {
    /// Id of the product.
    sku: &'a str,
    /// Display name of the product.
    name: Option<&'a str>,
    /// Category of the product.
    category: Option<&'a str>,
    /// Pieces.
    quantity: u32,
    /// Price of one piece, a decimal string in the currency of the order.
    unit_price: String,
    /// Price of all pieces, a decimal string in the currency of the order.
    line_total: String,
}

struct Lines<'a>(&'a [Line], Currency);

impl Serialize for Lines<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut lines = serializer.serialize_seq(Some(self.0.len()))?;
        for line in self.0 {
            lines.serialize_element(&LineJson {
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
