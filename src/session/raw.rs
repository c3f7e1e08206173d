//! Raw access: a closure on the driver's own connection.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use tokio::sync::oneshot;

use super::{
    core::Core,
    polled::{address, polled_for},
    stack::Caller,
    statement::run,
};
use crate::{
    connection::{Driver, Operation, Raw},
    error::Kind,
};

/// Runs `code` on the session's connection; it returns `None` if that is of another driver.
pub(super) async fn run_raw<T: Send + 'static>(
    core: &Arc<Core>,
    code: impl for<'c> FnOnce(&'c mut Driver) -> Option<BoxFuture<'c, T>> + Send + 'static,
) -> Result<T, DbErr> {
    if core.pool().is_direct() {
        return Err(Kind::WrongDriver.into_db_err());
    }
    let (sender, receiver) = oneshot::channel();
    // The code's value comes back by a channel, because the session stores the call without its type.
    let session = address(core);
    let raw: Raw = Box::new(move |driver| {
        Box::pin(async move {
            let code = code(driver).ok_or_else(|| Kind::WrongDriver.into_db_err())?;
            let _ = sender.send(polled_for(session, code).await);
            Ok(())
        })
    });
    run(core, Caller::Session, Operation::Raw(Some(raw))).await?;
    // Closed without a value if the connection was lost around the code.
    receiver
        .await
        .map_err(|_| Kind::ConnectionLost.into_db_err())
}
