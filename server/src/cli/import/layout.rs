//! Layouts: which column of a file has which field of an order, and what the values of its status column mean.

use std::collections::HashMap;

use clap::ValueEnum;

/// A layout that is known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// The columns are named like the fields.
    Docket,
    /// The export of orders of Shopify.
    Shopify,
    /// The export of WooCommerce's Customer/Order/Coupon Export with one row for each line item.
    Woocommerce,
}

/// A field of an order, or of one of its items.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Field {
    /// Id of the order.
    OrderRef,
    /// Id of the customer.
    CustomerRef,
    /// When the order was placed.
    PlacedAt,
    /// Status of the order, see [`Meaning`].
    Status,
    /// When the order was cancelled; an order with a value here is cancelled.
    CancelledAt,
    /// Reason of the cancellation.
    CancelReason,
    /// ISO 4217 code.
    Currency,
    /// SKU of the item.
    Sku,
    /// Name of the item.
    ProductName,
    /// Category of the item.
    Department,
    /// Pieces of the item.
    Quantity,
    /// Price of one piece.
    UnitPrice,
    /// Price of all pieces of the line.
    LineTotal,
    /// A label of the order.
    Attribute(String),
}

/// The names of the fields, except the attributes.
const NAMES: [(&str, Field); 13] = [
    ("order_ref", Field::OrderRef),
    ("customer_ref", Field::CustomerRef),
    ("placed_at", Field::PlacedAt),
    ("status", Field::Status),
    ("cancelled_at", Field::CancelledAt),
    ("cancel_reason", Field::CancelReason),
    ("currency", Field::Currency),
    ("sku", Field::Sku),
    ("product_name", Field::ProductName),
    ("department", Field::Department),
    ("quantity", Field::Quantity),
    ("unit_price", Field::UnitPrice),
    ("line_total", Field::LineTotal),
];

impl Field {
    /// Finds a field by its name: `sku`, `store_id`, `attributes.channel`.
    ///
    /// # Errors
    /// A sentence that lists the names.
    pub fn named(name: &str) -> Result<Self, String> {
        if name == "store_id" {
            return Ok(Self::Attribute(name.to_owned()));
        }
        if let Some(key) = name.strip_prefix("attributes.").filter(|key| !key.is_empty()) {
            return Ok(Self::Attribute(key.to_owned()));
        }
        NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, field)| field).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("`{name}` is not a field. The fields are {}, store_id and attributes.NAME.", names.join(", "))
        })
    }

    /// Returns the name of the field.
    pub fn name(&self) -> String {
        match self {
            Self::Attribute(key) if key == "store_id" => key.clone(),
            Self::Attribute(key) => format!("attributes.{key}"),
            other => {
                NAMES.iter().find(|(_, field)| field == other).map_or_else(String::new, |(name, _)| (*name).to_owned())
            }
        }
    }
}

/// What the import does with an order of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The order is imported as a draft.
    Draft,
    /// The order is imported as confirmed.
    Confirmed,
    /// The order is imported as cancelled.
    Cancelled,
    /// The order is not imported.
    Skip,
}

impl Meaning {
    /// Returns the status in a command.
    pub fn status(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Confirmed => "confirmed",
            Self::Cancelled => "cancelled",
            Self::Skip => "skip",
        }
    }
}

/// A field, and the columns that can have it. The first one that has a value counts.
#[derive(Debug, Clone)]
struct Mapped {
    field: Field,
    columns: Vec<String>,
    /// Whether the user named the columns. They must be in the file then.
    is_given: bool,
}

/// The layout of a file.
#[derive(Debug, Clone)]
pub struct Layout {
    preset: Preset,
    mapped: Vec<Mapped>,
    statuses: HashMap<String, Meaning>,
    needs_customer: bool,
}

/// Indices of columns, for each field that the file has.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// The indices of each field, in the order in which they are tried.
    fields: Vec<(Field, Vec<usize>)>,
    /// The attributes that the file has, with their indices.
    pub attributes: Vec<(String, Vec<usize>)>,
    /// The names of columns that no field uses.
    pub unused: Vec<String>,
}

