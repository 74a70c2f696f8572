//! The commands of orders: their routes with their bodies, then the bulk lines.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use command_engine::api::CommandApi;
use command_engine::bulk::envelope::field;
use command_engine::bulk::lines::{BulkLines, Line};
use command_engine::outcome::Resource;
use command_engine::problems::{problem_type, refused};
use command_engine::request::CommandRequest;
use domain::order::{Command, Import, LINES_MAX, NewItem, Order, Outcome};
use domain::values::{Amount, Attributes, Category, Currency, CustomerId, Name, OrderId, Quantity, Reason, Sku};
use platform::auth::Principal;
use platform::body::{self, Object, Query};
use platform::problem::{FORBIDDEN, Problem};
use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

platform::problem_types! {
    /// No order can be created for a banned customer. An admin can reinstate the customer.
    CUSTOMER_BANNED = UNPROCESSABLE_ENTITY, "customer-banned", "The customer is banned";
}

/// How answers name an order.
static RESOURCE: Resource = Resource { id_field: "order_id", path: "/v1/orders/" };

/// The commands that clients may send in bulk.
pub const BULK: BulkLines = BulkLines {
    types: &["create_order", "import_order", "add_item", "change_item", "remove_item", "confirm_order", "cancel_order"],
    parse: line,
};

/// The answer to an accepted command.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the type only documents the answer, which the engine writes")]
struct Accepted {
    /// Id of the order.
    order_id: String,
    /// Version of the order after the command.
    version: i64,
    /// Position in the log that includes the change. A query with this `min_position` sees it.
    position: i64,
}

/// Returns the routes.
pub fn router() -> OpenApiRouter<CommandApi> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(add_item, change_item_by_query, remove_item_by_query))
        .routes(routes!(change_item, remove_item))
        .routes(routes!(confirm))
        .routes(routes!(cancel))
}

/// The body of a request that creates an order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateOrder {
    /// The owner. A customer can use only their own id.
    #[schema(value_type = String, example = "c-1")]
    pub customer_id: CustomerId,
    /// ISO 4217 code of the currency of all prices.
    #[serde(default)]
    #[schema(value_type = String, default = "USD")]
    pub currency: Currency,
    /// Id of the order. The server generates one when it is missing.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "o-1001")]
    pub order_id: Option<OrderId>,
    /// The first items. All wrong items are reported together.
    #[serde(default)]
    #[schema(value_type = Vec<AddItem>)]
    pub items: Vec<Object<AddItem>>,
    /// Free labels by name, e.g. `store_id`.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub attributes: Attributes,
}

/// An item to add to an order.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddItem {
    /// Id of the product (stock keeping unit).
    #[schema(value_type = String, example = "bagel")]
    pub sku: Sku,
    /// Pieces, 1 to 1 000 000. They are added to the line with the same SKU and price, if there is one.
    #[schema(value_type = u32, minimum = 1, maximum = 1_000_000)]
    pub quantity: Quantity,
    /// Price of one piece, a decimal string in the currency of the order.
    #[schema(value_type = String, example = "2.55")]
    pub unit_price: Amount,
    /// Display name of the product.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
    /// Category under which sales of the product are reported.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub category: Option<Category>,
}

/// The new quantity of a line.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeItem {
    /// Pieces of the line, 1 to 1 000 000.
    #[schema(value_type = u32, minimum = 1, maximum = 1_000_000)]
    pub quantity: Quantity,
}

/// The reason for a cancellation.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CancelOrder {
    /// Reason in words, 1 to 500 characters.
    #[schema(value_type = String, example = "changed my mind")]
    pub reason: Reason,
}

/// An empty body: `{}`, or no body at all.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NoBody {}

impl From<AddItem> for NewItem {
    fn from(item: AddItem) -> Self {
        let AddItem { sku, quantity, unit_price, name, category } = item;
        Self { sku, quantity, unit_price, name, category }
    }
}

