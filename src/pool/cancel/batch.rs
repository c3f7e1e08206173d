//! What the server is asked, and what it answers: [`Batch`], cancel requests
//! that are sent together, what is known of each, and why the server has not
//! answered; and [`Subject`], for whom it may be at work, and what it says of
//! that.

#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use std::future::Future;
use std::{fmt, time::Duration};

#[cfg(feature = "_sqlx")]
use sea_orm::sqlx;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use sea_orm::sqlx::Row;
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
use tokio::time::timeout;

use crate::connection::BackendId;
#[cfg(feature = "_sqlx")]
use crate::error::ends_connection;

/// The longest wait for an answer. MariaDB's KILL tries for 2 seconds to get at
/// what its target waits on, and needs them if that ends by itself in the same
/// moment.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
// With 2 seconds, 17 of 6700 kills around the end of a SLEEP were in doubt, and
// each closed the connections of its whole batch
// (`a_cancel_may_take_as_long_as_that_of_mariadb`).
const BOUND: Duration = Duration::from_secs(4);

/// A statement in question has run for at least this long. A shorter one
/// belongs to another request or process.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
pub(super) const RUNNING: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(super) struct Batch<'a> {
    pub(super) items: Vec<Item<'a>>,
}

pub(super) struct Item<'a> {
    pub(super) target: &'a BackendId,
    pub(super) outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing was sent that would cancel it.
    Untouched,
    /// It may be cancelled at any time. So may a request without a reply.
    InDoubt,
    /// The server has answered, and will not act on it from here on.
    Answered,
}

impl<'a> Batch<'a> {
    pub(super) fn new(targets: impl Iterator<Item = &'a BackendId>) -> Self {
        let items = targets.map(|target| Item {
            target,
            outcome: Outcome::Untouched,
        });
        Self {
            items: items.collect(),
        }
    }

    pub(super) fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        self.items.iter().map(|item| item.outcome)
    }

    /// Returns whether nothing was sent that would cancel anything.
    pub(super) fn is_untouched(&self) -> bool {
        self.outcomes().all(|outcome| outcome == Outcome::Untouched)
    }

    #[cfg(feature = "sqlx-postgres")]
    pub(super) fn set_all(&mut self, outcome: Outcome) {
        self.items
            .iter_mut()
            .for_each(|item| item.outcome = outcome);
    }
}

/// Why the server was not asked, or has not answered.
#[derive(Debug)]
pub(super) enum Fault {
    #[cfg(feature = "_sqlx")]
    Driver(sqlx::Error),
    Silent,
}

impl Fault {
    /// Returns whether the side connection is of no use any more.
    pub(super) fn is_fatal(&self) -> bool {
        match self {
            // An answer all the same, such as a missing right.
            #[cfg(feature = "_sqlx")]
            Self::Driver(sqlx::Error::Database(error)) => ends_connection(&**error),
            _ => true,
        }
    }

    /// Returns whether nothing can come any more of what was sent in `batch`,
    /// so that it may be sent again at once.
    pub(super) fn is_over(&self, batch: &Batch<'_>) -> bool {
        match self {
            // The server has said that it ends the connection: it reads nothing
            // from it any more.
            #[cfg(feature = "_sqlx")]
            Self::Driver(sqlx::Error::Database(error)) if ends_connection(&**error) => true,
            // The next one would not answer either.
            Self::Silent => false,
            #[allow(unreachable_patterns)]
            // A connection that broke while an answer was due may have brought
            // its requests to the server all the same: taken for unsent, they
            // have hit innocent statements
            // (`a_connection_whose_cancel_request_was_lost_is_not_reused`).
            _ => batch.is_untouched(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "_sqlx")]
            Self::Driver(error) => error.fmt(f),
            Self::Silent => f.write_str("no answer in time"),
        }
    }
}

#[cfg(feature = "_sqlx")]
impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Driver(error)
    }
}

/// Returns the server's answer, if it comes in time.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
pub(super) async fn answered<T>(
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Fault> {
    timeout(BOUND, answer)
        .await
        .map_err(|_| Fault::Silent)?
        .map_err(Fault::Driver)
}

/// Reads the only row: the server, the connections that it knows, and the
/// statements that it is at.
#[cfg(any(feature = "sqlx-postgres", feature = "sqlx-mysql"))]
pub(super) fn counted<'r, R: Row>(
    rows: &'r [R],
    connections: u32,
) -> Result<Option<Activity>, sqlx::Error>
where
    usize: sqlx::ColumnIndex<R>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    String: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let (known, busy): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
    let activity = Activity {
        server: row.try_get(0)?,
        is_busy: busy > 0,
    };
    // Where fewer are known, this is another server, or one that does not show
    // them all: nothing can be concluded.
    Ok((known >= i64::from(connections)).then_some(activity))
}

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
    /// Each was last used within this time; those of another process may have
    /// been idle for longer.
    pub(super) active_within: Duration,
}

/// What a server says of a [`Subject`].
pub(in crate::pool) struct Activity {
    /// Which server it is.
    pub(in crate::pool) server: String,
    pub(in crate::pool) is_busy: bool,
}