impl Columns {
    /// Returns the indices of a field; empty when the file does not have it.
    pub fn of(&self, wanted: &Field) -> Vec<usize> {
        self.fields.iter().find(|(field, _)| field == wanted).map(|(_, at)| at.clone()).unwrap_or_default()
    }
}

impl Layout {
    /// Creates the layout of a preset, changed by `--map` and `--status-map`.
    ///
    /// # Errors
    /// A sentence about a name that is unknown.
    pub fn new(
        preset: Preset,
        map: &[(String, String)],
        status_map: &[(String, String)],
        needs_customer: bool,
    ) -> Result<Self, String> {
        let mut mapped: Vec<Mapped> = Vec::new();
        for (name, columns) in preset_columns(preset) {
            mapped.push(Mapped { field: Field::named(name)?, columns: split(columns), is_given: false });
        }
        for (name, columns) in map {
            let field = Field::named(name)?;
            // A price of the line and a price of a piece exclude each other: the one that is named counts.
            let is_price = |field: &Field| matches!(field, Field::UnitPrice | Field::LineTotal);
            mapped.retain(|other| {
                other.field != field && (other.is_given || !is_price(&other.field) || !is_price(&field))
            });
            mapped.push(Mapped { field, columns: split(columns), is_given: true });
        }
        let mut statuses: HashMap<String, Meaning> = HashMap::new();
        let known = preset_statuses(preset).iter().map(|(value, meaning)| ((*value).to_owned(), *meaning));
        statuses.extend(known);
        for (value, meaning) in status_map {
            let meaning = match meaning.as_str() {
                "draft" => Meaning::Draft,
                "confirmed" => Meaning::Confirmed,
                "cancelled" => Meaning::Cancelled,
                "skip" => Meaning::Skip,
                other => return Err(format!("`{other}` must be draft, confirmed, cancelled or skip.")),
            };
            statuses.insert(normal_status(value), meaning);
        }
        Ok(Self { preset, mapped, statuses, needs_customer })
    }

    /// Returns the names of all columns that fields can use.
    pub fn column_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.mapped.iter().flat_map(|mapped| &mapped.columns) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// Counts the fields that have a column among these names.
    pub fn matches(&self, names: &[&str]) -> usize {
        self.mapped.iter().filter(|mapped| mapped.columns.iter().any(|column| find(names, column).is_some())).count()
    }

    /// Finds the columns of the fields among the names of a file.
    ///
    /// # Errors
    /// A sentence about a column that is missing, or that is there twice.
    pub fn columns(&self, names: &[&str]) -> Result<Columns, String> {
        let mut found = Columns::default();
        let mut used = vec![false; names.len()];
        for Mapped { field, columns, is_given } in &self.mapped {
            let mut at = Vec::new();
            for column in columns {
                let Some(first) = find(names, column) else { continue };
                if names.iter().skip(first + 1).any(|name| name.trim() == names[first].trim()) {
                    return Err(format!("The column `{column}` is there twice. Give one of the columns another name."));
                }
                used[first] = true;
                at.push(first);
            }
            if at.is_empty() {
                if *is_given {
                    return Err(missing(field, columns, names));
                }
                continue;
            }
            match field {
                Field::Attribute(key) => found.attributes.push((key.clone(), at)),
                _ => found.fields.push((field.clone(), at)),
            }
        }
        let has = |field: &Field| found.fields.iter().any(|(other, _)| other == field);
        let mut required = vec![Field::OrderRef, Field::Sku, Field::Quantity];
        if !has(&Field::LineTotal) {
            required.push(Field::UnitPrice);
        }
        if self.needs_customer {
            required.push(Field::CustomerRef);
        }
        if let Some(field) = required.iter().find(|field| !has(field)) {
            let mapped = self.mapped.iter().find(|mapped| mapped.field == *field);
            return Err(missing(field, mapped.map_or(&[][..], |mapped| mapped.columns.as_slice()), names));
        }
        let unused = names.iter().zip(&used).filter(|(name, used)| !**used && !name.trim().is_empty());
        // A file that `--rejects` has written can be imported again.
        found.unused = unused.map(|(name, _)| name.trim().to_owned()).filter(|name| name != "reason").collect();
        Ok(found)
    }

