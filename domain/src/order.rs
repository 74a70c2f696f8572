//! The order aggregate, in reading order: events, state, commands, errors, `decide` and `evolve`, tests.
//!
//! ```text
//! absent --Create--> draft --Confirm--> confirmed (final)
//!                    draft --Cancel---> cancelled (final)
//! absent --Import--> draft, confirmed or cancelled
//! ```

use kernel::aggregate::{Access, Aggregate, CommandType, EventType, History, Refusal, RefusalClass, RefusalType};
use kernel::upcast::Upcaster;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::values::{
    self, Amount, Attributes, Category, Currency, CustomerId, Name, Quantity, Reason, Sku, format_minor,
};

/// The largest number of lines in an order, and of items in one [`Command::Create`].
pub const LINES_MAX: usize = 1000;

/// The largest total of an order, in minor units. It is below 2^53, so that every JSON reader represents it exactly.
pub const TOTAL_MAX: i64 = 1_000_000_000_000_000;

// ---- events ----

/// An event of an order, in its stored form: `{"ItemRemoved": {"sku": "tea"}}`.
///
/// Unknown fields are ignored, so that an older process can read events of a newer one. The comments of variants and
/// fields are part of `schemas/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Event {
    /// An order was created as a draft without lines.
    OrderCreated {
        /// The customer who owns the order.
        customer_id: CustomerId,
        /// The currency of every price of the order.
        currency: Currency,
        /// Labels such as `store_id`. Absent when there are none.
        #[serde(default, skip_serializing_if = "Attributes::is_empty")]
        attributes: Attributes,
    },
    /// Pieces of an item were added: to the line of its SKU, or as a new line.
    ItemAdded {
        /// SKU of the item.
        #[serde(deserialize_with = "Sku::deserialize_stored")]
        sku: Sku,
        /// Number of pieces that were added.
        quantity: Quantity,
        /// Price of one piece, in minor units of the order's currency.
        #[schemars(range(min = 0))]
        unit_price: i64,
        /// Name of the item. Null keeps the line's current name.
        #[serde(deserialize_with = "Option::deserialize")]
        name: Option<Name>,
        /// Category of the item. Null keeps the line's current category.
        #[serde(deserialize_with = "Option::deserialize")]
        category: Option<Category>,
    },
    /// The quantity of a line was set.
    ItemQuantityChanged {
        /// SKU of the line.
        #[serde(deserialize_with = "Sku::deserialize_stored")]
        sku: Sku,
        /// New quantity of the line, in pieces.
        quantity: Quantity,
    },
    /// A line was removed.
    ItemRemoved {
        /// SKU of the line.
        #[serde(deserialize_with = "Sku::deserialize_stored")]
        sku: Sku,
    },
    /// The order was placed. It can no longer change.
    OrderConfirmed {
        /// Sum of the lines, in minor units.
        #[schemars(range(min = 0))]
        total: i64,
        /// Currency of the total.
        currency: Currency,
    },
    /// The draft was cancelled. It can no longer change.
    OrderCancelled {
        /// Reason that the client gave.
        reason: Reason,
    },
}

impl EventType for Event {
    const VERSIONS: &'static [(&'static str, &'static str)] = &[
        ("OrderCreated", "1"),
        ("ItemAdded", "2"),
        ("ItemQuantityChanged", "1"),
        ("ItemRemoved", "1"),
        ("OrderConfirmed", "1"),
        ("OrderCancelled", "1"),
    ];

    fn name(&self) -> &'static str {
        match self {
            Event::OrderCreated { .. } => "OrderCreated",
            Event::ItemAdded { .. } => "ItemAdded",
            Event::ItemQuantityChanged { .. } => "ItemQuantityChanged",
            Event::ItemRemoved { .. } => "ItemRemoved",
            Event::OrderConfirmed { .. } => "OrderConfirmed",
            Event::OrderCancelled { .. } => "OrderCancelled",
        }
    }
}

/// Upcasts stored events of older versions.
const UPCASTERS: &[Upcaster] = &[
    // Version 1 omits an unknown name or category; version 2 writes null.
    Upcaster {
        event_type: "ItemAdded",
        from: "1",
        to: "2",
        upcast: |payload| {
            for field in ["name", "category"] {
                payload.entry(field).or_insert(Value::Null);
            }
        },
    },
];

// ---- state ----

/// The state of an order. The default is an order that does not exist.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Status of the order.
    pub status: Status,
    /// Id of the owner; `None` while the order is absent.
    pub customer_id: Option<CustomerId>,
    /// Currency of all prices of the order.
    pub currency: Currency,
    /// Free labels that were given when the order was created.
    pub attributes: Attributes,
    /// The lines, one per SKU, in the order in which they were first added.
    pub lines: Vec<Line>,
    /// Sum of the lines, in minor units.
    pub total: i64,
}

/// The status of an order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The order was never created.
    #[default]
    Absent,
    /// The order can be changed.
    Draft,
    /// The order was placed and cannot be changed.
    Confirmed,
    /// The order was cancelled and cannot be changed.
    Cancelled,
}

