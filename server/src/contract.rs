//! Completes the OpenAPI document with the parts that all routes have in common, so that each route declares only what
//! is its own.
//!
//! A route lists the problem types of its own in the extension `x-problems`. From its shape (a body, a query, a tag)
//! follow the types that the layers around it add. Each status then has one response, with an example of each type.

use std::collections::{BTreeMap, BTreeSet};

use platform::problem::ProblemType;
use serde_json::{Map, Value, json};

use crate::problems::ProblemTypes;

/// Extension of an operation with the slugs of its own problem types. It is not part of the finished document.
const PROBLEMS: &str = "x-problems";

/// Problem types of every route.
const COMMON: &[&str] = &[
    "bad-request",
    "duplicate-header",
    "invalid-host",
    "headers-too-large",
    "authentication-required",
    "invalid-token",
    "token-expired",
    "token-revoked",
    "unknown-key",
    "subject-banned",
    "rate-limited",
    "connection-limit",
    "internal-error",
];
/// Problem types of routes with a body.
const BODY: &[&str] = &[
    "malformed-json",
    "unreadable-body",
    "request-timeout",
    "body-too-large",
    "unsupported-media-type",
    "unsupported-content-encoding",
    "undecodable-body",
    "body-expands-too-much",
    "window-too-large",
    "invalid-body",
    "too-many-bodies",
    "body-limit",
];
/// Problem types of routes with query parameters.
const QUERY: &[&str] = &["invalid-query"];
/// Problem types of single commands.
const COMMAND: &[&str] = &[
    "invalid-idempotency-key",
    "idempotency-key-reused",
    "request-in-flight",
    "overloaded",
    "disk-low",
    "store-unavailable",
    "unstorable-value",
];

