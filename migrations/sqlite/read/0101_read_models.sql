-- Read models: rows that the projections derive from the log and can derive again. Times are microseconds since 1970,
-- money is in minor units of the row's currency, unless a comment says otherwise.

-- How far each projection has come. Rows and checkpoint change in one transaction; `epoch` fences: a projector that
-- lost its place to another one finds a newer epoch and writes nothing.
create table checkpoints (
    projection text    primary key,
    position   integer not null,
    epoch      integer not null,
    generation integer not null,
    updated_at integer not null,
    state      text    not null, -- live | failed
    last_error text
) strict, without rowid;

-- The list of orders.
create table order_summaries (
    order_id    text    primary key,
    customer_id text    not null,
    status      text    not null,
    currency    text    not null,
    total_milli integer not null, -- thousandths of the major unit, so that currencies sort together
    quantity    integer not null,
    line_count  integer not null,
    categories  text    not null, -- each between two line feeds, so that one can be searched for
    search      text    not null, -- ids, SKUs and product names in lower case
    store_id    text,
    placed_at   integer not null,
    updated_at  integer not null,
    version     integer not null,
    position    integer not null
) strict, without rowid;
create index order_summaries_placed_at on order_summaries (placed_at, order_id);
create index order_summaries_total on order_summaries (total_milli, order_id);
create index order_summaries_customer on order_summaries (customer_id, placed_at, order_id);

-- One order with its lines, as the API answers it.
create table order_details (
    order_id    text    primary key,
    customer_id text    not null,
    version     integer not null,
    position    integer not null,
    view        text    not null -- JSON
) strict, without rowid;

-- A customer's orders in one currency.
create table customers (
    customer_id    text    not null,
    currency       text    not null,
    orders         integer not null,
    confirmed      integer not null,
    cancelled      integer not null,
    spend          integer not null, -- total of the confirmed ones
    first_order_at integer not null,
    last_order_at  integer not null,
    primary key (customer_id, currency)
) strict, without rowid;

-- Confirmed sales by day (`key` is the day), category or store, each kept by day so that a period can be summed.
create table sales (
    dimension text    not null, -- day | category | store
    key       text    not null, -- '' where the order or line names none
    day       text    not null, -- YYYY-MM-DD, UTC, on which the order was placed
    currency  text    not null,
    orders    integer not null,
    quantity  integer not null,
    revenue   integer not null,
    primary key (dimension, key, day, currency)
) strict, without rowid;

-- Confirmed sales by product.
create table products (
    sku      text    not null,
    currency text    not null,
    name     text,
    category text,
    orders   integer not null,
    quantity integer not null,
    revenue  integer not null,
    primary key (sku, currency)
) strict, without rowid;
create index products_revenue on products (revenue);
create index products_quantity on products (quantity);
