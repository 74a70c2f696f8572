//! Records of idempotency keys.

/// Selects the columns of an [`IdempotencyRecord`].
pub(crate) const IDEMPOTENCY_RECORD: &str = "select request_hash, status, aggregate_type, aggregate_id, version, position, \
                                             answer from idempotency where scope = $1 and key = $2";

/// The recorded answer to a request with an idempotency key.
#[derive(Debug, Clone, PartialEq, sqlx_macros::FromRow)]
pub struct IdempotencyRecord {
    /// Hash of the request's method, path and body.
    pub request_hash: String,
    /// HTTP status of the answer.
    pub status: i64,
    /// Type of the aggregate that the answer describes.
    pub aggregate_type: String,
    /// Id of the aggregate.
    pub aggregate_id: String,
    /// Version of the aggregate after the request.
    pub version: i64,
    /// Position of the request's last event.
    pub position: i64,
    /// Body of the answer; `None` when it follows from the other fields.
    pub answer: Option<String>,
}
