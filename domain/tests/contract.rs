//! Names and texts of the rules that clients see. They are part of the API: a change here breaks clients.

use std::collections::BTreeMap;

use domain::order::{Command, Error, Event, Import, NewItem, Order, Outcome, Status, TOTAL_MAX};
use domain::values::{self, Amount, Attributes, Currency, Quantity};
use kernel::aggregate::{Access, Aggregate, CommandType, Refusal, RefusalClass};

fn item() -> NewItem {
    NewItem {
        sku: "tea".parse().unwrap(),
        quantity: Quantity::try_from(1_u32).unwrap(),
        unit_price: "1".parse().unwrap(),
        name: None,
        category: None,
    }
}

#[test]
fn commands_have_these_names_and_two_create() {
    let (sku, quantity) = (item().sku, item().quantity);
    let create = Command::Create {
        customer_id: "ada".parse().unwrap(),
        currency: "USD".parse().unwrap(),
        attributes: Attributes::default(),
        items: vec![item()],
    };
    let import = Command::Import(Box::new(Import {
        customer_id: "ada".parse().unwrap(),
        currency: "USD".parse().unwrap(),
        attributes: Attributes::default(),
        items: vec![item()],
        outcome: Outcome::Confirmed,
        update: false,
    }));
    let commands = [
        (create, "create"),
        (import, "import"),
        (Command::AddItem(item()), "add_item"),
        (Command::ChangeQuantity { sku: sku.clone(), quantity }, "change_quantity"),
        (Command::RemoveItem { sku }, "remove_item"),
        (Command::Confirm, "confirm"),
        (Command::Cancel { reason: "late".parse().unwrap() }, "cancel"),
    ];
    for (command, name) in commands {
        assert_eq!((command.name(), command.creates()), (name, ["create", "import"].contains(&name)));
    }
}

#[test]
fn statuses_have_these_names() {
    let names = [Status::Absent, Status::Draft, Status::Confirmed, Status::Cancelled].map(Status::as_str);
    assert_eq!(names, ["absent", "draft", "confirmed", "cancelled"]);
}

/// An amount with too many decimals for its currency.
fn amount_error() -> values::Error {
    let (amount, currency): (Amount, Currency) = ("1.005".parse().unwrap(), "USD".parse().unwrap());
    amount.minor(currency).unwrap_err()
}

#[test]
fn refusals_have_these_types_classes_titles_and_texts() {
    use RefusalClass::{Conflict, NotFound, Rule};
    let sku = item().sku;
    let price = |first: &str, given: &str| Error::PriceMismatch {
        sku: item().sku,
        first: first.to_owned(),
        given: given.to_owned(),
    };
    let refusals = [
        (
            Error::Differs(vec![("/items".to_owned(), "SKU tea is in the stored order only.".to_owned())]),
            "order-differs",
            Conflict,
            "The stored order differs",
            "the stored order differs from the imported one in 1 place",
        ),
        (
            Error::AlreadyExists,
            "order-exists",
            Conflict,
            "The order already exists",
            "an order with this id already exists",
        ),
        (Error::NotFound, "order-not-found", NotFound, "There is no such order", "there is no such order"),
        (
            Error::NotDraft(Status::Confirmed),
            "order-not-draft",
            Rule,
            "The order is not a draft",
            "the order is confirmed and cannot be changed",
        ),
        (Error::Empty, "order-empty", Rule, "The order has no lines", "an order without lines cannot be confirmed"),
        (
            price("1.00", "2.00"),
            "price-mismatch",
            Rule,
            "The SKU has another price in the order",
            "SKU tea is in the order at a unit price of 1.00 and cannot be added at 2.00",
        ),
        (
            Error::ItemNotFound(sku.clone()),
            "item-not-found",
            Rule,
            "The order has no such item",
            "SKU tea is not in the order",
        ),
        (
            Error::QuantityTooLarge { sku },
            "quantity-too-large",
            Rule,
            "The quantity is too large",
            "the line of SKU tea would have more than 1000000 pieces",
        ),
        (
            Error::TooManyLines,
            "too-many-lines",
            Rule,
            "The order has too many lines",
            "an order can have at most 1000 lines",
        ),
        (
            Error::TotalTooLarge,
            "total-too-large",
            Rule,
            "The total is too large",
            "the total of the order would exceed 1000000000000000 minor units",
        ),
        (
            Error::Amount(amount_error()),
            "invalid-amount",
            Rule,
            "The price is not valid in the currency",
            "an amount in USD must have at most 2 decimals, such as \"2.55\"",
        ),
        (
            Error::Items(vec![(3, Error::Empty)]),
            "items-rejected",
            Rule,
            "Some items were refused",
            "refused items: 1, the first at index 3: an order without lines cannot be confirmed",
        ),
    ];
    for (error, slug, class, title, text) in refusals {
        let refusal = error.refusal_type();
        assert_eq!(
            (refusal.slug, refusal.class, refusal.title, error.to_string().as_str()),
            (slug, class, title, text)
        );
        assert!(Error::TYPES.contains(refusal), "{slug} is missing in the list");
    }
}

