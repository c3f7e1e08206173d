//! `SessionPool`: its settings, its end, and the servers behind it.

mod builder;
mod changed_password;
mod close;
mod direct_handoff;
mod driver_pool;
mod hold_timeout;
mod in_memory;
mod observer;
mod ping;
mod prepared_statements;
mod read_only_server;
mod recycle;
mod reserved_connections;
mod test_before_acquire_if_idle_for;
mod test_pool;
