//! Health endpoints: liveness, startup and readiness.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::future::join_all;
use jiff::Timestamp;
use serde::Serialize;

const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long outcomes are cached, so that frequent probes cause at most one check of each dependency per second.
const OUTCOME_CACHE_TTL: Duration = Duration::from_secs(1);

/// The health state of the process. Clones share the state.
#[derive(Clone, Default)]
pub struct Health(Arc<Inner>);

#[derive(Default)]
struct Inner {
    started: AtomicBool,
    draining: AtomicBool,
    checks: Mutex<Vec<Arc<Check>>>,
    /// Locked while the checks run, so that concurrent probes share one run.
    outcomes: tokio::sync::Mutex<Option<(Instant, Outcomes)>>,
}

type Outcomes = BTreeMap<&'static str, Outcome>;

type Run = dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync;

struct Check {
    name: &'static str,
    required: bool,
    run: Box<Run>,
    /// Whether the last run failed. Used to log a failure once when it begins, and not at each probe.
    failed: AtomicBool,
}

#[derive(Serialize)]
struct Report {
    status: &'static str,
    timestamp: Timestamp,
    checks: Outcomes,
}

#[derive(Clone, Serialize)]
struct Outcome {
    status: &'static str,
    latency_ms: f64,
    #[serde(skip)]
    required: bool,
}

impl Health {
    /// Creates a state that is not started and not draining, and has no checks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check of a dependency. A check fails if it does not complete within 2 s. The process is not ready while a
    /// `required` check fails; it is degraded while another check fails. The error of a check is logged and not sent to
    /// the client. Checks run at most once per second, regardless of the number of probes.
    pub fn register<C, F>(&self, name: &'static str, check: C, required: bool)
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let check = Arc::new(check);
        let run: Box<Run> = Box::new(move || {
            let check = check.clone();
            Box::pin(async move { check().await })
        });
        let check = Arc::new(Check { name, required, run, failed: AtomicBool::new(false) });
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).push(check);
    }

    /// Marks the process as started: migrations, caches and listeners are complete.
    pub fn set_started(&self) {
        self.0.started.store(true, Ordering::Release);
    }

    /// Marks the process as draining: it is about to stop and must receive no new work.
    pub fn set_draining(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Returns the routes `/health/live` (200 while the process responds), `/health/startup` (200 once started) and
    /// `/health/ready` (200 when the process is started, is not draining, and no required check fails; else 503).
    pub fn router(&self) -> Router {
        let (startup, ready) = (self.clone(), self.clone());
        Router::new()
            .route("/health/live", get(async || answer(StatusCode::OK, "ok", Outcomes::new())))
            .route("/health/startup", get(async move || startup.startup()))
            .route("/health/ready", get(async move || ready.ready().await))
    }

    fn startup(&self) -> Response {
        match self.0.started.load(Ordering::Acquire) {
            true => answer(StatusCode::OK, "ok", Outcomes::new()),
            false => answer(StatusCode::SERVICE_UNAVAILABLE, "starting", Outcomes::new()),
        }
    }

    async fn ready(&self) -> Response {
        let outcomes = self.outcomes().await;
        let failed = |required| outcomes.values().any(|check| check.required == required && check.status != "ok");
        let (code, status) = if self.0.draining.load(Ordering::Acquire) {
            (StatusCode::SERVICE_UNAVAILABLE, "draining")
        } else if !self.0.started.load(Ordering::Acquire) {
            (StatusCode::SERVICE_UNAVAILABLE, "starting")
        } else if failed(true) {
            (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
        } else if failed(false) {
            (StatusCode::OK, "degraded")
        } else {
            (StatusCode::OK, "ready")
        };
        answer(code, status, outcomes)
    }

    async fn outcomes(&self) -> Outcomes {
        let mut last = self.0.outcomes.lock().await;
        if let Some((_, outcomes)) = last.as_ref().filter(|(at, _)| at.elapsed() < OUTCOME_CACHE_TTL) {
            return outcomes.clone();
        }
        let checks = self.0.checks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let outcomes = join_all(checks.iter().map(|check| async { (check.name, check.outcome().await) })).await;
        let outcomes: Outcomes = outcomes.into_iter().collect();
        *last = Some((Instant::now(), outcomes.clone()));
        outcomes
    }
}

impl Check {
    async fn outcome(&self) -> Outcome {
        let start = Instant::now();
        // Runs in its own task, so that a check that panics or blocks its thread does not affect the other checks.
        let result = match tokio::time::timeout(CHECK_TIMEOUT, tokio::spawn((self.run)())).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("the health check panicked".to_owned()),
            Err(_) => Err("the health check did not complete within 2 s".to_owned()),
        };
        let latency_ms = (start.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        let before = self.failed.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !before => {
                tracing::warn!(check = self.name, required = self.required, error, "Health check failed.")
            }
            Ok(()) if before => tracing::info!(check = self.name, "Health check recovered."),
            _ => {}
        }
        Outcome { status: if result.is_ok() { "ok" } else { "failed" }, latency_ms, required: self.required }
    }
}

