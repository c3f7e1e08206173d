//! Opens sessions: eager ones with their connection, lazy ones without.

use std::time::{Duration, Instant};

use super::{
    acquire::{acquire_from, with_connection},
    core::Core,
    db_session::DbSession,
    guard::SessionGuard,
    observe::tell_refused,
    plan::{OpenedFor, Plan, Rules},
};
use crate::{
    Error, SessionPool,
    pool::{Claim, Lease, expect_second},
};

/// Opens a session that has its connection, after having waited for it.
pub(crate) async fn open_eager<Tag: 'static>(
    pool: &SessionPool,
    plan: Plan,
) -> Result<(DbSession<Tag>, SessionGuard), Error> {
    // Counted before it waits, so that `close` waits for it, or it is
    // refused.
    let counted = pool.inner().count_session()?;
    // There is no connection to be acquired: SeaORM has its own.
    if pool.inner().is_direct() {
        return Ok(DbSession::guarded(Core::new(pool.clone(), plan), counted));
    }
    let is_request = matches!(plan.opened_for, OpenedFor::Request(_));
    // At once and not after the time-out
    // (`a_second_session_beside_the_tests_own_is_refused_at_once`).
    pool.inner().refuse_hopeless(|| is_request)?;
    // A session store asks for its connection before the request's own
    // session does.
    expect_second(pool.inner());
    let started = Instant::now();
    // Dropped here, it leaves the queue, and the session that was counted
    // counts no more.
    let acquired = acquire_first(pool, &plan.rules).await;
    if let (Err(error), Some(replication)) = (&acquired, &plan.rules.replication)
        && replication.give_up_replica(&error.to_db_err())
    {
        // Lazily: the session acquires the primary's connection before it
        // is handed out.
        let (session, guard) = DbSession::guarded(Core::new(pool.clone(), plan), counted);
        session.check_out().await?;
        return Ok((session, guard));
    }
    let lease = acquired.inspect_err(|error| {
        tell_refused(pool.inner(), &plan.opened_for, started.elapsed(), error);
    })?;
    let core = with_connection(pool.clone(), plan, lease, started.elapsed());
    Ok(DbSession::guarded(core, counted))
}

/// Waits for the connection that a session begins with.
async fn acquire_first(pool: &SessionPool, rules: &Rules) -> Result<Lease, Error> {
    let pool = pool.inner();
    let patience = rules.patience(pool.settings().acquire_timeout);
    let replication = rules.replication.as_ref();
    acquire_from(pool, replication, Claim::First, rules.begins(), patience).await
}

/// A session without a wait: with a connection if `acquires`, else without
/// one. The plan comes back if there is no idle connection, or the pool
/// takes no new sessions.
#[allow(
    clippy::result_large_err,
    reason = "a plan on its way, which a box would cost an allocation"
)]
pub(crate) fn try_open<Tag: 'static>(
    pool: &SessionPool,
    plan: Plan,
    acquires: bool,
) -> Result<(DbSession<Tag>, SessionGuard), Plan> {
    // Refused without a log line: the way that waits refuses once more,
    // with one.
    let Some(counted) = pool.inner().try_count_session() else {
        return Err(plan);
    };
    let core = if acquires {
        let replication = plan.rules.replication.as_ref();
        if replication.is_some_and(|one| !one.try_admit()) {
            return Err(plan);
        }
        // `counted` is dropped with this, and the way that waits counts the
        // session once more.
        let Some(lease) = pool.inner().try_acquire() else {
            return Err(plan);
        };
        with_connection(pool.clone(), plan, lease, Duration::ZERO)
    } else {
        Core::new(pool.clone(), plan)
    };
    Ok(DbSession::guarded(core, counted))
}
