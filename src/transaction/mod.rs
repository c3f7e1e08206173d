//! Transactions of single routes, and how a request's transaction ended.

mod layer;
mod service;

pub use self::{layer::TransactionLayer, service::TransactionService};
