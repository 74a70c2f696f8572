//! A load: many clients send mixed commands to few orders and record the outcome of each command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::{Answer, Client};
use crate::dice::Dice;
use crate::fold::money;
use crate::process::POLL;

/// Time limit for a client to learn the outcome of one command.
const OUTCOME_DEADLINE: Duration = Duration::from_secs(90);
const SKUS: u64 = 12;

/// Size of a load.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Distinguishes two loads on one system.
    pub name: &'static str,
    /// Number of concurrent clients.
    pub clients: u64,
    /// Number of orders that are open at one time, shared by all clients.
    pub orders: u64,
    /// Commands that each client sends.
    pub commands_each: u64,
}

/// Outcome of a command as its sender sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A 2xx response with this version and position.
    Acknowledged {
        /// The order's version after the command.
        version: u64,
        /// Position of the command's last event; a later position is possible if the command created no event.
        position: u64,
    },
    /// A 4xx answer.
    Refused,
    /// No response, or none that states the outcome.
    Unknown,
}

/// One command, sent once or several times under one idempotency key.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Id of the order.
    pub order_id: String,
    /// Least and greatest number of events that the command creates when it succeeds.
    pub events: (usize, usize),
    /// The `X-Request-Id` of each attempt.
    pub request_ids: Vec<String>,
    /// Outcome of the command.
    pub outcome: Outcome,
}

/// One of several loads of the same shape on one system, and its pace.
#[derive(Clone, Copy, Default)]
pub struct LoadRun {
    /// Number of the run. Another run uses other idempotency keys and the same orders.
    pub number: u64,
    /// Pause between two commands of one client.
    pub pause: Duration,
}

/// The latest acknowledgement of a load.
#[derive(Clone, Debug)]
pub struct Latest {
    /// Id of the order.
    pub order_id: String,
    /// Version of the order after the command.
    pub version: u64,
    /// Position in the response.
    pub position: u64,
}

struct Shared {
    shape: Shape,
    run: LoadRun,
    client: Client,
    latest: watch::Sender<Option<Latest>>,
    /// For each place, the number of orders that were finished there before the open one.
    generations: Vec<AtomicU64>,
    acknowledged: AtomicU64,
    stopping: AtomicBool,
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Vec<Sent>>>,
}

impl Load {
    /// Starts the clients. They survive a restart of the server: a command without a response is sent again under its
    /// idempotency key.
    pub fn start(client: &Client, shape: Shape) -> Self {
        Self::start_run(client, shape, LoadRun::default())
    }

    /// Starts one of several loads of the same shape.
    pub fn start_run(client: &Client, shape: Shape, run: LoadRun) -> Self {
        let generations = (0..shape.orders).map(|_| AtomicU64::new(0)).collect();
        let (acknowledged, stopping) = (AtomicU64::new(0), AtomicBool::new(false));
        let (client, latest) = (client.clone(), watch::Sender::default());
        let shared = Arc::new(Shared { shape, run, client, latest, generations, acknowledged, stopping });
        let clients = (0..shape.clients).map(|number| tokio::spawn(run_client(Arc::clone(&shared), number))).collect();
        Self { shared, clients }
    }

