//! Breaks everything on purpose, and checks from beside the service that nothing was lost.
//!
//! The short form are ordinary tests. The long form is `tests/break`, which also writes
//! `docs/reliability.md`. A binary of its own: panics and memory are counted for the whole process.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test may panic, and nothing is public in a test"
)]

mod boundaries;
mod contention;
mod faults;
mod ledger;
mod liveness;
mod load;
mod outages;
mod report;
mod service;
mod site;
mod soak;
mod storm;
#[path = "../it/support/mod.rs"]
mod support;
mod truth;
mod witness;
mod work;

/// Whether this is the long form.
fn is_long() -> bool {
    std::env::var_os("RELIABILITY").is_some_and(|form| form == "long")
}
