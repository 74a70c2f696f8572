//! What every command request brings along: who, which version, under which idempotency key, and the body.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{ETAG, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use domain::order::Command;
use domain::values::OrderId;
use event_store::log::IdempotencyRecord;
use platform::auth::Principal;
use platform::conditional::{Versions, etag, if_match};
use platform::problem::Problem;
use platform::{body, request_id};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::dispatch::{Accepted, Given, Key, Rejected, WriteSide, unavailable};
use crate::in_flight::still_answered;

/// Name of the request's header.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A command request with its body read as `T`; an empty body reads as `{}`.
pub struct Call<T> {
    /// Who.
    pub principal: Principal,
    /// The body.
    pub body: T,
    expected_version: Option<Versions>,
    key: Option<(String, String)>,
}

impl<T: DeserializeOwned> FromRequest<WriteSide> for Call<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &WriteSide) -> Result<Self, Problem> {
        let (mut parts, content) = request.into_parts();
        let principal = Principal::from_request_parts(&mut parts, state).await?;
        let expected_version = if_match(&parts.headers)?;
        let key = idempotency_key(&parts.headers)?;
        let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
        let bytes = body::read(Request::from_parts(parts, content), state).await?;
        let key = key.map(|key| {
            let mut hash = Sha256::new();
            for part in [method.as_str().as_bytes(), path.as_bytes(), &bytes] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            (key, format!("{:x}", hash.finalize()))
        });
        let body = body::parse(if bytes.is_empty() { b"{}" } else { &bytes }, "")?;
        Ok(Self { principal, body, expected_version, key })
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    if (1..=255).contains(&key.len()) {
        return Ok(Some(key.to_owned()));
    }
    Err(Problem::new(StatusCode::BAD_REQUEST, "invalid-idempotency-key", "Idempotency-Key cannot be used")
        .detail("Idempotency-Key takes 1 to 255 printable ASCII characters, e.g. a UUID."))
}

impl<T> Call<T> {
    /// The body apart from the rest.
    pub fn take(self) -> (Call<()>, T) {
        let Self { principal, body, expected_version, key } = self;
        (Call { principal, body: (), expected_version, key }, body)
    }

    /// Gives the command and makes the answer. `status` is that of a success.
    pub async fn answer(
        self,
        state: &WriteSide,
        status: StatusCode,
        order_id: OrderId,
        command: Command,
    ) -> Result<Response, Problem> {
        let scope = self.principal.subject.clone();
        let _in_flight = match &self.key {
            None => None,
            Some((key, hash)) => {
                let in_flight = state.in_flight().enter(&scope, key)?;
                if let Some(found) = state.store().idempotency_record(&scope, key).await.map_err(unavailable)? {
                    return replay(found, hash);
                }
                Some(in_flight)
            }
        };
        let idempotency =
            self.key.clone().map(|(key, request_hash)| Key { scope: scope.clone(), key, request_hash, status });
        let given = Given {
            principal: self.principal,
            order_id,
            command,
            expected_version: self.expected_version,
            idempotency,
            occurred_at: None,
            is_patient: false,
            request_id: request_id::current(),
            trace: request_id::current_trace(),
        };
        match (state.dispatch(given).await, self.key) {
            (Ok(accepted), _) => Ok(success(status, &accepted)),
            (Err(Rejected::Problem(problem)), None) => Err(problem),
            (Err(Rejected::KeyUsed), None) => Err(still_answered()),
            // Another process may have taken the key since it was looked up, and so be the reason for the refusal.
            (Err(rejected), Some((key, hash))) => {
                match (state.store().idempotency_record(&scope, &key).await.map_err(unavailable)?, rejected) {
                    (Some(found), _) => replay(found, &hash),
                    (None, Rejected::Problem(problem)) => Err(problem),
                    (None, Rejected::KeyUsed) => Err(still_answered()),
                }
            }
        }
    }
}

/// The same answer again, byte for byte.
fn replay(found: IdempotencyRecord, request_hash: &str) -> Result<Response, Problem> {
    if found.request_hash != request_hash {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "The Idempotency-Key belongs to another request",
        )
        .detail("The key was used with another method, path or body. Use a new key for a new request."));
    }
    let status = StatusCode::from_u16(found.status as u16).unwrap_or(StatusCode::OK);
    let accepted = Accepted { order_id: found.aggregate_id, version: found.version, position: found.position };
    let mut response = success(status, &accepted);
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    Ok(response)
}

fn success(status: StatusCode, accepted: &Accepted) -> Response {
    let mut response = (status, axum::Json(accepted)).into_response();
    let headers = response.headers_mut();
    headers.insert(ETAG, etag(accepted.version));
    // An order's id is ASCII without control characters.
    if status == StatusCode::CREATED
        && let Ok(location) = HeaderValue::try_from(format!("/v1/orders/{}", accepted.order_id))
    {
        headers.insert(LOCATION, location);
    }
    response
}
