//! Statements: vetted, put into their turn, and run on the session's connection.

use std::sync::Arc;

use sea_orm::DbErr;

use super::{
    acquire::{check_out, try_check_out},
    call::Call,
    core::Core,
    launch::{CallRequest, launch},
    queue::enqueue,
    stack::Caller,
};
use crate::{
    connection::{Operation, Output},
    error::Kind,
    sql::{Classified, Effect, Redacted, classify},
    telemetry,
};

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
    if let Some(sql) = request.operation.text() {
        request.text = vet(core, caller, sql)?;
    }
    if let Some(turn) = core.try_turn()
        && try_check_out(core, caller)?
    {
        return launch(core, turn, request);
    }
    let this = core.clone();
    enqueue(core, async move {
        let turn = this.turn(caller).await?;
        check_out(&this, caller, request.opens.is_some()).await?;
        launch(&this, turn, request)
    })
    .await
}

/// Reads `sql`, and refuses it if it would control transactions behind the session's back.
pub(super) fn vet(core: &Core, caller: Caller, sql: &str) -> Result<Classified, DbErr> {
    let backend = core.pool().backend();
    let text = classify(backend, sql);
    if caller == Caller::Session && text.needs_transaction && core.lock().surrounding() == 0 {
        telemetry::needs_transaction(&Redacted::new(sql).without_values(backend));
    }
    match text.effect {
        Effect::Control(control) => Err(Kind::Control(control).into_db_err()),
        Effect::CommitsImplicitly if core.pool().is_test() || core.lock().is_inside(caller) => {
            Err(Kind::CommitsImplicitly.into_db_err())
        }
        Effect::None | Effect::Unknown | Effect::CommitsImplicitly => Ok(text),
    }
}
