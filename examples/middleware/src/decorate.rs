//! Decorator: `app.get('/', withLogging(handler))`. Adds a layer to one route.

use std::time::Instant;

use axum::extract::Request;
use axum::handler::Handler;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{MethodRouter, get};

/// Logs each request and the duration of its response.
async fn log(request: Request, next: Next) -> Response {
    let (path, started) = (request.uri().path().to_owned(), Instant::now());
    let mut response = next.run(request).await;
    let (status, elapsed) = (response.status().as_u16(), started.elapsed());
    tracing::info!(path, status, ?elapsed, "Request answered.");
    response.extensions_mut().insert(Logged);
    response
}

/// Marks a response that was logged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logged;

/// Returns a `GET` route that logs its requests.
pub fn with_logging<H, T, S>(handler: H) -> MethodRouter<S>
where
    H: Handler<T, S>,
    T: 'static,
    S: Clone + Send + Sync + 'static,
{
    get(handler).layer(from_fn(log))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn only_the_decorated_route_is_logged() {
        let app = Router::new().route("/plain", get(async || "a")).route("/logged", with_logging(async || "b"));
        for (path, is_logged) in [("/plain", false), ("/logged", true)] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let answer = app.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.extensions().get::<Logged>().is_some(), is_logged, "{path}");
        }
    }
}