impl Status {
    /// Returns the name of the status in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Absent => "absent",
            Status::Draft => "draft",
            Status::Confirmed => "confirmed",
            Status::Cancelled => "cancelled",
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A line of an order: the pieces of one SKU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The SKU of the line.
    #[serde(deserialize_with = "Sku::deserialize_stored")]
    pub sku: Sku,
    /// Number of pieces. `decide` keeps it from 1 to [`Quantity::MAX`].
    pub quantity: u32,
    /// Price of one piece, in minor units.
    pub unit_price: i64,
    /// Name of the item, as given last.
    pub name: Option<Name>,
    /// Category of the item, as given last.
    pub category: Option<Category>,
}

impl Line {
    /// Returns price times quantity, in minor units. The result saturates at the limits of an i64.
    pub fn total(&self) -> i64 {
        self.unit_price.saturating_mul(self.quantity.into())
    }
}

// ---- commands ----

/// An item to add to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewItem {
    /// SKU of the item.
    pub sku: Sku,
    /// Number of pieces to add.
    pub quantity: Quantity,
    /// Price of one piece, in the currency of the order.
    pub unit_price: Amount,
    /// Name of the item, if known.
    pub name: Option<Name>,
    /// Category of the item, if known.
    pub category: Option<Category>,
}

/// An order of another system, as `docket import` reads it from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The customer who owns the order.
    pub customer_id: CustomerId,
    /// Currency of all prices of the order.
    pub currency: Currency,
    /// Free labels. Labels that the stored order has in addition are not compared.
    pub attributes: Attributes,
    /// The items, at most [`LINES_MAX`]. A name or category that is absent is not compared.
    pub items: Vec<NewItem>,
    /// The status that the order ends in.
    pub outcome: Outcome,
    /// Whether a stored draft that differs is changed until it is the same.
    pub update: bool,
}

/// The status in which an imported order ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The order stays a draft.
    Draft,
    /// The order is confirmed. It needs a line.
    Confirmed,
    /// The order is cancelled for a reason.
    Cancelled(Reason),
}

impl Outcome {
    fn status(&self) -> Status {
        match self {
            Outcome::Draft => Status::Draft,
            Outcome::Confirmed => Status::Confirmed,
            Outcome::Cancelled(_) => Status::Cancelled,
        }
    }
}

/// The commands of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Opens a draft with its first items. Either all items are accepted, or the order is not created.
    Create {
        /// The customer who owns the order.
        customer_id: CustomerId,
        /// Currency of all prices of the order.
        currency: Currency,
        /// Free labels.
        attributes: Attributes,
        /// The first items, at most [`LINES_MAX`]. May be empty.
        items: Vec<NewItem>,
    },
    /// Creates the order in its final status, or compares it with the stored one. Nothing changes when they are the
    /// same.
    Import(Box<Import>),
    /// Adds pieces of an item. If the order has a line of the SKU, the price must be the same.
    AddItem(NewItem),
    /// Sets the quantity of a line.
    ChangeQuantity {
        /// SKU of the line.
        sku: Sku,
        /// The new quantity of the line.
        quantity: Quantity,
    },
    /// Removes a line.
    RemoveItem {
        /// SKU of the line.
        sku: Sku,
    },
    /// Places the order, which must have a line.
    Confirm,
    /// Cancels the draft.
    Cancel {
        /// Reason that the client gave.
        reason: Reason,
    },
}

impl CommandType for Command {
    fn name(&self) -> &'static str {
        match self {
            Command::Create { .. } => "create",
            Command::Import(_) => "import",
            Command::AddItem(_) => "add_item",
            Command::ChangeQuantity { .. } => "change_quantity",
            Command::RemoveItem { .. } => "remove_item",
            Command::Confirm => "confirm",
            Command::Cancel { .. } => "cancel",
        }
    }

    fn creates(&self) -> bool {
        matches!(self, Command::Create { .. } | Command::Import(_))
    }
}

// ---- errors ----

/// The business rule that refused a command. A refused command changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `Create` was sent for an order that exists, in any status.
    #[error("an order with this id already exists")]
    AlreadyExists,
    /// The order was never created.
    #[error("there is no such order")]
    NotFound,
    /// The order is confirmed or cancelled.
    #[error("the order is {0} and cannot be changed")]
    NotDraft(Status),
    /// `Confirm` was sent for an order without lines.
    #[error("an order without lines cannot be confirmed")]
    Empty,
    /// The SKU is in the order at another price. Both prices are decimal texts in the currency of the order.
    #[error("SKU {sku} is in the order at a unit price of {first} and cannot be added at {given}")]
    PriceMismatch {
        /// SKU of the line.
        sku: Sku,
        /// Price of the line.
        first: String,
        /// Price in the command.
        given: String,
    },
    /// No line has this SKU.
    #[error("SKU {0} is not in the order")]
    ItemNotFound(Sku),
    /// The line would have more than [`Quantity::MAX`] pieces in total.
    #[error("the line of SKU {sku} would have more than {max} pieces", max = Quantity::MAX)]
    QuantityTooLarge {
        /// SKU of the line.
        sku: Sku,
    },
    /// The order would have more than [`LINES_MAX`] lines, or `Create` has more items than that.
    #[error("an order can have at most {LINES_MAX} lines")]
    TooManyLines,
    /// The total of the order would exceed [`TOTAL_MAX`].
    #[error("the total of the order would exceed {TOTAL_MAX} minor units")]
    TotalTooLarge,
    /// The price is not valid in the currency of the order.
    #[error(transparent)]
    Amount(values::Error),
    /// `Create` refused these items: each with its index, from 0, and the reason.
    #[error("refused items: {}{}", .0.len(), first_of(.0))]
    Items(Vec<(usize, Error)>),
    /// The imported order is not the stored one: a JSON pointer into the import, and a sentence, for each difference.
    #[error("the stored order differs from the imported one in {} {}", .0.len(), if .0.len() == 1 { "place" } else { "places" })]
    Differs(Vec<(String, String)>),
}

