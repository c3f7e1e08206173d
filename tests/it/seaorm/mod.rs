//! SeaORM's traits and errors.

mod connection_trait;
mod entities;
mod error_conditions;
mod late_error;
mod mock;
mod plain_handle;
mod raw_access;
mod stream_trait;
mod transaction_trait;
