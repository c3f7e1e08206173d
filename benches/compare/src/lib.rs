//! `tower-sea-orm` beside its peers, on one PostgreSQL, in one run.
//!
//! [`subjects`] are the services that are compared, one process each; [`load`] is the client, a process
//! of its own as well; [`proxy`] stands between a service and the server to count round trips or to make
//! them longer; [`plan`] runs everything in turn, and [`report`] writes `docs/performance.md`. [`distance`]
//! measures far servers, other sizes of the pool and crowds, for `docs/distance.md`.

pub mod cli;
pub mod distance;
pub mod error;
pub mod item;
pub mod load;
pub mod measure;
pub mod plan;
pub mod process;
pub mod proxy;
pub mod report;
pub mod results;
pub mod serve;
pub mod server;
pub mod service;
pub mod sql;
pub mod store;
pub mod subjects;

/// Whatever went wrong; a bench only prints it.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
