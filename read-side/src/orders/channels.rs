//! The channels `order:ID` and `orders`, and the search for orders that changed between two positions.

use std::time::Duration;

use domain::order::Order;
use event_store::db::Tx;
use event_store::error::Error;
use futures::FutureExt;
use kernel::aggregate::Aggregate;
use kernel::stream::{StreamId, is_id};
use platform::auth::Principal;
use projection_engine::registry::CORE;
use projections::orders::{details, summaries};
use push::api::{ChangedStream, Channel, DeniedAnswer, QueryApi, SnapshotMember, SubscribeError};
use push::recovery::{RECOVERED_MAX, changed_in_log};

use crate::json::text;

/// Prefix of the channel of one order; the order's id follows.
pub const ORDER_PREFIX: &str = "order:";
/// Name of the channel of all orders, for staff.
pub const ORDERS: &str = "orders";

/// How long a subscription to an order that is not in the read model waits for the read model to catch up.
const PROJECTED_WITHIN: Duration = Duration::from_secs(1);

/// Returns the channel with the changes of one order.
pub fn order() -> Channel {
    Channel {
        name: ORDER_PREFIX,
        is_id: Some(is_id),
        who: "its owner, staff, admin",
        shows: "every change of one order",
        group: CORE,
        projection: Some(details::PROJECTION.name),
        allows: |api, principal, id| may_see(api, principal, id).boxed(),
        denied_answer: DeniedAnswer::NotFound,
        snapshot: |_, tx, id| snapshot_of_order(tx, id).boxed(),
        missed: Some(|api, id, after, until| {
            async move {
                let find = || std::future::ready(Ok(Some(vec![id.to_owned()])));
                Ok(find_changed(api, after, until, find).await?.1)
            }
            .boxed()
        }),
        event_types: &[],
        has_presence: true,
    }
}

/// Returns the channel with the changes of every order.
pub fn orders() -> Channel {
    Channel {
        name: ORDERS,
        is_id: None,
        who: "staff, admin",
        shows: "every change of every order",
        group: CORE,
        projection: Some(summaries::PROJECTION.name),
        allows: |_, principal, _| std::future::ready(Ok(principal.is_staff())).boxed(),
        denied_answer: DeniedAnswer::Staff,
        snapshot: |_, tx, _| snapshot_of_orders(tx).boxed(),
        missed: Some(|api, _, after, until| changed_in_log_of(api, after, until, &[], RECOVERED_MAX).boxed()),
        event_types: &[],
        has_presence: false,
    }
}

async fn may_see(api: &QueryApi, principal: &Principal, id: &str) -> Result<bool, SubscribeError> {
    let name = details::PROJECTION.name;
    let is_visible = || async {
        let owner = details::owner(api.store.db(), id).await?;
        Ok(owner.is_some_and(|owner| principal.can_access_customer(&owner)))
    };
    if is_visible().await? {
        return Ok(true);
    }
    // The order may have been created a moment ago. An order of another customer waits like an order that does not
    // exist, so neither the answer nor its time reveals whether the order exists.
    let head = api.store.head().await?;
    api.progress.wait_for(name, head, PROJECTED_WITHIN).await;
    let (position, is_visible) = api.progress.read_at(api.store.db(), name, is_visible).await?;
    match is_visible || position >= head {
        true => Ok(is_visible),
        false => Err(SubscribeError::Behind),
    }
}

async fn snapshot_of_order(tx: &mut Tx, id: &str) -> Result<SnapshotMember, Error> {
    let order = details::find(tx, id).await?;
    Ok(("view", order.map_or_else(|| "null".to_owned(), |order| order.view)))
}

/// Returns the 50 orders that were placed last.
async fn snapshot_of_orders(tx: &mut Tx) -> Result<SnapshotMember, Error> {
    let query = summaries::Query {
        status: None,
        customer_id: None,
        category: None,
        placed_from: None,
        placed_to: None,
        min_total: None,
        max_total: None,
        q: None,
        sort: summaries::Sort::PlacedAt,
        descending: true,
        limit: 50,
        after: None,
    };
    Ok(("items", text(&summaries::list(tx, &query).await?.0)))
}

/// Reads the log after position `after` up to position `until`, at most `events_max` events, and returns the orders
/// that have events with one of `event_types`; empty means any event. Returns `None` if a limit is exceeded.
pub(crate) async fn changed_in_log_of(
    api: &QueryApi,
    after: i64,
    until: i64,
    event_types: &[&str],
    events_max: i64,
) -> Result<Option<Vec<ChangedStream>>, Error> {
    let find = || changed_in_log(api, Order::TYPE, event_types, (after, until), events_max);
    Ok(find_changed(api, after, until, find).await?.1)
}

/// Runs `find` for candidate order ids, and returns those that changed after position `after`, with their numbers of
/// events. Also returns the position of the read model behind this. If that position is before `until`, all candidates
/// are returned.
pub(crate) async fn find_changed<F: Future<Output = Result<Option<Vec<String>>, Error>>>(
    api: &QueryApi,
    after: i64,
    until: i64,
    find: impl Fn() -> F,
) -> Result<(i64, Option<Vec<ChangedStream>>), Error> {
    let db = api.store.db();
    let read = || async {
        let Some(ids) = find().await? else { return Ok(None) };
        let lengths = summaries::lengths(db, &ids).await?;
        Ok(Some((ids, lengths)))
    };
    // Reads the position together with the rows, because a crash of PostgreSQL can reset both.
    let (projected, found) = api.progress.read_at(db, summaries::PROJECTION.name, read).await?;
    let Some((ids, lengths)) = found else { return Ok((projected, None)) };
    let stream = |id: &str, events| ChangedStream { stream: StreamId::new(Order::TYPE, id), events };
    let streams = if projected >= until {
        // The read model contains all of these orders, with the position of each one's last change.
        let changed = lengths.iter().filter(|order| order.position > after);
        changed.map(|order| stream(&order.order_id, order.version)).collect()
    } else {
        let known = |id: &String| lengths.iter().find(|order| order.order_id == *id).map_or(0, |order| order.version);
        ids.iter().map(|id| stream(id, known(id))).collect()
    };
    Ok((projected, Some(streams)))
}
