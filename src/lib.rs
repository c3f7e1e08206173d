#![cfg_attr(docsrs, feature(doc_cfg))]
//! A request-scoped SeaORM session for every tower service.

mod connection;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod layer;
mod pool;
mod respond;
mod service;
mod session;
mod telemetry;

#[cfg(feature = "axum")]
pub use self::extract::MissingSession;
#[cfg(feature = "stream")]
pub use self::session::SessionStream;
pub use self::{
    error::Error,
    future::ResponseFuture,
    layer::DbSessionLayer,
    pool::{SessionPool, Status},
    respond::{EmptyBody, OnError, ProblemJson, error_response},
    service::DbSessionService,
    session::{DbSession, Main, PoolSession, SessionTransaction},
};
