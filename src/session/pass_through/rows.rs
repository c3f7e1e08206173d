//! Streams of SeaORM's own.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Statement, StreamTrait};

use super::{
    super::{
        core::Core,
        stack::Caller,
        statement::{Handle, vet},
    },
    own::{admit, heed, own_transaction},
};

/// SeaORM's own stream.
pub(in crate::session) type PassedRows<'a> =
    Pin<Box<dyn Stream<Item = Result<QueryResult, DbErr>> + Send + 'a>>;

/// Streams a statement of the session itself.
pub(in crate::session) async fn rows(
    core: &Arc<Core>,
    statement: Statement,
) -> Result<PassedRows<'static>, DbErr> {
    vet(core, Caller::Session, &statement.sql)?;
    let this = core.clone();
    Ok(match own_transaction(core).await? {
        // Its stream would borrow it: SeaORM's mock and proxy hold all rows
        // anyway.
        Some(own) => {
            let rows = heed(core, own.query_all_raw(statement).await)?;
            Box::pin(stream::iter(rows.into_iter().map(Ok)))
        }
        None => {
            // An error that comes with a row counts as well as one that comes
            // before the first.
            let rows = core.pool().database().stream_raw(statement).await?;
            Box::pin(rows.map(move |row| heed(&this, row)))
        }
    })
}

/// Streams a statement of a transaction that the handler began.
pub(in crate::session) async fn nested_rows<'a>(
    handle: Handle<'a>,
    transaction: &'a DatabaseTransaction,
    statement: Statement,
) -> Result<PassedRows<'a>, DbErr> {
    let core = handle.core;
    vet(core, handle.caller, &statement.sql)?;
    admit(core, handle.caller)?;
    let rows = heed(core, transaction.stream_raw(statement).await)?;
    Ok(Box::pin(rows.map(move |row| heed(core, row))))
}
