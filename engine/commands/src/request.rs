//! The parts that every command request has: principal, expected version, idempotency key and body; and the response.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{ETAG, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use event_store::idempotency::IdempotencyRecord;
use kernel::aggregate::Aggregate;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use platform::auth::Principal;
use platform::conditional::{Versions, etag, if_match};
use platform::problem::Problem;
use platform::{body, request_id};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::api::CommandApi;
use crate::decider::{Key, Origin};
use crate::in_flight::request_in_flight;
use crate::outcome::{Accepted, Rejected, Resource};
use crate::problems::{IDEMPOTENCY_KEY_REUSED, INVALID_IDEMPOTENCY_KEY, unavailable};
use crate::step::{AnyStep, Step};

/// Name of the request header that carries the idempotency key.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Characters of an id that are percent-encoded in a path: all but the unreserved ones of RFC 3986.
const PATH_SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A command request with its body parsed as `T`. An empty body is parsed as `{}`.
pub struct CommandRequest<T> {
    /// The authenticated sender.
    pub principal: Principal,
    /// The parsed body.
    pub body: T,
    expected_version: Option<Versions>,
    /// The idempotency key, and the hash of the request.
    key: Option<(String, String)>,
}

impl<T: DeserializeOwned> FromRequest<CommandApi> for CommandRequest<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &CommandApi) -> Result<Self, Problem> {
        let (mut parts, content) = request.into_parts();
        let principal = Principal::from_request_parts(&mut parts, api).await?;
        let expected_version = if_match(&parts.headers)?;
        let key = idempotency_key(&parts.headers)?;
        // Some commands name a part of the resource in the query.
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let (method, target) = (parts.method.clone(), target.to_owned());
        let bytes = body::read(Request::from_parts(parts, content), api).await?;
        let key = key.map(|key| {
            let mut hash = Sha256::new();
            for part in [method.as_str().as_bytes(), target.as_bytes(), &bytes] {
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
    Err(Problem::new(INVALID_IDEMPOTENCY_KEY)
        .detail("An Idempotency-Key must have 1 to 255 printable ASCII characters, e.g. a UUID."))
}

impl<T> CommandRequest<T> {
    /// Separates the body from the request.
    pub fn take(self) -> (CommandRequest<()>, T) {
        let Self { principal, body, expected_version, key } = self;
        (CommandRequest { principal, body: (), expected_version, key }, body)
    }

    /// Executes a command and builds the response. `status` is the HTTP status of a success.
    ///
    /// # Errors
    /// The command was refused, or could not be executed.
    pub async fn execute<A: Aggregate>(
        self,
        api: &CommandApi,
        resource: &'static Resource,
        status: StatusCode,
        id: &str,
        command: A::Command,
    ) -> Result<Response, Problem> {
        let scope = self.principal.subject.clone();
        let _in_flight = match &self.key {
            None => None,
            Some((key, hash)) => {
                let in_flight = api.in_flight().enter(&scope, key)?;
                if let Some(found) = api.store().idempotency_record(&scope, key).await.map_err(unavailable)? {
                    return replay(resource, found, hash);
                }
                Some(in_flight)
            }
        };
        let key = self.key.clone().map(|(key, request_hash)| Key {
            scope: scope.clone(),
            key,
            request_hash,
            status: status.as_u16(),
        });
        let origin = Origin {
            principal: self.principal,
            key,
            occurred_at: None,
            is_history: false,
            waits_for_capacity: false,
            request_id: request_id::current(),
            trace: request_id::current_trace(),
        };
        let mut steps: [Box<dyn AnyStep>; 1] = [Step::<A>::new(id, command)];
        steps[0].expect(self.expected_version);
        let rejected = match (api.decider().execute(&mut steps, &origin).await, &self.key) {
            (Ok(executed), _) => {
                let version = executed.versions.first().copied().unwrap_or_default();
                let accepted = Accepted { resource, id: id.to_owned(), version, position: executed.position };
                return Ok(success(status, &accepted));
            }
            (Err(Rejected::Problem(problem)), None) => return Err(problem),
            (Err(Rejected::KeyUsed), None) => return Err(request_in_flight()),
            (Err(rejected), Some(_)) => rejected,
        };
        let Some((key, hash)) = self.key else { return Err(Problem::internal()) };
        // After the lookup, another process may have used the key, which may be the reason for the refusal.
        match (api.store().idempotency_record(&scope, &key).await.map_err(unavailable)?, rejected) {
            (Some(found), _) => replay(resource, found, &hash),
            (None, Rejected::Problem(problem)) => Err(problem),
            (None, Rejected::KeyUsed) => Err(request_in_flight()),
        }
    }
}

/// Returns the recorded answer, byte for byte.
///
/// # Errors
/// 422 when the key belongs to another request.
fn replay(resource: &'static Resource, found: IdempotencyRecord, request_hash: &str) -> Result<Response, Problem> {
    if found.request_hash != request_hash {
        return Err(Problem::new(IDEMPOTENCY_KEY_REUSED)
            .detail("The key was used with another method, path, query or body. Use a new key for a new request."));
    }
    let status = StatusCode::from_u16(found.status as u16).unwrap_or(StatusCode::OK);
    let accepted = Accepted { resource, id: found.aggregate_id, version: found.version, position: found.position };
    let mut response = success(status, &accepted);
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    Ok(response)
}

fn success(status: StatusCode, accepted: &Accepted) -> Response {
    let mut response = (status, axum::Json(accepted)).into_response();
    let headers = response.headers_mut();
    headers.insert(ETAG, etag(accepted.version));
    let location = || format!("{}{}", accepted.resource.path, utf8_percent_encode(&accepted.id, PATH_SEGMENT));
    if status == StatusCode::CREATED
        && let Ok(location) = HeaderValue::try_from(location())
    {
        headers.insert(LOCATION, location);
    }
    response
}
