//! `SessionPool`: its settings, its end, and the servers behind it.

mod close;
mod direct_handoff;
mod driver_pool;
mod failover;
mod hold_timeout;
mod read_only_server;
mod test_pool;
