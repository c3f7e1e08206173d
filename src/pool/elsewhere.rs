//! A session begins its transaction elsewhere where its own pool's server cannot.

use std::{mem, sync::Arc};

use sea_orm::AccessMode;

use super::checked_out::Finished;
use crate::connection::{Demand, Rest, Task};

impl Finished {
    /// Returns whether the call has failed in its BEGIN, which may be sent to another server.
    pub(super) fn may_begin_elsewhere(&self, task: &Task) -> bool {
        // The operation is taken when what comes before it is done.
        self.output.is_err()
            && self.connection.parts.elsewhere.is_some()
            // Later on, the session relies on its connection.
            && task.is_whole()
            && task
                .begin
                .as_ref()
                .is_some_and(|begin| matches!(begin.demand(), Demand::Read(_)))
    }

    /// Makes the call on a connection of the other pool, and gives this one back.
    pub(super) async fn begin_elsewhere(&mut self, mut task: Task) {
        let Some(elsewhere) = self.connection.parts.elsewhere.take() else {
            return;
        };
        let Err(error) = &self.output else { return };
        let next = match elsewhere.way_out.take(error).await {
            Ok(lease) => lease.into_connection(),
            Err(error) => return self.output = Err(error.to_db_err()),
        };
        let Some(mut next) = next else { return };
        next.hold(elsewhere.holder, elsewhere.request);
        next.adopt_handle_of(&mut self.connection);
        mem::replace(&mut self.connection, next).give_back(|| ());
        task.rest = Rest::None;
        if let Some(begin) = &mut task.begin {
            // The other server needs no position: it is the primary.
            if let Some(set_up) = &mut begin.set_up {
                Arc::make_mut(set_up).demand = Demand::None;
            }
            begin.options.access_mode = Some(AccessMode::ReadOnly);
        }
        self.output = self.connection.call_once(&mut task).await;
    }
}
