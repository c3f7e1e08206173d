//! [`Position`]: a place in the history of a cluster.

mod text;

use std::cmp::Ordering;

#[cfg(feature = "replicas")]
pub use self::text::ParsePositionError;
pub(crate) use self::text::{Lsn, gtids};

/// A place in the history of a cluster of PostgreSQL, MariaDB or Galera
/// servers: what the cluster had committed when a transaction was acknowledged
/// (feature `replicas`).
///
/// A replica that has replayed up to a client's position shows the client its
/// own writes. Positions are made by the sessions of a layer with
/// [`replicas`](crate::DbSessionLayer::replicas); a
/// [`PositionCarrier`](crate::PositionCarrier) takes them to the client and
/// back. Where a request may have committed something, its position is in the
/// response's extensions as well, for middleware. As a text, a position is one
/// of these:
///
/// | | |
/// |---|---|
/// | `2-0/3000060` | PostgreSQL: the timeline, a number that grows with each fail-over, and the [log sequence number](https://www.postgresql.org/docs/current/datatype-pg-lsn.html) |
/// | `0-1-120` | MariaDB: the [global transaction ID](https://mariadb.com/kb/en/gtid/), which is a domain, a server and a sequence number |
/// | `618dfa06-ec16-11f1-9e9c-c76ccb50de98:11` | Galera: the [cluster and the sequence number](https://galeracluster.com/library/documentation/architecture.html#global-transaction-id) of what a node had committed |
/// | `primary` | only the primary is known to have reached it |
///
/// Of two, the greater one is the later. On MariaDB, that holds for those of
/// one domain and server: of others, keep [`PRIMARY`](Self::PRIMARY).
///
/// ```
/// use tower_sea_orm::Position;
///
/// let before: Position = "1-0/3000060".parse().unwrap();
/// let after: Position = "2-0/3000000".parse().unwrap();
/// assert!(before < after); // the timeline counts first
/// assert!(after < Position::PRIMARY);
/// assert_eq!(before.to_string(), "1-0/3000060");
/// assert!("0/3000060; DROP TABLE item".parse::<Position>().is_err());
///
/// let node: Position = "618dfa06-ec16-11f1-9e9c-c76ccb50de98:11".parse().unwrap();
/// assert_eq!(node.to_string(), "618dfa06-ec16-11f1-9e9c-c76ccb50de98:11");
/// assert!("618dfa06-ec16-11f1-9e9c-c76ccb50de98:9".parse::<Position>().unwrap() < node);
/// assert!("618dfa06ec1611f19e9cc76ccb50de98:11".parse::<Position>().is_err());
///
/// let before: Position = "0-1-99".parse().unwrap();
/// let after: Position = "0-1-120".parse().unwrap();
/// assert!(before < after);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
// Not a public enum, so that a kind of cluster can be added.
pub struct Position(Place);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    // The timeline first, since positions are compared field by field: a
    // fail-over goes before any number.
    Log { timeline: u32, lsn: u64 },
    Gtid(Gtid),
    Galera(Committed),
    // Last, so that it is greater than all others.
    Primary,
}

/// MariaDB's global transaction ID.
// In the order in which they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Gtid {
    pub(crate) domain: u32,
    pub(crate) sequence: u64,
    pub(crate) server: u32,
}

/// What a node of a Galera cluster has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Committed {
    /// The UUID of the cluster's state.
    // Bytes, since a number of 128 bits would align every position.
    pub(crate) cluster: [u8; 16],
    pub(crate) sequence: u64,
}

/// What a server has of its cluster's history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(all(
        feature = "replicas",
        feature = "sqlx-postgres",
        feature = "sqlx-mysql"
    )),
    allow(dead_code)
)]
pub(crate) enum Reached {
    Log {
        timeline: u32,
        lsn: u64,
    },
    /// One for each domain.
    Gtids(Vec<Gtid>),
    Galera(Committed),
}

/// Whether a server has what a position stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "replicas"), allow(dead_code))]
pub(crate) enum Holds {
    Yes,
    /// It may get it.
    NotYet,
    /// Its history is another one.
    Never,
}

impl Position {
    /// The position that only the primary is known to have reached.
    pub const PRIMARY: Self = Self(Place::Primary);

