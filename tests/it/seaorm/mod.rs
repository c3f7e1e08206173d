//! SeaORM's traits and errors.

mod connection_trait;
mod error_conditions;
mod late_error;
mod plain_handle;
mod stream_trait;
