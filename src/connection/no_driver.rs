//! Stands in for the drivers where none is built in: only pass-through sessions exist then.

use std::sync::{Arc, atomic::AtomicBool};

use sea_orm::{DbBackend, DbErr, ExecResult, QueryResult, Statement};

use super::Identity;
use crate::error::Kind;

/// No driver, no connection.
pub(crate) enum Driver {
    Gone,
}

impl Driver {
    pub(crate) async fn execute(&mut self, _: Statement, _: bool) -> Result<ExecResult, DbErr> {
        Err(lost())
    }

    pub(crate) async fn execute_unprepared(&mut self, _: String) -> Result<ExecResult, DbErr> {
        Err(lost())
    }

    pub(crate) async fn query_one(
        &mut self,
        _: Statement,
        _: bool,
        _: bool,
    ) -> Result<Option<QueryResult>, DbErr> {
        Err(lost())
    }

    pub(crate) async fn query_all(
        &mut self,
        _: Statement,
        _: bool,
    ) -> Result<Vec<QueryResult>, DbErr> {
        Err(lost())
    }

    pub(crate) async fn query_unprepared(
        &mut self,
        _: String,
    ) -> Result<Option<QueryResult>, DbErr> {
        Err(lost())
    }

    #[cfg(feature = "stream")]
    pub(crate) async fn stream(
        &mut self,
        _: Statement,
        _: &mut super::Rows,
        _: bool,
        _: bool,
    ) -> Result<(), DbErr> {
        Err(lost())
    }

    pub(crate) async fn is_new(&mut self) -> Result<bool, DbErr> {
        Err(lost())
    }

    pub(crate) async fn adopts_transaction(&mut self) -> Result<bool, DbErr> {
        Err(lost())
    }

    pub(super) async fn identity(&mut self) -> Result<Option<Identity>, DbErr> {
        Err(lost())
    }

    pub(super) async fn watch(&mut self, _: Arc<AtomicBool>) -> Result<(), DbErr> {
        Err(lost())
    }

    pub(super) async fn unwatch(&mut self) -> Result<(), DbErr> {
        Err(lost())
    }

    pub(crate) async fn drain(&mut self) -> Result<Option<DbErr>, DbErr> {
        Err(lost())
    }

    pub(crate) async fn forget_statements(&mut self) -> Result<(), DbErr> {
        Err(lost())
    }

    pub(crate) async fn ping(&mut self) -> Result<(), DbErr> {
        Err(lost())
    }

    pub(crate) async fn begin(&mut self, _: Option<String>) -> Result<(), DbErr> {
        Err(lost())
    }

    pub(crate) async fn commit(&mut self) -> Result<(), DbErr> {
        Err(lost())
    }

    pub(crate) async fn rollback(&mut self) -> Result<(), DbErr> {
        Err(lost())
    }

    pub(crate) fn depth(&self) -> usize {
        0
    }

    pub(crate) async fn return_to_pool(&mut self) {}

    pub(crate) fn close_on_drop(&mut self) {}
}

fn lost() -> DbErr {
    Kind::ConnectionLost.into_db_err()
}

pub(crate) fn unanswered() -> DbErr {
    Kind::ConnectionLost.into_db_err()
}

pub(crate) fn is_fatal(_: &DbErr) -> bool {
    false
}

pub(crate) fn is_stale(_: &DbErr) -> bool {
    false
}

pub(crate) fn has_not_run(_: &DbErr) -> bool {
    false
}

pub(crate) fn came_too_late(_: &DbErr) -> bool {
    false
}

pub(crate) fn is_without_quorum(_: &DbErr) -> bool {
    false
}

pub(crate) fn is_read_only(_: &DbErr) -> bool {
    false
}

pub(crate) fn is_aborted(_: &DbErr) -> bool {
    false
}

pub(crate) fn is_harmless(_: &DbErr) -> bool {
    true
}

pub(crate) fn is_within_transaction(_: &DbErr) -> bool {
    false
}

pub(crate) fn aborts(_: DbBackend, _: &DbErr) -> bool {
    false
}
