//! Requests and jobs that wait for a second session while they hold one.
//!
//! Each may be served when another one's session ends. Where all who hold a connection wait, none
//! would end before the acquire time-out: one of them gets an error at once.

use std::sync::Arc;

use super::holder::{Grip, Holder, is_same};

/// Returns the requests that hold the connections, unless one of the `holders` is bound to go on by itself.
pub(super) fn requests_of(holders: &[Arc<dyn Holder>]) -> Option<Vec<Arc<dyn Holder>>> {
    // A running statement ends, and a connection on its way back arrives: also of a session that has another by now.
    let is_twice =
        |(n, one): (usize, &Arc<dyn Holder>)| holders[..n].iter().any(|other| is_same(one, other));
    if holders.iter().any(|holder| holder.grip() != Grip::Idle)
        || holders.iter().enumerate().any(is_twice)
    {
        return None;
    }
    // A session that is not bound to its request may have moved to another task.
    let bound = holders.iter().filter(|holder| holder.is_bound());
    let requests = bound.filter_map(|holder| holder.clone().request());
    Some(requests.collect())
}
