//! Cancelling statements on the server, and asking it what it is at work for,
//! by one connection beside the driver's pool.
//!
//! A cancel request goes by way of a [`CancelQueue`] to its worker, which has
//! the side connection.

mod abandoned;
mod batch;
#[cfg(feature = "sqlx-mysql")]
mod mysql;
#[cfg(feature = "sqlx-postgres")]
mod postgres;
mod queue;
mod worker;

pub(crate) use self::queue::CancelQueue;
pub(super) use self::{
    abandoned::{Late, finish_abandoned},
    batch::{Activity, Subject},
};
