//! The problem types of the queries.

platform::problem_types! {
    /// The order does not exist, or you may not see it.
    ORDER_NOT_FOUND = NOT_FOUND, "order-not-found", "There is no such order";
    /// The order exists, but has fewer versions. The detail names its current version.
    VERSION_NOT_FOUND = NOT_FOUND, "version-not-found", "The order has no such version";
    /// The customer has no orders, or you may not see them.
    CUSTOMER_NOT_FOUND = NOT_FOUND, "customer-not-found", "There is no such customer";
    /// A revocation names either a subject or a token_id, each of 1 to 255 characters.
    INVALID_REVOCATION = UNPROCESSABLE_ENTITY, "invalid-revocation", "The revocation cannot be used";
    /// A ban names a subject and a reason; `errors` says what is wrong with them.
    INVALID_BAN = UNPROCESSABLE_ENTITY, "invalid-ban", "The ban cannot be used";
    /// The subject is not banned.
    BAN_NOT_FOUND = NOT_FOUND, "ban-not-found", "There is no such ban";
}
