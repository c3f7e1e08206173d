//! Transactions of single routes, and how a request's transaction ended.

mod layer;
mod outcome;
mod service;

pub use self::{layer::TransactionLayer, outcome::Outcome, service::TransactionService};
