//! Rate limits, per principal or, for requests without a valid token, per client address.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, Extension, FromRef, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{Authenticator, Principal};
use crate::problem::{Problem, RATE_LIMITED};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const SWEEP_INTERVAL_SECONDS: u64 = 10;
/// Divisor for the part of the burst that command streams leave to single requests: a quarter.
const RESERVED_BURST_DIVISOR: u32 = 4;

/// Settings of the rate limits. Each command of `POST /v1/commands` counts as a request. A caller is identified by the
/// token's subject or, without a valid token, by the client's address; addresses have the customers' rate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Requests per second of each customer and of each address without a valid token; 0 means no limit. Each line of
    /// `POST /v1/commands` counts as one request; when the rate is used up, the next line is read later.
    pub rate_per_second_customer: u32,
    /// Requests per second of each staff member and admin; 0 means no limit.
    pub rate_per_second_staff: u32,
    /// Maximum burst: requests that a caller may make at once after a pause; 0 counts as 1. Lines of `POST /v1/commands`
    /// leave a quarter of it to other requests.
    pub rate_burst: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { rate_per_second_customer: 100, rate_per_second_staff: 0, rate_burst: 200 }
    }
}

/// Enforces the rate limits. Clones share the state.
///
/// Memory: about 30 bytes for each caller that was active in the last 10 seconds or whose bucket is not full again.
#[derive(Clone)]
pub struct Limiter(Arc<Inner>);

struct Inner {
    authenticator: Authenticator,
    customer: Option<Rate>,
    staff: Option<Rate>,
    /// Randomly keyed, so that no client can choose a subject that shares the bucket of another subject.
    hasher: RandomState,
    started: Instant,
    swept_seconds: AtomicU64,
}

/// Keyed by hash, so that a key needs 8 bytes and no allocation, whatever the length of the subject.
type Buckets = RateLimiter<u64, DefaultKeyedStateStore<u64>, DefaultClock, StateInformationMiddleware>;

struct Rate {
    name: &'static str,
    per_second: u32,
    burst: u32,
    policy: HeaderValue,
    buckets: Buckets,
}

impl Limiter {
    /// Creates a limiter with full buckets.
    pub fn new(settings: &Settings, authenticator: Authenticator) -> Self {
        Self(Arc::new(Inner {
            authenticator,
            customer: Rate::new("customer", settings.rate_per_second_customer, settings.rate_burst),
            staff: Rate::new("staff", settings.rate_per_second_staff, settings.rate_burst),
            hasher: RandomState::new(),
            started: Instant::now(),
            swept_seconds: AtomicU64::new(0),
        }))
    }

    /// Adds the limits to the routes already in `router`. Add the routes for health and metrics later: they must
    /// respond under load.
    pub fn limit<S: Clone + Send + Sync + 'static>(&self, router: Router<S>) -> Router<S> {
        match (&self.0.customer, &self.0.staff) {
            (None, None) => router,
            _ => router.layer(from_fn_with_state(self.clone(), limit)),
        }
    }

    /// Returns the caller's rate and bucket key; `None` if the caller has no limit.
    fn caller(&self, parts: &mut Parts) -> Option<(&Rate, u64)> {
        match self.0.authenticator.authenticate(parts) {
            Ok(principal) => {
                let rate = if principal.is_staff() { &self.0.staff } else { &self.0.customer };
                Some((rate.as_ref()?, self.0.hasher.hash_one(("subject", &principal.subject))))
            }
            Err(_) => {
                let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| network(peer.ip()));
                Some((self.0.customer.as_ref()?, self.0.hasher.hash_one(("peer", peer))))
            }
        }
    }

    /// Returns the pace of a principal whose request contains many commands. Each command costs as much as a request.
    pub fn pace(&self, principal: &Principal) -> CommandPacer {
        let key = self.0.hasher.hash_one(("subject", &principal.subject));
        CommandPacer { limiter: self.clone(), is_staff: principal.is_staff(), key }
    }

    /// Removes the callers whose bucket is full again, at most every 10 seconds. Visiting all buckets may take long, so
    /// it runs on a blocking thread.
    fn sweep(&self) {
        let now = self.0.started.elapsed().as_secs();
        let last = self.0.swept_seconds.load(Ordering::Relaxed);
        let due = now >= last + SWEEP_INTERVAL_SECONDS;
        if due && self.0.swept_seconds.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let this = self.clone();
            tokio::task::spawn_blocking(move || {
                for rate in this.0.customer.iter().chain(&this.0.staff) {
                    rate.buckets.retain_recent();
                    rate.buckets.shrink_to_fit();
                }
            });
        }
    }
}

