//! Requests and jobs that run again when nothing of them stands (feature
//! `retry`).

mod attempt;
mod body;
mod future;
mod job;
mod layer;
mod policy;
mod replay;
mod service;

pub use self::{
    attempt::Attempt, body::ReplayBody, future::RetryFuture, layer::RetryLayer,
    policy::RetryPolicy, service::RetryService,
};
