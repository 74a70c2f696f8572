//! Pipeline: `app.use(a); app.use(b); app.use(c)`. The layers of a `ServiceBuilder` run in the order in which they are
//! written.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use tower::ServiceBuilder;

const STEPS: HeaderName = HeaderName::from_static("x-steps");

/// Adds the name of the layer to the steps of the request.
async fn step(name: &'static str, mut request: Request, next: Next) -> Response {
    request.headers_mut().append(STEPS, HeaderValue::from_static(name));
    next.run(request).await
}

/// Adds three layers to the routes that the router has so far. The first layer sees a request first, and its response
/// last.
pub fn pipeline<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    routes.layer(
        ServiceBuilder::new()
            .layer(from_fn(|request, next| step("identify", request, next)))
            .layer(from_fn(|request, next| step("measure", request, next)))
            .layer(from_fn(|request, next| step("compress", request, next))),
    )
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::HeaderMap;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn layers_run_in_order() {
        let steps = async |headers: HeaderMap| {
            let steps = headers.get_all(STEPS).iter().map(|step| step.to_str().unwrap_or_default().to_owned());
            steps.collect::<Vec<_>>().join(" ")
        };
        let app = pipeline(Router::new().route("/", get(steps)));
        let answer = app.oneshot(Request::builder().uri("/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(to_bytes(answer.into_body(), 100).await.unwrap(), "identify measure compress");
    }
}
