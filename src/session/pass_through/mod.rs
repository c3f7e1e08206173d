//! The second path: sessions without a connection of their own (mock, proxy, plain handles). Their statements go to
//! SeaORM, and so do their transactions.

mod nested;
mod own;
#[cfg(feature = "stream")]
mod rows;
mod run;
mod through;

#[cfg(feature = "stream")]
pub(super) use self::rows::{PassedRows, nested_rows, rows};
pub(super) use self::{
    nested::{abandon, begin, end},
    own::{commit_own, end_own, roll_back_own},
    run::{ping, release, run},
    through::{OwnTransaction, Through},
};
