//! Transactions of single routes.

mod layer;
mod service;

pub use self::{layer::TransactionLayer, service::TransactionService};