    pub(crate) fn at(timeline: u32, lsn: u64) -> Self {
        Self(Place::Log { timeline, lsn })
    }

    pub(crate) fn of(gtid: Gtid) -> Self {
        Self(Place::Gtid(gtid))
    }

    pub(crate) fn committed(committed: Committed) -> Self {
        Self(Place::Galera(committed))
    }

    pub(crate) fn place(self) -> Place {
        self.0
    }

    /// PostgreSQL's timeline, which a promotion begins.
    pub(crate) fn timeline(self) -> Option<u32> {
        match self.0 {
            Place::Log { timeline, .. } => Some(timeline),
            _ => None,
        }
    }

    /// Returns a position that has both.
    pub(crate) fn and(self, other: Self) -> Self {
        match (self.0, other.0) {
            // The later one: it has all of the earlier one but for what a
            // fail-over has lost.
            (Place::Log { .. }, Place::Log { .. }) => self.max(other),
            // Of two servers, neither has the other's for certain: one was the
            // primary after the other.
            (Place::Gtid(one), Place::Gtid(two))
                if (one.domain, one.server) == (two.domain, two.server) =>
            {
                self.max(other)
            }
            (Place::Galera(one), Place::Galera(two)) if one.cluster == two.cluster => {
                self.max(other)
            }
            // Of two kinds, or of two clusters: only the primary can be asked
            // for both.
            _ => Self::PRIMARY,
        }
    }
}

#[cfg_attr(not(feature = "replicas"), allow(dead_code))]
impl Reached {
    /// Returns whether the server has what `position` stands for.
    pub(crate) fn holds(&self, position: Position) -> Holds {
        match (self, position.0) {
            (
                Self::Log { timeline, lsn },
                Place::Log {
                    timeline: of,
                    lsn: at,
                },
            ) => {
                match timeline.cmp(&of) {
                    // It has not followed a fail-over that the client has seen:
                    // its numbers mean something else.
                    Ordering::Less => Holds::Never,
                    _ if *lsn >= at => Holds::Yes,
                    Ordering::Equal => Holds::NotYet,
                    // The client's write was lost with its primary, unless it
                    // comes later: then the primary has it as well.
                    Ordering::Greater => Holds::Never,
                }
            }
            (Self::Gtids(gtids), Place::Gtid(wanted)) => {
                let own = gtids.iter().find(|gtid| gtid.domain == wanted.domain);
                match own {
                    Some(own) if own.sequence < wanted.sequence => Holds::NotYet,
                    // The numbers go on behind a fail-over, and may have two
                    // meanings: only one server's are in one line.
                    Some(own) if own.server == wanted.server => Holds::Yes,
                    _ => Holds::Never,
                }
            }
            // A node that joins another cluster begins to count anew.
            (Self::Galera(own), Place::Galera(wanted)) if own.cluster == wanted.cluster => {
                match own.sequence.cmp(&wanted.sequence) {
                    Ordering::Less => Holds::NotYet,
                    _ => Holds::Yes,
                }
            }
            // Of another kind: a cookie from before the service moved to
            // another database.
            _ => Holds::Never,
        }
    }

    /// Returns whether the server has all that another one had.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            // Both: a later timeline may have begun before the number was
            // reached.
            (
                Self::Log { timeline, lsn },
                Self::Log {
                    timeline: of,
                    lsn: at,
                },
            ) => timeline >= of && lsn >= at,
            // A server without a binary log has none, and says nothing about
            // what it has.
            (Self::Gtids(_), Self::Gtids(others)) => {
                let mut all = others.iter().copied().map(Position::of);
                !others.is_empty() && all.all(|one| self.holds(one) == Holds::Yes)
            }
            (Self::Galera(_), Self::Galera(other)) => {
                self.holds(Position::committed(*other)) == Holds::Yes
            }
            _ => false,
        }
    }

    /// Returns it as one position, if it is one.
    pub(crate) fn position(&self) -> Option<Position> {
        match self {
            Self::Log { timeline, lsn } => Some(Position::at(*timeline, *lsn)),
            Self::Gtids(gtids) => match **gtids {
                // Of several domains, one position would leave the others'
                // writes out.
                [one] => Some(Position::of(one)),
                _ => None,
            },
            Self::Galera(committed) => Some(Position::committed(*committed)),
        }
    }
}
