//! The conditions for a statement to pass, and the consequences of its failure for the transactions around it.

use sea_orm::{ConnectionTrait, DbBackend, DbErr};

use super::super::{core::Core, stack::Caller};
use crate::error::{Error, Kind, server};

/// Checks that `caller` may run a statement now.
pub(super) fn admit(core: &Core, caller: Caller) -> Result<(), DbErr> {
    check_open(core)?;
    let mut state = core.lock();
    state.admit(caller).map_err(Kind::into_db_err)?;
    if state.through.is_any_parked() {
        return Err(Kind::NestedOpen.into_db_err());
    }
    // PostgreSQL refuses by itself; elsewhere, what follows would commit by itself.
    let is_given_up = state.through.is_given_up(state.stack.depth());
    if is_given_up && core.pool().backend() != DbBackend::Postgres {
        return Err(Kind::Aborted.into_db_err());
    }
    Ok(())
}

pub(super) fn check_open(core: &Core) -> Result<(), DbErr> {
    if core.is_over() {
        Err(core.closed())
    } else if core.pool().is_shut() {
        Err(Kind::Closing.into_db_err())
    } else {
        Ok(())
    }
}

/// Notes what a failed statement did to the transaction around it.
pub(super) fn heed<T>(core: &Core, result: Result<T, DbErr>) -> Result<T, DbErr> {
    let Err(error) = &result else { return result };
    let is_postgres = core.pool().backend() == DbBackend::Postgres;
    // A mock's errors have no codes. On PostgreSQL none are needed.
    let is_mocked = is_postgres && core.pool().database().is_mock_connection();
    if server::aborts(core.pool().backend(), error) || is_mocked && Error::of(error).is_none() {
        let mut state = core.lock();
        let depth = state.stack.depth();
        state.through.give_up(depth, !is_postgres);
    }
    result
}
