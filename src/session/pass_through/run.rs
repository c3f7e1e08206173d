//! Statements that pass through.

use sea_orm::{ConnectionTrait, DbErr};

use super::{
    super::{
        core::Core,
        stack::Caller,
        statement::{Handle, vet},
    },
    own::{admit, check_open, enter, heed},
};
use crate::{
    connection::{Operation, Output},
    error::Kind,
};

/// Runs a statement in the transaction of the handle, in the session's own, or
/// in autocommit.
pub(in crate::session) async fn run(
    handle: Handle<'_>,
    operation: Operation,
) -> Result<Output, DbErr> {
    let core = handle.core;
    // First, so that what is refused begins no transaction.
    vet_operation(handle, &operation)?;
    let own = enter(handle).await?;
    // Once more: the session may have been put into a transaction meanwhile.
    vet_operation(handle, &operation)?;
    let observed = core.observe(&operation);
    // By hand, since no call of this crate's runs it.
    core.lock().span.count();
    let done = match handle.through.or(own.as_deref()) {
        Some(transaction) => execute(transaction, operation).await,
        None => execute(core.pool().database(), operation).await,
    };
    if let Some(observed) = observed {
        core.tell_executed(&observed, done.as_ref().err());
    }
    heed(core, done)
}

fn vet_operation(handle: Handle<'_>, operation: &Operation) -> Result<(), DbErr> {
    match operation.text() {
        Some(sql) => vet(handle.core, handle.caller, sql).map(drop),
        None => Ok(()),
    }
}

async fn execute(db: &impl ConnectionTrait, operation: Operation) -> Result<Output, DbErr> {
    match operation {
        Operation::Execute(statement) => db.execute_raw(statement).await.map(Output::Executed),
        Operation::Unprepared(sql) => db.execute_unprepared(&sql).await.map(Output::Executed),
        Operation::One(statement) => db.query_one_raw(statement).await.map(Output::Row),
        Operation::All(statement) => db.query_all_raw(statement).await.map(Output::Rows),
        // These have functions of their own.
        _ => Ok(Output::Done),
    }
}

/// Checks that the database answers.
pub(in crate::session) async fn ping(core: &Core) -> Result<(), DbErr> {
    check_open(core)?;
    core.pool().database().ping().await
}

/// Does what giving a connection back does: what it was set up with is set up
/// again.
pub(in crate::session) fn release(core: &Core) -> Result<(), DbErr> {
    admit(core, Caller::Session)?;
    let mut state = core.lock();
    if state.stack.depth() > 0 {
        return Err(Kind::TransactionOpen.into_db_err());
    }
    state.needs_set_up = true;
    Ok(())
}
