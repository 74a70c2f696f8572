//! Conditional: `app.use(unless({path: '/health'}, auth))`. Some requests skip a layer.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;

/// A middleware function.
pub type Middleware = fn(Request, Next) -> BoxFuture<'static, Response>;

/// Runs `middleware` for all requests except those for which `is_exempt` returns true.
pub async fn unless(is_exempt: fn(&Request) -> bool, middleware: Middleware, request: Request, next: Next) -> Response {
    match is_exempt(&request) {
        true => next.run(request).await,
        false => middleware(request, next).await,
    }
}

/// Whether a request is for `/health`.
pub fn is_health(request: &Request) -> bool {
    request.uri().path() == "/health"
}

/// Refuses requests without credentials.
pub fn credentials(request: Request, next: Next) -> BoxFuture<'static, Response> {
    Box::pin(async move {
        match request.headers().contains_key(AUTHORIZATION) {
            true => next.run(request).await,
            false => (StatusCode::UNAUTHORIZED, "Send a token.").into_response(),
        }
    })
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn health_needs_no_credentials() {
        let routes = Router::new().route("/health", get(async || "well")).route("/data", get(async || "data"));
        let app = routes.layer(from_fn(|request, next| unless(is_health, credentials, request, next)));
        for (path, status) in [("/health", 200), ("/data", 401)] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            assert_eq!(app.clone().oneshot(request).await.unwrap().status(), status, "{path}");
        }
    }
}