/// Examples of parameters and members by name. A member with another meaning in another schema has its own example
/// beside its type.
fn example(name: &str) -> Option<Value> {
    Some(match name {
        "order_id" => json!("o-1001"),
        "customer_id" | "subject" => json!("c-1"),
        "sku" => json!("bagel"),
        "name" => json!("Plain bagel"),
        "category" => json!("BAKERY"),
        "quantity" => json!(2),
        "unit_price" => json!("0.50"),
        "line_total" | "total" | "revenue" | "amount" => json!("1.00"),
        "min_total" => json!("0.50"),
        "max_total" => json!("99.99"),
        "currency" => json!("USD"),
        "attributes" => json!({"store_id": "17"}),
        "placed_at" | "updated_at" | "banned_at" | "created_at" | "occurred_at" | "first_order_at"
        | "last_order_at" => {
            json!("2026-01-02T03:04:05.678Z")
        }
        "placed_from" => json!("2026-01-01T00:00:00Z"),
        "placed_to" => json!("2026-02-01T00:00:00Z"),
        "dry_run" => json!(true),
        "timezone" => json!("Europe/Berlin"),
        "from" => json!("2026-01-01"),
        "to" => json!("2026-01-31"),
        "version" | "sequence" | "after" | "next_after" | "expected_version" => json!(1),
        "position" | "head" | "offset" => json!(42),
        "min_position" => json!(1),
        "prev" => json!(41),
        "wait_ms" => json!(1_000),
        "wait" => json!(0),
        "limit" => json!(10),
        "status" => json!("draft"),
        "line_count" | "orders" | "confirmed" | "line" | "generation" => json!(1),
        "cancelled" | "lag_events" => json!(0),
        "lag_seconds" | "events_per_second" => json!(0.0),
        "reason" => json!("changed my mind"),
        "request_id" => json!("0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"),
        "event_id" => json!("0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5c"),
        "aggregate_type" => json!("order"),
        "aggregate_id" => json!("o-1001"),
        "group" => json!("core"),
        "key" => json!("BAKERY"),
        "level" => json!("info"),
        "filter" => json!("http=off"),
        "help" => json!("Points per currency unit."),
        "event" => json!("pub"),
        "message" => json!("Must be 1 to 1000000."),
        "detail" => json!("The order does not exist, or you may not see it."),
        "type" => json!("ItemAdded"),
        "next_cursor" => json!("eyJpZCI6Im8tMTAwMSJ9"),
        "cursor" | "last_event_id" => json!("42.0199a1b2"),
        "as_of" => json!("1"),
        "token" => json!("eyJhbGciOiJIUzI1NiJ9.e30.c2ln"),
        "until" => json!("2026-12-31T00:00:00Z"),
        "ticket" => json!("3q2-7wAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        "expires_in" => json!(60),
        "kind" => json!("subject"),
        "value" => json!("c-1"),
        "revoked_at" => json!(1_767_323_045),
        "actor" => json!("admin-1"),
        "token_id" => json!("9d1c"),
        "policy" => json!("customer"),
        "per_second" | "burst" | "remaining" => json!(100),
        "reset_seconds" => json!(1),
        "state" => json!("live"),
        "last_error" => json!("event 42 (ItemAdded of stream order/o-1001) cannot be applied"),
        "older_generation" => json!(1),
        "seconds_left" => json!(3.0),
        "projection" => json!("order_summaries"),
        "sort" => json!("-placed_at"),
        "q" => json!("bagel"),
        "channel" => json!("orders"),
        "If-Match" | "If-None-Match" => json!("\"1\""),
        "Idempotency-Key" => json!("5e2b1c9e-8d7a-4f61-9b3c-2a1d0e9f8c7b"),
        _ => return None,
    })
}

/// Completes the document. `bulk_types` are the names of the bulk commands.
///
/// # Errors
/// A route names an unknown problem type, or has no description of a response. The text names the route.
pub fn complete(document: &mut Value, types: &ProblemTypes, bulk_types: &[&str]) -> Result<(), String> {
    document["servers"] = json!([{"url": "/", "description": "The server of this document."}]);
    let mut responses = Map::new();
    let mut ids = BTreeSet::new();
    let paths = document["paths"].as_object_mut().ok_or("the document has no paths")?;
    let created: Vec<(String, Value)> = links(paths);
    for (path, item) in paths.iter_mut() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            let route = format!("{method} {path}");
            operation_id(operation, &route, &mut ids);
            texts(operation);
            let mut by_status: BTreeMap<u16, Vec<&ProblemType>> = BTreeMap::new();
            for slug in problems(operation) {
                let kind = types.get(&*slug).ok_or_else(|| format!("{route}: there is no problem type {slug}"))?;
                let of_status = by_status.entry(kind.status.as_u16()).or_default();
                if !of_status.contains(&kind) {
                    of_status.push(kind);
                }
            }
            success(operation, method, &route)?;
            if method == "post"
                && let Some((_, links)) = created.iter().find(|(created, _)| created == path)
            {
                operation["responses"]["201"]["links"] = links.clone();
            }
            if let Some(body) = operation.get_mut("requestBody")
                && body["content"]["application/x-ndjson"].is_object()
            {
                // No line is a valid request.
                body["required"] = json!(false);
            }
            let own = operation["responses"].as_object_mut().ok_or_else(|| format!("{route} has no responses"))?;
            own.remove("4XX");
            for (status, kinds) in by_status {
                let name = format!("{status}.{}", kinds.iter().map(|kind| kind.slug).collect::<Vec<_>>().join("."));
                own.insert(status.to_string(), json!({"$ref": format!("#/components/responses/{name}")}));
                responses.entry(name).or_insert_with(|| response(status, &kinds));
            }
            own.sort_keys();
            for parameter in elements(operation, "parameters") {
                complete_parameter(parameter);
            }
        }
    }
    let components = &mut document["components"];
    components["responses"] = responses.into();
    components["headers"] = headers();
    if let Some(line) = components.pointer_mut("/schemas/CommandLine") {
        line["properties"]["type"]["enum"] = json!(bulk_types);
        // The members of the command's own body.
        line["additionalProperties"] = json!(true);
        line["example"] = json!({"type": "create_order", "id": 1, "order_id": "o-1001", "customer_id": "c-1"});
    }
    let problem = &mut components["schemas"]["Problem"]["properties"];
    problem["version"] = json!({"type": "integer", "format": "int64", "example": 1,
        "description": "With version-mismatch: the current version."});
    problem["position"] = json!({"type": "integer", "format": "int64", "example": 41,
        "description": "With projection-behind: the position of the read model."});
    problem["min_position"] = json!({"type": "integer", "format": "int64", "example": 42,
        "description": "With projection-behind: the position that the query requires."});
    for (_, schema) in members(components, "schemas") {
        complete_schema(schema);
    }
    Ok(())
}