/// Charges the commands of a stream to the rate of one principal.
pub struct CommandPacer {
    limiter: Limiter,
    is_staff: bool,
    key: u64,
}

impl CommandPacer {
    /// Waits until the rate allows one more command and charges it. A quarter of the burst is left to single requests
    /// of the same principal.
    pub async fn take(&self) {
        self.limiter.sweep();
        let inner = &self.limiter.0;
        let Some(rate) = (if self.is_staff { &inner.staff } else { &inner.customer }) else { return };
        // Sleeping too long does not reduce the rate, because the bucket fills during the sleep.
        loop {
            match rate.check(self.key) {
                Err(wait) => tokio::time::sleep(wait).await,
                Ok(left) => {
                    let lacking = (rate.burst / RESERVED_BURST_DIVISOR).saturating_sub(left);
                    if lacking > 0 {
                        tokio::time::sleep(Duration::from_secs_f64(f64::from(lacking) / f64::from(rate.per_second)))
                            .await;
                    }
                    return;
                }
            }
        }
    }
}

impl Rate {
    fn new(name: &'static str, per_second: u32, burst: u32) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(per_second)?)
            .allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN));
        let burst = quota.burst_size().get();
        let policy = format!("\"{name}\";q={burst};w={}", burst.div_ceil(per_second));
        let policy = HeaderValue::from_str(&policy).expect("a name and numbers are ASCII");
        Some(Self { name, per_second, burst, policy, buckets: RateLimiter::keyed(quota).with_middleware() })
    }

    /// Charges one request. Returns the remaining requests, or the time until the next request is allowed.
    fn check(&self, key: u64) -> Result<u32, Duration> {
        match self.buckets.check_key(&key) {
            Ok(state) => Ok(state.remaining_burst_capacity()),
            Err(refused) => Err(refused.wait_time_from(self.buckets.clock().now())),
        }
    }

    /// Returns the state of a caller with `left` remaining requests.
    fn standing(&self, left: u32) -> Standing {
        let reset_seconds = (self.burst - left.min(self.burst)).div_ceil(self.per_second);
        let (policy, per_second, burst) = (self.name, self.per_second, self.burst);
        Standing { policy, per_second, burst, remaining: left, reset_seconds }
    }

    /// Returns the header `RateLimit` of the IETF draft (draft-ietf-httpapi-ratelimit-headers): the remaining requests,
    /// and the seconds until the bucket is full.
    fn limit_header(&self, left: u32) -> HeaderValue {
        let seconds = self.standing(left).reset_seconds;
        HeaderValue::from_str(&format!("\"{}\";r={left};t={seconds}", self.name)).expect("a name and numbers are ASCII")
    }
}

/// The rate limit of a caller, and its current state.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Standing {
    /// The name of the rate: `customer` or `staff`.
    policy: &'static str,
    /// Requests per second.
    per_second: u32,
    /// Maximum burst: requests that a caller may make at once after a pause.
    burst: u32,
    /// Remaining requests, after this one.
    remaining: u32,
    /// Seconds until the full burst is available again.
    reset_seconds: u32,
}

