//! An independent fold of the log. It computes what the read models must contain, without any code of Docket.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::client::Client;

const PAGE: usize = 1000;

/// One event of the log, as `GET /v1/events` returns it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Position in the log, from 1.
    pub position: u64,
    /// Id of the event.
    pub event_id: String,
    /// Id of the order.
    pub order_id: String,
    /// Position in the order's stream, from 1.
    pub sequence: u64,
    /// Event type, such as `ItemAdded`.
    pub kind: String,
    /// Time at which the event occurred.
    pub occurred_at: Timestamp,
    /// Fields of the event.
    pub payload: Value,
    /// Metadata, such as the request id.
    pub metadata: Value,
}

impl Event {
    /// Reads one item of the response.
    ///
    /// # Panics
    /// If a field is missing or of another type.
    pub fn parse(item: &Value) -> Self {
        let text =
            |field: &str| item[field].as_str().unwrap_or_else(|| panic!("{field} is not a text in {item}")).to_owned();
        let number = |field: &str| item[field].as_u64().unwrap_or_else(|| panic!("{field} is not a number in {item}"));
        Self {
            position: number("position"),
            event_id: text("event_id"),
            order_id: text("aggregate_id"),
            sequence: number("sequence"),
            kind: text("type"),
            occurred_at: text("occurred_at").parse().expect("occurred_at is an RFC 3339 time"),
            payload: item["payload"].clone(),
            metadata: item["metadata"].clone(),
        }
    }
}

/// Reads the whole log, page by page.
pub async fn read_log(client: &Client) -> Vec<Event> {
    let mut log: Vec<Event> = vec![];
    let mut after = 0;
    loop {
        let page = client.get(&format!("/v1/events?after={after}&limit={PAGE}")).send().await.expect(200).json();
        log.extend(page["items"].as_array().expect("items").iter().map(Event::parse));
        match page["next_after"].as_u64() {
            Some(next) => {
                assert!(next > after, "the log's pages do not advance at {after}");
                after = next;
            }
            None => return log,
        }
    }
}

/// One line of an order; prices are in minor units.
#[derive(Clone, Debug)]
pub struct Line {
    sku: String,
    name: Option<String>,
    category: Option<String>,
    quantity: u64,
    unit_price: u64,
}

/// An order after all its events.
#[derive(Clone, Debug)]
pub struct Order {
    /// Id of the order.
    pub order_id: String,
    /// `draft`, `confirmed` or `cancelled`.
    pub status: &'static str,
    /// Sequence of the order's latest event.
    pub version: u64,
    customer_id: String,
    currency: String,
    attributes: Value,
    lines: Vec<Line>,
    placed_at: Timestamp,
    updated_at: Timestamp,
    position: u64,
}

/// Folds the log and returns every order by id.
///
/// # Panics
/// If an event has an unknown type or is not valid after the events before it.
pub fn fold(log: &[Event]) -> BTreeMap<String, Order> {
    let mut orders: BTreeMap<String, Order> = BTreeMap::new();
    for event in log {
        let (payload, id) = (&event.payload, event.order_id.clone());
        if event.kind == "OrderCreated" {
            let created = Order::created(event);
            assert!(orders.insert(id, created).is_none(), "a second OrderCreated at position {}", event.position);
            continue;
        }
        let order = orders
            .get_mut(&id)
            .unwrap_or_else(|| panic!("{} comes before OrderCreated at position {}", event.kind, event.position));
        assert_eq!(
            order.status, "draft",
            "{} at position {} comes after the order's last event",
            event.kind, event.position
        );
        match event.kind.as_str() {
            "ItemAdded" => order.add(payload),
            "ItemQuantityChanged" => order.line(payload).quantity = number(payload, "quantity"),
            "ItemRemoved" => {
                let sku = order.line(payload).sku.clone();
                order.lines.retain(|line| line.sku != sku);
            }
            "OrderConfirmed" => {
                assert_eq!(number(payload, "total"), order.total(), "the total at position {}", event.position);
                order.status = "confirmed";
            }
            "OrderCancelled" => order.status = "cancelled",
            other => panic!("unknown event {other} at position {}", event.position),
        }
        order.version = event.sequence;
        order.position = event.position;
        order.updated_at = event.occurred_at;
    }
    orders
}