/// Splits the text of an operation: the summary is its first sentence without Markdown, the description all of it.
fn texts(operation: &mut Value) {
    let text = |name: &str| operation[name].as_str().unwrap_or_default().to_owned();
    let (summary, description) = (text("summary"), text("description"));
    let first = summary.split_once(". ").map_or(&*summary, |(first, _)| first).trim_end_matches('.').replace('`', "");
    operation["description"] = format!("{summary}\n\n{description}").trim_end().into();
    operation["summary"] = first.into();
}

/// Returns the elements of a member that is an array, or nothing.
fn elements<'a>(object: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Returns the members of a member that is an object, or nothing.
fn members<'a>(object: &'a mut Value, name: &str) -> impl Iterator<Item = (&'a String, &'a mut Value)> {
    object.get_mut(name).and_then(Value::as_object_mut).into_iter().flatten()
}

/// Makes the operation's id unique: a module may have chosen one that another module has.
fn operation_id(operation: &mut Value, route: &str, ids: &mut BTreeSet<String>) {
    let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
    if id.is_empty() || !ids.insert(id) {
        let name: String =
            route.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
        ids.insert(name.clone());
        operation["operationId"] = name.into();
    }
}

/// Removes the extension [`PROBLEMS`], and returns the slugs of all problem types that the operation's answers can have.
fn problems(operation: &mut Value) -> Vec<String> {
    let own = operation.as_object_mut().and_then(|operation| operation.remove(PROBLEMS));
    let own: Vec<String> = own.and_then(|own| serde_json::from_value(own).ok()).unwrap_or_default();
    let has = |place: &str, name: &str| {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        parameters.filter(|one| one["in"] == place).any(|one| name.is_empty() || one["name"] == name)
    };
    let media = operation["requestBody"]["content"].as_object();
    let mut slugs: Vec<&str> = COMMON.to_vec();
    let tagged = |tag: &str| operation["tags"].as_array().is_some_and(|tags| tags.iter().any(|one| one == tag));
    let is_bulk = media.is_some_and(|media| media.contains_key("application/x-ndjson"));
    if !is_bulk && (media.is_some() || tagged("commands")) {
        slugs.extend(BODY);
    }
    if has("query", "") {
        slugs.extend(QUERY);
    }
    if has("query", "min_position") {
        slugs.push("projection-behind");
    }
    if has("header", "If-Match") {
        slugs.extend(["invalid-if-match", "version-mismatch"]);
    }
    match tagged("commands") {
        true if !is_bulk => slugs.extend(COMMAND),
        _ => slugs.push("store-unavailable"),
    }
    slugs.into_iter().map(str::to_owned).chain(own).collect()
}

