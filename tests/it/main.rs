//! The integration tests: one binary, so that it links once.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test may panic, and nothing is public in a test"
)]

mod acquire;
mod body;
mod cancel;
mod config;
mod docs;
mod examples;
mod layer;
mod log;
mod models;
mod pool;
mod public_api;
mod release;
mod replicas;
mod retry;
mod seaorm;
mod session;
mod smoke;
mod structure;
mod support;
mod telemetry;
mod transactions;