fn answer(code: StatusCode, status: &'static str, checks: Outcomes) -> Response {
    let report = Report { status, timestamp: Timestamp::now(), checks };
    (code, [(CACHE_CONTROL, "no-store")], Json(report)).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    async fn probe(health: &Health, path: &str) -> (u16, Value) {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = health.router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&to_bytes(response.into_body(), 10_000).await.unwrap()).unwrap())
    }

    #[tokio::test]
    async fn starting_then_ready_then_draining() {
        let health = Health::new();
        assert_eq!(probe(&health, "/health/live").await.0, 200);
        assert_eq!(probe(&health, "/health/startup").await.0, 503);
        assert_eq!(probe(&health, "/health/ready").await.1["status"], "starting");
        health.set_started();
        assert_eq!(probe(&health, "/health/startup").await.0, 200);
        let (status, report) = probe(&health, "/health/ready").await;
        assert_eq!((status, &report["status"]), (200, &Value::from("ready")));
        assert!(report["timestamp"].as_str().unwrap().ends_with('Z'));
        health.set_draining();
        let (status, report) = probe(&health, "/health/ready").await;
        assert_eq!((status, &report["status"]), (503, &Value::from("draining")));
        assert_eq!(probe(&health, "/health/live").await.0, 200);
    }

    #[tokio::test]
    async fn a_failing_optional_check_only_degrades_readiness() {
        let health = Health::new();
        health.set_started();
        health.register("store", async || Ok(()), true);
        health.register("bus", async || Err("password wrong".to_owned()), false);
        let (status, report) = probe(&health, "/health/ready").await;
        assert_eq!((status, &report["status"]), (200, &Value::from("degraded")));
        assert_eq!(report["checks"]["store"]["status"], "ok");
        assert_eq!(report["checks"]["bus"]["status"], "failed");
        assert!(report["checks"]["bus"]["latency_ms"].is_f64());
        assert!(!report.to_string().contains("password"), "errors are logged and not sent to the client");
    }

    #[tokio::test]
    async fn a_failing_required_check_makes_it_not_ready() {
        let health = Health::new();
        health.set_started();
        health.register("disk", async || Err("full".to_owned()), true);
        let (status, report) = probe(&health, "/health/ready").await;
        assert_eq!((status, &report["status"]), (503, &Value::from("unavailable")));
    }

    #[tokio::test]
    async fn the_checks_run_at_most_once_per_second() {
        static ASKED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let health = Health::new();
        let check = async || {
            ASKED.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        };
        health.register("store", check, true);
        join_all((0..50).map(|_| probe(&health, "/health/ready"))).await;
        assert_eq!(ASKED.load(Ordering::Relaxed), 1);
        tokio::time::sleep(OUTCOME_CACHE_TTL).await;
        probe(&health, "/health/ready").await;
        assert_eq!(ASKED.load(Ordering::Relaxed), 2);
    }
}
