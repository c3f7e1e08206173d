//! A request's session: its handles, the guard that ends it, and what runs on
//! its connection.

mod acquire;
mod body_hold;
mod call;
mod core;
mod current;
mod db_session;
mod early_end;
mod end;
mod finish;
mod guard;
mod holder;
mod hooks;
mod lend;
mod observe;
mod observed;
mod open;
mod order;
mod outcome;
mod pass_through;
mod phase;
mod pins;
mod plan;
#[cfg(feature = "_sqlx")]
mod polled;
mod pool_session;
mod positions;
#[cfg(feature = "_sqlx")]
mod raw;
mod repeats;
mod replication;
mod sea_orm;
mod settle;
mod slot;
mod stack;
mod standing;
mod state;
mod statement;

#[cfg(feature = "stream")]
mod stream;
#[cfg(feature = "retry")]
mod tally;
#[cfg(all(test, feature = "mock", target_pointer_width = "64"))]
mod tests;
mod transaction;
mod turns;
mod tx;
mod worker;

#[cfg(feature = "replicas")]
pub(crate) use self::replication::{Reads, Replica, Replication};
#[cfg(feature = "stream")]
pub use self::stream::SessionStream;
pub(crate) use self::{
    body_hold::SettleAt,
    guard::{GRPC_STATUS, SessionGuard, Summary, is_success},
    open::{open_eager, try_open},
    plan::{CommitWhen, Mode, OpenedFor, Order, Plan, Rules},
    settle::{Ended, Settlement},
};
pub use self::{
    current::CurrentSession,
    db_session::{DbSession, DefaultDatabase},
    lend::SessionPin,
    outcome::Outcome,
    pool_session::PoolSession,
    transaction::SessionTransaction,
    tx::DbTx,
};
#[cfg(feature = "retry")]
pub(crate) use self::{
    pool_session::Ran,
    tally::{OpenSession, Tally},
};
