//! Chain: `app.use(firstOf(byToken, byKey))`. Several alternatives are tried in order; the first one that succeeds is
//! used.

use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// The identified caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller(pub String);

/// Identifies the caller of a request; `None` when the request has no credentials of this kind.
pub type Identify = fn(&Parts) -> Option<Caller>;

/// Identifies the caller with the first method that applies. Answers 401 when none applies.
pub async fn first_of(methods: &'static [Identify], request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match methods.iter().find_map(|identify| identify(&parts)) {
        Some(caller) => {
            parts.extensions.insert(caller);
            next.run(Request::from_parts(parts, body)).await
        }
        None => (StatusCode::UNAUTHORIZED, "Send a token or a key.").into_response(),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Identifies the caller by a bearer token.
pub fn by_token(parts: &Parts) -> Option<Caller> {
    let token = text(&parts.headers, "authorization")?.strip_prefix("Bearer ")?;
    Some(Caller(format!("token {token}")))
}

/// Identifies the caller by an API key.
pub fn by_key(parts: &Parts) -> Option<Caller> {
    text(&parts.headers, "x-api-key").map(|key| Caller(format!("key {key}")))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::extract::Extension;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn the_first_method_that_applies_is_used() {
        const METHODS: &[Identify] = &[by_token, by_key];
        let name = async |Extension(Caller(name)): Extension<Caller>| name;
        let app = Router::new().route("/", get(name)).layer(from_fn(|request, next| first_of(METHODS, request, next)));
        let cases: [(&[(&str, &str)], &str); 3] = [
            (&[("x-api-key", "k")], "key k"),
            (&[("x-api-key", "k"), ("authorization", "Bearer t")], "token t"),
            (&[], "Send a token or a key."),
        ];
        for (headers, expected) in cases {
            let request =
                headers.iter().fold(Request::builder().uri("/"), |all, (name, value)| all.header(*name, *value));
            let answer = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(to_bytes(answer.into_body(), 100).await.unwrap(), expected);
        }
    }
}
