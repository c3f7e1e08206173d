//! Statements: vetted, put into their turn, and launched on the session's
//! connection.

use std::{
    mem,
    sync::{Arc, Weak},
};

use sea_orm::{DatabaseTransaction, DbErr};
use tokio::runtime::Handle as Runtime;

use super::{
    acquire::{check_out, try_check_out},
    call::Call,
    core::{Core, Locked, Turn},
    replication::Replication,
    slot::{CallKind, Cancel, Running, Slot},
    stack::{Caller, Purpose, TransactionId},
    state::State,
    worker::enqueue,
};
use crate::{
    connection::{Operation, Output, Rest, Task},
    error::Kind,
    pool::{CheckedOut, Elsewhere, PoolMode},
    sql::{Classified, Earlier, Effect, Redacted},
    telemetry,
};

/// A session or one of its transactions, as its statements see it.
#[derive(Clone, Copy)]
pub(super) struct Handle<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) caller: Caller,
    /// The transaction of SeaORM's that the handle stands for, if the session
    /// has no connection.
    pub(super) through: Option<&'a DatabaseTransaction>,
}

/// An operation that waits for its turn.
pub(super) struct CallRequest {
    pub(super) caller: Caller,
    /// The transaction that it opens.
    pub(super) opens: Option<TransactionId>,
    pub(super) operation: Operation,
    pub(super) text: Classified,
    /// Of the text; 0 without one.
    pub(super) hash: u64,
}

impl CallRequest {
    /// Asks for an operation without a text.
    pub(super) fn new(caller: Caller, operation: Operation) -> Self {
        // A closure has no text to be read, so it is guarded as stored code is:
        // it may do anything.
        let text = if matches!(operation, Operation::Raw(_)) {
            Classified::OPAQUE
        } else {
            Classified::OWN
        };
        Self {
            caller,
            opens: None,
            operation,
            text,
            hash: 0,
        }
    }

    /// Asks for the end of a transaction.
    pub(super) fn end(caller: Caller, commits: bool) -> Self {
        let operation = if commits {
            Operation::Commit(None)
        } else {
            Operation::Rollback
        };
        Self::new(caller, operation)
    }
}

/// Runs `operation` for `caller` to its end.
pub(super) async fn run(
    core: &Arc<Core>,
    caller: Caller,
    operation: Operation,
) -> Result<Output, DbErr> {
    start(core, CallRequest::new(caller, operation))
        .await?
        .await
}

/// Waits for the turn and a connection, then starts what is asked for.
pub(super) async fn start(core: &Arc<Core>, mut request: CallRequest) -> Result<Call, DbErr> {
    let caller = request.caller;
    // Read once, here: what is known of the text goes along to the connection.
    if let Some(sql) = request.operation.text() {
        // Before the turn, so that what is refused waits for nothing and
        // acquires nothing.
        (request.text, request.hash) = vet(core, caller, sql)?;
    }
    // The way of nearly every statement: no queue, no task, no copy of the
    // session.
    if let Some(turn) = core.try_turn()
        && try_check_out(core, caller)?
    {
        return launch(core, turn, request);
    }
    // A connection is waited for in the turn: two statements of one session
    // need one connection between them (G2).
    enqueue(core, caller, async move |core, turn| {
        check_out(&core, caller, request.opens.is_some()).await?;
        launch(&core, turn, request)
    })
    .await
}