fn first_of(items: &[(usize, Error)]) -> String {
    items.first().map(|(index, error)| format!(", the first at index {index}: {error}")).unwrap_or_default()
}

const ALREADY_EXISTS: RefusalType = RefusalType {
    slug: "order-exists",
    class: RefusalClass::Conflict,
    title: "The order already exists",
    meaning: "An order with this id exists, in any status. Use another id, or change the order that exists.",
};
/// The order does not exist, or the caller may not see it.
pub const NOT_FOUND: RefusalType = RefusalType {
    slug: "order-not-found",
    class: RefusalClass::NotFound,
    title: "There is no such order",
    meaning: "The order does not exist, or you may not see it.",
};
const NOT_DRAFT: RefusalType = RefusalType {
    slug: "order-not-draft",
    class: RefusalClass::Rule,
    title: "The order is not a draft",
    meaning: "The order is confirmed or cancelled and cannot be changed. Create another order.",
};
const EMPTY: RefusalType = RefusalType {
    slug: "order-empty",
    class: RefusalClass::Rule,
    title: "The order has no lines",
    meaning: "An order without lines cannot be confirmed. Add an item first.",
};
const PRICE_MISMATCH: RefusalType = RefusalType {
    slug: "price-mismatch",
    class: RefusalClass::Rule,
    title: "The SKU has another price in the order",
    meaning: "A line of the order has the same SKU at another unit price. Send the price of the line, or remove the line first.",
};
/// The order has no item with the SKU.
pub const ITEM_NOT_FOUND: RefusalType = RefusalType {
    slug: "item-not-found",
    class: RefusalClass::Rule,
    title: "The order has no such item",
    meaning: "No line of the order has this SKU.",
};
const QUANTITY_TOO_LARGE: RefusalType = RefusalType {
    slug: "quantity-too-large",
    class: RefusalClass::Rule,
    title: "The quantity is too large",
    meaning: "The line would have more than 1000000 pieces.",
};
const TOO_MANY_LINES: RefusalType = RefusalType {
    slug: "too-many-lines",
    class: RefusalClass::Rule,
    title: "The order has too many lines",
    meaning: "An order can have at most 1000 lines. Split the order.",
};
const TOTAL_TOO_LARGE: RefusalType = RefusalType {
    slug: "total-too-large",
    class: RefusalClass::Rule,
    title: "The total is too large",
    meaning: "The total of the order would exceed the greatest amount that Docket stores. Split the order.",
};
const INVALID_AMOUNT: RefusalType = RefusalType {
    slug: "invalid-amount",
    class: RefusalClass::Rule,
    title: "The price is not valid in the currency",
    meaning: "The price has more decimals than the currency of the order allows, or is too large.",
};
const ITEMS_REJECTED: RefusalType = RefusalType {
    slug: "items-rejected",
    class: RefusalClass::Rule,
    title: "Some items were refused",
    meaning: "Some items of the new order are not allowed; `errors` names each. Nothing was written. Correct them and send the order again.",
};
const DIFFERS: RefusalType = RefusalType {
    slug: "order-differs",
    class: RefusalClass::Conflict,
    title: "The stored order differs",
    meaning: "The order is stored with other values; `errors` names each difference. Nothing was written.",
};

impl Refusal for Error {
    const TYPES: &'static [RefusalType] = &[
        ALREADY_EXISTS,
        NOT_FOUND,
        NOT_DRAFT,
        EMPTY,
        PRICE_MISMATCH,
        ITEM_NOT_FOUND,
        QUANTITY_TOO_LARGE,
        TOO_MANY_LINES,
        TOTAL_TOO_LARGE,
        INVALID_AMOUNT,
        ITEMS_REJECTED,
        DIFFERS,
    ];

    fn not_found() -> Self {
        Error::NotFound
    }

    fn refusal_type(&self) -> &'static RefusalType {
        match self {
            Error::AlreadyExists => &ALREADY_EXISTS,
            Error::NotFound => &NOT_FOUND,
            Error::NotDraft(_) => &NOT_DRAFT,
            Error::Empty => &EMPTY,
            Error::PriceMismatch { .. } => &PRICE_MISMATCH,
            Error::ItemNotFound(_) => &ITEM_NOT_FOUND,
            Error::QuantityTooLarge { .. } => &QUANTITY_TOO_LARGE,
            Error::TooManyLines => &TOO_MANY_LINES,
            Error::TotalTooLarge => &TOTAL_TOO_LARGE,
            Error::Amount(_) => &INVALID_AMOUNT,
            Error::Items(_) => &ITEMS_REJECTED,
            Error::Differs(_) => &DIFFERS,
        }
    }

    fn pointers(&self) -> Vec<(String, String)> {
        match self {
            Error::Items(items) => items
                .iter()
                .map(|(at, error)| {
                    let field = if matches!(error, Error::Amount(_)) { "/unit_price" } else { "" };
                    (format!("/items/{at}{field}"), error.to_string())
                })
                .collect(),
            Error::Amount(_) => vec![("/unit_price".to_owned(), self.to_string())],
            Error::Differs(differences) => differences.clone(),
            _ => Vec::new(),
        }
    }
}

