//! The records of idempotency keys.

/// The columns of an [`IdempotencyRecord`].
pub(crate) const IDEMPOTENCY_RECORD: &str = "select request_hash, status, aggregate_type, aggregate_id, version, position, \
                                             answer from idempotency where scope = $1 and key = $2";

/// What was answered to a request with an idempotency key.
#[derive(Debug, Clone, PartialEq, sqlx_macros::FromRow)]
pub struct IdempotencyRecord {
    /// Hash of method, path and body.
    pub request_hash: String,
    /// Status of the answer.
    pub status: i64,
    /// Type of the aggregate that the answer is about.
    pub aggregate_type: String,
    /// Its id.
    pub aggregate_id: String,
    /// Its version after the request.
    pub version: i64,
    /// Position of the request's last event.
    pub position: i64,
    /// The answer; `None` where it follows from the other fields.
    pub answer: Option<String>,
}