/// A bulk line that brings an order of another system into Docket, in its final status. Only staff may send it.
///
/// An order that is not stored is created. A stored order is compared: the command succeeds and changes nothing when
/// they are the same, and answers 409 `order-differs` with every difference otherwise.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportOrder {
    /// Id of the order.
    #[schema(value_type = String, example = "o-1001")]
    pub order_id: OrderId,
    /// The owner.
    #[schema(value_type = String, example = "c-1")]
    pub customer_id: CustomerId,
    /// ISO 4217 code of the currency of all prices.
    #[serde(default)]
    #[schema(value_type = String, default = "USD")]
    pub currency: Currency,
    /// All items. All wrong items are reported together.
    #[serde(default)]
    #[schema(value_type = Vec<AddItem>)]
    pub items: Vec<Object<AddItem>>,
    /// Free labels by name, e.g. `store_id`. Labels that only the stored order has are not compared.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub attributes: Attributes,
    /// The status in which the order ends.
    #[serde(default)]
    pub status: ImportStatus,
    /// Reason of a cancellation. Default: `imported as cancelled`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub reason: Option<Reason>,
    /// Whether a stored draft gets the lines and the status of this order when it differs.
    #[serde(default)]
    pub update: bool,
}

/// The status in which an imported order ends.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportStatus {
    /// The order stays a draft.
    Draft,
    /// The order is confirmed.
    #[default]
    Confirmed,
    /// The order is cancelled.
    Cancelled,
}

impl ImportOrder {
    /// Returns the id of the order and the command.
    ///
    /// # Errors
    /// 403 for customers; 422 with the place of every wrong item.
    pub(crate) fn command(self, principal: &Principal) -> Result<(OrderId, Command), Problem> {
        // The answer shows how a stored order differs.
        if !principal.is_staff() {
            return Err(Problem::new(FORBIDDEN).detail("Only staff may import orders. Send create_order instead."));
        }
        let Self { order_id, customer_id, currency, items, attributes, status, reason, update } = self;
        let items = new_items(items)?;
        let outcome = match status {
            ImportStatus::Draft => Outcome::Draft,
            ImportStatus::Confirmed => Outcome::Confirmed,
            ImportStatus::Cancelled => match reason {
                Some(reason) => Outcome::Cancelled(reason),
                None => Outcome::Cancelled(
                    "imported as cancelled".parse().map_err(|_: domain::values::Error| Problem::internal())?,
                ),
            },
        };
        Ok((order_id, Command::Import(Box::new(Import { customer_id, currency, attributes, items, outcome, update }))))
    }
}

/// Returns the items of a new order.
///
/// # Errors
/// 422 with more items than an order can have.
fn new_items(items: Vec<Object<AddItem>>) -> Result<Vec<NewItem>, Problem> {
    if items.len() > LINES_MAX {
        return Err(refused(&domain::order::Error::TooManyLines));
    }
    Ok(items.into_iter().map(|Object(item)| item.into()).collect())
}

impl CreateOrder {
    /// Returns the id of the order and the command.
    ///
    /// # Errors
    /// 403 when a customer names another customer; 422 with more items than an order can have.
    pub(crate) fn command(self, principal: &Principal) -> Result<(OrderId, Command), Problem> {
        if !principal.can_access_customer(self.customer_id.as_str()) {
            return Err(Problem::new(FORBIDDEN)
                .detail("A customer can create orders only for their own id. Set customer_id to the sub of the token.")
                .error("/customer_id", "Must be the sub of the token."));
        }
        let order_id = match self.order_id {
            Some(id) => id,
            None => Uuid::now_v7().to_string().parse().map_err(|_: domain::values::Error| Problem::internal())?,
        };
        let Self { customer_id, currency, attributes, items, .. } = self;
        let items = new_items(items)?;
        Ok((order_id, Command::Create { customer_id, currency, attributes, items }))
    }
}

/// Parses the id of an order in a path. An order with an invalid id cannot exist, so the answer is 404.
pub(crate) fn order_id(id: &str) -> Result<OrderId, Problem> {
    id.parse().map_err(|_| refused(&domain::order::Error::NotFound))
}

/// Parses the SKU of an item in a path or a query. An item with an invalid SKU is in no order.
fn sku(sku: String) -> Result<Sku, Problem> {
    Sku::stored(sku).map_err(|_| {
        Problem::new(problem_type(&domain::order::ITEM_NOT_FOUND)).detail("The order has no item with this SKU.")
    })
}

/// The refusal of an order for a banned customer. The customer's own requests are refused before they get here.
fn customer_banned() -> Problem {
    Problem::new(CUSTOMER_BANNED)
        .detail("No order can be created for a banned customer. An admin can reinstate the customer with DELETE /v1/admin/bans.")
        .error("/customer_id", "Must be a customer who is not banned.")
}

async fn execute(
    request: CommandRequest<()>,
    api: &CommandApi,
    status: StatusCode,
    id: OrderId,
    command: Command,
) -> Result<Response, Problem> {
    request.execute::<Order>(api, &RESOURCE, status, id.as_str(), command).await
}