// ---- the aggregate ----

/// Approximate size of a line in memory, in bytes.
const BYTES_PER_LINE: usize = 240;

impl Aggregate for Order {
    const TYPE: &'static str = "order";
    const STATE_VERSION: i64 = 1;
    const HISTORY: History = History::Bounded;
    const UPCASTERS: &'static [Upcaster] = UPCASTERS;
    type Event = Event;
    type Command = Command;
    type Error = Error;

    fn decide(&self, command: &Command) -> Result<Vec<Event>, Error> {
        match (self.status, command) {
            (Status::Absent, Command::Create { customer_id, currency, attributes, items }) => {
                let (customer_id, attributes) = (customer_id.clone(), attributes.clone());
                create(Event::OrderCreated { customer_id, currency: *currency, attributes }, items)
            }
            (_, Command::Create { .. }) => Err(Error::AlreadyExists),
            (_, Command::Import(import)) => self.import(import),
            (Status::Absent, _) => Err(Error::NotFound),
            (Status::Confirmed | Status::Cancelled, _) => Err(Error::NotDraft(self.status)),
            (Status::Draft, Command::AddItem(item)) => Ok(vec![self.add(item)?]),
            (Status::Draft, Command::ChangeQuantity { sku, quantity }) => self.change_quantity(sku, *quantity),
            (Status::Draft, Command::RemoveItem { sku }) => match self.line(sku) {
                Some(_) => Ok(vec![Event::ItemRemoved { sku: sku.clone() }]),
                None => Err(Error::ItemNotFound(sku.clone())),
            },
            (Status::Draft, Command::Confirm) if self.lines.is_empty() => Err(Error::Empty),
            (Status::Draft, Command::Confirm) => {
                Ok(vec![Event::OrderConfirmed { total: self.total, currency: self.currency }])
            }
            (Status::Draft, Command::Cancel { reason }) => Ok(vec![Event::OrderCancelled { reason: reason.clone() }]),
        }
    }

    fn evolve(&mut self, event: &Event) {
        match event {
            Event::OrderCreated { customer_id, currency, attributes } => {
                *self = Order {
                    status: Status::Draft,
                    customer_id: Some(customer_id.clone()),
                    currency: *currency,
                    attributes: attributes.clone(),
                    ..Order::default()
                };
            }
            Event::ItemAdded { sku, quantity, unit_price, name, category } => {
                let added = Line {
                    sku: sku.clone(),
                    quantity: quantity.get(),
                    unit_price: *unit_price,
                    name: name.clone(),
                    category: category.clone(),
                };
                self.merge(added);
            }
            Event::ItemQuantityChanged { sku, quantity } => {
                if let Some(line) = self.lines.iter_mut().find(|line| line.sku == *sku) {
                    line.quantity = quantity.get();
                }
            }
            Event::ItemRemoved { sku } => self.lines.retain(|line| line.sku != *sku),
            Event::OrderConfirmed { .. } => self.status = Status::Confirmed,
            Event::OrderCancelled { .. } => self.status = Status::Cancelled,
        }
        self.total = self.lines.iter().fold(0, |total, line| total.saturating_add(line.total()));
    }

    fn access(&self) -> Access<'_> {
        self.customer_id.as_ref().map_or(Access::Absent, |owner| Access::Owner(owner.as_str()))
    }

    fn weight(&self) -> usize {
        let attributes: usize = self.attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
        attributes + self.lines.len() * BYTES_PER_LINE
    }
}

impl Order {
    /// Returns the id of the owner; empty while the order is absent.
    pub fn owner(&self) -> &str {
        self.customer_id.as_ref().map_or("", |id| id.as_str())
    }

    /// Returns the number of pieces in all lines.
    pub fn quantity(&self) -> i64 {
        self.lines.iter().map(|line| i64::from(line.quantity)).sum()
    }

    /// Returns the `store_id` attribute, if there is one.
    pub fn store_id(&self) -> Option<&str> {
        self.attributes.get("store_id")
    }

    /// Whether the order was placed, and so counts as a sale.
    pub fn is_confirmed(&self) -> bool {
        self.status == Status::Confirmed
    }

    fn add(&self, item: &NewItem) -> Result<Event, Error> {
        let NewItem { sku, quantity, unit_price, name, category } = item;
        let unit_price = unit_price.minor(self.currency).map_err(Error::Amount)?;
        match self.line(sku) {
            Some(line) if line.unit_price != unit_price => {
                let [first, given] = [line.unit_price, unit_price].map(|minor| format_minor(minor, self.currency));
                return Err(Error::PriceMismatch { sku: sku.clone(), first, given });
            }
            Some(line) if line.quantity.saturating_add(quantity.get()) > Quantity::MAX => {
                return Err(Error::QuantityTooLarge { sku: sku.clone() });
            }
            None if self.lines.len() >= LINES_MAX => return Err(Error::TooManyLines),
            Some(_) | None => {}
        }
        self.check_total(0, unit_price.saturating_mul(quantity.get().into()))?;
        let (sku, name, category) = (sku.clone(), name.clone(), category.clone());
        Ok(Event::ItemAdded { sku, quantity: *quantity, unit_price, name, category })
    }

