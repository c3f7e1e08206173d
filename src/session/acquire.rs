//! Acquires a session's connection: with the session (eager), or with its first
//! statement (lazy).

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use sea_orm::{DbErr, TransactionOptions};

use super::{
    core::Core, plan::Plan, replication::Replication, slot::Slot, stack::Caller, worker::enqueue,
};
use crate::{
    error::{Error, Kind},
    pool::{Claim, Lease, PoolInner, SessionPool, break_deadlock},
};

/// Returns a session that has its connection, after having waited for it.
pub(super) fn with_connection(
    pool: SessionPool,
    plan: Plan,
    lease: Lease,
    waited: Duration,
) -> Arc<Core> {
    // Nothing can fail or wait in between: the lease is under a guard, or gives
    // itself back.
    let core = Core::new(pool, plan);
    install(&core, lease, waited);
    core
}

/// Acquires a connection before the first statement.
pub(super) async fn check_out_early(core: &Arc<Core>) -> Result<(), DbErr> {
    // In the line: a statement that was polled before acquires as well, and a
    // session has one connection (G2; `two_tasks_of_one_request_take_turns`).
    enqueue(core, Caller::Session, async |core, _turn| {
        check_out(&core, Caller::Session, false).await
    })
    .await
}

/// Acquires a connection if the session has none yet.
pub(super) async fn check_out(core: &Arc<Core>, caller: Caller, begins: bool) -> Result<(), DbErr> {
    if is_checked_out(core, caller)? {
        return Ok(());
    }
    let started = Instant::now();
    // Where a test itself has the only connection of its pool, nothing would
    // end the wait.
    let hopeless = core.pool().refuse_hopeless(|| core.origin.is_of_request());
    let acquired = match hopeless {
        Ok(()) => acquire(core).await,
        Err(error) => Err(error),
    };
    match acquired {
        Ok(lease) => {
            install(core, lease, started.elapsed());
            Ok(())
        }
        Err(error) => {
            let answer = error.to_db_err();
            let waited = started.elapsed();
            // Before the lock is taken: observers are user code.
            core.tell_acquired(waited, Some(&error));
            let mut state = core.lock();
            state.waited(waited);
            // A handler that turns this error into a 200 has stored nothing; in
            // a transaction the response says so. Shown by
            // `a_transaction_that_never_got_its_connection_is_no_success`.
            let for_transaction = begins || state.is_transactional();
            state.stack.failures.not_acquired(error, for_transaction);
            Err(answer)
        }
    }
}

async fn acquire(core: &Core) -> Result<Lease, Error> {
    let acquired = acquire_once(core).await;
    let Err(error) = &acquired else {
        return acquired;
    };
    // A replica that has no connection for a read leaves it to the primary.
    let replication = core.replication();
    if !replication.is_some_and(|replication| replication.give_up_replica(&error.to_db_err())) {
        return acquired;
    }
    acquire_once(core).await
}

async fn acquire_once(core: &Core) -> Result<Lease, Error> {
    let (claim, begins, patience) = claim(core);
    acquire_from(core.pool(), core.replication(), claim, begins, patience).await
}

/// Waits for a connection, at most for `patience`.
pub(super) async fn acquire_from(
    pool: &Arc<PoolInner>,
    replication: Option<&Arc<Replication>>,
    claim: Claim,
    begins: Option<TransactionOptions>,
    mut patience: Duration,
) -> Result<Lease, Error> {
    if let Some(replication) = replication {
        // Where replicas are lost, the reads of a service are a multiple of its
        // writes, and would take every connection of the primary
        // (`reads_without_a_replica_leave_connections_to_writes`).
        patience = replication.admit(patience).await?;
    }
    pool.acquire(claim, begins, patience).await
}

/// Returns why the session wants a connection, which transaction it begins
/// there, and for how long it may wait.
fn claim(core: &Core) -> (Claim, Option<TransactionOptions>, Duration) {
    let all = core.pool().settings().acquire_timeout;
    let state = core.lock();
    let all = state.rules.patience(all);
    // Any other session has no guard that notices when a transaction that was
    // begun for it stays unused.
    let begins = state.rules.begins().filter(|_| core.origin.is_outermost());
    if state.span.was_lent() {
        // One time-out for all of its waits: each statement may acquire anew,
        // and a request could wait for it as often (G10;
        // `g10_the_waits_of_a_request_share_one_time_out`).
        (Claim::Return, begins, state.waits.left_of(all))
    } else {
        (Claim::First, begins, all)
    }
}

/// Checks a connection out if that takes no wait; returns whether the session
/// has one.
pub(super) fn try_check_out(core: &Arc<Core>, caller: Caller) -> Result<bool, DbErr> {
    if is_checked_out(core, caller)? {
        return Ok(true);
    }
    // Where others wait, this one queues behind them.
    if core.replication().is_some_and(|one| !one.try_admit()) {
        return Ok(false);
    }
    let Some(lease) = core.pool().try_acquire() else {
        return Ok(false);
    };
    install(core, lease, Duration::ZERO);
    Ok(true)
}

/// Returns whether the session has its connection; an error if `caller` must
/// not use it.
fn is_checked_out(core: &Core, caller: Caller) -> Result<bool, DbErr> {
    let mut state = core.lock();
    state.admit(caller).map_err(Kind::into_db_err)?;
    Ok(!matches!(state.slot, Slot::Empty))
}

/// Puts a connection into the slot; into a session that has ended meanwhile,
/// none goes.
fn install(core: &Arc<Core>, lease: Lease, waited: Duration) {
    let Some(mut connection) = lease.into_connection() else {
        return;
    };
    // Weak, because the connection is about to be owned by the session that it
    // names.
    let holder: Weak<Core> = Arc::downgrade(core);
    connection.hold(holder, core.weak_request_holder());
    let mut state = core.lock();
    state.waited(waited);
    connection.set_deadline(state.rules.deadline);
    if !state.phase.is_open() {
        // Its end has found the slot empty, and looks there no more.
        drop(state);
        connection.give_back(|| ());
        return;
    }
    state.span.checked_out();
    // Also after an early `release()`: this is another connection, or the same
    // one cleaned.
    state.needs_set_up = true;
    let last = state.last_id();
    // From here on, a question about an earlier statement would be answered by
    // another session's
    // (`readers_of_an_earlier_statement_are_refused_outside_transactions`).
    state.pins.moved(last);
    // The handler has tried again and got one: the earlier failure is made
    // good.
    state.stack.failures.acquired();
    state.slot = Slot::Idle(connection);
    drop(state);
    core.tell_acquired(waited, None);
    if core.is_awaited() {
        // This may complete a deadlock: all that hold a connection wait for
        // another one.
        break_deadlock(core.pool());
    }
}