/// Creates an order, optionally with its first items.
#[utoipa::path(post, path = "/v1/orders", operation_id = "create_order", tag = "commands", request_body = CreateOrder,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 characters; a repeated request with the same key gets the same answer")),
    responses((status = 201, description = "The order is created.", body = Accepted)),
    extensions(("x-problems" = json!(["forbidden", "order-exists", "customer-banned", "items-rejected", "too-many-lines", "total-too-large", "order-busy", "invalid-id"]))))]
async fn create(State(api): State<CommandApi>, request: CommandRequest<CreateOrder>) -> Result<Response, Problem> {
    let (request, body) = request.take();
    let customer_id = body.customer_id.clone();
    let (id, command) = body.command(&request.principal)?;
    if api.is_banned(customer_id.as_str()) {
        return Err(customer_banned());
    }
    execute(request, &api, StatusCode::CREATED, id, command).await
}

/// Adds an item. If the order has a line with the same SKU and price, the pieces are added to that line.
#[utoipa::path(post, path = "/v1/orders/{id}/items", operation_id = "add_item", tag = "commands", request_body = AddItem,
    params(("id" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, description = "The item is added.", body = Accepted)),
    extensions(("x-problems" = json!(["order-not-found", "order-not-draft", "price-mismatch", "quantity-too-large", "too-many-lines", "total-too-large", "invalid-amount", "order-busy"]))))]
async fn add_item(
    State(api): State<CommandApi>,
    Path(id): Path<String>,
    request: CommandRequest<AddItem>,
) -> Result<Response, Problem> {
    let (request, body) = request.take();
    execute(request, &api, StatusCode::OK, order_id(&id)?, Command::AddItem(body.into())).await
}

/// Sets the quantity of a line.
#[utoipa::path(put, path = "/v1/orders/{id}/items/{sku}", operation_id = "change_item", tag = "commands", request_body = ChangeItem,
    params(("id" = String, Path), ("sku" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, description = "The quantity is changed.", body = Accepted)),
    extensions(("x-problems" = json!(["order-not-found", "order-not-draft", "item-not-found", "total-too-large", "order-busy"]))))]
async fn change_item(
    State(api): State<CommandApi>,
    Path((id, item)): Path<(String, String)>,
    request: CommandRequest<ChangeItem>,
) -> Result<Response, Problem> {
    let (request, body) = request.take();
    let command = Command::ChangeQuantity { sku: sku(item)?, quantity: body.quantity };
    execute(request, &api, StatusCode::OK, order_id(&id)?, command).await
}

/// Removes a line.
#[utoipa::path(delete, path = "/v1/orders/{id}/items/{sku}", operation_id = "remove_item", tag = "commands",
    params(("id" = String, Path), ("sku" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, description = "The line is removed.", body = Accepted)),
    extensions(("x-problems" = json!(["order-not-found", "order-not-draft", "item-not-found", "order-busy"]))))]
async fn remove_item(
    State(api): State<CommandApi>,
    Path((id, item)): Path<(String, String)>,
    request: CommandRequest<NoBody>,
) -> Result<Response, Problem> {
    execute(request.take().0, &api, StatusCode::OK, order_id(&id)?, Command::RemoveItem { sku: sku(item)? }).await
}

/// The item to change or remove, where its SKU is inconvenient in a path: SKUs may contain a slash.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ItemQuery {
    /// SKU of the item.
    sku: String,
}

/// Sets the quantity of the line with the SKU in the query.
#[utoipa::path(put, path = "/v1/orders/{id}/items", operation_id = "change_item_by_query", tag = "commands", request_body = ChangeItem,
    params(("id" = String, Path), ItemQuery, ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, description = "The quantity is changed.", body = Accepted)),
    extensions(("x-problems" = json!(["order-not-found", "order-not-draft", "item-not-found", "total-too-large", "order-busy"]))))]
async fn change_item_by_query(
    State(api): State<CommandApi>,
    Path(id): Path<String>,
    Query(item): Query<ItemQuery>,
    request: CommandRequest<ChangeItem>,
) -> Result<Response, Problem> {
    let (request, body) = request.take();
    let command = Command::ChangeQuantity { sku: sku(item.sku)?, quantity: body.quantity };
    execute(request, &api, StatusCode::OK, order_id(&id)?, command).await
}

/// Removes the line with the SKU in the query.
#[utoipa::path(delete, path = "/v1/orders/{id}/items", operation_id = "remove_item_by_query", tag = "commands",
    params(("id" = String, Path), ItemQuery, ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, description = "The line is removed.", body = Accepted)),
    extensions(("x-problems" = json!(["order-not-found", "order-not-draft", "item-not-found", "order-busy"]))))]
