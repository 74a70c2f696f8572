//! Commands to orders: route, body and handler, one after the other.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use domain::order::{Command, LINES_MAX, NewItem};
use domain::values::{Amount, Attributes, Category, Currency, CustomerId, Name, OrderId, Quantity, Reason, Sku};
use platform::auth::Principal;
use platform::body;
use platform::problem::Problem;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::call::Call;
use crate::dispatch::{Accepted, WriteSide, refused};

/// The routes.
pub fn router() -> OpenApiRouter<WriteSide> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(add_item))
        .routes(routes!(change_item, remove_item))
        .routes(routes!(confirm))
        .routes(routes!(cancel))
}

/// A new order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateOrder {
    /// The owner; a customer can only name themself.
    #[schema(value_type = String, example = "c-1")]
    pub customer_id: CustomerId,
    /// ISO 4217 code; the whole order is in it.
    #[serde(default)]
    #[schema(value_type = String, default = "USD")]
    pub currency: Currency,
    /// Chosen by the client; made by the server where it is left out.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "o-1001")]
    pub order_id: Option<OrderId>,
    /// First items. All that are wrong are reported at once.
    #[serde(default)]
    #[schema(value_type = Vec<AddItem>)]
    pub items: Vec<Box<RawValue>>,
    /// Free text by name, e.g. `store_id`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub attributes: Attributes,
}

/// An item for an order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddItem {
    /// The product.
    #[schema(value_type = String, example = "bagel")]
    pub sku: Sku,
    /// Pieces, 1 to 1 000 000; added to those of a line with the same SKU and price.
    #[schema(value_type = u32, minimum = 1, maximum = 1_000_000)]
    pub quantity: Quantity,
    /// Price of a piece, a decimal string.
    #[schema(value_type = String, example = "2.55")]
    pub unit_price: Amount,
    /// What the product is called.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// What it is counted under.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub category: Option<Category>,
}

/// A line's new quantity.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeItem {
    /// Pieces, 1 to 1 000 000.
    #[schema(value_type = u32, minimum = 1, maximum = 1_000_000)]
    pub quantity: Quantity,
}

/// Why an order is cancelled.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelOrder {
    /// Up to 500 characters.
    #[schema(value_type = String, example = "changed my mind")]
    pub reason: Reason,
}

/// Nothing: `{}` or no body at all.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoBody {}

impl From<AddItem> for NewItem {
    fn from(item: AddItem) -> Self {
        let AddItem { sku, quantity, unit_price, name, category } = item;
        Self { sku, quantity, unit_price, name, category }
    }
}

impl CreateOrder {
    /// The order's id and the command.
    ///
    /// # Errors
    /// Every item that is wrong, each with its place; a customer who names another customer.
    pub(crate) fn command(self, principal: &Principal) -> Result<(OrderId, Command), Problem> {
        if !principal.may_see(self.customer_id.as_str()) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", "Not allowed")
                .detail("A customer creates orders for themself only: customer_id must be the token's sub.")
                .error("/customer_id", "is not the token's sub"));
        }
        if self.items.len() > LINES_MAX {
            return Err(refused(&domain::order::Error::TooManyLines));
        }
        let mut items: Vec<NewItem> = Vec::with_capacity(self.items.len());
        let mut bad: Option<Problem> = None;
        for (at, item) in self.items.iter().enumerate() {
            match body::parse::<AddItem>(item.get().as_bytes(), &format!("/items/{at}")) {
                Ok(item) => items.push(item.into()),
                Err(problem) => {
                    bad = Some(match bad {
                        None => problem,
                        Some(found) => found.and(problem),
                    })
                }
            }
        }
        if let Some(problem) = bad {
            return Err(problem);
        }
        let order_id = match self.order_id {
            Some(id) => id,
            None => Uuid::now_v7().to_string().parse().map_err(|e: domain::values::Error| {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error").detail(e.to_string())
            })?,
        };
        let Self { customer_id, currency, attributes, .. } = self;
        Ok((order_id, Command::Create { customer_id, currency, attributes, items }))
    }
}

/// An order's id in a path: one that cannot exist is not there.
pub(crate) fn order_id(id: &str) -> Result<OrderId, Problem> {
    id.parse().map_err(|_| refused(&domain::order::Error::NotFound))
}

/// A SKU in a path: one that cannot exist is in no order.
fn sku(sku: &str) -> Result<Sku, Problem> {
    sku.parse().map_err(|_| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "item-not-found", "The order does not allow it")
            .detail("There is no such item in the order.")
    })
}

/// Creates an order, with its first items if they are given.
#[utoipa::path(post, path = "/v1/orders", tag = "commands", request_body = CreateOrder,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 characters; the same key and body give the same answer")),
    responses((status = 201, body = Accepted), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn create(State(state): State<WriteSide>, call: Call<CreateOrder>) -> Result<Response, Problem> {
    let (call, body) = call.take();
    let (id, command) = body.command(&call.principal)?;
    call.answer(&state, StatusCode::CREATED, id, command).await
}

/// Adds an item, or pieces to the line that has its SKU and price.
#[utoipa::path(post, path = "/v1/orders/{id}/items", tag = "commands", request_body = AddItem,
    params(("id" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Accepted), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn add_item(
    State(state): State<WriteSide>,
    Path(id): Path<String>,
    call: Call<AddItem>,
) -> Result<Response, Problem> {
    let (call, body) = call.take();
    call.answer(&state, StatusCode::OK, order_id(&id)?, Command::AddItem(body.into())).await
}

/// Sets a line's quantity.
#[utoipa::path(put, path = "/v1/orders/{id}/items/{sku}", tag = "commands", request_body = ChangeItem,
    params(("id" = String, Path), ("sku" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Accepted), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn change_item(
    State(state): State<WriteSide>,
    Path((id, item)): Path<(String, String)>,
    call: Call<ChangeItem>,
) -> Result<Response, Problem> {
    let (call, body) = call.take();
    let command = Command::ChangeQuantity { sku: sku(&item)?, quantity: body.quantity };
    call.answer(&state, StatusCode::OK, order_id(&id)?, command).await
}

/// Removes a line.
#[utoipa::path(delete, path = "/v1/orders/{id}/items/{sku}", tag = "commands",
    params(("id" = String, Path), ("sku" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Accepted), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn remove_item(
    State(state): State<WriteSide>,
    Path((id, item)): Path<(String, String)>,
    call: Call<NoBody>,
) -> Result<Response, Problem> {
    call.answer(&state, StatusCode::OK, order_id(&id)?, Command::RemoveItem { sku: sku(&item)? }).await
}

/// Confirms a draft that has at least one line; a confirmed order takes no more change.
#[utoipa::path(post, path = "/v1/orders/{id}/confirm", tag = "commands",
    params(("id" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Accepted), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn confirm(
    State(state): State<WriteSide>,
    Path(id): Path<String>,
    call: Call<NoBody>,
) -> Result<Response, Problem> {
    call.answer(&state, StatusCode::OK, order_id(&id)?, Command::Confirm).await
}

/// Cancels a draft; a cancelled order takes no more change.
#[utoipa::path(post, path = "/v1/orders/{id}/cancel", tag = "commands", request_body = CancelOrder,
    params(("id" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, body = Accepted), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
async fn cancel(
    State(state): State<WriteSide>,
    Path(id): Path<String>,
    call: Call<CancelOrder>,
) -> Result<Response, Problem> {
    let (call, body) = call.take();
    call.answer(&state, StatusCode::OK, order_id(&id)?, Command::Cancel { reason: body.reason }).await
}
