//! What a projection is, and the list of them.

use std::sync::Arc;

use event_store::db::{Table, Value};

use crate::order::OrderState;
use crate::{customers, order_details, order_summaries, products, sales};

/// What a batch of events did to one order.
pub struct Change {
    /// The order before the batch; `None` where the batch created it.
    pub before: Option<Arc<OrderState>>,
    /// The order after it.
    pub after: Arc<OrderState>,
}

impl Change {
    /// `None` where there is no order: a stream whose `OrderCreated` is missing, or was discarded, is in no read model.
    pub fn of(before: Option<Arc<OrderState>>, after: Arc<OrderState>) -> Option<Self> {
        after.exists().then(|| Self { before: before.filter(|before| before.exists()), after })
    }
}

/// Rows for one table; keys are distinct.
pub type Rows = (&'static Table, Vec<Vec<Value>>);

/// A read model: a pure function from changes of orders to rows. Each table belongs to one projection.
pub struct Projection {
    /// Its name, as operators use it and as its checkpoint is kept.
    pub name: &'static str,
    /// Version of what follows. To change a table or what goes into it, raise it: the server then builds a new generation
    /// beside the old one and switches.
    pub version: i64,
    /// Its tables.
    pub tables: &'static [&'static Table],
    /// The rows that a batch leads to, merged into the tables column by column.
    pub fold: fn(&[Change]) -> Vec<Rows>,
}

/// The projection with a name.
pub fn find(name: &str) -> Option<&'static Projection> {
    all().iter().find(|projection| projection.name == name)
}

/// Every read model.
pub fn all() -> &'static [Projection] {
    &[
        order_summaries::PROJECTION,
        order_details::PROJECTION,
        customers::PROJECTION,
        sales::PROJECTION,
        products::PROJECTION,
    ]
}
