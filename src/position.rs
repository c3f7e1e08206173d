//! [`Position`]: a place in the history of a PostgreSQL cluster.

use std::{error, fmt, str::FromStr};

/// A place in the history of a PostgreSQL cluster: what the cluster had committed when a transaction was acknowledged
/// (feature `replicas`).
///
/// A replica that has replayed up to a client's position shows the client its own writes. Positions are made by the
/// sessions of a layer with [`replicas`](crate::DbSessionLayer::replicas); a [`PositionCarrier`](crate::PositionCarrier)
/// takes them to the client and back. Where a request may have committed something, its position is in the response's extensions as
/// well, for middleware. As a text, a position is its timeline (a number that grows with each fail-over) and its log sequence
/// number, as in `2-0/3000060`
/// (<https://www.postgresql.org/docs/current/datatype-pg-lsn.html>), or `primary` for one that only the primary is known to
/// have reached.
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
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(Place);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Place {
    At { timeline: u32, lsn: u64 },
    Primary,
}

impl Position {
    /// The position that only the primary is known to have reached.
    pub const PRIMARY: Self = Self(Place::Primary);

    pub(crate) fn at(timeline: u32, lsn: u64) -> Self {
        Self(Place::At { timeline, lsn })
    }

    /// The timeline and the log sequence number, unless only the primary has reached it.
    pub(crate) fn place(self) -> Option<(u32, u64)> {
        match self.0 {
            Place::At { timeline, lsn } => Some((timeline, lsn)),
            Place::Primary => None,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Place::At { timeline, lsn } => write!(f, "{timeline}-{}", Lsn(lsn)),
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

impl FromStr for Position {
    type Err = ParsePositionError;

    /// Reads what `to_string` has written.
    ///
    /// # Errors
    ///
    /// If the text is neither a timeline and a log sequence number, such as `2-0/3000060`, nor `primary`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "primary" {
            return Ok(Self::PRIMARY);
        }
        let (timeline, lsn) = text.split_once('-').ok_or(ParsePositionError)?;
        let is_number = !timeline.is_empty() && timeline.bytes().all(|byte| byte.is_ascii_digit());
        let timeline = is_number.then(|| timeline.parse().ok());
        let timeline = timeline.flatten().ok_or(ParsePositionError)?;
        Ok(Self::at(timeline, lsn.parse::<Lsn>()?.0))
    }
}

/// The error of a text that is no [`Position`] (feature `replicas`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsePositionError;

impl fmt::Display for ParsePositionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a position: expected a timeline and a log sequence number, as `2-0/3000060`, or `primary`")
    }
}

impl error::Error for ParsePositionError {}
