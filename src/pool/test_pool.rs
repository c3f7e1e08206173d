//! The pool of a test: its sessions all run inside one transaction on one
//! connection.

use std::sync::Arc;

use tokio::time::timeout;

use super::{
    builder::SessionPoolBuilder, checked_out::CheckedOut, driver_pool::DriverPool,
    inner::PoolInner, test_transaction::TestTransaction, waiters::Claim,
};
use crate::{
    connection::PinnedConnection,
    error::{Error, Kind},
};

/// Takes a connection of the builder's database, opens the transaction, and
/// returns a pool inside it.
pub(crate) async fn begin(builder: SessionPoolBuilder) -> Result<Arc<PoolInner>, Error> {
    let database = builder.database().clone();
    // By a session pool, whose fetch is not cancelled half-way, and with its
    // defaults: the builder's are for the sessions inside.
    let outside = SessionPoolBuilder::new(database.clone()).build()?;
    if outside.inner().is_direct() {
        return Err(Kind::NothingToRollBack.into());
    }
    let mut connection = take(outside.inner()).await?;
    connection
        .begin_outer()
        .await
        .map_err(|error| Error::with_source(Kind::ConnectionLost, error))?;
    let driver = DriverPool::of(&database)?;
    let transaction = TestTransaction::over(connection, driver.closed_stand_in());
    builder.build_over(driver, Some(transaction))
}

/// Waits for the connection, rolls the test's transaction back and returns it.
pub(crate) async fn roll_back(pool: &Arc<PoolInner>) -> Result<(), Error> {
    // A test that still holds its own session would wait here for itself, until
    // the time-out.
    pool.refuse_hopeless(|| false)?;
    let mut connection = take(pool).await?;
    // Asked before, since the rollback forgets it.
    let was_ended = connection.is_outer_ended();
    match timeout(pool.settings().release_timeout, connection.end_outer()).await {
        Ok(Ok(())) => connection.return_to_driver().await,
        Ok(Err(error)) => return Err(Error::with_source(Kind::ConnectionLost, error)),
        Err(_) => return Err(Kind::ConnectionLost.into()),
    }
    if was_ended {
        Err(Kind::TestEnded.into())
    } else {
        Ok(())
    }
}

/// Takes a connection out of the pool for good.
async fn take(pool: &Arc<PoolInner>) -> Result<PinnedConnection, Error> {
    let patience = pool.settings().acquire_timeout;
    let lease = pool.acquire(Claim::First, None, patience).await?;
    let connection = lease
        .into_connection()
        .and_then(CheckedOut::into_connection);
    connection.ok_or_else(|| Kind::ConnectionLost.into())
}
