//! Stock cqrs-es code and Docket share one log, in both directions.

use std::collections::HashMap;

use cqrs_es::persist::{PersistedEventRepository, PersistedEventStore};
use cqrs_es::{AggregateContext, CqrsFramework, EventStore};
use domain::order::{Command, NewItem, Order, Status};
use kernel::stock::Stock;
use postgres_es::{PostgresEventRepository, default_postgress_pool};
use serde_json::{from_value, json};
use sqlite_es::{SqliteEventRepository, default_sqlite_pool};
use tests::system::{Mode, TestSystem};
use tests::verify::read_models_equal_the_fold;

/// The tables from the documentation of `postgres-es`, as its users have them.
const STOCK_POSTGRES: &str = include_str!("stock/postgres.sql");
/// The tables from the documentation of `sqlite-es`.
const STOCK_SQLITE: &str = include_str!("stock/sqlite.sql");

fn item(sku: &str, price: &str) -> NewItem {
    NewItem {
        sku: from_value(json!(sku)).expect("a SKU"),
        quantity: from_value(json!(2)).expect("a quantity"),
        unit_price: from_value(json!(price)).expect("an amount"),
        name: None,
        category: Some(from_value(json!("OFFICE")).expect("a category")),
    }
}

fn create(customer: &str, items: Vec<NewItem>) -> Command {
    Command::Create {
        customer_id: from_value(json!(customer)).expect("a customer"),
        currency: from_value(json!("USD")).expect("a currency"),
        attributes: from_value(json!({"store_id": "7"})).expect("attributes"),
        items,
    }
}

/// An application that uses the stock cqrs-es framework and store.
struct Application<R: PersistedEventRepository> {
    cqrs: CqrsFramework<Stock<Order>, PersistedEventStore<R, Stock<Order>>>,
    store: PersistedEventStore<R, Stock<Order>>,
}

impl<R: PersistedEventRepository> Application<R> {
    fn new(repository: impl Fn() -> R) -> Self {
        let store = || PersistedEventStore::new_event_store(repository());
        Self { cqrs: CqrsFramework::new(store(), vec![], ()), store: store() }
    }

    async fn execute(&self, order_id: &str, command: Command) {
        let metadata = HashMap::from([("source".to_owned(), "stock".to_owned())]);
        self.cqrs.execute_with_metadata(order_id, command, metadata).await.expect("stock code appends");
    }

    async fn load(&self, order_id: &str) -> Order {
        let mut context = self.store.load_aggregate(order_id).await.expect("stock code loads");
        context.aggregate().0.clone()
    }

    /// Reads the order `shared` that Docket wrote, adds an item to it, and creates an own order.
    async fn work(&self) {
        let order = self.load("shared").await;
        assert_eq!((order.status, order.total, order.lines.len()), (Status::Draft, 300, 1));
        self.execute("shared", Command::AddItem(item("ink", "2.55"))).await;
        self.execute("stock", create("bob", vec![item("pen", "1.50")])).await;
        self.execute("stock", Command::Confirm).await;
    }
}

async fn begin(system: &TestSystem) {
    let pen = json!({"sku": "pen", "quantity": 2, "unit_price": "1.50", "category": "OFFICE"});
    let body = json!({"order_id": "shared", "customer_id": "ada", "attributes": {"store_id": "7"}, "items": [pen]});
    system.post("/v1/orders").json(body).send().await.expect(201);
}

/// Docket projects the events of the stock code and adds events; the stock code reads the result.
async fn end<R: PersistedEventRepository>(system: &TestSystem, stock: &Application<R>) {
    let log = read_models_equal_the_fold(system).await;
    assert_eq!(log.iter().filter(|event| event.metadata["source"] == "stock").count(), 4);
    let shared = system.get("/v1/orders/shared").send().await.expect(200).json();
    assert_eq!((&shared["total"], &shared["version"]), (&json!("8.10"), &json!(3)));
    let tea = json!({"sku": "tea", "quantity": 1, "unit_price": "10", "category": "OFFICE"});
    assert_eq!(system.post("/v1/orders/shared/items").json(tea.clone()).send().await.expect(200).version(), 4);
    system.post("/v1/orders/stock/items").json(tea).send().await.expect_problem(422, "order-not-draft");
    system.post("/v1/orders/shared/confirm").send().await.expect(200);
    let order = stock.load("shared").await;
    assert_eq!((order.status, order.total), (Status::Confirmed, 1810));
    read_models_equal_the_fold(system).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_postgres_es_works_beside_docket() {
    let system = TestSystem::scaled().await;
    begin(&system).await;
    let pool = default_postgress_pool(system.database_url()).await;
    let stock = Application::new(|| PostgresEventRepository::new(pool.clone()));
    stock.work().await;
    end(&system, &stock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_sqlite_es_works_beside_docket() {
    let system = TestSystem::embedded().await;
    begin(&system).await;
    let pool = default_sqlite_pool(system.database_url()).await;
    let stock = Application::new(|| SqliteEventRepository::new(pool.clone()));
    stock.work().await;
    end(&system, &stock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_sqlite_es_works_while_docket_is_stopped() {
    let mut system = TestSystem::embedded().await;
    begin(&system).await;
    system.terminate().await;
    let pool = default_sqlite_pool(system.database_url()).await;
    let stock = Application::new(|| SqliteEventRepository::new(pool.clone()));
    stock.work().await;
    system.start().await;
    end(&system, &stock).await;
}

/// The stock code has written events before Docket starts for the first time.
async fn before_docket<R: PersistedEventRepository>(system: &mut TestSystem, stock: &Application<R>) {
    stock.execute("shared", create("ada", vec![item("pen", "1.50")])).await;
    stock.execute("old", create("bob", vec![item("ink", "2.55")])).await;
    stock.execute("old", Command::Confirm).await;
    system.start().await;
    let log = read_models_equal_the_fold(system).await;
    assert_eq!(log.len(), 5);
    stock.work().await;
    assert_eq!(read_models_equal_the_fold(system).await.len(), 9);
    system.post("/v1/orders/shared/confirm").send().await.expect(200);
    assert_eq!(stock.load("shared").await.status, Status::Confirmed);
    read_models_equal_the_fold(system).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_existing_postgres_es_database_opens() {
    let mut system = TestSystem::builder(Mode::Scaled).stopped().await;
    let pool = default_postgress_pool(system.database_url()).await;
    sqlx::raw_sql(STOCK_POSTGRES).execute(&pool).await.expect("the stock tables are created");
    let stock = Application::new(|| PostgresEventRepository::new(pool.clone()));
    before_docket(&mut system, &stock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_existing_sqlite_es_database_opens() {
    let mut system = TestSystem::builder(Mode::Embedded).stopped().await;
    let pool = default_sqlite_pool(system.database_url()).await;
    sqlx::raw_sql(STOCK_SQLITE).execute(&pool).await.expect("the stock tables are created");
    let stock = Application::new(|| SqliteEventRepository::new(pool.clone()));
    before_docket(&mut system, &stock).await;
}
