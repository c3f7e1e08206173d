//! A request's session: its handles, the guard that ends it, and what runs on its connection.

mod body_hold;
mod call;
mod core;
mod cut;
mod db_session;
mod direct;
mod exit;
mod failures;
mod guard;
mod hooks;
mod locked;
mod outcome;
mod phase;
mod plan;
mod pool_session;
#[cfg(feature = "_sqlx")]
mod raw;
mod running;
mod sea_orm;
mod settle;
mod slot;
mod stack;
mod standing;
mod state;
mod stop;
#[cfg(feature = "stream")]
mod stream;
mod through;
mod transaction;
mod turn;
mod tx;
mod worker;

#[cfg(feature = "stream")]
pub use self::stream::SessionStream;
pub use self::{
    db_session::{DbSession, DefaultDatabase},
    outcome::Outcome,
    pool_session::PoolSession,
    transaction::SessionTransaction,
    tx::DbTx,
};
pub(crate) use self::{
    guard::{GRPC_STATUS, SessionGuard, is_success},
    plan::{CommitWhen, Mode, Order, Plan, Rules},
    settle::{Decision, Ended, Settlement},
};
