//! The pages of the problem types: the URI reference in the `type` of each error leads to its description.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use axum::routing::get;
use command_engine::problems::{busy_type, problem_type};
use platform::problem::{NOT_FOUND, Problem, ProblemType};
use serde_json::{Value, json};

use crate::page::{escaped, page_or_json};
use crate::program::Program;

/// Problem types by slug.
pub type ProblemTypes = BTreeMap<&'static str, ProblemType>;

/// Returns every problem type that a program's answers can have.
pub fn problem_types(program: &Program) -> ProblemTypes {
    let modules = program.modules();
    let of_modules = modules.iter().flat_map(|module| module.problems.iter().copied().flatten());
    let engine =
        [platform::problem::PROBLEM_TYPES, command_engine::problems::PROBLEM_TYPES, push::problems::PROBLEM_TYPES];
    let aggregates = || modules.iter().flat_map(|module| &module.aggregates);
    let refusals = aggregates().flat_map(|aggregate| aggregate.refusals()).map(problem_type);
    let busy = aggregates().map(|aggregate| busy_type(aggregate.aggregate_type()));
    let all = engine.into_iter().flatten().chain(of_modules).copied().chain(refusals).chain(busy);
    all.map(|problem| (problem.slug, problem)).collect()
}

/// Returns the routes of `/problems` and `/problems/{slug}`: pages for browsers, JSON for programs.
pub fn router(program: &Program) -> Router {
    Router::new()
        .route("/problems", get(list))
        .route("/problems/{slug}", get(show))
        .with_state(Arc::new(problem_types(program)))
}

async fn list(State(types): State<Arc<ProblemTypes>>, headers: HeaderMap) -> Response {
    let page = || {
        let rows = types.values().map(|kind| {
            let (slug, title) = (kind.slug, escaped(kind.title));
            format!("<tr><td>{}<td><a href=\"/problems/{slug}\">{slug}</a><td>{title}</tr>", kind.status.as_u16())
        });
        page("Problem types", &format!("<table>{}</table>", rows.collect::<String>()))
    };
    respond(&headers, page, || json!({"items": types.values().map(view).collect::<Vec<_>>()}))
}

async fn show(
    State(types): State<Arc<ProblemTypes>>,
    Path(slug): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let kind = types.get(&*slug).ok_or_else(|| {
        Problem::new(NOT_FOUND).detail("No answer of this program has this problem type. /problems lists all types.")
    })?;
    let page = || {
        let body = format!(
            "<p>HTTP status {}, <code>type</code> <code>/problems/{}</code></p><p>{}</p><p><a href=\"/problems\">All \
             problem types</a></p>",
            kind.status.as_u16(),
            kind.slug,
            escaped(kind.meaning)
        );
        page(kind.title, &body)
    };
    Ok(respond(&headers, page, || view(kind)))
}

fn view(kind: &ProblemType) -> Value {
    json!({
        "type": format!("/problems/{}", kind.slug),
        "title": kind.title,
        "status": kind.status.as_u16(),
        "meaning": kind.meaning,
    })
}

/// Answers with a page or JSON. Both are public and do not depend on the caller.
fn respond(headers: &HeaderMap, page: impl FnOnce() -> String, json: impl FnOnce() -> Value) -> Response {
    let mut response = page_or_json(headers, page, json);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

fn page(title: &str, body: &str) -> String {
    crate::page::page(&format!("{title} · Docket"), title, body)
}

#[cfg(test)]
mod tests {
    use axum::http::header::ACCEPT;
    use axum::response::IntoResponse;

    use super::*;

    fn program() -> Program {
        Program::new(crate::modules::modules()).unwrap()
    }

    #[test]
    fn each_slug_has_one_status_and_one_title() {
        let program = program();
        let types = problem_types(&program);
        for (slug, kind) in &types {
            assert!(slug.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{slug}");
            assert!(!kind.title.ends_with('.') && kind.meaning.ends_with('.'), "{kind:?}");
            let is_slug = |other: &&ProblemType| other.slug == *slug;
            let lists = [
                platform::problem::PROBLEM_TYPES,
                command_engine::problems::PROBLEM_TYPES,
                push::problems::PROBLEM_TYPES,
                read_side::problem_types(),
            ];
            for other in lists.into_iter().flatten().filter(is_slug) {
                assert_eq!(other, kind, "two crates define {slug}");
            }
        }
        assert_eq!(types["order-busy"].status, 503);
        assert_eq!(types["order-exists"].status, 409);
    }

    #[tokio::test]
    async fn a_program_gets_json_and_a_browser_a_page() {
        let types = Arc::new(problem_types(&program()));
        let get = async |slug: &str, accept: &'static str| {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            let answer = show(State(types.clone()), Path(slug.to_owned()), headers).await;
            let answer = answer.unwrap_or_else(IntoResponse::into_response);
            let status = answer.status().as_u16();
            let body = axum::body::to_bytes(answer.into_body(), 100_000).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        let (status, json) = get("order-not-found", "*/*").await;
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((status, &json["status"], &json["title"]), (200, &json!(404), &json!("There is no such order")));
        let (status, html) = get("order-not-found", "text/html,*/*;q=0.8").await;
        assert!(status == 200 && html.contains("<h1>There is no such order</h1>"), "{html}");
        assert_eq!(get("nothing", "*/*").await.0, 404);
    }
}
