//! The page at `/`, which links to what the process serves, and the icon of all pages.

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};

use crate::page::page_or_json;
use crate::settings::Roles;

const VERSION: &str = env!("CARGO_PKG_VERSION");
static ICON: &[u8] = include_bytes!("favicon.ico");

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
    let (page, json) = (page(&links), json(&links));
    let root = move |headers: HeaderMap| async move { page_or_json(&headers, || page, || json) };
    Router::new().route("/", get(root)).route("/favicon.ico", get(icon))
}

async fn icon() -> Response {
    ([(CONTENT_TYPE, "image/x-icon"), (CACHE_CONTROL, "public, max-age=86400")], ICON).into_response()
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
    let body = format!("<p>An event-sourced order backend, version {VERSION}.</p>\n<ul>\n{items}</ul>");
    crate::page::page("Docket", "Docket", &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere_and_links_what_the_process_serves() {
        let links = [DOCS, HEALTH];
        let page = page(&links);
        assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("<script"), "{page}");
        assert!(page.contains("href=\"/docs\"") && !page.contains("/metrics"), "{page}");
        assert_eq!(json(&links)["links"], json!({"docs": "/docs", "health": "/health/ready"}));
    }
}
