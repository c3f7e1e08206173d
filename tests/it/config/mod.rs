//! `PoolConfig` on real servers.

mod pool_config;