/// Reads `sql`, and refuses it if it would control transactions behind the
/// session's back. Returns its hash as well.
pub(super) fn vet(core: &Core, caller: Caller, sql: &str) -> Result<(Classified, u64), DbErr> {
    let (text, hash) = core.pool().known_texts.classify(sql);
    // A lock in autocommit is gone when its statement ends. Code that comes from
    // SQLAlchemy, where the first statement begins a transaction, expects
    // otherwise.
    if caller == Caller::Session && text.needs_transaction && core.lock().surrounding() == 0 {
        telemetry::needs_transaction(&Redacted::new(sql).without_values(core.pool().backend()));
    }
    // A mock has no connection to lend, but refuses what a database would.
    if text.asks > Earlier::None && core.pool().is_direct() && !core.lock().is_kept(caller) {
        return Err(Kind::AsksEarlier.into_db_err());
    }
    match text.effect {
        // sqlx counts the transactions that it began itself, and would not know
        // of this one (H15).
        Effect::Control(control) => Err(Kind::Control(control).into_db_err()),
        // MySQL would commit what is open, also a test's outer transaction, and
        // say nothing (M4).
        Effect::CommitsImplicitly if core.pool().is_test() || core.lock().is_inside(caller) => {
            Err(Kind::CommitsImplicitly.into_db_err())
        }
        Effect::None | Effect::Unknown | Effect::CommitsImplicitly => Ok((text, hash)),
    }
}

/// Starts what is asked for, in its turn.
pub(super) fn launch(core: &Arc<Core>, turn: Turn, request: CallRequest) -> Result<Call, DbErr> {
    let observed = core.observe(&request.operation);
    let mut state = core.lock();
    let mut connection = take_connection(&mut state, &request).map_err(Kind::into_db_err)?;
    // From here on it is not for others to take: the session's later statements
    // are to find what this one does (G2).
    connection.withdraw();
    let (operation, text, hash) = (request.operation, request.text, request.hash);
    let depth = state.stack.depth();
    // In the turn, not before: the session may have been put into a transaction
    // while the statement waited.
    let begin = state.begin_for(&operation);
    let is_inside = depth > 0 || begin.is_some();
    let purpose = Purpose::of(&operation, begin.is_some());
    // By it the call's own future knows whether the call in the slot is still
    // its own.
    let id = state.new_id();
    state.stack.launched(purpose, depth, request.opens);
    if let Some(replication) = core.replication() {
        state.note_unseen(changes_nothing(core, &operation, text, hash));
        // Anew for each call: a session that has moved meanwhile has no way out
        // any more.
        connection.set_way_out(way_out(core, replication));
    }
    // From here on the call exists: whatever drops it gives the connection back
    // or closes it.
    let mut running = Running::new(id, &operation, purpose, &mut connection, turn);
    // BEGIN has no span of its own, since it goes out with the statement
    // (`the_span_of_a_statement_says_that_begin_is_sent_before_it`).
    running.observed = observed.map(|observed| observed.with_begin(begin.is_some()));
    note_text(core, &mut state, hash, &running.text);
    let (cancel, identify) = Cancel::of(&operation, text, is_inside, core.pool(), &mut connection);
    // Without `cancel_running` as well: by the handle's count of wakes, the
    // pool knows a call to which nothing arrives (G17).
    let has_server = core.pool().has_server();
    running.cancel_handle = has_server.then(|| connection.cancel_handle()).flatten();
    // Outside a transaction there is nothing that such code could end.
    running.is_doubtful = text.is_doubtful() && is_inside;
    // Set-up statements run once for each connection that the session acquires.
    // Shown by `on_acquire_prepares_each_connection_once_for_one_request`.
    let is_first = mem::take(&mut state.needs_set_up);
    let rest = rest_of(core, &connection, is_first);
    let task = Task {
        first: is_first,
        rest,
        depth,
        on_acquire: state.rules.on_acquire.clone().filter(|_| is_first),
        begin,
        changes_nothing: rest != Rest::None && changes_nothing(core, &operation, text, hash),
        operation: Some(operation),
        is_sent: false,
        text,
        doubtful: text.is_doubtful(),
        reset: core.pool().reset(),
        identify,
        stoppable: cancel.is_some(),
    };
    running.cancel = cancel;
    Ok(install(core, state, connection, running, task))
}

