//! Requests and jobs that wait for a second session while they hold one.
//!
//! Each may be served when another one's session ends. Where all who hold a connection wait, none
//! would end before the acquire time-out: one of them gets an error at once.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{Grip, Holder, SessionPool, current_request::current, rate::Rate, registry::is_same};
use crate::error::{Error, Kind};

/// How many lines of the log a second may have.
const LINES: u32 = 16;

/// Tells the log of waits for a second session without drowning it.
#[derive(Default)]
pub(super) struct Second(Mutex<Lines>);

#[derive(Default)]
struct Lines {
    rate: Rate,
    untold: u32,
}

impl Second {
    /// How many lines were held back since the last one, if another one may be written now.
    fn may_tell(&self) -> Option<u32> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.rate.allows(LINES, Duration::from_secs(1)) {
            lines.untold += 1;
            return None;
        }
        Some(std::mem::take(&mut lines.untold))
    }
}

impl SessionPool {
    /// `request`, which holds a connection, has begun to wait for another: tells the log, and looks whether
    /// any of those who wait can go on.
    pub(super) fn look_for_deadlock(&self, request: &Arc<dyn Holder>) {
        if let Some(suppressed) = self.shared.second.may_tell() {
            let (label, status) = (request.label(), self.status());
            tracing::warn!(
                target: "tower_sea_orm::pool",
                method = label.as_ref().map(|label| label.method.as_str()),
                path = label.as_ref().map(|label| label.uri.path()),
                used = status.used, pending = status.pending, max = status.max, suppressed,
                "a request or a job waits for a second session of this pool while it holds one: use one, or `release()` it first",
            );
        }
        self.look_again();
    }

    /// Has the last free connection kept for such requests, if the current one holds a connection, or will when its
    /// own session is used: a session store reads before that, and writes afterwards.
    pub(crate) fn expect_second(&self) {
        if current().is_some_and(|request| request.is_of(self) || self.holds_one(&request)) {
            self.shared.queue.expect_seconds();
        }
    }

    /// Whether `request` holds a connection, and has not begun to give it back.
    pub(super) fn holds_one(&self, request: &Arc<dyn Holder>) -> bool {
        self.shared
            .holders
            .of(request)
            .iter()
            .any(|holder| holder.grip() != Grip::None)
    }

    /// Something has changed for a request that waits: looks whether anybody can still go on.
    pub(crate) fn look_again(&self) {
        self.break_deadlock(&self.shared.holders.all());
    }

    fn break_deadlock(&self, holders: &[Arc<dyn Holder>]) {
        // What runs ends, and what is on its way back arrives: also of a session that has another one by now.
        let is_twice = |(n, one): (usize, &Arc<dyn Holder>)| {
            holders[..n].iter().any(|other| is_same(one, other))
        };
        if holders.iter().any(|holder| holder.grip() != Grip::Idle)
            || holders.iter().enumerate().any(is_twice)
        {
            return;
        }
        // What is not bound to its request may be in other hands.
        let bound = holders.iter().filter(|holder| holder.is_bound());
        let requests: Vec<_> = bound
            .filter_map(|holder| holder.clone().request())
            .collect();
        if self
            .shared
            .queue
            .break_deadlock(&requests, Kind::PoolDeadlock)
        {
            tracing::warn!(target: "tower_sea_orm::pool", "{}", Error::from(Kind::PoolDeadlock));
        }
    }
}
