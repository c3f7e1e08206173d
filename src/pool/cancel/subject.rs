//! [`Subject`]: for whom the server may be at work, and what it says of that.

use std::time::Duration;

use crate::connection::BackendId;

/// For whom the server may be at work.
pub(in crate::pool) enum Subject {
    One(BackendId),
    All(Pool),
    /// One whose client is lost: it is to end, whatever it is at.
    Orphan(BackendId),
}

/// All connections of this client's.
pub(in crate::pool) struct Pool {
    /// How many there are.
    pub(super) connections: u32,
    /// Each was last used within this time; those of another process may have been idle for longer.
    pub(super) active_within: Duration,
}

/// What a server says of a [`Subject`].
pub(in crate::pool) struct Activity {
    /// Which server it is.
    pub(in crate::pool) server: String,
    pub(in crate::pool) is_busy: bool,
}
