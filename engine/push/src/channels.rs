//! The channels: who may listen, what they see first, and how the log tells what they missed. [`channels`] is the list of
//! them.

use std::time::Duration;

use domain::order::Order;
use std::sync::LazyLock;

use event_store::db::Tx;
use event_store::error::Error;
use event_store::event::RecordedEvent;
use futures::FutureExt;
use futures::future::BoxFuture;
use kernel::aggregate::Aggregate;
use platform::auth::Principal;
use projections::orders::{customers, details as order_details, sales, summaries as order_summaries};
use serde::Serialize;

use crate::api::QueryApi;
use crate::publication::Publication;
use crate::session::RECOVERED_MAX;

/// Followed by an order's id.
pub const ORDER_PREFIX: &str = "order:";
/// Followed by a customer's id.
pub const CUSTOMER_PREFIX: &str = "customer:";
/// Every order, for staff.
pub const ORDERS: &str = "orders";
/// Confirmed orders, for staff.
pub const SALES: &str = "reports:sales";
/// How the projections stand, for admins.
pub const PROJECTIONS: &str = "projections";

/// Events of the log that are looked through for a channel that has no index of its own.
const LOOKED_THROUGH_MAX: i64 = 10_000;

/// How long a subscription waits for the read model of an order that is not in it.
const PROJECTED_WITHIN: Duration = Duration::from_secs(1);

/// Why there is no subscription.
#[derive(Debug)]
pub enum Refused {
    /// Not allowed, or not there: the same answer.
    Denied,
    /// No channel has such a name.
    Unknown,
    /// The read model behind it is not where the live changes are: it is being built anew; try again.
    Behind,
    /// What the channels of one request begin with is too much to be held for a client that may not read it.
    TooMuch,
    /// The database is away; try again.
    Unavailable(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Unavailable(error)
    }
}

/// Orders whose streams hold what a channel missed; `None` where that is too much to look through.
pub type Missed = Option<Vec<String>>;

/// What a snapshot shows: `view` or `items`, and its JSON text. It may be large, so it is not taken apart.
pub type Shown = (&'static str, String);

type Allows = for<'a> fn(&'a QueryApi, &'a Principal, &'a str) -> BoxFuture<'a, Result<bool, Refused>>;
type Snapshot = for<'a> fn(&'a QueryApi, &'a mut Tx, &'a str) -> BoxFuture<'a, Result<Shown, Error>>;
type Orders = for<'a> fn(&'a QueryApi, &'a str, i64, i64) -> BoxFuture<'a, Result<Missed, Error>>;

/// A kind of channel.
pub struct Channel {
    /// Its name, or what its names begin with.
    pub name: &'static str,
    /// Whether an id follows the name.
    pub has_id: bool,
    /// For readers of the documentation: who may listen, and what it shows.
    pub who: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// The projection that its snapshot is read from.
    pub projection: &'static str,
    /// Whether somebody may listen.
    pub allows: Allows,
    /// What a subscriber gets first, from one state of the database.
    pub snapshot: Snapshot,
    /// The orders with changes after one position up to another one.
    pub missed: Orders,
    /// Which events could make such a change: the others are folded only.
    pub concerns: fn(&RecordedEvent) -> bool,
    /// Which of their changes are the channel's.
    pub selects: fn(&Publication) -> bool,
    /// Whether who looks at it is shown to staff.
    pub has_presence: bool,
}

impl Channel {
    /// Whether it is a read model that says which orders are its own.
    pub fn looks_up_orders(&self) -> bool {
        self.name == CUSTOMER_PREFIX
    }

    /// Its place in the list of all kinds.
    pub fn rank(&self) -> usize {
        channels().iter().position(|kind| kind.name == self.name).unwrap_or(usize::MAX)
    }

    /// Whether it shows what no event tells of.
    pub fn is_in_no_log(&self) -> bool {
        self.name == PROJECTIONS
    }
}

/// Every kind of channel. Their order is part of cursors: a new one comes last.
pub fn channels() -> &'static [Channel] {
    static CHANNELS: LazyLock<Vec<Channel>> = LazyLock::new(list);
    &CHANNELS
}

