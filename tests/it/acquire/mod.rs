//! Acquiring a connection: G1, G10, G16 and G17.

mod connect;
mod dead_connection;
mod exhausted;
mod idle_connections;
pub mod lending;
mod max_pending;
mod on_acquire;
mod overload;
mod pool_mode;
mod pool_mode_beside_others;
mod pool_mode_refusals;
mod second_session;
mod waiters;
