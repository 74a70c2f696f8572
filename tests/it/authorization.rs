//! Authorization: every operation of `/openapi.json` and every channel of `/asyncapi.json`, with every credential,
//! presented in every way.
//!
//! A new operation needs a row in [`OPERATIONS`], a new channel a row in [`CHANNELS`], a new transport a row in
//! [`TRANSPORTS`], and a route that no document lists a row in [`UNDOCUMENTED`]. The stories fail until the row exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::StreamExt;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use reqwest::Method;
use serde_json::{Value, json};
use tests::client::{Answer, Client, JWT_SECRET, Request, signed, token};
use tests::socket::Socket;
use tests::system::{Builder, Mode, TestSystem};

tests::stories![
    settings = two_kinds_of_keys;
    every_operation_checks_access,
    every_channel_checks_access,
    foreign_and_missing_resources_look_alike,
];

const OWNER: &str = "owner";
const OTHER: &str = "other";
/// An unused customer id of the same length as [`OWNER`].
const NOBODY: &str = "nobdy";
/// An allowed origin: test systems allow every port of localhost.
const PAGE: &str = "http://localhost:5173";
/// This file, named in failure messages.
const THIS_FILE: &str = "tests/it/authorization.rs";

/// Who may use an operation or channel, and the response for another customer where only the owner and staff may use
/// it.
#[derive(Clone, Copy, Debug)]
enum Access {
    /// Everybody with a valid token.
    Anyone,
    /// The customer who owns the resource, staff and admins.
    Own(OnForeign),
    /// Staff and admins.
    Staff,
    /// Admins.
    Admin,
}

/// The response for a customer who requests a resource of another customer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum OnForeign {
    /// 404 with this slug, as for a resource that does not exist.
    NotFound(&'static str),
    /// 200 and an empty list, as for a customer who does not exist.
    EmptyList,
    /// 200, with 404 `order-not-found` as the result of the line.
    LineNotFound,
    /// 403 `forbidden`, whether that customer exists or not.
    Forbidden,
}

/// An operation, with a request that succeeds for everybody who may use the operation.
struct Operation {
    method: &'static str,
    /// The path as in `/openapi.json`. `{id}` is replaced by an order or a customer, `{sku}` by an item of that order.
    path: &'static str,
    query: &'static str,
    /// `{id}` is replaced by the order, `{owner}` by its customer.
    body: &'static str,
    header: Option<(&'static str, &'static str)>,
    success: u16,
    access: Access,
}

const fn row(method: &'static str, path: &'static str, success: u16, access: Access) -> Operation {
    Operation { method, path, query: "", body: "", header: None, success, access }
}

impl Operation {
    const fn body(mut self, body: &'static str) -> Self {
        self.body = body;
        self
    }

    const fn query(mut self, query: &'static str) -> Self {
        self.query = query;
        self
    }

    const fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.header = Some((name, value));
        self
    }

    fn name(&self) -> String {
        format!("{} {}{}", self.method, self.path, self.query)
    }
}

const ORDER: Access = Access::Own(OnForeign::NotFound("order-not-found"));
const CUSTOMER: Access = Access::Own(OnForeign::NotFound("customer-not-found"));
const ITEM: &str = r#"{"sku":"ink","quantity":1,"unit_price":"1.00"}"#;
const QUANTITY: &str = r#"{"quantity":2}"#;
const REASON: &str = r#"{"reason":"changed my mind"}"#;
const VERSION: (&str, &str) = ("if-match", "\"2\"");

