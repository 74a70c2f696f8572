//! Small pages for browsers, where programs get JSON from the same path.

use std::sync::LazyLock;

use axum::http::header::{ACCEPT, CONTENT_SECURITY_POLICY, VARY};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:0 auto;padding:1.5rem 1rem}\
h1{font-size:1.5rem;margin:0}p{margin:.25rem 0 1rem}\
ul{list-style:none;margin:0;padding:0}\
li{border-top:1px solid #8888;padding:.75rem 0}li a{font-weight:600}li span{display:block}\
td{padding:.2rem 1rem .2rem 0;vertical-align:top}";

/// Content security policy of the pages: nothing but their own style and the icon.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).expect("the policy is ASCII")
});

/// Returns the page to a client that prefers one, and the JSON to the others.
pub fn page_or_json(headers: &HeaderMap, page: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> Response {
    let mut response = match wants_page(headers) {
        true => Html(page()).into_response(),
        false => axum::Json(json()).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY.clone());
    headers.insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// Whether the client prefers a page to JSON. A browser names `text/html`; a program usually names nothing or `*/*`.
fn wants_page(headers: &HeaderMap) -> bool {
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let weight_of = |kind: &str| {
        let items = accept.iter().flat_map(|value| value.split(','));
        items
            .filter_map(|item| {
                let mut parts = item.split(';').map(str::trim);
                parts.next().filter(|name| name.eq_ignore_ascii_case(kind))?;
                let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
                weight.map_or(Some(1.0), |weight| weight.parse::<f32>().ok())
            })
            .fold(0.0, f32::max)
    };
    let page = weight_of("text/html");
    page > 0.0 && page >= weight_of("application/json")
}

/// Returns a page. `title` and `heading` are texts, `body` is HTML.
pub fn page(title: &str, heading: &str, body: &str) -> String {
    let (title, heading) = (escaped(title), escaped(heading));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <link rel=\"icon\" href=\"/favicon.ico\">\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{heading}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )
}

/// Returns a text as HTML.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_the_page_and_programs_get_json() {
        for (accept, expected) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", true),
            ("text/html", true),
            ("application/json;q=0.5, TEXT/HTML;q=0.9", true),
            ("*/*", false),
            ("", false),
            ("application/json", false),
            ("application/json, text/html;q=0.9", false),
            ("text/html;q=0", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(wants_page(&headers), expected, "{accept}");
        }
        assert!(!wants_page(&HeaderMap::new()));
    }
}