impl Order {
    fn created(event: &Event) -> Self {
        let attributes = event.payload["attributes"].clone();
        Self {
            order_id: event.order_id.clone(),
            status: "draft",
            version: event.sequence,
            customer_id: text(&event.payload, "customer_id"),
            currency: text(&event.payload, "currency"),
            attributes: if attributes.is_null() { json!({}) } else { attributes },
            lines: vec![],
            placed_at: event.occurred_at,
            updated_at: event.occurred_at,
            position: event.position,
        }
    }

    fn add(&mut self, payload: &Value) {
        let (sku, quantity, unit_price) =
            (text(payload, "sku"), number(payload, "quantity"), number(payload, "unit_price"));
        let optional = |field: &str| payload[field].as_str().map(str::to_owned);
        let (name, category) = (optional("name"), optional("category"));
        if let Some(line) = self.lines.iter_mut().find(|line| line.sku == sku) {
            assert_eq!(line.unit_price, unit_price, "one SKU has two prices");
            line.quantity += quantity;
            line.name = name.or(line.name.take());
            line.category = category.or(line.category.take());
            return;
        }
        self.lines.push(Line { sku, name, category, quantity, unit_price });
    }

    fn line(&mut self, payload: &Value) -> &mut Line {
        let sku = text(payload, "sku");
        self.lines.iter_mut().find(|line| line.sku == sku).unwrap_or_else(|| panic!("the order has no line {sku}"))
    }

    fn quantity(&self) -> u64 {
        self.lines.iter().map(|line| line.quantity).sum()
    }

    fn total(&self) -> u64 {
        self.lines.iter().map(|line| line.quantity * line.unit_price).sum()
    }

    /// Returns the item that `GET /v1/orders` must show, after [`normal`].
    pub fn list_item(&self) -> Value {
        json!({
            "order_id": self.order_id, "customer_id": self.customer_id, "status": self.status, "currency": self.currency,
            "total": money(self.total(), &self.currency), "quantity": self.quantity(), "line_count": self.lines.len(),
            "placed_at": micros(self.placed_at), "updated_at": micros(self.updated_at),
            "version": self.version, "position": self.position,
        })
    }

    /// Returns the order that `GET /v1/orders/{id}` must show, after [`normal`].
    pub fn view(&self) -> Value {
        let line = |line: &Line| {
            json!({
                "sku": line.sku, "name": line.name, "category": line.category, "quantity": line.quantity,
                "unit_price": money(line.unit_price, &self.currency),
                "line_total": money(line.quantity * line.unit_price, &self.currency),
            })
        };
        let mut view = self.list_item();
        let fields = view.as_object_mut().expect("list_item returns an object");
        fields.remove("line_count");
        fields.insert("lines".to_owned(), self.lines.iter().map(line).collect());
        fields.insert("attributes".to_owned(), self.attributes.clone());
        normal(&view)
    }
}

/// Rows of a report: by key and currency, the number of orders, the quantity and the revenue in minor units.
pub type Report = BTreeMap<(String, String), (u64, u64, u64)>;

/// Returns the rows that `GET /v1/reports/sales?by=` must show.
pub fn sales(orders: &BTreeMap<String, Order>, by: &str) -> Report {
    let mut report = Report::new();
    for order in orders.values().filter(|order| order.status == "confirmed") {
        let mut seen = BTreeSet::new();
        for line in &order.lines {
            let key = match by {
                "day" => order.placed_at.to_string()[..10].to_owned(),
                "category" => line.category.clone().unwrap_or_default(),
                "store" => order.attributes["store_id"].as_str().unwrap_or_default().to_owned(),
                other => panic!("unknown report dimension {other}"),
            };
            let row = report.entry((key.clone(), order.currency.clone())).or_default();
            row.0 += u64::from(seen.insert(key));
            row.1 += line.quantity;
            row.2 += line.quantity * line.unit_price;
        }
    }
    report
}

