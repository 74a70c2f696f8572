//! The routes by role, the OpenAPI document of all roles, and its page.

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use axum::middleware::map_response;
use axum::response::Response;
use command_engine::api::CommandApi;
use push::api::QueryApi;
use push::{access, asyncapi, centrifuge, live};
use serde_json::Value;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::contract;
use crate::overview;
use crate::problems::problem_types;
use crate::program::Program;

/// The OpenAPI document without paths.
#[derive(OpenApi)]
#[openapi(
    info(title = "Docket", description = "An event-sourced order backend. Requests need a token: `docket dev` prints one, `docket token` prints others, and an identity provider issues those of your users.", license(name = "Apache-2.0", identifier = "Apache-2.0"),
        contact(name = "Docket")),
    modifiers(&Bearer),
    security(("bearer" = [])),
    tags(
        (name = "commands", description = "Commands that change orders."),
        (name = "queries", description = "Queries on read models."),
        (name = "live-updates", description = "Live updates. The WebSocket /ws is described in /asyncapi.json."),
        (name = "operations", description = "Operations, for admins."),
    )
)]
struct Docket;

struct Bearer;

impl utoipa::Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = SecurityScheme::Http(Http::builder().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build());
        openapi.components.get_or_insert_default().add_security_scheme("bearer", bearer);
    }
}

/// Returns the routes of the command API.
pub fn commands(program: &Program) -> OpenApiRouter<CommandApi> {
    let routes = program.modules().iter().filter_map(|module| module.commands);
    routes.fold(OpenApiRouter::new(), |all, routes| all.merge(routes()))
}

/// Returns the routes of the query API, and the request-response routes of the push layer.
pub fn queries(program: &Program) -> OpenApiRouter<QueryApi> {
    let routes = program.modules().iter().filter_map(|module| module.queries);
    routes
        .fold(OpenApiRouter::new(), |all, routes| all.merge(routes()))
        .merge(asyncapi::router())
        .merge(access::router())
        .merge(live::poll::router())
}

/// Returns the routes that every process has, whatever its roles.
pub fn common_routes() -> OpenApiRouter<platform::auth::Authenticator> {
    platform::telemetry::level::router().merge(platform::limits::router())
}

/// Returns the routes of long-lived connections. They are limited by number, not by rate: when a process ends, all of
/// its listeners reconnect to another process at once, many of them from one address, and a rate limit would refuse
/// them.
pub fn connections() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().merge(live::sse::router()).merge(centrifuge::router())
}

/// Returns the OpenAPI document. It is the same in every process, whatever its roles.
///
/// # Errors
/// A route is not documented completely. The text names the route.
pub fn document(program: &Program) -> Result<Value, String> {
    let mut document = Docket::openapi();
    document.merge(commands(program).into_openapi());
    document.merge(queries(program).into_openapi());
    document.merge(connections().into_openapi());
    document.merge(common_routes().into_openapi());
    document.merge(overview::router().into_openapi());
    let mut document = serde_json::to_value(document).map_err(|error| error.to_string())?;
    let bulk: Vec<&str> =
        program.modules().iter().filter_map(|module| module.bulk).flat_map(|bulk| bulk.types).copied().collect();
    contract::complete(&mut document, &problem_types(program), &bulk)?;
    Ok(document)
}

/// Content security policy of the page at `/docs`: it may run its own scripts and call its own server, and no other
/// page may embed it. The page has inline styles, and its icons are `data:` URLs.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Returns the routes of `/openapi.json` and of the page at `/docs`, which loads nothing from other origins.
///
/// # Errors
/// The errors of [`document`].
pub fn docs(program: &Program) -> Result<Router, String> {
    let router: Router = SwaggerUi::new("/docs").external_url_unchecked("/openapi.json", document(program)?).into();
    Ok(router.layer(map_response(async |mut answer: Response| {
        if answer.status().is_success() {
            let headers = answer.headers_mut();
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
            // The answer is large and does not depend on the caller.
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
        }
        answer
    })))
}

#[cfg(test)]
mod tests {
    /// Every leaf of the contract has an example, so that readers and test tools see real values.
    #[test]
    fn members_and_parameters_have_examples() {
        let program = crate::program::Program::new(crate::modules::modules()).unwrap();
        let document = super::document(&program).unwrap();
        let mut missing = Vec::new();
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            for (member, schema) in schema["properties"].as_object().into_iter().flatten() {
                let is_leaf = ["string", "integer", "number"].iter().any(|kind| {
                    schema["type"] == *kind
                        || schema["type"].as_array().is_some_and(|all| all.iter().any(|one| one == kind))
                });
                if is_leaf && schema["example"].is_null() && schema["enum"].is_null() {
                    missing.push(format!("{name}.{member}"));
                }
            }
        }
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                assert!(!operation["summary"].as_str().unwrap_or_default().contains('`'), "{method} {path}");
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let schema = &parameter["schema"];
                    if parameter["example"].is_null() && schema["example"].is_null() && schema["enum"].is_null() {
                        missing.push(format!("{method} {path} {}", parameter["name"]));
                    }
                    assert!(
                        !parameter["description"].as_str().unwrap_or_default().is_empty(),
                        "{method} {path}: {parameter}"
                    );
                }
            }
        }
        assert_eq!(missing, Vec::<String>::new());
    }

    /// The documents in `schemas` are the contract that clients read, so they must match the code.
    #[test]
    fn the_openapi_document_is_checked_in() {
        let program = crate::program::Program::new(crate::modules::modules()).unwrap();
        is_checked_in("openapi.json", &serde_json::to_string_pretty(&super::document(&program).unwrap()).unwrap());
    }

    #[test]
    fn the_asyncapi_document_is_checked_in() {
        let definitions = crate::program::Program::new(crate::modules::modules()).unwrap().live_updates();
        let document = super::asyncapi::document(&definitions.channels, &definitions.publishers);
        let document = serde_json::to_string_pretty(&document).unwrap();
        is_checked_in("asyncapi.json", &document);
    }

    fn is_checked_in(name: &str, document: &str) {
        let path = format!("{}/../schemas/{name}", env!("CARGO_MANIFEST_DIR"));
        let now = format!("{document}\n");
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &now).unwrap();
        }
        let known = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(known == now, "schemas/{name} is stale: run UPDATE_SCHEMAS=1 cargo test --release -p server");
    }
}
