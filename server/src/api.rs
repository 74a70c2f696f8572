//! The API of all roles in one document, and its page.

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use axum::middleware::map_response;
use axum::response::Response;
use command_engine::api::CommandApi;
use push::api::QueryApi;
use push::{access, asyncapi, centrifuge, live};
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::overview;
use crate::program::Program;

/// What stands over the paths.
#[derive(OpenApi)]
#[openapi(
    info(title = "Docket", description = "An event-sourced order backend.", license(name = "Apache-2.0")),
    modifiers(&Bearer),
    security(("bearer" = [])),
    tags(
        (name = "commands", description = "What changes orders."),
        (name = "queries", description = "What read models answer."),
        (name = "live updates", description = "What is pushed; `/ws` is described in `/asyncapi.json`."),
        (name = "operations", description = "For admins."),
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

/// The command API.
pub fn commands(program: &Program) -> OpenApiRouter<CommandApi> {
    let routes = program.modules().iter().filter_map(|module| module.commands);
    routes.fold(OpenApiRouter::new(), |all, routes| all.merge(routes()))
}

/// The query API, and of the push layer what is asked and answered.
pub fn queries(program: &Program) -> OpenApiRouter<QueryApi> {
    let routes = program.modules().iter().filter_map(|module| module.queries);
    routes
        .fold(OpenApiRouter::new(), |all, routes| all.merge(routes()))
        .merge(asyncapi::router())
        .merge(access::router())
        .merge(live::poll::router())
}

/// What every process answers, whatever its roles.
pub fn everywhere() -> OpenApiRouter<platform::auth::Authenticator> {
    platform::telemetry::level::router().merge(platform::limits::router())
}

/// What stays open: limited by how many there may be. When a process ends, all of its listeners come to another one at
/// once, many of them from one address; a rate would lock them out.
pub fn connections() -> OpenApiRouter<QueryApi> {
    OpenApiRouter::new().merge(live::sse::router()).merge(centrifuge::router())
}

/// The document, whatever roles a process has.
pub fn document(program: &Program) -> utoipa::openapi::OpenApi {
    let mut document = Docket::openapi();
    document.merge(commands(program).into_openapi());
    document.merge(queries(program).into_openapi());
    document.merge(connections().into_openapi());
    document.merge(everywhere().into_openapi());
    document.merge(overview::router().into_openapi());
    document
}

/// What the page at `/docs` may do: run its own scripts, ask its own server, and show itself in no other page. Its styles
/// stand in its elements, and its icons are `data:`.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `/openapi.json` and the page at `/docs`, which loads nothing from elsewhere.
pub fn docs(program: &Program) -> Router {
    let router: Router = SwaggerUi::new("/docs").url("/openapi.json", document(program)).into();
    router.layer(map_response(async |mut answer: Response| {
        if answer.status().is_success() {
            let headers = answer.headers_mut();
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
            // The same for everybody, and large.
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
        }
        answer
    }))
}

#[cfg(test)]
mod tests {
    /// The documents in `schemas` are the contract that clients read: they move with the code or not at all.
    #[test]
    fn the_document_is_checked_in() {
        let program = crate::program::Program::new(crate::modules::modules()).unwrap();
        is_checked_in("openapi.json", &super::document(&program).to_pretty_json().unwrap());
    }

    #[test]
    fn the_document_of_live_updates_is_checked_in() {
        let lists = crate::program::Program::new(crate::modules::modules()).unwrap().live_updates();
        let document = super::asyncapi::document(&lists.channels, &lists.publishers);
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