fn list() -> Vec<Channel> {
    vec![
        Channel {
            name: ORDER_PREFIX,
            has_id: true,
            who: "its owner, staff, admin",
            shows: "every change of one order",
            projection: order_details::PROJECTION.name,
            allows: |state, principal, id| may_see_order(state, principal, id).boxed(),
            snapshot: |_, tx, id| order(tx, id).boxed(),
            missed: |_, id, _, _| std::future::ready(Ok(Some(vec![id.to_owned()]))).boxed(),
            concerns: |_| true,
            selects: |_| true,
            has_presence: true,
        },
        Channel {
            name: CUSTOMER_PREFIX,
            has_id: true,
            who: "that customer, staff, admin",
            shows: "every change of every order of one customer",
            projection: customers::PROJECTION.name,
            allows: |_, principal, id| std::future::ready(Ok(principal.may_see(id))).boxed(),
            snapshot: |_, tx, id| customer(tx, id).boxed(),
            missed: |state, id, after, _| orders_of(state, id, after).boxed(),
            concerns: |_| true,
            selects: |_| true,
            has_presence: false,
        },
        Channel {
            name: ORDERS,
            has_id: false,
            who: "staff, admin",
            shows: "every change of every order",
            projection: order_summaries::PROJECTION.name,
            allows: |_, principal, _| std::future::ready(Ok(principal.is_staff())).boxed(),
            snapshot: |_, tx, _| orders(tx).boxed(),
            missed: |state, _, after, until| orders_in(state, after, until, RECOVERED_MAX, |_| true).boxed(),
            concerns: |_| true,
            selects: |_| true,
            has_presence: false,
        },
        Channel {
            name: SALES,
            has_id: false,
            who: "staff, admin",
            shows: "every order that is confirmed, and so counts in the sales reports",
            projection: sales::PROJECTION.name,
            allows: |_, principal, _| std::future::ready(Ok(principal.is_staff())).boxed(),
            snapshot: |_, tx, _| sales_by_day(tx).boxed(),
            missed: |state, _, after, until| {
                orders_in(state, after, until, LOOKED_THROUGH_MAX, is_confirmation).boxed()
            },
            concerns: is_confirmation,
            selects: Publication::is_sale,
            has_presence: false,
        },
        Channel {
            name: PROJECTIONS,
            has_id: false,
            who: "admin",
            shows: "how the projections stand, once a second while it changes",
            projection: order_summaries::PROJECTION.name,
            allows: |_, principal, _| std::future::ready(Ok(principal.is_admin())).boxed(),
            snapshot: |state, _, _| projections(state).boxed(),
            missed: |_, _, _, _| std::future::ready(Ok(None)).boxed(),
            concerns: |_| true,
            selects: |_| true,
            has_presence: false,
        },
    ]
}

/// The kind of a channel's name, and the id in it.
pub fn find(name: &str) -> Result<(&'static Channel, &str), Refused> {
    for channel in channels() {
        match name.strip_prefix(channel.name) {
            Some(id) if channel.has_id && !is_id(id) => return Err(Refused::Unknown),
            Some(id) if channel.has_id || id.is_empty() => return Ok((channel, id)),
            _ => {}
        }
    }
    Err(Refused::Unknown)
}

/// Where a channel's kind stands among the others: in this order a change is told.
pub fn rank(name: &str) -> usize {
    find(name).map_or(usize::MAX, |(kind, _)| kind.rank())
}

/// Whether an order or a customer could have this id.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

async fn may_see_order(state: &QueryApi, principal: &Principal, id: &str) -> Result<bool, Refused> {
    let name = order_details::PROJECTION.name;
    let is_visible = || async {
        let owner = order_details::owner(state.store.db(), id).await?;
        Ok(owner.is_some_and(|owner| principal.may_see(&owner)))
    };
    if is_visible().await? {
        return Ok(true);
    }
    // It may have been created a moment ago. An order of somebody else waits like one that is not there: neither the answer
    // nor its time says which it is.
    let head = state.store.head().await?;
    state.progress.wait_for(name, head, PROJECTED_WITHIN).await;
    let (position, is_visible) = state.progress.read_at(state.store.db(), name, is_visible).await?;
    match is_visible || position >= head {
        true => Ok(is_visible),
        false => Err(Refused::Behind),
    }
}

async fn order(tx: &mut Tx, id: &str) -> Result<Shown, Error> {
    let order = order_details::find(tx, id).await?;
    Ok(("view", order.map_or_else(|| "null".to_owned(), |order| order.view)))
}

async fn customer(tx: &mut Tx, id: &str) -> Result<Shown, Error> {
    Ok(("view", text(&customers::find(tx, id).await?)))
}

/// The orders placed last.
async fn orders(tx: &mut Tx) -> Result<Shown, Error> {
    let query = order_summaries::Query {
        status: None,
        customer_id: None,
        category: None,
        placed_from: None,
        placed_to: None,
        min_total: None,
        max_total: None,
        q: None,
        sort: order_summaries::Sort::PlacedAt,
        descending: true,
        limit: 50,
        after: None,
    };
    Ok(("items", text(&order_summaries::list(tx, &query).await?.0)))
}

async fn sales_by_day(tx: &mut Tx) -> Result<Shown, Error> {
    Ok(("items", text(&sales::report(tx, sales::Dimension::Day, None, None).await?)))
}

/// How the projections stand.
pub async fn projections(state: &QueryApi) -> Result<Shown, Error> {
    Ok(("items", text(&state.progress.status(&state.store).await?.0)))
}

fn text(shown: &impl Serialize) -> String {
    // Structs of texts and numbers always serialize.
    serde_json::to_string(shown).unwrap_or_default()
}

fn is_confirmation(event: &RecordedEvent) -> bool {
    event.event_type == "OrderConfirmed"
}

async fn orders_of(state: &QueryApi, customer_id: &str, after: i64) -> Result<Missed, Error> {
    let ids = order_summaries::changed(state.store.db(), customer_id, after, RECOVERED_MAX + 1).await?;
    Ok((ids.len() as i64 <= RECOVERED_MAX).then_some(ids))
}

async fn orders_in(
    state: &QueryApi,
    after: i64,
    until: i64,
    looked_through_max: i64,
    of_interest: fn(&RecordedEvent) -> bool,
) -> Result<Missed, Error> {
    if until - after > looked_through_max {
        return Ok(None);
    }
    let events = state.store.read(after, (until - after).max(0)).await?;
    let events = events.iter().filter(|event| event.aggregate_type == Order::TYPE && of_interest(event));
    let mut ids: Vec<_> = events.map(|event| event.aggregate_id.to_string()).collect();
    if ids.len() as i64 > RECOVERED_MAX {
        return Ok(None);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(ids))
}
