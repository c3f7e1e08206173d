//! Positions as texts: as clients keep them, and as the servers write them.

use std::{error, fmt, str::FromStr};

use super::{Committed, Gtid, Place, Position};

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
        // See <https://www.postgresql.org/docs/current/datatype-pg-lsn.html>.
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| {
            // No more than the server writes: `from_str_radix` would take a
            // sign, and what a client sends goes into SQL.
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
            // In the server's own widths (<https://mariadb.com/kb/en/gtid/>): a
            // larger number is no position.
            domain: number(domain)?,
            sequence: number(sequence)?,
            server: number(server)?,
        })
    }
}

impl fmt::Display for Committed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand: the crate `uuid` would be a dependency for these ten lines.
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
    // `parse` takes a `+`, and two texts of one position would be two.
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain
        .then(|| text.parse().ok())
        .flatten()
        .ok_or(ParsePositionError)
}

/// Reads MariaDB's list of global transaction IDs, one for each domain.
pub(crate) fn gtids(text: &str) -> Result<Vec<Gtid>, ParsePositionError> {
    // A server that has replicated nothing has an empty list, which is one
    // empty entry here.
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
        // Each kind has a sign that no other has.
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
// Without the text, which a client has sent (G15).
pub struct ParsePositionError;

impl fmt::Display for ParsePositionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a position: expected a timeline and a log sequence number, as `2-0/3000060`, a global transaction ID, as `0-1-120`, a UUID and a sequence number, or `primary`")
    }
}

impl error::Error for ParsePositionError {}
