//! Publications of orders.

use compact_str::format_compact;
use domain::order::Order;
use projection_engine::registry::CORE;
use projections::orders::view::{OrderView, payload_view};
use push::publication::{Interest, Publication, Step};
use push::publisher::Publisher;

use crate::customers::CUSTOMER_PREFIX;
use crate::orders::channels::{ORDER_PREFIX, ORDERS};
use crate::reports::SALES;

/// Publishes the changes of orders on the order's own channel, its customer's channel and the channels for staff.
pub static PUBLISHER: Publisher<Order> = Publisher {
    group: CORE,
    id_member: "order_id",
    interest: Interest {
        names: &[ORDERS, SALES],
        by_stream: &[ORDER_PREFIX],
        // The owner of an order is unknown until the order is folded.
        by_prefix: &[CUSTOMER_PREFIX],
    },
    view: |order, json| json.write(&OrderView(order)),
    publish,
};

fn publish(step: &Step<'_, Order>) -> Option<Publication> {
    let order = &step.after.state;
    let publication = step
        .publication(payload_view(step.event, order.currency))
        .on_stream_channel(format_compact!("{ORDER_PREFIX}{}", step.after.id))
        .on(format_compact!("{CUSTOMER_PREFIX}{}", order.owner()))
        .on(ORDERS);
    let was_confirmed = step.before.is_some_and(|before| before.state.is_confirmed());
    Some(if order.is_confirmed() && !was_confirmed { publication.on(SALES) } else { publication })
}
