//! Properties that hold for every order, for any commands and events in any sequence.

use domain::order::{Command, Error, Event, LINES_MAX, Line, NewItem, Order, Status, TOTAL_MAX};
use domain::values::{Amount, Attributes, Category, Currency, CustomerId, Name, Quantity, Reason, Sku};
use kernel::aggregate::{Aggregate, Refusal};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

// Few SKUs and prices, so that commands affect the same lines: repeated items, other prices, too many decimals, the
// largest price.

fn sku() -> impl Strategy<Value = Sku> {
    select(vec!["tea", "rye", "egg", "a.b-c_1"]).prop_map(|text| text.parse().unwrap())
}

fn quantity() -> impl Strategy<Value = Quantity> {
    prop_oneof![6 => 1..5_u32, 1 => 1..=Quantity::MAX, 1 => Just(Quantity::MAX)].prop_map(|n| n.try_into().unwrap())
}

fn amount() -> impl Strategy<Value = Amount> {
    prop_oneof![
        8 => select(vec!["1", "1", "1", "2.50", "0", "2.555", "1000000000"]).prop_map(str::to_owned),
        1 => "[0-9]{1,9}(\\.[0-9]{1,3})?",
    ]
    .prop_map(|text| text.parse().unwrap())
}

fn currency() -> impl Strategy<Value = Currency> {
    select(vec!["USD", "JPY", "KWD"]).prop_map(|code| code.parse().unwrap())
}

fn name() -> impl Strategy<Value = Option<Name>> {
    option::of("[a-zé]{1,9}".prop_map(|text| text.parse().unwrap()))
}

fn category() -> impl Strategy<Value = Option<Category>> {
    option::of(select(vec!["dairy", "bread"]).prop_map(|text| text.parse().unwrap()))
}

fn reason() -> impl Strategy<Value = Reason> {
    "[a-z]{1,9}".prop_map(|text| text.parse().unwrap())
}

fn customer_id() -> impl Strategy<Value = CustomerId> {
    "[A-Za-z0-9_|@:/.-]{3,64}".prop_map(|text| text.parse().unwrap())
}

fn attributes() -> impl Strategy<Value = Attributes> {
    btree_map("[a-z_.]{1,40}", "[^\\p{Cc}]{0,20}", 0..4).prop_map(|entries| entries.try_into().unwrap())
}

fn new_item() -> impl Strategy<Value = NewItem> {
    (sku(), quantity(), amount(), name(), category()).prop_map(|(sku, quantity, unit_price, name, category)| NewItem {
        sku,
        quantity,
        unit_price,
        name,
        category,
    })
}

fn create() -> impl Strategy<Value = Command> {
    (customer_id(), currency(), attributes(), vec(new_item(), 0..3)).prop_map(
        |(customer_id, currency, attributes, items)| Command::Create { customer_id, currency, attributes, items },
    )
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        3 => create(),
        12 => new_item().prop_map(Command::AddItem),
        5 => (sku(), quantity()).prop_map(|(sku, quantity)| Command::ChangeQuantity { sku, quantity }),
        3 => sku().prop_map(|sku| Command::RemoveItem { sku }),
        1 => Just(Command::Confirm),
        1 => reason().prop_map(|reason| Command::Cancel { reason }),
    ]
}

/// Events that `decide` would never write, in a sequence that it would never write.
fn wild_event() -> impl Strategy<Value = Event> {
    let created = (customer_id(), currency(), attributes())
        .prop_map(|(customer_id, currency, attributes)| Event::OrderCreated { customer_id, currency, attributes });
    let added = (sku(), quantity(), any::<i64>(), name(), category()).prop_map(
        |(sku, quantity, unit_price, name, category)| Event::ItemAdded { sku, quantity, unit_price, name, category },
    );
    prop_oneof![
        1 => created,
        6 => added,
        2 => (sku(), quantity()).prop_map(|(sku, quantity)| Event::ItemQuantityChanged { sku, quantity }),
        1 => sku().prop_map(|sku| Event::ItemRemoved { sku }),
        1 => (any::<i64>(), currency()).prop_map(|(total, currency)| Event::OrderConfirmed { total, currency }),
        1 => reason().prop_map(|reason| Event::OrderCancelled { reason }),
    ]
}