/// The response of `/v1/rate-limit`.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct RateLimit {
    /// The rate limit of the caller; null if the caller has no limit.
    rate_limit: Option<Standing>,
}

/// Returns the route `/v1/rate-limit`. Its requests count, too.
pub fn router<S>() -> OpenApiRouter<S>
where
    S: Clone + Send + Sync + 'static,
    Authenticator: FromRef<S>,
{
    OpenApiRouter::new().routes(routes!(standing))
}

/// Returns how many requests the caller may still make.
#[utoipa::path(get, path = "/v1/rate-limit", operation_id = "get_rate_limit", tag = "operations",
    responses((status = 200, description = "The rate limit of the caller.", body = RateLimit)))]
async fn standing(_: Principal, standing: Option<Extension<Standing>>) -> Json<RateLimit> {
    Json(RateLimit { rate_limit: standing.map(|Extension(standing)| standing) })
}

async fn limit(State(limiter): State<Limiter>, request: Request, next: Next) -> Response {
    limiter.sweep();
    let (mut parts, body) = request.into_parts();
    let caller = limiter.caller(&mut parts);
    let mut request = Request::from_parts(parts, body);
    let Some((rate, key)) = caller else { return next.run(request).await };
    let (left, mut response) = match rate.check(key) {
        Ok(left) => {
            request.extensions_mut().insert(rate.standing(left));
            (left, next.run(request).await)
        }
        Err(wait) => (0, too_many(rate, wait).into_response()),
    };
    response.headers_mut().insert(RATE_LIMIT_POLICY, rate.policy.clone());
    response.headers_mut().insert(RATE_LIMIT, rate.limit_header(left));
    response
}

fn too_many(rate: &Rate, wait: Duration) -> Problem {
    let seconds = wait.as_millis().div_ceil(1000).max(1) as u64;
    Problem::new(RATE_LIMITED)
        .detail(format!(
            "At most {} requests per second are allowed, with bursts of {}. Try again later.",
            rate.per_second, rate.burst
        ))
        .retry_after(seconds)
}