/// Completes the responses of a route that is successful: its description and its headers.
fn success(operation: &mut Value, method: &str, route: &str) -> Result<(), String> {
    let is_command = operation["tags"][0] == "commands"
        && !operation["responses"]["200"]["content"]
            .as_object()
            .is_some_and(|media| media.contains_key("application/x-ndjson"));
    let reads = method == "get"
        && operation["parameters"].as_array().into_iter().flatten().any(|one| one["name"] == "min_position");
    for (status, response) in members(operation, "responses") {
        if status == "4XX" {
            continue;
        }
        if response["description"].as_str().unwrap_or_default().is_empty() {
            return Err(format!("{route}: describe the response {status}"));
        }
        let mut names = vec!["X-Request-Id", "RateLimit", "RateLimit-Policy"];
        if is_command {
            names.extend(["ETag", "Idempotency-Replayed"]);
        }
        if status == "201" && is_command {
            names.push("Location");
        }
        if reads {
            names.push("Docket-Position");
        }
        for name in names {
            response["headers"][name] = json!({"$ref": format!("#/components/headers/{name}")});
        }
    }
    Ok(())
}

fn headers() -> Value {
    let header = |kind: &str, description: &str, example: Value| json!({"description": description, "schema": {"type": kind, "example": example}});
    json!({
        "X-Request-Id": header("string", "Id of the request in the logs: the id that the client sent, or a new one.",
            json!("0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")),
        "RateLimit": header("string", "Requests that the caller may still make, and seconds until the full burst is available.",
            json!("\"customer\";r=99;t=1")),
        "RateLimit-Policy": header("string", "The rate limit of the caller.", json!("\"customer\";q=100;w=1")),
        "ETag": header("string", "Version of the resource in double quotes. Send it in If-Match.", json!("\"1\"")),
        "Idempotency-Replayed": header("string", "Present with the value true when the answer is that of an earlier request with the same Idempotency-Key.",
            json!("true")),
        "Location": header("string", "Path of the new resource.", json!("/v1/orders/o-1001")),
        "Docket-Position": header("integer", "Position of the read model that the answer was computed from.", json!(42)),
        "Retry-After": header("integer", "Seconds after which the request can be sent again.", json!(1)),
        "WWW-Authenticate": header("string", "How to authenticate (RFC 6750).", json!("Bearer")),
    })
}