fn wild_order() -> impl Strategy<Value = Order> {
    let line = (sku(), any::<u32>(), any::<i64>(), name(), category())
        .prop_map(|(sku, quantity, unit_price, name, category)| Line { sku, quantity, unit_price, name, category });
    let status = select(vec![Status::Absent, Status::Draft, Status::Draft, Status::Confirmed, Status::Cancelled]);
    (status, option::of(customer_id()), currency(), attributes(), vec(line, 0..4), any::<i64>()).prop_map(
        |(status, customer_id, currency, attributes, lines, total)| Order {
            status,
            customer_id,
            currency,
            attributes,
            lines,
            total,
        },
    )
}

fn fold(events: &[Event]) -> Order {
    let mut order = Order::default();
    events.iter().for_each(|event| order.evolve(event));
    order
}

/// Runs the commands. Refused commands change nothing.
fn run(commands: Vec<Command>) -> (Order, Vec<Event>) {
    let (mut order, mut history) = (Order::default(), vec![]);
    for command in commands {
        for event in order.decide(&command).unwrap_or_default() {
            order.evolve(&event);
            history.push(event);
        }
    }
    (order, history)
}

/// Commands that mostly start with a `Create`, so that most runs have an order.
fn commands() -> impl Strategy<Value = Vec<Command>> {
    (option::weighted(0.9, create()), vec(command(), 0..40))
        .prop_map(|(first, rest)| first.into_iter().chain(rest).collect())
}

fn through_json<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

proptest! {
    #[test]
    fn the_total_is_the_sum_of_the_lines_and_every_limit_holds(commands in commands()) {
        let (mut order, mut seen) = (Order::default(), 0);
        for command in commands {
            for event in order.decide(&command).unwrap_or_default() {
                order.evolve(&event);
                seen += 1;
                let sum: i128 = order.lines.iter().map(|line| i128::from(line.unit_price) * i128::from(line.quantity)).sum();
                prop_assert_eq!(i128::from(order.total), sum);
                prop_assert!((0..=TOTAL_MAX).contains(&order.total) && order.lines.len() <= LINES_MAX);
                prop_assert!(order.lines.iter().all(|line| (1..=Quantity::MAX).contains(&line.quantity)));
                if let Event::OrderConfirmed { total, currency } = event {
                    prop_assert_eq!((total, currency), (order.total, order.currency));
                    prop_assert!(!order.lines.is_empty());
                }
            }
        }
        prop_assert_eq!(order.status == Status::Absent, seen == 0);
    }

    #[test]
    fn an_illegal_transition_is_refused(commands in commands(), next in command()) {
        let (order, _) = run(commands);
        let is_create = matches!(next, Command::Create { .. });
        let decision = order.decide(&next);
        match order.status {
            Status::Absent if !is_create => prop_assert_eq!(decision, Err(Error::NotFound)),
            Status::Absent => prop_assert!(matches!(decision, Ok(_) | Err(Error::Items(_)))),
            _ if is_create => prop_assert_eq!(decision, Err(Error::AlreadyExists)),
            Status::Confirmed | Status::Cancelled => prop_assert_eq!(decision, Err(Error::NotDraft(order.status))),
            Status::Draft => prop_assert!(!matches!(decision, Err(Error::NotFound | Error::AlreadyExists | Error::NotDraft(_)))),
        }
    }

    #[test]
    fn the_fold_is_deterministic_also_through_storage_and_a_snapshot(commands in commands(), cut in any::<prop::sample::Index>()) {
        let (order, history) = run(commands);
        let stored: Vec<Event> = history.iter().map(through_json).collect();
        prop_assert_eq!(&stored, &history);
        prop_assert_eq!(&fold(&stored), &order);
        let (before, after) = stored.split_at(cut.index(stored.len() + 1));
        let mut resumed = through_json(&fold(before));
        after.iter().for_each(|event| resumed.evolve(event));
        prop_assert_eq!(resumed, order);
    }

    #[test]
    fn decide_and_evolve_never_panic(mut order in wild_order(), events in vec(wild_event(), 0..20), commands in vec(command(), 0..5)) {
        for event in &events {
            for command in &commands {
                let _ = order.decide(command).map_err(|error| (error.to_string(), error.refusal_type().slug));
            }
            order.evolve(event);
        }
        let _ = through_json(&order);
    }

    #[test]
    fn the_same_command_twice_on_one_state_decides_the_same(commands in commands(), next in command()) {
        let (order, _) = run(commands);
        prop_assert_eq!(order.decide(&next), order.decide(&next));
    }
}