/// Returns the address by which a client is limited. An IPv6 host usually controls a whole /64, so the /64 counts as
/// one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;
    use crate::auth::{self, Role};

    fn authenticator() -> Authenticator {
        let settings =
            auth::Settings { jwt_secret: Some("0123456789abcdef0123456789abcdef".into()), ..Default::default() };
        Authenticator::new(&settings).unwrap()
    }

    fn app(customer: u32, staff: u32, burst: u32) -> (Limiter, Router) {
        let settings = Settings { rate_per_second_customer: customer, rate_per_second_staff: staff, rate_burst: burst };
        let limiter = Limiter::new(&settings, authenticator());
        let app = limiter.limit(Router::new().route("/", get(async || "done")));
        (limiter, app)
    }

    async fn ask(app: &Router, who: Option<(&str, Role)>, peer: &str) -> Response {
        let mut request = Request::builder().uri("/");
        if let Some((subject, role)) = who {
            let token = authenticator().sign(subject, role, Duration::from_secs(60)).unwrap();
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut request = request.body(Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)));
        app.clone().oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn a_customer_beyond_the_rate_gets_429_and_others_do_not() {
        let (_, app) = app(1, 0, 2);
        let customer = Some(("c-1", Role::Customer));
        let first = ask(&app, customer, "127.0.0.1").await;
        assert_eq!(first.status(), 200);
        assert_eq!(first.headers()[RATE_LIMIT_POLICY], "\"customer\";q=2;w=2");
        assert_eq!(first.headers()[RATE_LIMIT], "\"customer\";r=1;t=1");
        assert_eq!(ask(&app, customer, "127.0.0.2").await.status(), 200);
        let refused = ask(&app, customer, "127.0.0.3").await;
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.headers()[RETRY_AFTER], "1");
        assert_eq!(refused.headers()[RATE_LIMIT], "\"customer\";r=0;t=2");
        assert_eq!(ask(&app, Some(("c-2", Role::Customer)), "127.0.0.1").await.status(), 200);
        for _ in 0..5 {
            let staff = ask(&app, Some(("c-1", Role::Staff)), "127.0.0.1").await;
            assert_eq!(staff.status(), 200);
            assert!(!staff.headers().contains_key(RATE_LIMIT));
        }
    }

    #[tokio::test]
    async fn a_caller_can_query_its_remaining_requests() {
        let settings = Settings { rate_per_second_customer: 1, rate_per_second_staff: 0, rate_burst: 3 };
        let limiter = Limiter::new(&settings, authenticator());
        let app = limiter.limit(router::<Authenticator>().with_state(authenticator()).split_for_parts().0);
        let ask = async |role| {
            let token = authenticator().sign("c-1", role, Duration::from_secs(60)).unwrap();
            let request = Request::builder().uri("/v1/rate-limit").header(AUTHORIZATION, format!("Bearer {token}"));
            let answer = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            let body = axum::body::to_bytes(answer.into_body(), 1_000).await.unwrap();
            String::from_utf8(body.to_vec()).unwrap()
        };
        let left = r#"{"rate_limit":{"policy":"customer","per_second":1,"burst":3,"remaining":2,"reset_seconds":1}}"#;
        assert_eq!(ask(Role::Customer).await, left);
        assert_eq!(ask(Role::Staff).await, r#"{"rate_limit":null}"#);
    }

    #[tokio::test]
    async fn bulk_commands_are_rate_limited_and_leave_room_for_requests() {
        let (limiter, app) = app(200, 0, 40);
        let token = authenticator().sign("c-1", Role::Customer, Duration::from_secs(60)).unwrap();
        let pace = limiter.pace(&authenticator().verify(&token).unwrap());
        let began = Instant::now();
        for _ in 0..130 {
            pace.take().await;
        }
        let took = began.elapsed();
        assert!(took > Duration::from_millis(450), "100 commands beyond the usable burst, at 200 per second: {took:?}");
        for _ in 0..5 {
            assert_eq!(ask(&app, Some(("c-1", Role::Customer)), "127.0.0.1").await.status(), 200);
        }
        let staff = authenticator().sign("s", Role::Staff, Duration::from_secs(60)).unwrap();
        let pace = limiter.pace(&authenticator().verify(&staff).unwrap());
        let began = Instant::now();
        for _ in 0..10_000 {
            pace.take().await;
        }
        assert!(began.elapsed() < Duration::from_secs(1), "staff have no limit in this test");
    }

    #[tokio::test]
    async fn requests_without_a_token_are_limited_by_address() {
        let (_, app) = app(1, 0, 1);
        assert_eq!(ask(&app, None, "10.0.0.1").await.status(), 200);
        assert_eq!(ask(&app, None, "::ffff:10.0.0.1").await.status(), 429);
        assert_eq!(ask(&app, None, "10.0.0.2").await.status(), 200);
        assert_eq!(ask(&app, None, "2001:db8::1").await.status(), 200);
        assert_eq!(ask(&app, None, "2001:db8::2").await.status(), 429);
        assert_eq!(ask(&app, None, "2001:db8:0:1::2").await.status(), 200);
    }

    #[tokio::test]
    async fn zero_disables_the_limit() {
        let (_, app) = app(0, 0, 0);
        for _ in 0..5 {
            assert!(!ask(&app, None, "10.0.0.1").await.headers().contains_key(RATE_LIMIT));
        }
    }

    #[tokio::test]
    async fn callers_with_a_full_bucket_are_removed() {
        let (limiter, app) = app(1000, 0, 1);
        ask(&app, None, "10.0.0.1").await;
        let buckets = &limiter.0.customer.as_ref().unwrap().buckets;
        assert_eq!(buckets.len(), 1);
        while !buckets.is_empty() {
            tokio::task::yield_now().await;
            buckets.retain_recent();
        }
    }
}
