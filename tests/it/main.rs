//! The integration tests: one binary, so that it links once.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test may panic, and nothing is public in a test"
)]

mod answers;
mod begin_again;
mod cancel;
mod cancel_late;
mod cancel_proxy;
mod cancel_running;
mod cancel_storm;
mod closing;
mod commit_cancel;
mod config;
mod contract;
mod control;
mod cut_bodies;
mod driver_pool;
mod dropped;
mod early;
mod exits;
mod export;
mod failover;
mod given_up;
mod hazards;
mod held;
mod honest;
mod hooks;
mod hot_path;
mod isolation;
mod items;
mod jobs;
mod late;
mod liveness;
mod lost;
mod modes;
mod nested;
mod orm;
mod overload;
mod plain;
mod progress;
mod promises;
mod property;
mod read_only;
mod reset;
mod roundtrips;
mod routes;
mod row_level_security;
mod rules;
mod second;
mod sequence;
mod set_up;
mod slow_clients;
mod smoke;
mod streams;
mod support;
mod telemetry;
mod testing;
mod texts;
mod told;
mod transactions;
mod troubles;
mod truth;
mod unfinished;
mod upgrades;
mod vanished;
mod waiting;
mod warm;
mod watch;
mod yields;