    fn change_quantity(&self, sku: &Sku, quantity: Quantity) -> Result<Vec<Event>, Error> {
        let Some(line) = self.line(sku) else {
            return Err(Error::ItemNotFound(sku.clone()));
        };
        if line.quantity == quantity.get() {
            return Ok(vec![]);
        }
        self.check_total(line.total(), line.unit_price.saturating_mul(quantity.get().into()))?;
        Ok(vec![Event::ItemQuantityChanged { sku: sku.clone(), quantity }])
    }

    /// Decides an `Import`: creates the order, or compares it with the stored one. With `update`, a draft gets the lines
    /// and the status of the import; what no event can change, such as the customer, remains a difference.
    fn import(&self, import: &Import) -> Result<Vec<Event>, Error> {
        let Import { customer_id, currency, attributes, items, outcome, update } = import;
        let created = Event::OrderCreated {
            customer_id: customer_id.clone(),
            currency: *currency,
            attributes: attributes.clone(),
        };
        let mut events = create(created, items)?;
        let mut wanted = Order::default();
        events.iter().for_each(|event| wanted.evolve(event));
        if *outcome == Outcome::Confirmed && wanted.lines.is_empty() {
            return Err(Error::Empty);
        }
        if self.status != Status::Absent {
            let mut differences = self.fixed_differences(&wanted);
            let can_update = *update && self.status == Status::Draft && differences.is_empty();
            differences.extend(self.line_differences(&wanted, items));
            let status = outcome.status();
            if self.status != status {
                differences.push(("/status".to_owned(), differs("The status", self.status, status)));
            }
            if differences.is_empty() {
                return Ok(vec![]);
            }
            if !can_update {
                return Err(Error::Differs(differences));
            }
            events = self.line_changes(&wanted).map_err(Error::Amount)?;
        }
        match outcome {
            Outcome::Draft => {}
            Outcome::Confirmed => events.push(Event::OrderConfirmed { total: wanted.total, currency: *currency }),
            Outcome::Cancelled(reason) => events.push(Event::OrderCancelled { reason: reason.clone() }),
        }
        Ok(events)
    }

    /// Returns the differences in what is fixed when an order is created.
    fn fixed_differences(&self, wanted: &Order) -> Vec<(String, String)> {
        let mut differences = Vec::new();
        if self.customer_id != wanted.customer_id {
            differences.push(("/customer_id".to_owned(), differs("The customer", self.owner(), wanted.owner())));
        }
        if self.currency != wanted.currency {
            differences.push(("/currency".to_owned(), differs("The currency", self.currency, wanted.currency)));
        }
        for (key, value) in wanted.attributes.iter() {
            let stored = self.attributes.get(key);
            if stored != Some(value) {
                let text = differs(&format!("Attribute {key}"), stored.unwrap_or("absent"), value);
                differences.push((format!("/attributes/{key}"), text));
            }
        }
        differences
    }

    /// Returns the differences between the lines. A pointer names the first item of the SKU.
    fn line_differences(&self, wanted: &Order, items: &[NewItem]) -> Vec<(String, String)> {
        let mut differences = Vec::new();
        for line in &wanted.lines {
            let at = items.iter().position(|item| item.sku == line.sku).unwrap_or_default();
            let Some(stored) = self.line(&line.sku) else {
                differences.push((format!("/items/{at}"), format!("SKU {} is not in the stored order.", line.sku)));
                continue;
            };
            let mut add = |field: &str, name: &str, stored: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display| {
                let text = differs(&format!("SKU {}: {name}", line.sku), stored, wanted);
                differences.push((format!("/items/{at}/{field}"), text));
            };
            if stored.quantity != line.quantity {
                add("quantity", "the quantity", &stored.quantity, &line.quantity);
            }
            if stored.unit_price != line.unit_price {
                let prices = [(stored, self), (line, wanted)];
                let [first, second] = prices.map(|(line, order)| format_minor(line.unit_price, order.currency));
                add("unit_price", "the unit price", &first, &second);
            }
            if let Some(name) = line.name.as_ref().filter(|name| stored.name.as_ref() != Some(name)) {
                add("name", "the name", &stored.name.as_ref().map_or("absent", Name::as_str), name);
            }
            if let Some(category) = line.category.as_ref().filter(|name| stored.category.as_ref() != Some(name)) {
                add("category", "the category", &stored.category.as_ref().map_or("absent", Category::as_str), category);
            }
        }
        let surplus = self.lines.iter().filter(|stored| wanted.line(&stored.sku).is_none());
        differences.extend(
            surplus.map(|line| ("/items".to_owned(), format!("SKU {} is in the stored order only.", line.sku))),
        );
        differences
    }

    /// Returns the events that give a draft the lines of `wanted`.
    fn line_changes(&self, wanted: &Order) -> Result<Vec<Event>, values::Error> {
        let removed = |line: &Line| Event::ItemRemoved { sku: line.sku.clone() };
        let surplus = self.lines.iter().filter(|stored| wanted.line(&stored.sku).is_none());
        let mut events: Vec<Event> = surplus.map(removed).collect();
        for line in &wanted.lines {
            let stored = self.line(&line.sku);
            let (sku, quantity, unit_price) = (line.sku.clone(), Quantity::try_from(line.quantity)?, line.unit_price);
            // What the import does not say stays as it is.
            let name = line.name.clone().or_else(|| stored?.name.clone());
            let category = line.category.clone().or_else(|| stored?.category.clone());
            match stored {
                Some(stored)
                    if stored.unit_price == unit_price && stored.name == name && stored.category == category =>
                {
                    if stored.quantity != line.quantity {
                        events.push(Event::ItemQuantityChanged { sku, quantity });
                    }
                }
                _ => {
                    events.extend(stored.map(removed));
                    events.push(Event::ItemAdded { sku, quantity, unit_price, name, category });
                }
            }
        }
        Ok(events)
    }

