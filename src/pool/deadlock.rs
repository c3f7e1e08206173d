//! Breaks the deadlock of requests that hold a connection each and wait for a second one.

use std::{collections::HashSet, sync::Arc};

use super::{
    holder::{Grip, Holder, identity},
    inner::PoolInner,
};
use crate::error::{Error, Kind};

/// Looks whether any of the requests that wait for a second session can still go on, after a change for one of
/// them. If none can, the newest gets an error.
pub(crate) fn break_deadlock(pool: &PoolInner) {
    let Some(requests) = requests_of(&pool.registry.all()) else {
        return;
    };
    // The newest: it has the least behind it. Its error ends its request, whose connection then serves the next.
    let newest = pool.ledger().take_deadlocked(&requests);
    let Some(newest) = newest else { return };
    if newest.answer(Err(Kind::PoolDeadlock.into())).is_ok() {
        tracing::warn!(target: "tower_sea_orm::pool", "{}", Error::from(Kind::PoolDeadlock));
    }
}

/// Returns the requests that hold the connections; `None` if one of the `holders` will certainly go on by itself. A request
/// that waits may be served when another one's session ends; where all of them wait for a second connection, none would end
/// before the acquire time-out.
fn requests_of(holders: &[Arc<dyn Holder>]) -> Option<Vec<Arc<dyn Holder>>> {
    // A running statement ends, and a connection on its way back arrives: also of a session that has another by now.
    let mut seen = HashSet::with_capacity(holders.len());
    if holders
        .iter()
        .any(|holder| holder.grip() != Grip::Idle || !seen.insert(identity(holder)))
    {
        return None;
    }
    // A session that is not bound to its request may have moved to another task.
    let bound = holders.iter().filter(|holder| holder.is_bound());
    let requests = bound.filter_map(|holder| holder.clone().request());
    Some(requests.collect())
}
