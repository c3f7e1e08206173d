//! [`Position`]: a place in the history of a cluster.

use std::{cmp::Ordering, error, fmt, str::FromStr};

/// A place in the history of a cluster of PostgreSQL, MariaDB or Galera servers: what the cluster had committed when a transaction was
/// acknowledged (feature `replicas`).
///
/// A replica that has replayed up to a client's position shows the client its own writes. Positions are made by the
/// sessions of a layer with [`replicas`](crate::DbSessionLayer::replicas); a [`PositionCarrier`](crate::PositionCarrier)
/// takes them to the client and back. Where a request may have committed something, its position is in the response's extensions as
/// well, for middleware. As a text, a position is one of these:
///
/// | | |
/// |---|---|
/// | `2-0/3000060` | PostgreSQL: the timeline, a number that grows with each fail-over, and the [log sequence number](https://www.postgresql.org/docs/current/datatype-pg-lsn.html) |
/// | `0-1-120` | MariaDB: the [global transaction ID](https://mariadb.com/kb/en/gtid/), which is a domain, a server and a sequence number |
/// | `618dfa06-ec16-11f1-9e9c-c76ccb50de98:11` | Galera: the [cluster and the sequence number](https://galeracluster.com/library/documentation/architecture.html#global-transaction-id) of what a node had committed |
/// | `primary` | only the primary is known to have reached it |
///
/// Of two, the greater one is the later. On MariaDB, that holds for those of one domain and server: of others, keep [`PRIMARY`](Self::PRIMARY).
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
pub struct Position(Place);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    Log { timeline: u32, lsn: u64 },
    Gtid(Gtid),
    Galera(Committed),
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
            (Place::Log { .. }, Place::Log { .. }) => self.max(other),
            // Of two servers, neither has the other's for certain: one was the primary after the other.
            (Place::Gtid(one), Place::Gtid(two))
                if (one.domain, one.server) == (two.domain, two.server) =>
            {
                self.max(other)
            }
            (Place::Galera(one), Place::Galera(two)) if one.cluster == two.cluster => {
                self.max(other)
            }
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
                    // It has not followed a fail-over that the client has seen: its numbers mean something else.
                    Ordering::Less => Holds::Never,
                    _ if *lsn >= at => Holds::Yes,
                    Ordering::Equal => Holds::NotYet,
                    // The client's write was lost with its primary, unless it comes later: then the primary has it as well.
                    Ordering::Greater => Holds::Never,
                }
            }
            (Self::Gtids(gtids), Place::Gtid(wanted)) => {
                let own = gtids.iter().find(|gtid| gtid.domain == wanted.domain);
                match own {
                    Some(own) if own.sequence < wanted.sequence => Holds::NotYet,
                    // The numbers go on behind a fail-over, and may have two meanings: only one server's are in one line.
                    Some(own) if own.server == wanted.server => Holds::Yes,
                    _ => Holds::Never,
                }
            }
            (Self::Galera(own), Place::Galera(wanted)) if own.cluster == wanted.cluster => {
                match own.sequence.cmp(&wanted.sequence) {
                    Ordering::Less => Holds::NotYet,
                    _ => Holds::Yes,
                }
            }
            _ => Holds::Never,
        }
    }

    /// Returns whether the server has all that another one had.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Log { timeline, lsn },
                Self::Log {
                    timeline: of,
                    lsn: at,
                },
            ) => timeline >= of && lsn >= at,
            // A server without a binary log has none, and says nothing about what it has.
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
                [one] => Some(Position::of(one)),
                _ => None,
            },
            Self::Galera(committed) => Some(Position::committed(*committed)),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::Log { timeline, lsn } => write!(f, "{timeline}-{}", Lsn(lsn)),
            Place::Gtid(gtid) => gtid.fmt(f),
            Place::Galera(committed) => committed.fmt(f),
            Place::Primary => f.write_str("primary"),
        }
    }
}

/// A log sequence number, in PostgreSQL's form.
pub(crate) struct Lsn(pub(crate) u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            let is_plain = (1..=8).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_plain.then(|| u64::from_str_radix(digits, 16).ok())?
        };
        let (high, low) = text.split_once('/').ok_or(ParsePositionError)?;
        let (high, low) = half(high).zip(half(low)).ok_or(ParsePositionError)?;
        Ok(Self(high << 32 | low))
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.domain, self.server, self.sequence)
    }
}

impl FromStr for Gtid {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (domain, rest) = text.split_once('-').ok_or(ParsePositionError)?;
        let (server, sequence) = rest.split_once('-').ok_or(ParsePositionError)?;
        Ok(Self {
            domain: number(domain)?,
            sequence: number(sequence)?,
            server: number(server)?,
        })
    }
}

impl fmt::Display for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", u128::from_be_bytes(self.cluster));
        let (mut rest, mut separator) = (hex.as_str(), "");
        for length in UUID {
            let (part, others) = rest.split_at(length);
            write!(f, "{separator}{part}")?;
            (rest, separator) = (others, "-");
        }
        write!(f, ":{}", self.sequence)
    }
}

/// The lengths of a UUID's parts.
const UUID: [usize; 5] = [8, 4, 4, 4, 12];

impl FromStr for Committed {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (uuid, sequence) = text.split_once(':').ok_or(ParsePositionError)?;
        let is_uuid = uuid.split('-').map(str::len).eq(UUID)
            && uuid
                .bytes()
                .all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
        let cluster = is_uuid.then(|| u128::from_str_radix(&uuid.replace('-', ""), 16).ok());
        let sequence = number(sequence)?;
        // The server counts in signed numbers.
        i64::try_from(sequence).map_err(|_| ParsePositionError)?;
        Ok(Self {
            cluster: cluster.flatten().ok_or(ParsePositionError)?.to_be_bytes(),
            sequence,
        })
    }
}

/// Reads a number that is written in digits only.
fn number<N: FromStr>(text: &str) -> Result<N, ParsePositionError> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain
        .then(|| text.parse().ok())
        .flatten()
        .ok_or(ParsePositionError)
}

/// Reads MariaDB's list of global transaction IDs, one for each domain.
pub(crate) fn gtids(text: &str) -> Result<Vec<Gtid>, ParsePositionError> {
    let entries = text.split(',').map(str::trim);
    entries
        .filter(|entry| !entry.is_empty())
        .map(str::parse)
        .collect()
}

impl FromStr for Position {
    type Err = ParsePositionError;

    /// Reads what `to_string` has written.
    ///
    /// # Errors
    ///
    /// If the text is none of the forms that [`Position`] has.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "primary" {
            return Ok(Self::PRIMARY);
        }
        if text.contains(':') {
            return text.parse().map(Self::committed);
        }
        if !text.contains('/') {
            return text.parse().map(Self::of);
        }
        let (timeline, lsn) = text.split_once('-').ok_or(ParsePositionError)?;
        Ok(Self::at(number(timeline)?, lsn.parse::<Lsn>()?.0))
    }
}

/// The error of a text that is no [`Position`] (feature `replicas`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsePositionError;

impl fmt::Display for ParsePositionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a position: expected a timeline and a log sequence number, as `2-0/3000060`, a global transaction ID, as `0-1-120`, a UUID and a sequence number, or `primary`")
    }
}

impl error::Error for ParsePositionError {}
