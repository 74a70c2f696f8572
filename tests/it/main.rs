//! The end-to-end tests ("stories") of Docket. Each story runs against an embedded and a scaled system where both
//! support it.

mod architecture;
mod authorization;
mod campaign;
mod cli;
mod clients;
mod concurrency;
mod contract;
mod database;
mod dist;
mod documents;
mod edges;
mod foreign;
mod hostile;
mod http;
mod idempotency;
mod identity;
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
mod reports;
mod roles;
mod shop;
mod shutdown;
mod slow_transaction;
mod stock;
mod storage;
mod tour;