    /// Returns what the import does with an order of this status. No status means that the order was placed.
    ///
    /// # Errors
    /// A sentence about a value that is unknown.
    pub fn meaning(&self, status: Option<&str>) -> Result<Meaning, String> {
        let Some(status) = status else { return Ok(Meaning::Confirmed) };
        self.statuses.get(&normal_status(status)).copied().ok_or_else(|| {
            format!(
                "status: `{status}` is unknown. Say what it means with --status-map '{status}=confirmed' (or draft, \
                 cancelled, skip)."
            )
        })
    }

    /// Returns the text of a field as Docket uses it. `None` when it is empty.
    pub fn value<'a>(&self, field: &Field, text: &'a str) -> Option<&'a str> {
        let text = text.trim();
        match (self.preset, field) {
            // Shopify names orders #1001.
            (Preset::Shopify, Field::OrderRef) => Some(text.strip_prefix('#').unwrap_or(text)),
            // Orders of guests have the customer 0.
            (Preset::Woocommerce, Field::CustomerRef) if text == "0" => None,
            _ => Some(text),
        }
        .filter(|text| !text.is_empty())
    }
}

fn split(columns: &str) -> Vec<String> {
    columns.split('|').map(|column| column.trim().to_owned()).filter(|column| !column.is_empty()).collect()
}

fn normal_status(text: &str) -> String {
    let text = text.trim().to_lowercase().replace([' ', '_'], "-");
    text.strip_prefix("wc-").unwrap_or(&text).to_owned()
}

/// Finds a column: by its exact name, otherwise without regard to case.
fn find(names: &[&str], column: &str) -> Option<usize> {
    let exact = names.iter().position(|name| name.trim() == column);
    exact.or_else(|| names.iter().position(|name| name.trim().eq_ignore_ascii_case(column)))
}

fn missing(field: &Field, columns: &[String], names: &[&str]) -> String {
    let columns: Vec<_> = columns.iter().map(|column| format!("`{column}`")).collect();
    let what = match columns.as_slice() {
        [] => format!("A column for {} is missing.", field.name()),
        [column] => format!("The column {column} ({}) is missing.", field.name()),
        columns => format!("A column for {} is missing: one of {}.", field.name(), columns.join(", ")),
    };
    let names: Vec<_> = names.iter().map(|name| name.trim()).collect();
    format!(
        "{what} The file has the columns {}. Name another one with --map {}=COLUMN.",
        names.join(", "),
        field.name()
    )
}

/// The columns of a preset. They are found by their names, so that other columns and another order do not matter.
fn preset_columns(preset: Preset) -> &'static [(&'static str, &'static str)] {
    match preset {
        Preset::Docket => &[
            ("order_ref", "order_ref"),
            ("customer_ref", "customer_ref"),
            ("store_id", "store_id"),
            ("placed_at", "placed_at"),
            ("status", "status"),
            ("cancelled_at", "cancelled_at"),
            ("cancel_reason", "cancel_reason"),
            ("currency", "currency"),
            ("sku", "sku"),
            ("product_name", "product_name"),
            ("department", "department"),
            ("quantity", "quantity"),
            ("unit_price", "unit_price"),
            ("line_total", "line_total"),
        ],
        Preset::Shopify => &[
            ("order_ref", "Name"),
            ("customer_ref", "Email|Phone|Billing Name"),
            ("placed_at", "Created at"),
            ("status", "Financial Status"),
            ("cancelled_at", "Cancelled at"),
            ("currency", "Currency"),
            ("sku", "Lineitem sku|Lineitem name"),
            ("product_name", "Lineitem name"),
            ("quantity", "Lineitem quantity"),
            ("unit_price", "Lineitem price"),
            ("store_id", "Location"),
            ("attributes.source", "Source"),
        ],
        Preset::Woocommerce => &[
            ("order_ref", "order_number_formatted|order_number|order_id"),
            ("customer_ref", "customer_id|billing_email"),
            ("placed_at", "date|order_date"),
            ("status", "status"),
            ("currency", "order_currency"),
            ("sku", "item_sku|item_product_id|item_name"),
            ("product_name", "item_name"),
            ("quantity", "item_quantity"),
            ("line_total", "item_total"),
        ],
    }
}

