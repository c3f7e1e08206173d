//! Clusters of database servers fail over under a service that writes, beside SeaORM by hand.
//!
//! `tests/cluster` runs these, each part on nodes that it starts for it (`tests/nodes`), and writes what came of it
//! into `docs/reliability.md`. An ordinary `cargo test` leaves them out.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test may panic, and nothing is public in a test"
)]

mod audit;
mod chained;
mod clients;
mod conflicts;
mod failover;
mod galera;
mod galera_reads;
mod mariadb;
mod mariadb_fail_over;
mod mariadb_former;
mod nodes;
mod outage;
mod pairs;
mod patroni;
mod pooler;
mod primaries;
mod rates;
mod read_only;
mod replicas;
mod report;
mod retries;
mod site;
#[path = "../it/support/mod.rs"]
mod support;
mod tenants;
