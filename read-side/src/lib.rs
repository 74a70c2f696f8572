//! What the contexts answer and show, a file or a folder for each: its queries, its channels, what is published of its
//! changes. Beside them, what operators ask.
//!
//! The read side writes neither events nor rows of read models. What it answers comes from read models or is folded from
//! the log. It keeps the revocations of tokens.

pub mod customers;
mod json;
pub mod operations;
pub mod orders;
pub mod reports;
pub mod revocations;

use push::api::{Channel, QueryApi};
use push::cursor::OldKind;
use push::publisher::AnyPublisher;
use utoipa_axum::router::OpenApiRouter;

/// The queries of orders.
pub fn orders_router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().merge(orders::queries::router()).merge(customers::router()).merge(reports::router())
}

/// The channels of orders.
pub fn orders_channels() -> Vec<Channel> {
    vec![orders::channels::order(), customers::channel(), orders::channels::orders(), reports::channel()]
}

/// What is published of orders.
pub fn orders_publishers() -> Vec<&'static dyn AnyPublisher> {
    vec![&orders::publications::PUBLISHER]
}

/// What operators ask.
pub fn operations_router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().merge(operations::router()).merge(revocations::router())
}

/// The channels of operators.
pub fn operations_channels() -> Vec<Channel> {
    vec![operations::channel()]
}

/// The kinds of channel of the first edition, in the order in which it published a change on them: `7+2` in its cursors
/// means that the change at position 8 is known on the first two. Frozen: such cursors are read for ever.
pub const KINDS_OF_EDITION_1: &[OldKind] = &[
    OldKind::Prefix("order:"),
    OldKind::Prefix("customer:"),
    OldKind::Name("orders"),
    OldKind::Name("reports:sales"),
    OldKind::Name("projections"),
];

#[cfg(test)]
mod tests {
    use push::cursor::Cursor;

    use super::*;

    /// What a client of the first edition holds in its hand is as good as on the day on which it got it.
    #[test]
    fn cursors_of_the_first_edition_mean_what_they_meant() {
        let channels = ["order:o-1", "customer:ada", "orders", "reports:sales", "projections"];
        for (text, expected) in [
            ("7.e", [7, 7, 7, 7, 7]),
            ("7+1.e", [8, 7, 7, 7, 7]),
            ("7+2.e", [8, 8, 7, 7, 7]),
            ("7+3.e", [8, 8, 8, 7, 7]),
            ("7+4.e", [8, 8, 8, 8, 7]),
            ("7+5.e", [8, 8, 8, 8, 8]),
        ] {
            let cursor: Cursor = text.parse().expect("a cursor");
            let known = cursor.of("core").expect("the group of the first edition");
            assert_eq!(channels.map(|channel| known.position_on(channel, KINDS_OF_EDITION_1)), expected, "{text}");
        }
    }
}