/// Returns whether a statement only reads, and calls no function that may
/// write, as one of the user's own may.
fn changes_nothing(core: &Core, operation: &Operation, text: Classified, hash: u64) -> bool {
    let calls_nothing = |sql| core.pool().known_texts.calls_nothing_unknown(sql, hash);
    text.reads_only && operation.text().is_some_and(calls_nothing)
}

/// Returns where else the session's transaction may begin.
fn way_out(core: &Arc<Core>, replication: &Arc<Replication>) -> Option<Box<Elsewhere>> {
    replication.is_on_replica().then(|| {
        let holder: Weak<Core> = Arc::downgrade(core);
        Box::new(Elsewhere {
            way_out: replication.clone(),
            holder,
            request: core.weak_request_holder(),
        })
    })
}

/// Counts a statement of a request.
fn note_text(core: &Core, state: &mut State, hash: u64, text: &Redacted) {
    let threshold = core.pool().settings().n_plus_one_threshold;
    if hash != 0 && threshold < u32::MAX && core.origin.is_request() {
        state.repeats.note(hash, threshold, text);
    }
}

/// Takes the connection for what is asked, if that may run now.
fn take_connection(state: &mut State, request: &CallRequest) -> Result<CheckedOut, Kind> {
    let open = state.admit(request.caller)?;
    // The statement may have waited for its turn while a transaction was begun.
    // Shown by `ddl_that_queues_is_checked_again_when_its_turn_comes`.
    if request.text.effect == Effect::CommitsImplicitly
        && (open > 0 || state.is_inside(request.caller))
    {
        return Err(Kind::CommitsImplicitly);
    }
    // Begun now, it would have no handle by which it could end. Nothing waits
    // for this error.
    if request.opens.is_some_and(|id| state.stack.has_given_up(id)) {
        return Err(Kind::SessionClosed);
    }
    // In the turn: what is asked about may have waited before it.
    if !state.knows(request.text.asks) {
        return Err(Kind::AsksEarlier);
    }
    // `Broken` until the call is in the slot: if the launch panics, the
    // connection is closed with its unwinding.
    match mem::replace(&mut state.slot, Slot::Broken) {
        Slot::Idle(connection) => Ok(connection),
        // Broken, or empty after a cut. Not running: the call would have the
        // turn.
        other => {
            state.slot = other;
            Err(state.no_connection_for(&request.operation))
        }
    }
}

/// Returns for how long the server has heard nothing on the connection before
/// the session's first statement.
fn rest_of(core: &Core, connection: &CheckedOut, is_first: bool) -> Rest {
    // SQLite has no server that could be lost, and a test's connection cannot
    // be exchanged. What follows needs timers.
    if is_first && core.pool().has_server() && Runtime::try_current().is_ok() {
        connection.rest()
    } else {
        Rest::None
    }
}

/// Puts a call into the slot, from which it is polled.
fn install(
    core: &Arc<Core>,
    mut state: Locked<'_>,
    connection: CheckedOut,
    mut running: Running,
    task: Task,
) -> Call {
    let (id, streams) = (running.id, running.kind == CallKind::Stream);
    // Kept from the first connection on: hooks are due when there may be no
    // runtime here any more.
    state
        .runtime
        .get_or_insert_with(|| connection.runtime().clone());
    state.span.count();
    if state.pool_mode == PoolMode::Transaction {
        let leaves_state = task.leaves_state(core.pool().backend());
        let is_inside = task.depth > 0;
        state.pins.note(id, task.text.is, is_inside, leaves_state);
    }
    state.streaming = streams;
    // Boxed, because the slot stores it whatever polls it, and it may have to
    // move into a task (G5).
    running.future = Some(Box::pin(connection.call(task)));
    state.slot = Slot::Running(running);
    drop(state);
    if streams {
        // Statements that wait for the turn are refused while a stream is open:
        // its reader may be the one that waits for them.
        core.turns.look_again();
    }
    Call::new(core.clone(), id, streams)
}
