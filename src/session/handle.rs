//! [`Handle`]: a session or one of its transactions, as its statements see it.

use std::sync::Arc;

use sea_orm::DatabaseTransaction;

use super::{core::Core, stack::Caller};

/// A session or one of its transactions, as its statements see it.
#[derive(Clone, Copy)]
pub(super) struct Handle<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) caller: Caller,
    /// The transaction of SeaORM's that the handle stands for, if the session has no connection.
    pub(super) through: Option<&'a DatabaseTransaction>,
}