    fn check_total(&self, less: i64, more: i64) -> Result<(), Error> {
        let total = self.total.saturating_sub(less).saturating_add(more);
        if total > TOTAL_MAX { Err(Error::TotalTooLarge) } else { Ok(()) }
    }

    fn line(&self, sku: &Sku) -> Option<&Line> {
        self.lines.iter().find(|line| line.sku == *sku)
    }

    fn merge(&mut self, added: Line) {
        match self.lines.iter_mut().find(|line| line.sku == added.sku) {
            Some(line) => {
                line.quantity = line.quantity.saturating_add(added.quantity);
                line.unit_price = added.unit_price;
                line.name = added.name.or(line.name.take());
                line.category = added.category.or(line.category.take());
            }
            None => self.lines.push(added),
        }
    }
}

/// Returns a sentence about a value that differs.
fn differs(what: &str, stored: impl std::fmt::Display, wanted: impl std::fmt::Display) -> String {
    format!("{what} is {stored} in the stored order, and {wanted} in the import.")
}

/// Decides a `Create`. Items are applied to a draft one after the other, so that each item is checked against the items
/// before it. Every refused item is reported.
fn create(created: Event, items: &[NewItem]) -> Result<Vec<Event>, Error> {
    if items.len() > LINES_MAX {
        return Err(Error::TooManyLines);
    }
    let mut draft = Order::default();
    draft.evolve(&created);
    let (mut events, mut refused) = (vec![created], vec![]);
    for (index, item) in items.iter().enumerate() {
        match draft.add(item) {
            Ok(event) => {
                draft.evolve(&event);
                events.push(event);
            }
            Err(error) => refused.push((index, error)),
        }
    }
    if refused.is_empty() { Ok(events) } else { Err(Error::Items(refused)) }
}

// ---- tests: given these events, when this command, then these events or this refusal ----

#[cfg(test)]
mod tests {
    use super::*;
    use cqrs_es::test::{AggregateTestExecutor, TestFramework};
    use kernel::stock::{Stock, StockEvent};

    fn given(history: impl IntoIterator<Item = Event>) -> AggregateTestExecutor<Stock<Order>> {
        TestFramework::with(()).given(events(history))
    }

    fn events(events: impl IntoIterator<Item = Event>) -> Vec<StockEvent<Event>> {
        events.into_iter().map(StockEvent).collect()
    }

    fn import(items: Vec<NewItem>, outcome: Outcome, update: bool) -> Command {
        Command::Import(Box::new(Import {
            customer_id: "cy".parse().unwrap(),
            currency: currency("USD"),
            attributes: Attributes::default(),
            items,
            outcome,
            update,
        }))
    }

    #[test]
    fn an_import_creates_an_order_in_its_status() {
        let confirm = import(vec![item("tea", 2, "1.50")], Outcome::Confirmed, false);
        given([]).when(confirm).then_expect_events(events([created(), added("tea", 2, 150), confirmed(300)]));
        let reason: Reason = "changed my mind".parse().unwrap();
        let cancel = import(vec![item("tea", 2, "1.50")], Outcome::Cancelled(reason), false);
        given([]).when(cancel).then_expect_events(events([created(), added("tea", 2, 150), cancelled()]));
        given([]).when(import(vec![], Outcome::Draft, false)).then_expect_events(events([created()]));
        given([]).when(import(vec![], Outcome::Confirmed, false)).then_expect_error(Error::Empty);
    }

    #[test]
    fn a_repeated_import_changes_nothing() {
        let history = [created(), added("tea", 2, 150), confirmed(300)];
        let pieces = vec![item("tea", 1, "1.50"), item("tea", 1, "1.50")];
        given(history).when(import(pieces, Outcome::Confirmed, false)).then_expect_events(vec![]);
    }

    #[test]
    fn an_import_names_every_difference_of_a_final_order() {
        let history = [created(), added("tea", 2, 150), added("cup", 1, 100), confirmed(400)];
        let different = import(vec![item("pot", 1, "9.00"), item("tea", 3, "1.75")], Outcome::Draft, true);
        given(history).when(different).then_expect_error(Error::Differs(
            [
                ("/items/0", "SKU pot is not in the stored order."),
                ("/items/1/quantity", "SKU tea: the quantity is 2 in the stored order, and 3 in the import."),
                ("/items/1/unit_price", "SKU tea: the unit price is 1.50 in the stored order, and 1.75 in the import."),
                ("/items", "SKU cup is in the stored order only."),
                ("/status", "The status is confirmed in the stored order, and draft in the import."),
            ]
            .map(|(pointer, text)| (pointer.to_owned(), text.to_owned()))
            .to_vec(),
        ));
    }

