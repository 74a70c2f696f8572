//! The read side: queries, channels and publications of each context, in a file or folder per context, and the routes
//! for operators.
//!
//! The read side writes neither events nor rows of read models. Its responses come from read models or are folded from
//! the log. It stores the revocations of tokens and the bans of subjects.

pub mod bans;
pub mod customers;
mod json;
pub mod operations;
pub mod orders;
mod problems;
pub mod reports;
pub mod revocations;

use platform::problem::ProblemType;
use push::api::{Channel, QueryApi};
use push::cursor::V1Kind;
use push::publisher::AnyPublisher;
use utoipa_axum::router::OpenApiRouter;

/// Returns the query routes of the orders context.
pub fn orders_router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().merge(orders::queries::router()).merge(customers::router()).merge(reports::router())
}

/// Returns the channels of the orders context.
pub fn orders_channels() -> Vec<Channel> {
    vec![orders::channels::order(), customers::channel(), orders::channels::orders(), reports::channel()]
}

/// Returns the publishers of the orders context.
pub fn orders_publishers() -> Vec<&'static dyn AnyPublisher> {
    vec![&orders::publications::PUBLISHER]
}

/// Returns the problem types of the queries.
pub fn problem_types() -> &'static [ProblemType] {
    problems::PROBLEM_TYPES
}

/// Returns the routes for operators.
pub fn operations_router() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().merge(operations::router()).merge(revocations::router()).merge(bans::router())
}

/// Returns the channels for operators.
pub fn operations_channels() -> Vec<Channel> {
    vec![operations::channel()]
}

/// The kinds of channel of cursor format 1, in the order in which a change was published on them. A cursor `7+2` means
/// that the client has the change at position 8 on the first two kinds. Frozen, because such cursors stay readable for
/// ever.
pub const CURSOR_V1_KINDS: &[V1Kind] = &[
    V1Kind::Prefix("order:"),
    V1Kind::Prefix("customer:"),
    V1Kind::Name("orders"),
    V1Kind::Name("reports:sales"),
    V1Kind::Name("projections"),
];

#[cfg(test)]
mod tests {
    use push::cursor::Cursor;

    use super::*;

    /// Cursors of format 1 that clients still have keep their meaning.
    #[test]
    fn cursors_of_format_1_keep_their_meaning() {
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
            let known = cursor.of("core").expect("the group of format 1");
            assert_eq!(channels.map(|channel| known.position_on(channel, CURSOR_V1_KINDS)), expected, "{text}");
        }
    }
}
