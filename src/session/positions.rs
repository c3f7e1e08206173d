//! The positions of what a session commits.

use std::sync::Arc;

use http::response;
use sea_orm::{DbBackend, Statement};

use super::{core::Core, settle::Ended, stack::Caller, statement::run};
use crate::{
    connection::{Operation, Output, READ_POSITION, parse_position},
    position::Position,
};

/// Asks for the position of what was committed statement by statement.
pub(super) async fn ask_position(core: &Arc<Core>) {
    let question = Statement::from_string(DbBackend::Postgres, READ_POSITION);
    let answer = run(core, Caller::Session, Operation::One(question)).await;
    let position = match answer {
        Ok(Output::Row(Some(row))) => row.try_get_by_index(0).ok(),
        _ => None,
    };
    let position = position.and_then(|text: String| parse_position(&text));
    core.lock()
        .note_position(position.unwrap_or(Position::PRIMARY));
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
            Ended::Failed(error) => error.may_stand(),
            _ => state.has_unseen,
        };
        if is_unknown {
            Some(Position::PRIMARY)
        } else {
            state.position
        }
    };
    if let Some(made) = made {
        replication.store(made, head);
        head.extensions.insert(made);
    }
}
