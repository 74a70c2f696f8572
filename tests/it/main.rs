//! The end-to-end tests ("stories") of Docket. Each story runs against an embedded and a scaled system where both
//! support it.

mod architecture;
mod authorization;
mod campaign;
mod concurrency;
mod database;
mod documents;
mod edges;
mod foreign;
mod hostile;
mod idempotency;
mod import;
mod import_files;
mod kept_stores;
mod live;
mod load;
mod operations;
mod outage;
mod power;
mod push;
mod replay;
mod roles;
mod shutdown;
mod slow_transaction;
mod stock;
mod storage;
mod tour;