    #[test]
    fn an_update_completes_a_draft() {
        let history = || [created(), added("tea", 2, 150), added("cup", 1, 100), added("jar", 1, 100)];
        let items = || vec![item("tea", 3, "1.50"), item("cup", 1, "2.00"), item("pot", 1, "9.00")];
        let mut state = Order::default();
        history().iter().for_each(|event| state.evolve(event));
        let refused = state.decide(&import(items(), Outcome::Confirmed, false));
        assert!(matches!(refused, Err(Error::Differs(differences)) if differences.len() == 5));
        let removed = |text: &str| Event::ItemRemoved { sku: sku(text) };
        given(history()).when(import(items(), Outcome::Confirmed, true)).then_expect_events(events([
            removed("jar"),
            changed("tea", 3),
            removed("cup"),
            added("cup", 1, 200),
            added("pot", 1, 900),
            confirmed(1550),
        ]));
        let foreign = Event::OrderCreated {
            customer_id: "bo".parse().unwrap(),
            currency: currency("USD"),
            attributes: Attributes::default(),
        };
        let differences = vec![(
            "/customer_id".to_owned(),
            "The customer is bo in the stored order, and cy in the import.".to_owned(),
        )];
        given([foreign]).when(import(vec![], Outcome::Draft, true)).then_expect_error(Error::Differs(differences));
    }

    fn currency(code: &str) -> Currency {
        code.parse().unwrap()
    }

    fn sku(text: &str) -> Sku {
        text.parse().unwrap()
    }

    fn pieces(quantity: u32) -> Quantity {
        quantity.try_into().unwrap()
    }

    fn item(text: &str, quantity: u32, price: &str) -> NewItem {
        NewItem {
            sku: sku(text),
            quantity: pieces(quantity),
            unit_price: price.parse().unwrap(),
            name: None,
            category: None,
        }
    }

    fn create_with(items: Vec<NewItem>) -> Command {
        Command::Create {
            customer_id: "cy".parse().unwrap(),
            currency: currency("USD"),
            attributes: Attributes::default(),
            items,
        }
    }

    fn created() -> Event {
        Event::OrderCreated {
            customer_id: "cy".parse().unwrap(),
            currency: currency("USD"),
            attributes: Attributes::default(),
        }
    }

    fn added(text: &str, quantity: u32, unit_price: i64) -> Event {
        Event::ItemAdded { sku: sku(text), quantity: pieces(quantity), unit_price, name: None, category: None }
    }

    fn change(text: &str, quantity: u32) -> Command {
        Command::ChangeQuantity { sku: sku(text), quantity: pieces(quantity) }
    }

    fn changed(text: &str, quantity: u32) -> Event {
        Event::ItemQuantityChanged { sku: sku(text), quantity: pieces(quantity) }
    }

    fn remove(text: &str) -> Command {
        Command::RemoveItem { sku: sku(text) }
    }

    fn cancel() -> Command {
        Command::Cancel { reason: "changed my mind".parse().unwrap() }
    }

    fn cancelled() -> Event {
        Event::OrderCancelled { reason: "changed my mind".parse().unwrap() }
    }

    fn confirmed(total: i64) -> Event {
        Event::OrderConfirmed { total, currency: currency("USD") }
    }

    fn every_command() -> [Command; 6] {
        [
            create_with(vec![]),
            Command::AddItem(item("tea", 1, "1")),
            change("tea", 2),
            remove("tea"),
            Command::Confirm,
            cancel(),
        ]
    }

    #[test]
    fn create_opens_a_draft() {
        given([]).when(create_with(vec![])).then_expect_events(events([created()]));
    }

    #[test]
    fn create_adds_its_items_and_merges_a_repeated_sku() {
        given([])
            .when(create_with(vec![item("tea", 2, "2.50"), item("rye", 1, "3"), item("tea", 1, "2.5")]))
            .then_expect_events(events([created(), added("tea", 2, 250), added("rye", 1, 300), added("tea", 1, 250)]));
    }

    #[test]
    fn create_reports_every_bad_item_with_its_index() {
        let items = vec![item("tea", 1, "2.50"), item("tea", 1, "2.60"), item("rye", 1, "3"), item("egg", 1, "0.255")];
        let mismatch = Error::PriceMismatch { sku: sku("tea"), first: "2.50".into(), given: "2.60".into() };
        let too_precise = Error::Amount(values::Error::TooPrecise { currency: currency("USD") });
        let refused = Error::Items(vec![(1, mismatch), (3, too_precise)]);
        assert!(refused.to_string().starts_with("refused items: 2, the first at index 1: SKU tea is in the order"));
        given([]).when(create_with(items)).then_expect_error(refused);
    }

    #[test]
    fn create_accepts_at_most_a_thousand_items() {
        let items = |count: usize| (0..count).map(|n| item(&n.to_string(), 1, "1")).collect();
        assert_eq!(Order::default().decide(&create_with(items(LINES_MAX))).unwrap().len(), LINES_MAX + 1);
        given([]).when(create_with(items(LINES_MAX + 1))).then_expect_error(Error::TooManyLines);
    }

    #[test]
    fn create_is_refused_whenever_the_order_exists() {
        given([created()]).when(create_with(vec![])).then_expect_error(Error::AlreadyExists);
        given([created(), cancelled()]).when(create_with(vec![])).then_expect_error(Error::AlreadyExists);
    }

    #[test]
    fn commands_other_than_create_need_an_order() {
        for command in every_command().into_iter().skip(1) {
            given([]).when(command).then_expect_error(Error::NotFound);
        }
    }

