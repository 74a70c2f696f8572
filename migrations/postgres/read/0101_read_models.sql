-- Read models: rows that the projections derive from the log and can derive again. Times are microseconds since 1970,
-- money is in minor units of the row's currency, unless a comment says otherwise.

-- How far each projection has come. Rows and checkpoint change in one transaction; `epoch` fences: a projector that
-- lost its place to another one finds a newer epoch and writes nothing.
create table checkpoints (
    projection text   primary key,
    position   bigint not null,
    epoch      bigint not null,
    generation bigint not null,
    updated_at bigint not null,
    state      text   not null, -- live | failed
    last_error text
);

-- The list of orders.
create table order_summaries (
    order_id    text   primary key,
    customer_id text   not null,
    status      text   not null,
    currency    text   not null,
    total_milli bigint not null, -- thousandths of the major unit, so that currencies sort together
    quantity    bigint not null,
    line_count  bigint not null,
    categories  text   not null, -- each between two line feeds, so that one can be searched for
    search      text   not null, -- ids, SKUs and product names in lower case
    store_id    text,
    placed_at   bigint not null,
    updated_at  bigint not null,
    version     bigint not null,
    position    bigint not null
);
create index order_summaries_placed_at on order_summaries (placed_at, order_id);
create index order_summaries_total on order_summaries (total_milli, order_id);
create index order_summaries_customer on order_summaries (customer_id, placed_at, order_id);

-- One order with its lines, as the API answers it.
create table order_details (
    order_id    text   primary key,
    customer_id text   not null,
    version     bigint not null,
    position    bigint not null,
    view        text   not null -- JSON
);

-- A customer's orders in one currency.
create table customers (
    customer_id    text   not null,
    currency       text   not null,
    orders         bigint not null,
    confirmed      bigint not null,
    cancelled      bigint not null,
    spend          bigint not null, -- total of the confirmed ones
    first_order_at bigint not null,
    last_order_at  bigint not null,
    primary key (customer_id, currency)
);

-- Confirmed sales by day (`key` is the day), category or store, each kept by day so that a period can be summed.
create table sales (
    dimension text   not null, -- day | category | store
    key       text   not null, -- '' where the order or line names none
    day       text   not null, -- YYYY-MM-DD, UTC, on which the order was placed
    currency  text   not null,
    orders    bigint not null,
    quantity  bigint not null,
    revenue   bigint not null,
    primary key (dimension, key, day, currency)
);

-- Confirmed sales by product.
create table products (
    sku      text   not null,
    currency text   not null,
    name     text,
    category text,
    orders   bigint not null,
    quantity bigint not null,
    revenue  bigint not null,
    primary key (sku, currency)
);
create index products_revenue on products (revenue);
create index products_quantity on products (quantity);
