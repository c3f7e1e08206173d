//! The positions of what a session commits.

use std::{sync::Arc, time::Duration};

use http::response;
use sea_orm::Statement;
use tokio::time::timeout;

use super::{core::Core, settle::Ended, slot::Slot, stack::Caller, statement::run};
use crate::{
    connection::{Galera, Operation, Output, parse_position, read_position},
    position::Position,
};

/// For how long the position is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks for the position of what was committed statement by statement.
pub(super) async fn ask_position(core: &Arc<Core>) {
    let backend = core.pool().backend();
    let galera = match core.pool().cluster.is_galera() {
        true => Galera::Node,
        false => Galera::No,
    };
    let question = Statement::from_string(backend, read_position(backend, galera));
    // Without a connection at hand, or behind a statement that goes on, the
    // response does not wait for it.
    let is_at_hand = matches!(core.lock().slot, Slot::Idle(_));
    // In a turn of the session's: behind all that its request has written.
    let asking = run(core, Caller::Session, Operation::One(question));
    let answer = match is_at_hand {
        true => timeout(PATIENCE, asking).await.ok(),
        false => None,
    };
    let position = match answer {
        Some(Ok(Output::Row(Some(row)))) => row.try_get_by_index(0).ok(),
        _ => None,
    };
    let position = position.and_then(|text: String| parse_position(backend, &text));
    core.lock()
        .written
        // Without an answer, the client's next reads belong on the primary: any
        // position could be too early a one (G19;
        // `g19_a_position_that_cannot_be_asked_for_is_the_primary`).
        .note(position.unwrap_or(Position::PRIMARY));
}

/// Stores the position of what the session has committed in its response.
pub(super) fn store_position(core: &Core, ended: &Ended, head: &mut response::Parts) {
    let Some(replication) = core.replication() else {
        return;
    };
    let made = {
        let state = core.lock();
        let is_unknown = match ended {
            // The body's end may commit when the head has left.
            Ended::Pending => replication.may_write(),
            // A COMMIT of unknown outcome may be what the client looks for
            // next.
            Ended::Failed(error) => error.may_stand(),
            _ => state.written.is_unseen,
        };
        if is_unknown {
            Some(Position::PRIMARY)
        } else {
            state.written.position
        }
    };
    if let Some(made) = made {
        replication.store(made, head);
        head.extensions.insert(made);
    }
}
