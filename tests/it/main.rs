//! The integration tests: one binary, so that it links once.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test may panic, and nothing is public in a test"
)]

mod cancel;
mod contract;
mod exits;
mod hazards;
mod items;
mod orm;
mod property;
mod smoke;
mod support;
mod telemetry;
mod testing;
mod transactions;
mod truth;