/// Every operation, some of them in several variants.
const OPERATIONS: &[Operation] = &[
    row("POST", "/v1/orders", 201, Access::Own(OnForeign::Forbidden)).body(r#"{"customer_id":"{owner}"}"#),
    row("POST", "/v1/orders/{id}/items", 200, ORDER).body(ITEM),
    row("POST", "/v1/orders/{id}/items", 200, ORDER).body(ITEM).header(VERSION.0, VERSION.1),
    row("PUT", "/v1/orders/{id}/items/{sku}", 200, ORDER).body(QUANTITY),
    row("PUT", "/v1/orders/{id}/items/{sku}", 200, ORDER).body(QUANTITY).header(VERSION.0, VERSION.1),
    row("DELETE", "/v1/orders/{id}/items/{sku}", 200, ORDER),
    row("DELETE", "/v1/orders/{id}/items/{sku}", 200, ORDER).header(VERSION.0, VERSION.1),
    row("PUT", "/v1/orders/{id}/items", 200, ORDER).query("?sku=pen").body(QUANTITY),
    row("PUT", "/v1/orders/{id}/items", 200, ORDER).query("?sku=pen").body(QUANTITY).header(VERSION.0, VERSION.1),
    row("DELETE", "/v1/orders/{id}/items", 200, ORDER).query("?sku=pen"),
    row("DELETE", "/v1/orders/{id}/items", 200, ORDER).query("?sku=pen").header(VERSION.0, VERSION.1),
    row("POST", "/v1/orders/{id}/confirm", 200, ORDER),
    row("POST", "/v1/orders/{id}/confirm", 200, ORDER).header(VERSION.0, VERSION.1),
    row("POST", "/v1/orders/{id}/cancel", 200, ORDER).body(REASON),
    row("POST", "/v1/orders/{id}/cancel", 200, ORDER).body(REASON).header(VERSION.0, VERSION.1),
    row("POST", "/v1/commands", 200, Access::Own(OnForeign::LineNotFound))
        .body(r#"{"type":"add_item","order_id":"{id}","sku":"ink","quantity":1,"unit_price":"1.00"}"#),
    row("POST", "/v1/commands", 200, Access::Own(OnForeign::LineNotFound))
        .query("?dry_run=true")
        .body(r#"{"type":"add_item","order_id":"{id}","sku":"ink","quantity":1,"unit_price":"1.00"}"#),
    row("POST", "/v1/commands", 200, Access::Own(OnForeign::LineNotFound))
        .body(r#"{"type":"confirm_order","order_id":"{id}","expected_version":2}"#),
    row("GET", "/v1/orders", 200, Access::Own(OnForeign::EmptyList)).query("?customer_id={owner}"),
    row("GET", "/v1/orders", 200, Access::Own(OnForeign::EmptyList)).query("?customer_id={owner}&q=pen&sort=total"),
    row("GET", "/v1/orders/{id}", 200, ORDER),
    row("GET", "/v1/orders/{id}", 200, ORDER).query("?as_of=1"),
    row("GET", "/v1/orders/{id}", 200, ORDER).query("?as_of=2100-01-01T00:00:00Z"),
    row("GET", "/v1/orders/{id}", 200, ORDER).query("?min_position=1"),
    row("GET", "/v1/orders/{id}", 304, ORDER).header("if-none-match", "\"2\""),
    row("GET", "/v1/orders/{id}/events", 200, ORDER),
    row("GET", "/v1/orders/{id}/events", 200, ORDER).query("?after=1&limit=1"),
    row("GET", "/v1/customers/{id}", 200, CUSTOMER),
    row("GET", "/v1/customers/{id}", 200, CUSTOMER).query("?min_position=1"),
    row("GET", "/v1/customers", 200, CUSTOMER).query("?customer_id={owner}"),
    row("GET", "/v1/customers", 200, CUSTOMER).query("?customer_id={owner}&min_position=1"),
    row("GET", "/v1/reports/sales", 200, Access::Staff).query("?by=day"),
    row("GET", "/v1/products/top", 200, Access::Staff).query("?by=revenue"),
    row("GET", "/v1/projections", 200, Access::Admin),
    row("GET", "/v1/modules", 200, Access::Admin),
    row("GET", "/v1/rate-limit", 200, Access::Anyone),
    row("GET", "/v1/events", 200, Access::Admin).query("?limit=1"),
    row("GET", "/v1/admin/revocations", 200, Access::Admin),
    row("POST", "/v1/admin/revocations", 201, Access::Admin).body(r#"{"token_id":"of nobody"}"#),
    row("POST", "/v1/admin/bans", 201, Access::Admin).body(r#"{"subject":"of nobody","reason":"a test"}"#),
    row("GET", "/v1/admin/bans", 200, Access::Admin),
    row("DELETE", "/v1/admin/bans", 204, Access::Admin).query("?subject=of%20nobody"),
    row("GET", "/v1/admin/log-level", 200, Access::Admin),
    row("PUT", "/v1/admin/log-level", 200, Access::Admin).body(r#"{"level":"info"}"#),
    row("POST", "/v1/tickets", 201, Access::Anyone),
];

/// Operations whose rows are in [`CHANNELS`], because access depends on the channel.
const BY_CHANNEL: &[(&str, &str)] = &[("GET", "/v1/live"), ("GET", "/v1/poll")];

/// Every kind of channel as in `/asyncapi.json`, and who may subscribe.
const CHANNELS: &[(&str, Access)] = &[
    ("order:{id}", Access::Own(OnForeign::NotFound("channel-not-found"))),
    ("customer:{id}", Access::Own(OnForeign::NotFound("channel-not-found"))),
    ("orders", Access::Staff),
    ("reports:sales", Access::Staff),
    ("projections", Access::Admin),
];

/// Every transport as in `/asyncapi.json`.
const TRANSPORTS: &[&str] = &["/ws", "/v1/live", "/v1/poll"];

/// Routes that are in no document, and their statuses without a token. In a scaled system, `/metrics` has its own
/// address.
const UNDOCUMENTED: &[(&str, &[u16])] = &[
    ("/health/live", &[200]),
    ("/health/startup", &[200]),
    ("/health/ready", &[200]),
    ("/metrics", &[200, 404]),
    ("/asyncapi.json", &[200]),
    ("/", &[200]),
    ("/favicon.ico", &[200]),
    ("/problems", &[200]),
    // The path contains no known slug.
    ("/problems/{slug}", &[404]),
    // A token may arrive with the first command, so only the missing upgrade is an error here.
    ("/ws", &[400]),
    ("/ws/admin", &[400]),
];

/// An authenticated user.
#[derive(Clone, Copy, Debug, PartialEq)]
enum User {
    Owner,
    Other,
    Staff,
    Admin,
}

/// The credential of a request.
struct Credential {
    name: String,
    token: Option<String>,
    /// The user, or the slug of the 401.
    user: Result<User, &'static str>,
}

/// A way to present a credential.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Presentation {
    /// The header `Authorization`.
    Header,
    /// `?ticket=` with a ticket issued for the token, or with the token itself where no ticket is issued.
    Ticket,
    /// The cookie, from a page of an allowed origin.
    Cookie,
    /// A subprotocol of a WebSocket.
    Protocol,
    /// The first command of a WebSocket.
    Connect,
}

/// Configures a shared secret and an RSA key, so that the server could confuse one with the other.
fn two_kinds_of_keys(builder: Builder) -> Builder {
    let file = key_file("rs256.pub.pem");
    without_rate(builder).setting("DOCKET_JWT_KEY_FILE", &file)
}

fn without_rate(builder: Builder) -> Builder {
    builder.setting("DOCKET_RATE_PER_SECOND_CUSTOMER", "0")
}

fn key_file(name: &str) -> String {
    format!("{}/data/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn key_text(name: &str) -> String {
    fs::read_to_string(key_file(name)).expect("the key file exists")
}

/// Returns the owner's claims with changes; null removes a claim.
fn claims(changes: Value) -> Value {
    let now = jiff::Timestamp::now().as_second();
    let mut claims = json!({"sub": OWNER, "role": "customer", "iss": "docket", "aud": "docket", "iat": now, "nbf": now,
        "exp": now + 3600, "jti": "of-the-matrix"});
    for (name, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => drop(claims.as_object_mut().expect("an object").remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

/// Returns a token with any header, signed with any key.
fn forged(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).expect("the key can sign");
    format!("{message}.{signature}")
}

fn hs256(header: &Value, secret: &[u8]) -> String {
    forged(header, &claims(json!({})), &EncodingKey::from_secret(secret), Algorithm::HS256)
}

/// Returns tokens that must be refused, each with its name and the slug of the refusal.
fn bad_tokens() -> Vec<(String, String, &'static str)> {
    let now = jiff::Timestamp::now().as_second();
    let secret = JWT_SECRET.as_bytes();
    let invalid = "invalid-token";
    let mut tokens = vec![
        ("not a JWT".to_owned(), "nonsense".to_owned(), invalid),
        ("expired".to_owned(), signed(&claims(json!({"exp": now - 60}))), "token-expired"),
    ];
    for (name, changes) in [
        ("no expiry", json!({"exp": null})),
        ("future nbf", json!({"nbf": now + 600})),
        ("wrong audience", json!({"aud": "another"})),
        ("wrong audiences", json!({"aud": ["another", "docket2"]})),
        ("no audience", json!({"aud": null})),
        ("wrong issuer", json!({"iss": "another"})),
        ("no issuer", json!({"iss": null})),
        ("no subject", json!({"sub": null})),
        ("empty subject", json!({"sub": ""})),
        ("subject with a line feed", json!({"sub": "owner\n"})),
        ("subject of 256 characters", json!({"sub": "s".repeat(256)})),
        ("subject that is a number", json!({"sub": 7})),
        ("missing role", json!({"role": null})),
        ("unknown role", json!({"role": "root"})),
        ("role in capitals", json!({"role": "ADMIN"})),
        ("roles in a list", json!({"role": ["admin"]})),
        ("more than 8 KiB", json!({"more": "m".repeat(8 * 1024)})),
    ] {
        tokens.push((name.to_owned(), signed(&claims(changes)), invalid));
    }
    let header = json!({"alg": "HS256", "typ": "JWT"});
    let mut add = |name: &str, token: String| tokens.push((name.to_owned(), token, invalid));
    add("wrong key", hs256(&header, b"another secret of more than thirty-two bytes"));
    add("empty key", hs256(&json!({"alg": "HS256", "kid": "../../../../dev/null"}), b""));
    for (name, value) in [("crit", json!(["docket"])), ("empty crit", json!([])), ("crit of exp", json!(["exp"]))] {
        add(&format!("unknown {name}"), hs256(&json!({"alg": "HS256", "crit": value, "docket": true}), secret));
    }
    for algorithm in ["none", "None", "NONE", ""] {
        let message = hs256(&json!({"alg": algorithm}), secret);
        let (unsigned, _) = message.rsplit_once('.').expect("a token has three parts");
        add(&format!("alg {algorithm:?} without a signature"), format!("{unsigned}."));
        add(&format!("alg {algorithm:?} with a signature"), message);
    }
    // Algorithm confusion, in all directions.
    let public = key_text("rs256.pub.pem");
    let base64: String = public.lines().filter(|line| !line.starts_with('-')).collect();
    let der = STANDARD.decode(base64).expect("PEM is base64");
    for (form, key) in
        [("PEM", public.as_bytes()), ("PEM without its last line feed", public.trim_end().as_bytes()), ("DER", &der)]
    {
        add(&format!("HS256 by the public key's {form}"), hs256(&header, key));
    }
    add("RS256 by the shared secret", hs256(&json!({"alg": "RS256"}), secret));
    add("ES256 by the shared secret", hs256(&json!({"alg": "ES256"}), secret));
    for (name, algorithm) in [("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
        let key = EncodingKey::from_secret(secret);
        add(name, forged(&json!({"alg": name}), &claims(json!({})), &key, algorithm));
    }
    // A key of an attacker, which the token itself supplies.
    let stranger = EncodingKey::from_ec_pem(key_text("stranger.pem").as_bytes()).expect("an EC key");
    let jwk = json!({"kty": "EC", "crv": "P-256", "x": "SXeLktbbSkR7ZnDmexTDq2fcULattdewLLq988HUaqQ",
        "y": "-5RsnkKHpZr_nOeDvOiWzrZOpboM6jXsPzV0g8YyNII"});
    for header in [json!({"alg": "ES256", "jwk": jwk}), json!({"alg": "ES256", "jku": "http://127.0.0.1:1/keys"})] {
        let token = forged(&header, &claims(json!({"role": "admin"})), &stranger, Algorithm::ES256);
        add(&format!("ES256 by an attacker's key, {header}"), token);
    }
    // The token is changed after it was signed.
    let good = signed(&claims(json!({})));
    let (head, rest) = good.split_once('.').expect("a token has three parts");
    let (_, signature) = rest.split_once('.').expect("a token has two dots");
    let admin = URL_SAFE_NO_PAD.encode(claims(json!({"role": "admin"})).to_string());
    add("tampered payload", format!("{head}.{admin}.{signature}"));
    add("cut signature", good[..good.len() - 4].to_owned());
    add("no signature", format!("{head}.{admin}."));
    add("a fourth part", format!("{good}.{signature}"));
    tokens
}

/// Returns every credential, valid and invalid.
async fn credentials(system: &TestSystem) -> Vec<Credential> {
    let mut all = vec![Credential { name: "no token".to_owned(), token: None, user: Err("authentication-required") }];
    let mut bad = bad_tokens();
    for (name, changes, what) in [
        ("revoked by subject", json!({"sub": "mallory", "role": "admin"}), json!({"subject": "mallory"})),
        ("revoked by token id", json!({"jti": "stolen", "role": "admin"}), json!({"token_id": "stolen"})),
    ] {
        let token = signed(&claims(changes));
        system.reader().post("/v1/admin/revocations").json(what).send().await.expect(201);
        bad.push((name.to_owned(), token, "token-revoked"));
    }
    all.extend(bad.into_iter().map(|(name, token, slug)| Credential { name, token: Some(token), user: Err(slug) }));
    let rsa = EncodingKey::from_rsa_pem(key_text("rs256.pem").as_bytes()).expect("an RSA key");
    let by_rsa = forged(&json!({"alg": "RS256"}), &claims(json!({})), &rsa, Algorithm::RS256);
    for (name, token, user) in [
        ("owner", token(OWNER, "customer"), User::Owner),
        ("owner by RS256", by_rsa, User::Owner),
        ("other", token(OTHER, "customer"), User::Other),
        ("staff", token("clerk", "staff"), User::Staff),
        ("admin", token("boss", "admin"), User::Admin),
    ] {
        all.push(Credential { name: name.to_owned(), token: Some(token), user: Ok(user) });
    }
    all
}

/// Returns the expected response for a user: a status, and the slug of a problem.
fn expected(access: Access, user: User, success: u16) -> (u16, Option<&'static str>) {
    let good = (success, None);
    match (access, user) {
        (Access::Anyone, _)
        | (_, User::Admin)
        | (Access::Staff, User::Staff)
        | (Access::Own(_), User::Owner | User::Staff) => good,
        (Access::Staff | Access::Admin, _) => (403, Some("forbidden")),
        (Access::Own(OnForeign::NotFound(slug)), User::Other) => (404, Some(slug)),
        (Access::Own(OnForeign::Forbidden), User::Other) => (403, Some("forbidden")),
        (Access::Own(OnForeign::EmptyList | OnForeign::LineNotFound), User::Other) => good,
    }
}

/// Orders of the owner. Each has one item `pen`, so it is at version 2. Each order is used once.
struct Orders {
    prefix: &'static str,
    next: usize,
}

impl Orders {
    async fn create(system: &TestSystem, prefix: &'static str, count: usize) -> Self {
        let line = |number: usize| {
            let item = json!({"sku": "pen", "quantity": 1, "unit_price": "1.00"});
            let id = format!("{prefix}-{number:05}");
            json!({"type": "create_order", "order_id": id, "customer_id": OWNER, "items": [item]}).to_string() + "\n"
        };
        let body = (0..count).map(line).collect();
        let answer = system.post("/v1/commands").body("application/x-ndjson", body).send().await.expect(200);
        assert!(!String::from_utf8_lossy(&answer.body).contains("problem"), "{answer:?}");
        system.settled().await;
        Self { prefix, next: 0 }
    }

    fn next(&mut self) -> String {
        self.next += 1;
        format!("{}-{:05}", self.prefix, self.next - 1)
    }
}

/// Builds the request of an operation for an order, which may not exist.
fn request(system: &TestSystem, operation: &Operation, order: &str, owner: &str) -> Request {
    let id = if operation.path.starts_with("/v1/customers/") { owner } else { order };
    let fill = |text: &str, id: &str| text.replace("{id}", id).replace("{owner}", owner).replace("{sku}", "pen");
    let path = fill(operation.path, id) + &fill(operation.query, order);
    let method: Method = operation.method.parse().expect("an HTTP method");
    let is_command = method != Method::GET && operation.path.starts_with("/v1/orders");
    let client = match is_command || operation.path == "/v1/commands" {
        true => system.writer(),
        false => system.reader(),
    };
    let mut request = client.request(method, &path);
    if let Some((name, value)) = operation.header {
        request = request.header(name, value);
    }
    match (operation.path, operation.body) {
        (_, "") => request,
        ("/v1/commands", line) => request.body("application/x-ndjson", fill(line, order) + "\n"),
        (_, body) => request.body("application/json", fill(body, order)),
    }
}

fn by(request: Request, token: Option<&str>) -> Request {
    match token {
        Some(token) => request.token(token),
        None => request.anonymous(),
    }
}

/// Returns the slug of a problem.
fn slug(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    Some(body["type"].as_str()?.strip_prefix("/problems/")?.to_owned())
}

/// Compares the tables above with the documents and the sources. Returns the missing and the obsolete rows.
async fn check_rows(system: &TestSystem) -> Vec<String> {
    let mut faults = Vec::new();
    let mut compare = |what: &str, table: &str, listed: BTreeSet<String>, rows: BTreeSet<String>| {
        for missing in listed.difference(&rows) {
            faults.push(format!(
                "{what} {missing} has no row: add one to {table} in {THIS_FILE} to define who may use it"
            ));
        }
        for gone in rows.difference(&listed) {
            faults.push(format!("{what} {gone} does not exist any more: remove its row from {table} in {THIS_FILE}"));
        }
    };
    let document = system.get("/openapi.json").anonymous().send().await.expect(200).json();
    let paths = document["paths"].as_object().expect("paths");
    let methods = ["get", "put", "post", "delete", "patch", "head", "options", "trace"];
    let operations = paths.iter().flat_map(|(path, item)| {
        let of_path = methods.iter().filter(|method| item[**method].is_object());
        of_path.map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    let rows = OPERATIONS.iter().map(|operation| (operation.method, operation.path)).chain(BY_CHANNEL.iter().copied());
    let rows = rows.map(|(method, path)| format!("{method} {path}")).collect();
    compare("the operation", "OPERATIONS", operations.collect(), rows);
    let document = system.get("/asyncapi.json").anonymous().send().await.expect(200).json();
    let addresses = document["channels"].as_object().expect("channels").values();
    let addresses: Vec<_> = addresses.filter_map(|channel| channel["address"].as_str().map(str::to_owned)).collect();
    let (transports, channels) = addresses.into_iter().partition(|address| address.starts_with('/'));
    compare("the channel", "CHANNELS", channels, CHANNELS.iter().map(|(name, _)| (*name).to_owned()).collect());
    compare("the transport", "TRANSPORTS", transports, TRANSPORTS.iter().map(|name| (*name).to_owned()).collect());
    let undocumented = UNDOCUMENTED.iter().map(|(path, _)| (*path).to_owned()).collect();
    compare("the undocumented route", "UNDOCUMENTED", plain_routes(), undocumented);
    faults
}

/// Returns the paths of routes in the sources that have no description for `/openapi.json`.
fn plain_routes() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<_> = [
        "engine/platform",
        "engine/commands",
        "engine/projection-engine",
        "engine/push",
        "read-side",
        "write-side",
        "server",
    ]
    .iter()
    .map(|name| root.join(name).join("src"))
    .collect();
    let mut routes = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the source folder exists").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let product = text.split("#[cfg(test)]").next().unwrap_or_default();
                let paths = product.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next());
                routes.extend(paths.map(str::to_owned));
            }
        }
    }
    routes
}

/// Fails the test if there are faults, and lists all of them.
#[track_caller]
fn assert_no_faults(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

async fn every_operation_checks_access(system: TestSystem) {
    let mut faults = check_rows(&system).await;
    for (path, statuses) in UNDOCUMENTED {
        let status = system.get(path).anonymous().send().await.status;
        if !statuses.contains(&status) {
            faults.push(format!("GET {path} without a token: the status is {status}, expected one of {statuses:?}"));
        }
    }
    let credentials = credentials(&system).await;
    let allowed = credentials.iter().filter(|credential| credential.user.is_ok()).count();
    let mut orders = Orders::create(&system, "matrix", OPERATIONS.len() * allowed + 1).await;
    let unused = orders.next();
    for operation in OPERATIONS {
        for credential in &credentials {
            let order = if credential.user.is_ok() { orders.next() } else { unused.clone() };
            let answer = by(request(&system, operation, &order, OWNER), credential.token.as_deref()).send().await;
            if let Some(fault) = fault(operation, credential, &answer) {
                faults.push(format!("{} with {}: {fault}", operation.name(), credential.name));
            }
        }
        // Cookies are accepted for live updates only.
        let owner = token(OWNER, "customer");
        let cookie = format!("docket_token={owner}");
        let from_page = request(&system, operation, &unused, OWNER).header("cookie", &cookie).header("origin", PAGE);
        let answer = from_page.anonymous().send().await;
        if answer.status != 401 {
            faults.push(format!("{} with a cookie: {}", operation.name(), answer.status));
        }
    }
    assert_no_faults(&faults);
}

/// Returns what is wrong with a response.
fn fault(operation: &Operation, credential: &Credential, answer: &Answer) -> Option<String> {
    let (status, problem) = match credential.user {
        Err(slug) => (401, Some(slug)),
        Ok(user) => expected(operation.access, user, operation.success),
    };
    let text = String::from_utf8_lossy(&answer.body);
    if (answer.status, slug(&answer.body).as_deref()) != (status, problem) {
        return Some(format!("got {} {text}, expected {status} {problem:?}", answer.status));
    }
    if status == 401 && answer.header("www-authenticate").is_none() {
        return Some("401 without WWW-Authenticate".to_owned());
    }
    let is_foreign = credential.user == Ok(User::Other);
    match operation.access {
        Access::Own(OnForeign::EmptyList) if credential.user.is_ok() => {
            let is_empty = answer.json()["items"].as_array().is_none_or(Vec::is_empty);
            (is_empty != is_foreign)
                .then(|| format!("{text}: the list is {}", if is_empty { "empty" } else { "not empty" }))
        }
        Access::Own(OnForeign::LineNotFound) if credential.user.is_ok() => {
            let line = answer.json();
            let expected = if is_foreign { json!(404) } else { json!(200) };
            (line["status"] != expected).then(|| format!("got {line}, expected {expected}"))
        }
        _ => None,
    }
}

/// Configures each kind of key alone: a token of the other kind is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_accepts_only_its_own_algorithm() {
    let rsa = EncodingKey::from_rsa_pem(key_text("rs256.pem").as_bytes()).expect("an RSA key");
    let by_rsa = forged(&json!({"alg": "RS256"}), &claims(json!({})), &rsa, Algorithm::RS256);
    let by_secret = token(OWNER, "customer");
    let secret_only = without_rate(TestSystem::builder(Mode::Embedded));
    // The default secret of the test system is removed.
    let file = key_file("rs256.pub.pem");
    let key_only = without_rate(TestSystem::builder(Mode::Embedded))
        .without("DOCKET_JWT_SECRET")
        .setting("DOCKET_JWT_KEY_FILE", &file);
    let mut faults = Vec::new();
    for (keys, builder, good, bad) in
        [("the secret", secret_only, &by_secret, &by_rsa), ("the RSA key", key_only, &by_rsa, &by_secret)]
    {
        let system = builder.start().await;
        let ask = |token: &str| system.get("/v1/orders").token(token).send();
        if ask(good).await.status != 200 {
            faults.push(format!("{keys} alone does not accept its own token"));
        }
        let others = [("a token of the other key".to_owned(), bad.clone(), "invalid-token")];
        for (name, token, expected) in bad_tokens().into_iter().chain(others) {
            let answer = ask(&token).await;
            // The key is checked before the claims: with another key, an expired token is invalid rather than expired.
            let is_refused = answer.status == 401
                && [Some(expected), Some("invalid-token")].contains(&slug(&answer.body).as_deref());
            if !is_refused {
                faults.push(format!("{keys} alone, {name}: {} {:?}", answer.status, slug(&answer.body)));
            }
        }
    }
    assert_no_faults(&faults);
}

/// A presented credential: additions to the query, headers, and the body of `connect`.
struct Presented {
    query: String,
    headers: Vec<(&'static str, String)>,
    connect: Value,
}

async fn present(system: &TestSystem, credential: &Credential, way: Presentation) -> Presented {
    let mut presented = Presented { query: String::new(), headers: Vec::new(), connect: json!({}) };
    let Some(token) = &credential.token else { return presented };
    match way {
        Presentation::Header => presented.headers.push(("authorization", format!("Bearer {token}"))),
        Presentation::Cookie => {
            presented.headers.push(("cookie", format!("theme=dark; docket_token={token}")));
            presented.headers.push(("origin", PAGE.to_owned()));
        }
        Presentation::Protocol => {
            let protocols = format!("centrifuge-json, bearer.{}", URL_SAFE_NO_PAD.encode(token));
            presented.headers.push(("sec-websocket-protocol", protocols));
        }
        Presentation::Connect => presented.connect = json!({"token": token}),
        Presentation::Ticket => {
            let answer = system.reader().post("/v1/tickets").token(token).send().await;
            let ticket = match answer.status {
                201 => answer.json()["ticket"].as_str().expect("a ticket").to_owned(),
                _ => token.clone(),
            };
            presented.query = format!("&ticket={ticket}");
        }
    }
    presented
}

/// Result of a subscription.
#[derive(Debug, PartialEq)]
enum SubscribeResult {
    /// A snapshot was received.
    Snapshot,
    /// Status and slug of a refused stream or poll.
    Refused(u16, String),
    /// Code of a WebSocket's error reply.
    Error(u64),
    /// Code of a WebSocket's Close.
    Closed(u16),
}

/// Subscribes to a channel with an event stream or a poll.
async fn listen(client: &Client, path: &str, channel: &str, presented: &Presented) -> SubscribeResult {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().expect("the HTTP client builds");
    let wait = if path == "/v1/poll" { "&wait=0" } else { "" };
    let mut request = http.get(format!("{}{path}?channel={channel}{wait}{}", client.base(), presented.query));
    for (name, value) in &presented.headers {
        request = request.header(*name, value);
    }
    let answer = request.send().await.expect("a response");
    let status = answer.status().as_u16();
    if status != 200 {
        let body = answer.bytes().await.expect("a complete response");
        return SubscribeResult::Refused(
            status,
            slug(&body).unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()),
        );
    }
    // An event stream does not end: its first event is enough.
    let (mut body, mut text) = (answer.bytes_stream(), String::new());
    while !text.contains("snapshot") {
        let Some(Ok(bytes)) = body.next().await else { panic!("{path}?channel={channel} has no snapshot: {text}") };
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    SubscribeResult::Snapshot
}

/// Connects a WebSocket. The error says how the connection was refused.
async fn connect(client: &Client, path: &str, presented: &Presented) -> Result<Socket, SubscribeResult> {
    let headers: Vec<(&str, &str)> = presented.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let url = format!("{}{path}?{}", client.base(), presented.query.trim_start_matches('&'));
    let mut socket =
        Socket::open(&url, &headers).await.map_err(|status| SubscribeResult::Refused(status, String::new()))?;
    let reply = socket.try_call("connect", presented.connect.clone()).await.map_err(SubscribeResult::Closed)?;
    match reply["error"]["code"].as_u64() {
        None => Ok(socket),
        Some(code) => Err(SubscribeResult::Error(code)),
    }
}

async fn subscribe(socket: &mut Socket, channel: &str) -> SubscribeResult {
    match socket.try_call("subscribe", json!({"channel": channel})).await {
        Err(code) => SubscribeResult::Closed(code),
        Ok(reply) => match reply["error"]["code"].as_u64() {
            Some(code) => SubscribeResult::Error(code),
            None if reply["subscribe"]["data"].is_object() => SubscribeResult::Snapshot,
            None => panic!("neither a snapshot nor an error: {reply}"),
        },
    }
}

/// Returns how an invalid credential must be refused.
fn refusal(way: Presentation, slug: &'static str, is_socket: bool) -> SubscribeResult {
    match (is_socket, way, slug) {
        (false, Presentation::Ticket, slug) if slug != "authentication-required" => {
            SubscribeResult::Refused(401, "invalid-ticket".to_owned())
        }
        (false, _, slug) => SubscribeResult::Refused(401, slug.to_owned()),
        (true, Presentation::Ticket, _) => SubscribeResult::Closed(3500),
        (true, _, "token-expired") => SubscribeResult::Error(109),
        (true, _, "token-revoked") => SubscribeResult::Closed(4503),
        (true, _, _) => SubscribeResult::Closed(3500),
    }
}

async fn every_channel_checks_access(system: TestSystem) {
    let mut faults = Vec::new();
    let mut orders = Orders::create(&system, "listen", 1).await;
    let order = orders.next();
    let reader = system.reader();
    let name_of = |address: &str| match address {
        "customer:{id}" => address.replace("{id}", OWNER),
        _ => address.replace("{id}", &order),
    };
    let credentials = credentials(&system).await;
    for credential in &credentials {
        let mut check = |what: String, result: SubscribeResult, expected: SubscribeResult| {
            if result != expected {
                faults.push(format!("{what} with {}: got {result:?}, expected {expected:?}", credential.name));
            }
        };
        for (address, access) in CHANNELS {
            for path in ["/v1/live", "/v1/poll"] {
                for way in [Presentation::Header, Presentation::Ticket, Presentation::Cookie] {
                    let expected = match credential.user.map(|user| expected(*access, user, 200)) {
                        Err(slug) => refusal(way, slug, false),
                        Ok((200, _)) => SubscribeResult::Snapshot,
                        Ok((status, slug)) => SubscribeResult::Refused(status, slug.unwrap_or_default().to_owned()),
                    };
                    let presented = present(&system, credential, way).await;
                    let result = listen(reader, path, &name_of(address), &presented).await;
                    check(format!("{path} of {address} by {way:?}"), result, expected);
                }
            }
        }
        for path in ["/ws", "/ws/admin"] {
            for way in [
                Presentation::Header,
                Presentation::Ticket,
                Presentation::Cookie,
                Presentation::Protocol,
                Presentation::Connect,
            ] {
                let presented = present(&system, credential, way).await;
                let mut socket = match (connect(reader, path, &presented).await, credential.user) {
                    (Ok(socket), Ok(user)) if path == "/ws" || user == User::Admin => socket,
                    (outcome, user) => {
                        let expected =
                            user.map_or_else(|slug| refusal(way, slug, true), |_| SubscribeResult::Closed(4503));
                        let result = outcome.err().unwrap_or(SubscribeResult::Snapshot);
                        check(format!("{path} by {way:?}"), result, expected);
                        continue;
                    }
                };
                for (address, access) in CHANNELS {
                    let is_allowed = credential.user.is_ok_and(|user| expected(*access, user, 200).0 == 200);
                    let expected = if is_allowed { SubscribeResult::Snapshot } else { SubscribeResult::Error(103) };
                    let result = subscribe(&mut socket, &name_of(address)).await;
                    check(format!("{path}, {address}, by {way:?}"), result, expected);
                }
                // Presence is for staff; no client may publish.
                let is_staff = matches!(credential.user, Ok(User::Staff | User::Admin));
                for (command, code) in [
                    ("presence", (!is_staff).then_some(103)),
                    ("presence_stats", (!is_staff).then_some(103)),
                    ("publish", Some(103)),
                    ("rpc", Some(103)),
                    ("history", Some(108)),
                ] {
                    let reply = socket.call(command, json!({"channel": name_of("order:{id}"), "data": {}})).await;
                    let result =
                        reply["error"]["code"].as_u64().map_or(SubscribeResult::Snapshot, SubscribeResult::Error);
                    check(
                        format!("{path}, {command} by {way:?}"),
                        result,
                        code.map_or(SubscribeResult::Snapshot, SubscribeResult::Error),
                    );
                }
            }
        }
    }
    assert_no_faults(&faults);
    only_the_first_credential_counts(&system, &name_of("order:{id}")).await;
    a_ticket_ends_with_its_token(&system, &name_of("order:{id}")).await;
}

/// Checks that only the first of several credentials counts, even if it is invalid.
async fn only_the_first_credential_counts(system: &TestSystem, channel: &str) {
    let reader = system.reader();
    let good = Credential { name: "owner".to_owned(), token: Some(token(OWNER, "customer")), user: Ok(User::Owner) };
    for way in [Presentation::Ticket, Presentation::Cookie] {
        let mut both = present(system, &good, way).await;
        both.headers.push(("authorization", "Bearer nonsense".to_owned()));
        for path in ["/v1/live", "/v1/poll"] {
            let result = listen(reader, path, channel, &both).await;
            assert_eq!(
                result,
                SubscribeResult::Refused(401, "invalid-token".to_owned()),
                "{path}: {way:?} with an invalid header"
            );
        }
        assert_eq!(connect(reader, "/ws", &both).await.err(), Some(SubscribeResult::Closed(3500)), "{way:?}");
    }
    // A cookie counts only for a page of an allowed origin.
    let cookie = present(system, &good, Presentation::Cookie).await.headers.remove(0);
    for (origin, expected) in [
        (None, SubscribeResult::Refused(401, "authentication-required".to_owned())),
        (Some("https://evil.test"), SubscribeResult::Refused(403, "origin-not-allowed".to_owned())),
        (Some("null"), SubscribeResult::Refused(403, "origin-not-allowed".to_owned())),
    ] {
        let mut headers = vec![cookie.clone()];
        headers.extend(origin.map(|origin| ("origin", origin.to_owned())));
        let presented = Presented { query: String::new(), headers, connect: json!({}) };
        assert_eq!(listen(reader, "/v1/poll", channel, &presented).await, expected, "{origin:?}");
    }
}

/// Checks that a ticket opens one connection, and none after its token is revoked.
async fn a_ticket_ends_with_its_token(system: &TestSystem, channel: &str) {
    let reader = system.reader();
    let refused = SubscribeResult::Refused(401, "invalid-ticket".to_owned());
    let credential = |jti: &str| {
        let token = Some(signed(&claims(json!({"jti": jti}))));
        Credential { name: jti.to_owned(), token, user: Ok(User::Owner) }
    };
    let used = present(system, &credential("once"), Presentation::Ticket).await;
    assert_eq!(listen(reader, "/v1/poll", channel, &used).await, SubscribeResult::Snapshot);
    for path in ["/v1/poll", "/v1/live"] {
        assert_eq!(listen(reader, path, channel, &used).await, refused, "{path} with a used ticket");
    }
    assert_eq!(connect(reader, "/ws", &used).await.err(), Some(SubscribeResult::Closed(3500)));
    let late = present(system, &credential("revoked-later"), Presentation::Ticket).await;
    let what = json!({"token_id": "revoked-later"});
    reader.post("/v1/admin/revocations").json(what).send().await.expect(201);
    assert_eq!(listen(reader, "/v1/live", channel, &late).await, refused, "with a ticket of a revoked token");
}

/// Returns what a client can compare of a response, without the parts that differ each time.
fn comparable(answer: &Answer, id: &str) -> String {
    let mut lines = vec![answer.status.to_string()];
    let varying = ["date", "x-request-id"];
    for (name, value) in answer.headers.iter().filter(|(name, _)| !varying.contains(&name.as_str())) {
        lines.push(format!("{name}: {value:?}"));
    }
    lines.sort_unstable();
    let mut body = String::from_utf8_lossy(&answer.body).replace(id, "{id}");
    if let Some(request_id) = answer.header("x-request-id") {
        body = body.replace(request_id, "{request_id}");
    }
    lines.push(body);
    lines.join("\n")
}

/// Another customer cannot distinguish an existing order or customer from one that does not exist: neither by the
/// response nor by its duration.
async fn foreign_and_missing_resources_look_alike(system: TestSystem) {
    let other = token(OTHER, "customer");
    // The owner's list has orders; the list of the unused id `NOBODY` is empty.
    let own = OPERATIONS.iter().filter(|operation| matches!(operation.access, Access::Own(_)));
    let own: Vec<&Operation> = own.collect();
    let mut orders = Orders::create(&system, "hidden", own.len() + TIMED_REQUESTS).await;
    let mut faults = Vec::new();
    for operation in &own {
        let (order, missing) = (orders.next(), format!("absent-{:05}", orders.next));
        assert_eq!(order.len(), missing.len(), "both ids have the same length");
        let foreign = request(&system, operation, &order, OWNER).token(&other).send().await;
        let absent = request(&system, operation, &missing, NOBODY).token(&other).send().await;
        let foreign = comparable(&foreign, &order).replace(OWNER, "{owner}");
        let absent = comparable(&absent, &missing).replace(NOBODY, "{owner}");
        if foreign != absent {
            faults.push(format!("{}: another customer's:\n{foreign}\nmissing:\n{absent}", operation.name()));
        }
    }
    let mut socket = Socket::connect(system.reader(), &other).await;
    for (address, access) in CHANNELS {
        if !matches!(access, Access::Own(_)) {
            continue;
        }
        let order = orders.next();
        let (there, absent) = match *address {
            "customer:{id}" => (address.replace("{id}", OWNER), address.replace("{id}", NOBODY)),
            _ => (address.replace("{id}", &order), address.replace("{id}", &order.replace("hidden", "absent"))),
        };
        let error = async |socket: &mut Socket, channel: &str| {
            socket.call("subscribe", json!({"channel": channel})).await["error"]
                .to_string()
                .replace(channel, "{channel}")
        };
        let (foreign, missing) = (error(&mut socket, &there).await, error(&mut socket, &absent).await);
        if foreign != missing {
            faults.push(format!("subscription to {address}: another customer's: {foreign}, missing: {missing}"));
        }
        for path in ["/v1/live", "/v1/poll"] {
            let ask = |channel: &str| system.get(&format!("{path}?channel={channel}")).token(&other).send();
            let (foreign, missing) = (ask(&there).await, ask(&absent).await);
            let (foreign, missing) = (comparable(&foreign, &there), comparable(&missing, &absent));
            if foreign != missing {
                faults.push(format!("{path} of {address}: another customer's:\n{foreign}\nmissing:\n{missing}"));
            }
        }
    }
    assert_no_faults(&faults);
    for operation in own {
        let ask = async |order: &str, owner: &str| {
            request(&system, operation, order, owner).token(&other).send().await;
        };
        assert_similar_duration(&operation.name(), ask).await;
    }
    for path in ["/v1/live", "/v1/poll"] {
        let ask = async |order: &str, _: &str| {
            let path = format!("{path}?channel=order:{order}");
            system.get(&path).token(&other).send().await.expect_problem(404, "channel-not-found");
        };
        assert_similar_duration(&format!("{path} of order:{{id}}"), ask).await;
    }
}

/// Number of requests of each kind whose times are compared.
const TIMED_REQUESTS: usize = 100;
/// Number of attempts before a difference counts, because a busy machine causes differences too.
const TRIES: usize = 3;
/// Smallest ratio of the two times that counts as a difference. A difference must be large enough to be measured over a
/// network.
const DIFFERENCE_RATIO_MIN: f64 = 3.0;
const DIFFERENCE_MS_MIN: f64 = 1.0;

/// Checks that requests for another customer's resource and for a missing one take about the same time. Compares the
/// medians of interleaved requests.
async fn assert_similar_duration(what: &str, ask: impl AsyncFn(&str, &str)) {
    let mut measured = Vec::new();
    for _ in 0..TRIES {
        let (mut foreign, mut absent) = (Vec::new(), Vec::new());
        for number in 0..TIMED_REQUESTS {
            let (there, missing) = (format!("hidden-{number:05}"), format!("absent-{number:05}"));
            let mut timed = [(&mut foreign, there, OWNER), (&mut absent, missing, NOBODY)];
            // The order of the two requests alternates.
            if number % 2 == 1 {
                timed.reverse();
            }
            for (times, order, owner) in timed {
                let started = Instant::now();
                ask(&order, owner).await;
                times.push(started.elapsed().as_secs_f64() * 1_000.0);
            }
        }
        let (foreign, absent) = (median(foreign), median(absent));
        measured.push((foreign, absent));
        let (shorter, longer) = (foreign.min(absent), foreign.max(absent));
        if longer < shorter * DIFFERENCE_RATIO_MIN || longer - shorter < DIFFERENCE_MS_MIN {
            return;
        }
    }
    panic!("{what}: median ms (another customer's, missing): {measured:?}");
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// While the read models are behind, the server cannot know whether an order exists. A customer gets the same response
/// for another customer's order as for a missing one, after the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_read_model_does_not_reveal_orders_of_others() {
    let builder = without_rate(TestSystem::builder(Mode::Scaled).processes(&["write,read", "project"]));
    let mut system = builder.start().await;
    let mut orders = Orders::create(&system, "hidden", 1).await;
    let (order, missing) = (orders.next(), "absent-00000");
    system.dockets[1].kill9();
    system.post("/v1/orders").json(json!({"customer_id": OWNER})).send().await.expect(201);
    let other = token(OTHER, "customer");
    let mut socket = Socket::connect(system.reader(), &other).await;
    for path in ["/v1/live", "/v1/poll"] {
        let ask = async |order: &str| {
            let started = Instant::now();
            let path = format!("{path}?channel=order:{order}");
            let answer = comparable(&system.get(&path).token(&other).send().await, order);
            (answer, started.elapsed())
        };
        let ((foreign, one), (absent, another)) = (ask(&order).await, ask(missing).await);
        assert_eq!(foreign, absent, "{path}: another customer's and missing");
        let (shorter, longer) = (one.min(another), one.max(another));
        assert!(longer < shorter * 3, "{path}: {one:?} for another customer's order, {another:?} for a missing one");
    }
    let mut error = async |order: &str| {
        socket.call("subscribe", json!({"channel": format!("order:{order}")})).await["error"].to_string()
    };
    assert_eq!(error(&order).await, error(missing).await, "the errors of the subscriptions differ");
}