    /// Waits until `count` commands are acknowledged.
    ///
    /// # Panics
    /// If the load ends or two minutes pass first.
    pub async fn acknowledged(&self, count: u64) {
        let started = Instant::now();
        while self.shared.acknowledged.load(Ordering::Relaxed) < count {
            assert!(
                self.clients.iter().any(|client| !client.is_finished()),
                "the load ended before {count} acknowledgements"
            );
            assert!(started.elapsed() < Duration::from_secs(120), "fewer than {count} acknowledgements in two minutes");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns a receiver of the latest acknowledgement.
    pub fn latest(&self) -> watch::Receiver<Option<Latest>> {
        self.shared.latest.subscribe()
    }

    /// Waits until every client has sent all its commands and has their outcomes.
    pub async fn finish(self) -> Vec<Sent> {
        let mut sent = vec![];
        for client in self.clients {
            sent.extend(client.await.expect("a client of the load failed"));
        }
        sent
    }

    /// Stops the clients. Commands in flight that get no response end as [`Outcome::Unknown`].
    pub async fn stop(self) -> Vec<Sent> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.finish().await
    }
}

async fn run_client(shared: Arc<Shared>, number: u64) -> Vec<Sent> {
    let mut dice = Dice::new(shared.run.number << 32 | number);
    let mut sent = vec![];
    let mut missing = None;
    for count in 0..shared.shape.commands_each {
        if shared.stopping.load(Ordering::Relaxed) {
            break;
        }
        let place = missing.unwrap_or_else(|| dice.below(shared.shape.orders));
        let generation =
            shared.generations[usize::try_from(place).expect("a place is a small number")].load(Ordering::Relaxed);
        let order_id = format!("{}-{place}-{generation}", shared.shape.name);
        let command = match missing.take() {
            Some(_) => create(&mut dice, place, &order_id),
            None => change(&mut dice, place, &order_id),
        };
        let key = format!("{}-{}-{number}-{count}", shared.shape.name, shared.run.number);
        let (done, problem) = send(&shared, &order_id, &key, command).await;
        sent.push(done);
        tokio::time::sleep(shared.run.pause).await;
        match problem.as_deref() {
            Some("/problems/order-not-found") => missing = Some(place),
            Some("/problems/order-not-draft") => {
                let place = &shared.generations[usize::try_from(place).expect("a place is a small number")];
                // Only the first client that notices creates a new order here.
                let _ = place.compare_exchange(generation, generation + 1, Ordering::Relaxed, Ordering::Relaxed);
            }
            _ => {}
        }
    }
    sent
}

/// Sends a command until its outcome is known. Returns the type of the problem too, if the command was refused.
async fn send(shared: &Shared, order_id: &str, key: &str, command: Command) -> (Sent, Option<String>) {
    let started = Instant::now();
    let mut sent =
        Sent { order_id: order_id.to_owned(), events: command.events, request_ids: vec![], outcome: Outcome::Unknown };
    loop {
        let request_id = format!("{key}-{}", sent.request_ids.len());
        let request =
            shared.client.request(command.method.clone(), &command.path).key(key).header("x-request-id", &request_id);
        sent.request_ids.push(request_id);
        let request = if command.body.is_null() { request } else { request.json(command.body.clone()) };
        if let Some((outcome, problem)) = request.try_send().await.ok().as_ref().and_then(read_outcome) {
            if let Outcome::Acknowledged { version, position } = outcome {
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                shared.latest.send_replace(Some(Latest { order_id: order_id.to_owned(), version, position }));
            }
            sent.outcome = outcome;
            return (sent, problem);
        }
        if shared.stopping.load(Ordering::Relaxed) {
            return (sent, None);
        }
        assert!(started.elapsed() < OUTCOME_DEADLINE, "{key}: no outcome after {} attempts", sent.request_ids.len());
        tokio::time::sleep(POLL).await;
    }
}

/// Reads the outcome from a response; None where the response asks for a retry.
fn read_outcome(answer: &Answer) -> Option<(Outcome, Option<String>)> {
    match answer.status {
        200 | 201 => Some((Outcome::Acknowledged { version: answer.version(), position: answer.position() }, None)),
        429 | 503 => None,
        400..=499 => {
            let problem = answer.json()["type"].as_str().map(str::to_owned);
            // 409 means a lost race or the same key still in progress, except for the problems of an order's own state.
            let final_answer =
                answer.status != 409 || problem.as_deref().is_some_and(|slug| slug.starts_with("/problems/order-"));
            final_answer.then_some((Outcome::Refused, problem))
        }
        status => panic!("{status}: {}", String::from_utf8_lossy(&answer.body)),
    }
}

struct Command {
    method: Method,
    path: String,
    body: Value,
    events: (usize, usize),
}

fn create(dice: &mut Dice, place: u64, order_id: &str) -> Command {
    let count = dice.below(3);
    let items: Vec<Value> = (0..count).map(|number| item(dice, place, number)).collect();
    let body = json!({
        "order_id": order_id, "customer_id": format!("customer-{}", place % 5), "currency": currency(place),
        "attributes": {"store_id": format!("store-{}", place % 3)}, "items": items,
    });
    let events = 1 + items.len();
    Command { method: Method::POST, path: "/v1/orders".to_owned(), body, events: (events, events) }
}

fn change(dice: &mut Dice, place: u64, order_id: &str) -> Command {
    let sku = dice.below(SKUS);
    let command = |method, path: String, body, events| Command {
        method,
        path: format!("/v1/orders/{order_id}{path}"),
        body,
        events,
    };
    match dice.below(100) {
        0..55 => command(Method::POST, "/items".to_owned(), item(dice, place, sku), (1, 1)),
        // The command that sets the current quantity creates no event.
        55..80 => command(Method::PUT, format!("/items/sku-{sku}"), json!({"quantity": 1 + dice.below(9)}), (0, 1)),
        80..97 => command(Method::DELETE, format!("/items/sku-{sku}"), Value::Null, (1, 1)),
        97..99 => command(Method::POST, "/confirm".to_owned(), Value::Null, (1, 1)),
        _ => command(Method::POST, "/cancel".to_owned(), json!({"reason": "cancelled by the load test"}), (1, 1)),
    }
}

/// Returns an item. A SKU always has the same name, category and, in one currency, price.
fn item(dice: &mut Dice, place: u64, sku: u64) -> Value {
    json!({
        "sku": format!("sku-{sku}"), "quantity": 1 + dice.below(9), "unit_price": money(99 + 37 * sku, currency(place)),
        "name": format!("Article {sku}"), "category": format!("category-{}", sku % 4),
    })
}

fn currency(place: u64) -> &'static str {
    if place % 4 == 3 { "JPY" } else { "USD" }
}