async fn remove_item_by_query(
    State(api): State<CommandApi>,
    Path(id): Path<String>,
    Query(item): Query<ItemQuery>,
    request: CommandRequest<NoBody>,
) -> Result<Response, Problem> {
    let command = Command::RemoveItem { sku: sku(item.sku)? };
    execute(request.take().0, &api, StatusCode::OK, order_id(&id)?, command).await
}

/// Confirms a draft that has at least one line. A confirmed order cannot be changed.
#[utoipa::path(post, path = "/v1/orders/{id}/confirm", operation_id = "confirm_order", tag = "commands",
    params(("id" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, description = "The order is confirmed.", body = Accepted)),
    extensions(("x-problems" = json!(["order-not-found", "order-not-draft", "order-empty", "order-busy"]))))]
async fn confirm(
    State(api): State<CommandApi>,
    Path(id): Path<String>,
    request: CommandRequest<NoBody>,
) -> Result<Response, Problem> {
    execute(request.take().0, &api, StatusCode::OK, order_id(&id)?, Command::Confirm).await
}

/// Cancels a draft. A cancelled order cannot be changed.
#[utoipa::path(post, path = "/v1/orders/{id}/cancel", operation_id = "cancel_order", tag = "commands", request_body = CancelOrder,
    params(("id" = String, Path), ("If-Match" = Option<String>, Header), ("Idempotency-Key" = Option<String>, Header)),
    responses((status = 200, description = "The order is cancelled.", body = Accepted)),
    extensions(("x-problems" = json!(["order-not-found", "order-not-draft", "order-busy"]))))]
async fn cancel(
    State(api): State<CommandApi>,
    Path(id): Path<String>,
    request: CommandRequest<CancelOrder>,
) -> Result<Response, Problem> {
    let (request, body) = request.take();
    execute(request, &api, StatusCode::OK, order_id(&id)?, Command::Cancel { reason: body.reason }).await
}

/// Parses a line of a bulk request into a command.
fn line(kind: &str, mut fields: Map<String, Value>, principal: &Principal) -> Result<Line, Problem> {
    if kind == "create_order" {
        if !fields.contains_key("order_id") {
            fields.insert("order_id".into(), Uuid::now_v7().to_string().into());
        }
        let body = body::from_value::<CreateOrder>(fields.into())?;
        let customer_id = body.customer_id.clone();
        let (id, command) = body.command(principal)?;
        let line = Line::new::<Order>(&RESOURCE, StatusCode::CREATED, id.as_str(), command);
        return Ok(line.unless_banned(customer_id, customer_banned));
    }
    if kind == "import_order" {
        let body = body::from_value::<ImportOrder>(fields.into())?;
        let customer_id = body.customer_id.clone();
        let (id, command) = body.command(principal)?;
        let line = Line::new::<Order>(&RESOURCE, StatusCode::CREATED, id.as_str(), command).reporting_creation();
        return Ok(line.unless_banned(customer_id, customer_banned));
    }
    let id = match fields.remove("order_id") {
        Some(Value::String(id)) => order_id(&id)?,
        _ => return Err(field("/order_id", "Must be the id of the order.")),
    };
    let command = match kind {
        "add_item" => Command::AddItem(body::from_value::<AddItem>(fields.into())?.into()),
        "change_item" => {
            let sku = line_sku(&mut fields)?;
            Command::ChangeQuantity { sku, quantity: body::from_value::<ChangeItem>(fields.into())?.quantity }
        }
        "remove_item" => {
            let sku = line_sku(&mut fields)?;
            body::from_value::<NoBody>(fields.into())?;
            Command::RemoveItem { sku }
        }
        "cancel_order" => Command::Cancel { reason: body::from_value::<CancelOrder>(fields.into())?.reason },
        // `confirm_order`: the engine passes only the types in [`BULK`].
        _ => {
            body::from_value::<NoBody>(fields.into())?;
            Command::Confirm
        }
    };
    Ok(Line::new::<Order>(&RESOURCE, StatusCode::OK, id.as_str(), command))
}

fn line_sku(fields: &mut Map<String, Value>) -> Result<Sku, Problem> {
    match fields.remove("sku") {
        Some(Value::String(sku)) => Sku::stored(sku).map_err(|e: domain::values::Error| field("/sku", &e.to_string())),
        _ => Err(field("/sku", "Must be the SKU of the item.")),
    }
}
