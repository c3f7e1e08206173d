//! [`Rest`]: for how long a connection was not used before its session's first statement, and what follows from that.

use std::time::Duration;

/// The server may close an idle connection after this time. Shorter than any setting of a server, and longer than a
/// connection rests where requests wait for the next one.
const SHORT: Duration = Duration::from_millis(1);

/// A network that forgets idle connections takes longer.
const LONG: Duration = Duration::from_secs(1);

/// A connection that is silent for this long is taken for lost.
pub(crate) const SILENCE: Duration = Duration::from_millis(900);

/// For how long the server has heard nothing on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// It was in use just now. Later statements, for which it is not asked, count as such as well.
    None,
    /// The server may have closed it since: what can be run again is kept for that.
    Short,
    /// The network may have forgotten it, too, and no answer would ever say so: what cannot be run again is not risked on
    /// it.
    Long,
}

impl Rest {
    pub(crate) fn of(time: Duration) -> Self {
        if time >= LONG {
            Self::Long
        } else if time >= SHORT {
            Self::Short
        } else {
            Self::None
        }
    }
}