/// Returns the response of one status, with an example of each of its problem types.
fn response(status: u16, kinds: &[&ProblemType]) -> Value {
    let examples: Map<String, Value> = kinds
        .iter()
        .map(|kind| {
            let mut value = json!({
                "type": format!("/problems/{}", kind.slug),
                "title": kind.title,
                "status": status,
                "detail": kind.meaning,
                "request_id": example("request_id"),
            });
            match kind.slug {
                "version-mismatch" => value["version"] = json!(2),
                "projection-behind" => (value["position"], value["min_position"]) = (json!(41), json!(42)),
                "invalid-body" => {
                    value["errors"] = json!([{"pointer": "/quantity", "message": "Must be 1 to 1000000."}])
                }
                _ => {}
            }
            (kind.slug.to_owned(), json!({"summary": kind.title, "value": value}))
        })
        .collect();
    let titles: Vec<String> = kinds.iter().map(|kind| format!("`{}`: {}.", kind.slug, kind.title)).collect();
    let mut headers = json!({"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}});
    if matches!(status, 429 | 503) || kinds.iter().any(|kind| kind.slug == "request-in-flight") {
        headers["Retry-After"] = json!({"$ref": "#/components/headers/Retry-After"});
    }
    if status == 401 {
        headers["WWW-Authenticate"] = json!({"$ref": "#/components/headers/WWW-Authenticate"});
    }
    json!({
        "description": titles.join(" "),
        "headers": headers,
        "content": {"application/problem+json": {
            "schema": {"$ref": "#/components/schemas/Problem"},
            "examples": examples,
        }},
    })
}

/// Returns, for each path that creates a resource, the links from its answer to the operations on that resource.
fn links(paths: &Map<String, Value>) -> Vec<(String, Value)> {
    let creates = paths.iter().filter(|(_, item)| item["post"]["responses"]["201"].is_object());
    let links = creates.filter_map(|(path, item)| {
        let prefix = format!("{path}/{{id}}");
        let schema = item["post"]["responses"]["201"]["content"]["application/json"]["schema"]["$ref"].as_str()?;
        // Answers to commands name the id after the resource: `order_id` for `/v1/orders`.
        let field = format!("{}_id", path.rsplit('/').next()?.trim_end_matches('s'));
        schema.ends_with("Accepted").then_some(())?;
        let own = paths.iter().filter(|(other, _)| **other == prefix || other.starts_with(&format!("{prefix}/")));
        let operations = own.flat_map(|(_, item)| item.as_object().into_iter().flat_map(Map::values));
        let links: Map<String, Value> = operations
            .filter_map(|operation| {
                let id = operation["operationId"].as_str()?;
                let parameters = json!({"id": format!("$response.body#/{field}")});
                Some((id.to_owned(), json!({"operationId": id, "parameters": parameters})))
            })
            .collect();
        (!links.is_empty()).then(|| (path.clone(), links.into()))
    });
    links.collect()
}

/// Adds a description and an example to a parameter. A parameter can be absent, but never null.
fn complete_parameter(parameter: &mut Value) {
    let types = parameter["schema"]["type"].as_array_mut();
    if let Some([only]) = types.map(|types| {
        types.retain(|name| name != "null");
        types.as_slice()
    }) {
        parameter["schema"]["type"] = only.clone();
    }
    let name = parameter["name"].as_str().unwrap_or_default().to_owned();
    if name == "Idempotency-Key" {
        parameter["schema"]["pattern"] = json!("^[ -~]{1,255}$");
    }
    if parameter["description"].is_null() {
        let text = match &*name {
            "id" | "customer_id" => "Id of the resource.",
            "sku" => "SKU of the line.",
            "If-Match" => {
                "Versions in double quotes, as in ETag. The command is refused if the resource has another one."
            }
            "Idempotency-Key" => {
                "1 to 255 printable ASCII characters, chosen by the client. A request that is repeated with the same key \
                 takes effect once and gets the same answer."
            }
            _ => "",
        };
        if !text.is_empty() {
            parameter["description"] = text.into();
        }
    }
    let known = match &*name {
        // The path tells which resource the id belongs to.
        "id" => Some(json!("o-1001")),
        name => example_of(name, &parameter["schema"]),
    };
    if parameter["example"].is_null()
        && parameter["schema"]["example"].is_null()
        && let Some(known) = known
    {
        parameter["example"] = known;
    }
}

/// Adds examples and formats to the members of a schema.
fn complete_schema(schema: &mut Value) {
    for (name, member) in members(schema, "properties") {
        let is_text = allows(member, &json!("text"));
        if name.ends_with("_at") && is_text && member["format"].is_null() {
            member["format"] = json!("date-time");
        }
        if member["example"].is_null()
            && member["$ref"].is_null()
            && member["enum"].is_null()
            && let Some(known) = example_of(name, member)
        {
            member["example"] = known;
        }
    }
}

/// Returns the example for a name in the form that the schema allows.
fn example_of(name: &str, schema: &Value) -> Option<Value> {
    let known = example(name)?;
    // `status` is the status of an order, or that of an answer.
    let forms = [known.clone(), json!([known]), json!(201)];
    let forms = if name == "status" { &forms[..] } else { &forms[..2] };
    forms.iter().find(|form| allows(schema, form)).cloned()
}

/// Whether a schema names the type of a value.
fn allows(schema: &Value, value: &Value) -> bool {
    let names: &[&str] = match value {
        Value::String(_) => &["string"],
        Value::Number(number) if number.is_i64() => &["integer", "number"],
        Value::Number(_) => &["number"],
        Value::Object(_) => &["object"],
        Value::Array(_) => &["array"],
        Value::Bool(_) => &["boolean"],
        _ => return false,
    };
    match &schema["type"] {
        Value::String(name) => names.contains(&name.as_str()),
        Value::Array(types) => types.iter().any(|name| name.as_str().is_some_and(|name| names.contains(&name))),
        _ => false,
    }
}
