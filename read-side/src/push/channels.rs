//! The channels: who may listen, and what they see first. [`channels`] is the list of them.

use futures::FutureExt;
use futures::future::BoxFuture;
use platform::auth::Principal;
use projections::{customers, order_details, order_summaries};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::push::hub::Publication;
use crate::state::ReadSide;

/// Followed by an order's id.
pub const ORDER_PREFIX: &str = "order:";
/// Followed by a customer's id.
pub const CUSTOMER_PREFIX: &str = "customer:";
/// Every order, for staff.
pub const ORDERS: &str = "orders";

/// What a subscriber gets first, and which changes it already holds.
pub struct Snapshot {
    /// JSON for the subscribe reply.
    pub data: Value,
    /// Position of the read model that it was made from.
    pub position: i64,
    /// Version of the order in it, where the channel is about one order.
    pub version: Option<i64>,
}

impl Snapshot {
    /// Whether a change is part of the snapshot already.
    pub fn holds(&self, publication: &Publication) -> bool {
        match self.version {
            Some(version) => publication.version <= version,
            None => publication.position <= self.position,
        }
    }
}

/// Why there is no subscription.
#[derive(Debug)]
pub enum Refused {
    /// Not allowed, or not there: the same answer.
    Denied,
    /// No channel has such a name.
    Unknown,
    /// The database is away; try again.
    Unavailable(event_store::error::Error),
}

impl From<event_store::error::Error> for Refused {
    fn from(error: event_store::error::Error) -> Self {
        Self::Unavailable(error)
    }
}

type Open = for<'a> fn(&'a ReadSide, &'a Principal, &'a str) -> BoxFuture<'a, Result<Snapshot, Refused>>;

/// A kind of channel.
pub struct Channel {
    /// Its name, or what its names begin with.
    pub name: &'static str,
    /// Whether an id follows the name.
    pub has_id: bool,
    /// Authorizes and reads the snapshot; the subscriber is attached to the hub by then.
    open: Open,
}

/// Every kind of channel.
pub fn channels() -> &'static [Channel] {
    &[
        Channel { name: ORDER_PREFIX, has_id: true, open: |state, principal, id| order(state, principal, id).boxed() },
        Channel {
            name: CUSTOMER_PREFIX,
            has_id: true,
            open: |state, principal, id| customer(state, principal, id).boxed(),
        },
        Channel { name: ORDERS, has_id: false, open: |state, principal, _| orders(state, principal).boxed() },
    ]
}

/// Authorizes a subscription and reads its snapshot.
pub async fn open(state: &ReadSide, principal: &Principal, name: &str) -> Result<Snapshot, Refused> {
    for channel in channels() {
        match name.strip_prefix(channel.name) {
            Some(id) if channel.has_id && !is_id(id) => return Err(Refused::Denied),
            Some(id) if channel.has_id || id.is_empty() => return (channel.open)(state, principal, id).await,
            _ => {}
        }
    }
    Err(Refused::Unknown)
}

/// Whether an order or a customer could have this id.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

async fn order(state: &ReadSide, principal: &Principal, id: &str) -> Result<Snapshot, Refused> {
    let position = state.progress.position(order_details::PROJECTION.name);
    let order = order_details::find(state.store.db(), id).await?;
    let order = order.filter(|order| principal.may_see(&order.customer_id)).ok_or(Refused::Denied)?;
    let view: Box<RawValue> = RawValue::from_string(order.view).unwrap_or_default();
    let data = json!({"type": "snapshot", "view": view, "position": position});
    Ok(Snapshot { data, position, version: Some(order.version) })
}

async fn customer(state: &ReadSide, principal: &Principal, id: &str) -> Result<Snapshot, Refused> {
    if !principal.may_see(id) {
        return Err(Refused::Denied);
    }
    let position = state.progress.slowest();
    let customer = customers::find(state.store.db(), id).await?;
    Ok(Snapshot { data: json!({"type": "snapshot", "view": customer, "position": position}), position, version: None })
}

/// The orders placed last; what changed while they were read comes as a change, too.
async fn orders(state: &ReadSide, principal: &Principal) -> Result<Snapshot, Refused> {
    if !principal.is_staff() {
        return Err(Refused::Denied);
    }
    let position = state.progress.slowest();
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
    let (items, _) = order_summaries::list(state.store.db(), &query).await?;
    Ok(Snapshot { data: json!({"type": "snapshot", "items": items, "position": position}), position, version: None })
}