#[test]
fn refusals_point_at_the_members_of_the_body() {
    let amount = || Error::Amount(amount_error());
    let text = amount().to_string();
    let items = Error::Items(vec![(0, Error::Empty), (7, amount())]);
    let expected = [("/items/0", Error::Empty.to_string()), ("/items/7/unit_price", text.clone())];
    assert_eq!(items.pointers(), expected.map(|(pointer, text)| (pointer.to_owned(), text)));
    assert_eq!(amount().pointers(), [("/unit_price".to_owned(), text)]);
    assert_eq!(Error::Empty.pointers(), []);
}

#[test]
fn the_state_has_the_values_of_its_events() {
    let mut order = Order::default();
    assert_eq!((order.owner(), order.access(), order.weight()), ("", Access::Absent, 0));
    let attributes: BTreeMap<String, String> = BTreeMap::from([("store_id".to_owned(), "17".to_owned())]);
    let attributes = Attributes::try_from(attributes).unwrap();
    let currency: Currency = "JPY".parse().unwrap();
    order.evolve(&Event::OrderCreated {
        customer_id: "ada".parse().unwrap(),
        currency,
        attributes: attributes.clone(),
    });
    assert_eq!((order.owner(), order.access()), ("ada", Access::Owner("ada")));
    assert_eq!((order.currency, &order.attributes, order.store_id()), (currency, &attributes, Some("17")));
    assert_eq!((order.quantity(), order.is_confirmed(), order.weight()), (0, false, "store_id17".len()));
    for (sku, quantity) in [("tea", 2_u32), ("rye", 3), ("tea", 4)] {
        order.evolve(&Event::ItemAdded {
            sku: sku.parse().unwrap(),
            quantity: quantity.try_into().unwrap(),
            unit_price: 5,
            name: None,
            category: None,
        });
    }
    // Two lines, 240 bytes each.
    assert_eq!((order.quantity(), order.total, order.weight()), (9, 45, 490));
    order.evolve(&Event::OrderConfirmed { total: 45, currency });
    assert!(order.is_confirmed());
}

#[test]
fn limits_allow_their_largest_value() {
    let line = |quantity: u32, price: &str| NewItem {
        quantity: quantity.try_into().unwrap(),
        unit_price: price.parse().unwrap(),
        ..item()
    };
    let draft = |item: NewItem| {
        let mut order = Order::default();
        let (customer_id, currency) = ("ada".parse().unwrap(), "USD".parse().unwrap());
        let attributes = Attributes::default();
        let create = Command::Create { customer_id, currency, attributes, items: vec![item] };
        order.decide(&create).unwrap().iter().for_each(|event| order.evolve(event));
        order
    };
    // A line of the largest quantity.
    let almost = draft(line(Quantity::MAX - 1, "0.01"));
    assert!(almost.decide(&Command::AddItem(line(1, "0.01"))).is_ok());
    assert!(matches!(almost.decide(&Command::AddItem(line(2, "0.01"))), Err(Error::QuantityTooLarge { .. })));
    // An order of the largest total: 10,000,000,000,000.00.
    let largest = draft(line(1_000_000, "10000000.00"));
    assert_eq!(largest.total, TOTAL_MAX);
    let more = NewItem { sku: "rye".parse().unwrap(), ..line(1, "0.01") };
    assert_eq!(largest.decide(&Command::AddItem(more)), Err(Error::TotalTooLarge));
}

#[test]
fn currencies_and_attributes_are_read_as_they_are_sent() {
    let yen: Currency = serde_json::from_str(r#""JPY""#).unwrap();
    assert_eq!((yen.as_str(), yen.minor_digits()), ("JPY", 0));
    let entries = |count: usize| (0..count).map(|number| (format!("key-{number}"), "value".to_owned()));
    assert!(Attributes::try_from(entries(Attributes::ENTRIES_MAX).collect::<BTreeMap<_, _>>()).is_ok());
    let error = Attributes::try_from(entries(Attributes::ENTRIES_MAX + 1).collect::<BTreeMap<_, _>>()).unwrap_err();
    assert!(error.to_string().contains("21"), "{error}");
}
