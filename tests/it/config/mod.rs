//! `PoolConfig` on real servers.

mod from_settings;
mod settings;
mod startup;
