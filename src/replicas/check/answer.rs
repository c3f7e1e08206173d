//! [`Answer`]: what a server says of itself.

use crate::{connection::History, position::Reached};

/// A server's answer.
#[derive(Clone, Debug)]
pub(in crate::replicas) struct Answer {
    /// Whether it may serve reads as a replica. All nodes of a Galera cluster may.
    pub(in crate::replicas) is_replica: bool,
    /// Why it should not serve reads all the same.
    pub(in crate::replicas) unfit: Option<String>,
    /// Whether it takes writes of its own.
    pub(in crate::replicas) takes_writes: bool,
    /// What it has replayed, or committed if it is the primary.
    pub(in crate::replicas) reached: Reached,
    /// What it has of each server's transactions. MariaDB tells, unless it is a node of a Galera cluster.
    pub(in crate::replicas) history: Option<History>,
}