/// Reads the rows of a report response into the form of [`sales`].
pub fn parse_report(rows: &Value) -> Report {
    let rows = rows.as_array().unwrap_or_else(|| panic!("not an array of rows: {rows}"));
    let parsed = rows.iter().map(|row| {
        let currency = text(row, "currency");
        let revenue = minor(&text(row, "revenue"), &currency);
        (
            (row["key"].as_str().unwrap_or_default().to_owned(), currency),
            (number(row, "orders"), number(row, "quantity"), revenue),
        )
    });
    let report: Report = parsed.collect();
    assert_eq!(report.len(), rows.len(), "two rows have the same key");
    report
}

/// Returns the rows that `GET /v1/products/top` must show, without the products' names.
pub fn products(orders: &BTreeMap<String, Order>) -> Report {
    let mut report = Report::new();
    for order in orders.values().filter(|order| order.status == "confirmed") {
        for line in &order.lines {
            let row = report.entry((line.sku.clone(), order.currency.clone())).or_default();
            row.0 += 1;
            row.1 += line.quantity;
            row.2 += line.quantity * line.unit_price;
        }
    }
    report
}

/// Returns what `GET /v1/customers/{id}` must show of each customer, after [`normal`].
pub fn customers(orders: &BTreeMap<String, Order>) -> BTreeMap<String, Value> {
    let mut by_customer: BTreeMap<&str, Vec<&Order>> = BTreeMap::new();
    for order in orders.values() {
        by_customer.entry(&order.customer_id).or_default().push(order);
    }
    let figures = by_customer.into_iter().map(|(id, orders)| {
        let count = |status: &str| orders.iter().filter(|order| order.status == status).count();
        let mut spend: BTreeMap<&str, u64> = BTreeMap::new();
        for order in &orders {
            *spend.entry(&order.currency).or_default() += if order.status == "confirmed" { order.total() } else { 0 };
        }
        let spend =
            spend.into_iter().map(|(currency, sum)| json!({"currency": currency, "amount": money(sum, currency)}));
        let placed = || orders.iter().map(|order| micros(order.placed_at));
        let figures = json!({
            "customer_id": id, "orders": orders.len(), "confirmed": count("confirmed"), "cancelled": count("cancelled"),
            "spend": spend.collect::<Vec<Value>>(), "first_order_at": placed().min(), "last_order_at": placed().max(),
        });
        (id.to_owned(), figures)
    });
    figures.collect()
}

/// Returns a JSON value without its null fields and with times cut to microseconds, the finest unit that PostgreSQL
/// stores.
pub fn normal(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(_, value)| !value.is_null());
            let normal = kept.map(|(name, value)| match (name.as_str(), value) {
                (time_of, Value::String(time)) if time_of.ends_with("_at") => {
                    (name.clone(), json!(micros(time.parse().expect("an RFC 3339 time"))))
                }
                _ => (name.clone(), normal(value)),
            });
            Value::Object(normal.collect::<Map<String, Value>>())
        }
        Value::Array(items) => items.iter().map(normal).collect(),
        other => other.clone(),
    }
}

fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// Returns the number of digits after the point of amounts in a currency.
pub fn digits(currency: &str) -> usize {
    match currency {
        "JPY" => 0,
        "KWD" => 3,
        _ => 2,
    }
}

/// Formats an amount of minor units as the API does.
pub fn money(minor: u64, currency: &str) -> String {
    match digits(currency) {
        0 => minor.to_string(),
        digits => {
            let padded = format!("{minor:0>width$}", width = digits + 1);
            let (whole, fraction) = padded.split_at(padded.len() - digits);
            format!("{whole}.{fraction}")
        }
    }
}

/// Parses an amount of the API into minor units. The amount must have all fraction digits of its currency.
fn minor(amount: &str, currency: &str) -> u64 {
    let fraction = amount.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    assert_eq!(fraction, digits(currency), "{amount} {currency}");
    amount.replace('.', "").parse().unwrap_or_else(|_| panic!("{amount} is not an amount"))
}

fn text(fields: &Value, name: &str) -> String {
    fields[name].as_str().unwrap_or_else(|| panic!("{name} is not a text in {fields}")).to_owned()
}

fn number(fields: &Value, name: &str) -> u64 {
    fields[name].as_u64().unwrap_or_else(|| panic!("{name} is not a number in {fields}"))
}
