//! The peer `stock`: an order API on stock axum, cqrs-es and postgres-es, composed as their documentation shows.
//!
//! `DATABASE_URL` names an empty PostgreSQL database, `LISTEN` the address to listen on. `GenericQuery` updates the
//! read model in the command path. The program has no authentication, limits, idempotency or telemetry, which only
//! makes it faster. It uses no code of Docket.

use std::sync::Arc;

use anyhow::Context;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cqrs_es::event_sink::EventSink;
use cqrs_es::persist::{GenericQuery, ViewRepository};
use cqrs_es::{Aggregate, AggregateError, DomainEvent, EventEnvelope, View};
use postgres_es::{PostgresCqrs, PostgresViewRepository, postgres_cqrs};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::postgres::PgPoolOptions;
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Number of database connections. The default of sqlx is 10.
const POOL_CONNECTIONS: u32 = 16;

/// The tables of `db/init.sql` of postgres-es.
const SCHEMA: &str = "
create table events (
    aggregate_type text not null,
    aggregate_id text not null,
    sequence bigint check (sequence >= 0) not null,
    event_type text not null,
    event_version text not null,
    payload json not null,
    metadata json not null,
    primary key (aggregate_type, aggregate_id, sequence)
);
create table order_view (
    view_id text not null,
    version bigint check (version >= 0) not null,
    payload json not null,
    primary key (view_id)
);";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum OrderEvent {
    OrderCreated { customer_id: String, currency: String },
    ItemAdded { sku: String, quantity: u32, unit_price: i64 },
    OrderConfirmed { total: i64 },
}

impl DomainEvent for OrderEvent {
    fn event_type(&self) -> String {
        let name = match self {
            Self::OrderCreated { .. } => "OrderCreated",
            Self::ItemAdded { .. } => "ItemAdded",
            Self::OrderConfirmed { .. } => "OrderConfirmed",
        };
        name.to_owned()
    }

    fn event_version(&self) -> String {
        "1.0".to_owned()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    #[default]
    Absent,
    Draft,
    Confirmed,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Order {
    status: Status,
    lines: u32,
    total: i64,
}

enum OrderCommand {
    Create { customer_id: String, currency: String },
    AddItem { sku: String, quantity: u32, unit_price: i64 },
    Confirm,
}

#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("the order exists")]
    Exists,
    #[error("the order is not a draft")]
    NotDraft,
    #[error("the order has no lines")]
    Empty,
}

impl Aggregate for Order {
    const TYPE: &'static str = "order";
    type Command = OrderCommand;
    type Event = OrderEvent;
    type Error = OrderError;
    type Services = ();

    async fn handle(&mut self, command: OrderCommand, _: &(), sink: &EventSink<Self>) -> Result<(), OrderError> {
        let event = match (command, self.status) {
            (OrderCommand::Create { customer_id, currency }, Status::Absent) => {
                OrderEvent::OrderCreated { customer_id, currency }
            }
            (OrderCommand::Create { .. }, _) => return Err(OrderError::Exists),
            (OrderCommand::AddItem { sku, quantity, unit_price }, Status::Draft) => {
                OrderEvent::ItemAdded { sku, quantity, unit_price }
            }
            (OrderCommand::Confirm, Status::Draft) if self.lines == 0 => return Err(OrderError::Empty),
            (OrderCommand::Confirm, Status::Draft) => OrderEvent::OrderConfirmed { total: self.total },
            _ => return Err(OrderError::NotDraft),
        };
        sink.write(event, self).await;
        Ok(())
    }

    fn apply(&mut self, event: OrderEvent) {
        match event {
            OrderEvent::OrderCreated { .. } => self.status = Status::Draft,
            OrderEvent::ItemAdded { quantity, unit_price, .. } => {
                self.lines += 1;
                self.total += i64::from(quantity) * unit_price;
            }
            OrderEvent::OrderConfirmed { .. } => self.status = Status::Confirmed,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct OrderView {
    order_id: String,
    customer_id: String,
    currency: String,
    status: Status,
    total: i64,
    lines: Vec<Line>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    sku: String,
    quantity: u32,
    unit_price: i64,
}

impl View<Order> for OrderView {
    fn update(&mut self, event: &EventEnvelope<Order>) {
        match &event.payload {
            OrderEvent::OrderCreated { customer_id, currency } => {
                self.order_id.clone_from(&event.aggregate_id);
                self.customer_id.clone_from(customer_id);
                self.currency.clone_from(currency);
                self.status = Status::Draft;
            }
            OrderEvent::ItemAdded { sku, quantity, unit_price } => {
                self.total += i64::from(*quantity) * unit_price;
                self.lines.push(Line { sku: sku.clone(), quantity: *quantity, unit_price: *unit_price });
            }
            OrderEvent::OrderConfirmed { .. } => self.status = Status::Confirmed,
        }
    }
}

type Views = PostgresViewRepository<OrderView, Order>;

#[derive(Clone)]
struct App {
    cqrs: Arc<PostgresCqrs<Order>>,
    views: Arc<Views>,
}

/// The error of a request.
struct Refusal(AggregateError<OrderError>);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            AggregateError::UserError(_) => StatusCode::UNPROCESSABLE_ENTITY,
            AggregateError::AggregateConflict => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({"error": self.0.to_string()}))).into_response()
    }
}

#[derive(Deserialize)]
struct NewOrder {
    customer_id: String,
    #[serde(default = "usd")]
    currency: String,
}

fn usd() -> String {
    "USD".to_owned()
}

async fn create(State(app): State<App>, Json(new): Json<NewOrder>) -> Result<Response, Refusal> {
    let order_id = Uuid::now_v7().to_string();
    let command = OrderCommand::Create { customer_id: new.customer_id, currency: new.currency };
    app.cqrs.execute(&order_id, command).await.map_err(Refusal)?;
    Ok((StatusCode::CREATED, Json(json!({"order_id": order_id}))).into_response())
}

async fn add(State(app): State<App>, Path(id): Path<String>, Json(line): Json<Line>) -> Result<StatusCode, Refusal> {
    let command = OrderCommand::AddItem { sku: line.sku, quantity: line.quantity, unit_price: line.unit_price };
    app.cqrs.execute(&id, command).await.map_err(Refusal)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn confirm(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, Refusal> {
    app.cqrs.execute(&id, OrderCommand::Confirm).await.map_err(Refusal)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn show(State(app): State<App>, Path(id): Path<String>) -> Result<Json<OrderView>, StatusCode> {
    let view = app.views.load(&id).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    view.map(Json).ok_or(StatusCode::NOT_FOUND)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
    let listen = std::env::var("LISTEN").context("LISTEN is not set")?;
    let pool = PgPoolOptions::new().max_connections(POOL_CONNECTIONS).connect(&url).await?;
    sqlx::raw_sql(SCHEMA).execute(&pool).await?;
    let views = Arc::new(Views::new("order_view", pool.clone()));
    let mut query = GenericQuery::<Views, OrderView, Order>::new(views.clone());
    query.use_error_handler(Box::new(|error| eprintln!("Could not update the read model: {error}")));
    let cqrs = Arc::new(postgres_cqrs(pool, vec![Box::new(query)], ()));
    let app = Router::new()
        .route("/orders", post(create))
        .route("/orders/{id}", get(show))
        .route("/orders/{id}/items", post(add))
        .route("/orders/{id}/confirm", post(confirm))
        .with_state(App { cqrs, views });
    axum::serve(tokio::net::TcpListener::bind(listen).await?, app).await?;
    Ok(())
}
