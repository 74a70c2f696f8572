//! The page at `/`, which links to what the process serves, and the icon of all pages.

use axum::Router;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::settings::Roles;

const VERSION: &str = env!("CARGO_PKG_VERSION");
static ICON: &[u8] = include_bytes!("favicon.ico");
const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:0 auto;padding:1.5rem 1rem}\
h1{font-size:1.5rem;margin:0}p{margin:.25rem 0 1rem}\
ul{list-style:none;margin:0;padding:0}\
li{border-top:1px solid #8888;padding:.75rem 0}a{font-weight:600}span{display:block}";

/// A link: its name in JSON, its path, and its text and description on the page.
type Link = (&'static str, &'static str, &'static str, &'static str);

const DOCS: Link = ("docs", "/docs", "API documentation", "Every request with its parameters and answers.");
const OPENAPI: Link = ("openapi", "/openapi.json", "OpenAPI document", "The HTTP API, for generators of clients.");
const PROBLEMS: Link = ("problems", "/problems", "Problem types", "Every error that an answer can have.");
const ASYNCAPI: Link = ("asyncapi", "/asyncapi.json", "AsyncAPI document", "The channels of live updates.");
const HEALTH: Link = ("health", "/health/ready", "Health", "Whether this process is ready, check by check.");
const METRICS: Link = ("metrics", "/metrics", "Metrics", "Figures of this process, in the format of Prometheus.");

/// Returns the routes `/` and `/favicon.ico`. They need no token. `has_metrics`: whether the process serves `/metrics`
/// at the same address.
pub fn router(roles: Roles, has_metrics: bool) -> Router {
    let mut links = vec![DOCS, OPENAPI, PROBLEMS];
    links.extend(roles.read.then_some(ASYNCAPI));
    links.push(HEALTH);
    links.extend(has_metrics.then_some(METRICS));
    let (page, policy, json) = (page(&links), policy(), json(&links).to_string());
    let root = move |headers: HeaderMap| async move {
        let vary = [(VARY, ACCEPT.as_str())];
        match wants_page(&headers) {
            true => {
                (vary, as_type("text/html; charset=utf-8"), [(CONTENT_SECURITY_POLICY, policy)], page).into_response()
            }
            false => (vary, as_type("application/json"), json).into_response(),
        }
    };
    Router::new().route("/", get(root)).route("/favicon.ico", get(icon))
}

async fn icon() -> Response {
    (as_type("image/x-icon"), [(CACHE_CONTROL, "public, max-age=86400")], ICON).into_response()
}

fn as_type(kind: &'static str) -> [(HeaderName, &'static str); 1] {
    [(CONTENT_TYPE, kind)]
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

fn json(links: &[Link]) -> Value {
    let links: Map<String, Value> = links.iter().map(|(name, path, ..)| (String::from(*name), json!(path))).collect();
    json!({"name": "Docket", "version": VERSION, "links": links})
}

fn page(links: &[Link]) -> String {
    let items: String = links
        .iter()
        .map(|(_, path, text, about)| format!("<li><a href=\"{path}\">{text}</a><span>{about}</span></li>\n"))
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Docket</title>\n\
         <link rel=\"icon\" href=\"/favicon.ico\">\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Docket</h1>\n\
         <p>An event-sourced order backend, version {VERSION}.</p>\n<ul>\n{items}</ul>\n</main>\n</body>\n</html>\n"
    )
}

/// Content security policy of the page: nothing but its own style and the icon.
fn policy() -> String {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; img-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

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

    #[test]
    fn the_page_loads_nothing_from_elsewhere_and_links_what_the_process_serves() {
        let links = [DOCS, HEALTH];
        let page = page(&links);
        assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("<script"), "{page}");
        assert!(page.contains("href=\"/docs\"") && !page.contains("/metrics"), "{page}");
        assert_eq!(json(&links)["links"], json!({"docs": "/docs", "health": "/health/ready"}));
    }
}
