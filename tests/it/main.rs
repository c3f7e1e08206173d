//! The integration tests: one binary, so that it links once.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test may panic, and nothing is public in a test"
)]

mod cancel;
mod commit_cancel;
mod config;
mod contract;
mod control;
mod early;
mod exits;
mod export;
mod given_up;
mod hazards;
mod held;
mod honest;
mod hooks;
mod hot_path;
mod isolation;
mod items;
mod jobs;
mod lost;
mod modes;
mod orm;
mod promises;
mod property;
mod roundtrips;
mod routes;
mod row_level_security;
mod rules;
mod set_up;
mod smoke;
mod streams;
mod support;
mod telemetry;
mod testing;
mod transactions;
mod truth;
mod unfinished;
mod warm;