fn preset_statuses(preset: Preset) -> &'static [(&'static str, Meaning)] {
    use Meaning::{Cancelled, Confirmed, Draft};
    match preset {
        Preset::Docket => {
            &[("draft", Draft), ("confirmed", Confirmed), ("cancelled", Cancelled), ("canceled", Cancelled)]
        }
        // The financial status. Each order of an export was placed; a draft order of Shopify is not part of it.
        Preset::Shopify => &[
            ("pending", Confirmed),
            ("authorized", Confirmed),
            ("partially-paid", Confirmed),
            ("paid", Confirmed),
            ("partially-refunded", Confirmed),
            ("refunded", Cancelled),
            ("voided", Cancelled),
            ("expired", Cancelled),
        ],
        Preset::Woocommerce => &[
            ("draft", Draft),
            ("checkout-draft", Draft),
            ("pending", Draft),
            ("on-hold", Draft),
            ("processing", Confirmed),
            ("completed", Confirmed),
            ("cancelled", Cancelled),
            ("refunded", Cancelled),
            ("failed", Cancelled),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(preset: Preset, map: &[(&str, &str)]) -> Result<Layout, String> {
        let map: Vec<_> = map.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Layout::new(preset, &map, &[], true)
    }

    #[test]
    fn columns_are_found_by_name_and_others_are_named() {
        let layout = layout(Preset::Docket, &[("order_ref", "Order No|Id"), ("line_total", "Sum")]).unwrap();
        let names = ["Extra", "id", "sku", "QUANTITY", "Sum", "customer_ref", "reason"];
        let columns = layout.columns(&names).unwrap();
        assert_eq!(columns.of(&Field::OrderRef), [1]);
        assert_eq!(columns.of(&Field::Quantity), [3]);
        assert_eq!(columns.of(&Field::UnitPrice), [0_usize; 0]);
        assert_eq!(columns.unused, ["Extra"]);
        let error = layout.columns(&["id", "sku", "quantity", "customer_ref"]).unwrap_err();
        assert!(
            error.starts_with("The column `Sum` (line_total) is missing. The file has the columns id, sku"),
            "{error}"
        );
        let error = layout.columns(&["id", "id", "sku"]).unwrap_err();
        assert!(error.contains("there twice"), "{error}");
    }

    #[test]
    fn an_unknown_field_lists_the_fields() {
        let error = layout(Preset::Docket, &[("order", "x")]).unwrap_err();
        assert!(error.contains("`order` is not a field") && error.contains("order_ref, customer_ref"), "{error}");
    }

    #[test]
    fn statuses_have_the_meaning_of_the_preset_or_the_user() {
        let status_map =
            [("In Transit".to_owned(), "confirmed".to_owned()), ("refunded".to_owned(), "skip".to_owned())];
        let layout = Layout::new(Preset::Woocommerce, &[], &status_map, true).unwrap();
        assert_eq!(layout.meaning(Some("wc-on-hold")), Ok(Meaning::Draft));
        assert_eq!(layout.meaning(Some("in_transit")), Ok(Meaning::Confirmed));
        assert_eq!(layout.meaning(Some("Refunded")), Ok(Meaning::Skip));
        assert_eq!(layout.meaning(None), Ok(Meaning::Confirmed));
        assert!(layout.meaning(Some("lost")).unwrap_err().contains("--status-map 'lost=confirmed'"));
    }

    #[test]
    fn presets_know_their_spellings() {
        let shopify = layout(Preset::Shopify, &[]).unwrap();
        assert_eq!(shopify.value(&Field::OrderRef, " #1001 "), Some("1001"));
        let woo = layout(Preset::Woocommerce, &[]).unwrap();
        assert_eq!((woo.value(&Field::CustomerRef, "0"), woo.value(&Field::OrderRef, "0")), (None, Some("0")));
    }
}
