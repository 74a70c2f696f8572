//! The reactor that grants points for a confirmed order, exactly once.

use command_engine::reactions::reactor::{Input, Outcome, Reactor, Subscription, payload};
use command_engine::reactions::scope::Scope;
use command_engine::step::Step;
use compact_str::CompactString;
use event_store::event::RecordedEvent;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Deserialize;

use crate::account::{Account, Command};

/// Minor units of the order's currency for which one point is granted.
const MINOR_UNITS_A_POINT: i64 = 100;

/// The members that the module reads from events of another context. Other members are ignored.
#[derive(Deserialize)]
struct OrderCreated {
    customer_id: String,
}

#[derive(Deserialize)]
struct OrderConfirmed {
    total: i64,
}

/// Grants points for confirmed orders.
pub struct GrantPoints;

impl GrantPoints {
    async fn grant(&self, event: &RecordedEvent, scope: &Scope) -> Outcome {
        let confirmed: OrderConfirmed = match payload(event) {
            Ok(confirmed) => confirmed,
            Err(error) => return error.into(),
        };
        // The first event of an order names its customer, and recorded events never change.
        let first = match scope.read_stream(&event.aggregate_type, &event.aggregate_id, 0, 1).await {
            Ok(first) => first,
            Err(error) => return error.into(),
        };
        let Some(created) = first.first() else { return Outcome::Park("the order has no first event".into()) };
        let customer_id = match payload::<OrderCreated>(created) {
            Ok(created) => created.customer_id,
            Err(error) => return error.into(),
        };
        let command = Command::Grant {
            customer_id: customer_id.clone(),
            order_id: event.aggregate_id.to_string(),
            points: confirmed.total / MINOR_UNITS_A_POINT,
        };
        Outcome::Done(vec![Step::<Account>::new(customer_id, command)])
    }
}

impl Reactor for GrantPoints {
    fn name(&self) -> &'static str {
        "loyalty-points"
    }

    fn subscriptions(&self) -> &'static [Subscription] {
        &[Subscription { aggregate_type: "order", events: &["OrderConfirmed"] }]
    }

    fn key(&self, event: &RecordedEvent) -> CompactString {
        event.aggregate_id.clone()
    }

    fn react<'a>(&'a self, input: &'a Input, scope: &'a mut Scope) -> BoxFuture<'a, Outcome> {
        async move {
            match input.event() {
                Some(event) => self.grant(event, scope).await,
                None => Outcome::Done(Vec::new()),
            }
        }
        .boxed()
    }
}
