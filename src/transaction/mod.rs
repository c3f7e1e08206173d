//! Transactions of single routes.

mod future;
mod layer;
mod service;

pub use self::{future::TransactionFuture, layer::TransactionLayer, service::TransactionService};
