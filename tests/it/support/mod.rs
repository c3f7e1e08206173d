//! Helpers that the integration tests share: servers, databases, a TCP proxy, bounded
//! waiting, and the check that a pool is whole.
#![allow(dead_code, reason = "not every helper is in use at every moment")]

pub mod bouncer;
pub mod case;
pub mod database;
pub mod futures;
pub mod network;
pub mod pool;
pub mod queue;
pub mod requests;
pub mod servers;
pub mod site;
pub mod statements;
pub mod wait;
pub mod wire;
pub mod world;

/// Returns how many cases a property is tried on: `PROPTEST_CASES`, or else `default`.
pub fn cases(default: u32) -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(default)
}
