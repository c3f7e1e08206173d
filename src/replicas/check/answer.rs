//! [`Answer`]: what a server says of itself.

use crate::position::Reached;

/// A server's answer.
#[derive(Clone, Debug)]
pub(in crate::replicas) struct Answer {
    /// Whether it takes no writes of its own.
    pub(in crate::replicas) is_replica: bool,
    /// What it has replayed, or committed if it is the primary.
    pub(in crate::replicas) reached: Reached,
}
