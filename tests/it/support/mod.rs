//! What the integration tests share: servers, databases, a TCP proxy, bounded
//! waiting, and the check that a pool is whole.
#![allow(dead_code, reason = "not every helper is in use at every moment")]

pub mod bouncer;
pub mod database;
pub mod pool;
pub mod servers;
pub mod site;
pub mod wait;
pub mod wire;
pub mod world;