    #[test]
    fn a_confirmed_or_cancelled_order_cannot_change() {
        for command in every_command().into_iter().skip(1) {
            given([created(), added("tea", 1, 100), confirmed(100)])
                .when(command.clone())
                .then_expect_error(Error::NotDraft(Status::Confirmed));
            given([created(), added("tea", 1, 100), cancelled()])
                .when(command)
                .then_expect_error(Error::NotDraft(Status::Cancelled));
        }
    }

    #[test]
    fn add_item_creates_a_line_in_the_currency_of_the_order() {
        let named =
            NewItem { name: "Green tea".parse().ok(), category: "drinks".parse().ok(), ..item("tea", 3, "2.5") };
        given([created()]).when(Command::AddItem(named)).then_expect_events(events([Event::ItemAdded {
            sku: sku("tea"),
            quantity: pieces(3),
            unit_price: 250,
            name: "Green tea".parse().ok(),
            category: "drinks".parse().ok(),
        }]));
        given([created()])
            .when(Command::AddItem(item("tea", 1, "2.555")))
            .then_expect_error(Error::Amount(values::Error::TooPrecise { currency: currency("USD") }));
    }

    #[test]
    fn add_item_adds_to_a_line_only_at_the_same_price() {
        let history = [created(), added("tea", 2, 250)];
        given(history.clone())
            .when(Command::AddItem(item("tea", 3, "2.50")))
            .then_expect_events(events([added("tea", 3, 250)]));
        given(history)
            .when(Command::AddItem(item("tea", 3, "2.51")))
            .then_expect_error_message("SKU tea is in the order at a unit price of 2.50 and cannot be added at 2.51");
    }

    #[test]
    fn add_item_enforces_the_limits_of_line_order_and_total() {
        given([created(), added("tea", Quantity::MAX, 1)])
            .when(Command::AddItem(item("tea", 1, "0.01")))
            .then_expect_error(Error::QuantityTooLarge { sku: sku("tea") });
        let full = (0..LINES_MAX).map(|n| added(&n.to_string(), 1, 1));
        let full: Vec<_> = std::iter::once(created()).chain(full).collect();
        given(full.clone()).when(Command::AddItem(item("tea", 1, "1"))).then_expect_error(Error::TooManyLines);
        given(full).when(Command::AddItem(item("7", 1, "0.01"))).then_expect_events(events([added("7", 1, 1)]));
        given([created(), added("tea", 10_000, 100_000_000_000)])
            .when(Command::AddItem(item("rye", 1, "0.01")))
            .then_expect_error(Error::TotalTooLarge);
    }

    #[test]
    fn change_quantity_sets_a_line_and_writes_nothing_if_unchanged() {
        let history = [created(), added("tea", 2, 250)];
        given(history.clone()).when(change("tea", 5)).then_expect_events(events([changed("tea", 5)]));
        given(history.clone()).when(change("tea", 2)).then_expect_events(events([]));
        given(history).when(change("rye", 2)).then_expect_error(Error::ItemNotFound(sku("rye")));
        given([created(), added("tea", 10_000, 100_000_000_000)])
            .when(change("tea", 10_001))
            .then_expect_error(Error::TotalTooLarge);
    }

    #[test]
    fn remove_item_removes_a_line_once() {
        let history = [created(), added("tea", 2, 250)];
        let removed = Event::ItemRemoved { sku: sku("tea") };
        given(history.clone()).when(remove("tea")).then_expect_events(events([removed.clone()]));
        given(history).and(events([removed])).when(remove("tea")).then_expect_error(Error::ItemNotFound(sku("tea")));
    }

    #[test]
    fn a_removed_item_can_be_added_again_at_another_price() {
        given([created(), added("tea", 2, 250), Event::ItemRemoved { sku: sku("tea") }])
            .when(Command::AddItem(item("tea", 1, "9.99")))
            .then_expect_events(events([added("tea", 1, 999)]));
    }

    #[test]
    fn confirm_requires_a_line_and_records_the_total() {
        given([created(), added("tea", 2, 250), added("rye", 1, 300)])
            .when(Command::Confirm)
            .then_expect_events(events([confirmed(800)]));
        given([created()]).when(Command::Confirm).then_expect_error(Error::Empty);
        given([created(), added("tea", 2, 250), Event::ItemRemoved { sku: sku("tea") }])
            .when(Command::Confirm)
            .then_expect_error(Error::Empty);
    }

    #[test]
    fn a_draft_can_be_cancelled() {
        given([created()]).when(cancel()).then_expect_events(events([cancelled()]));
        given([created(), added("tea", 2, 250)]).when(cancel()).then_expect_events(events([cancelled()]));
    }

    #[test]
    fn the_latest_name_replaces_the_earlier_one() {
        let mut order = Order::default();
        let named = |name: &str| Event::ItemAdded {
            sku: sku("tea"),
            quantity: pieces(1),
            unit_price: 250,
            name: name.parse().ok(),
            category: None,
        };
        for event in [created(), named("Tea"), named(""), named("Green tea"), named("")] {
            order.evolve(&event);
        }
        assert_eq!(order.lines[0].name.as_ref().map(Name::as_str), Some("Green tea"));
        assert_eq!((order.lines[0].quantity, order.total), (4, 1000));
    }
}
