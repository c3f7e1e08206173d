//! Visits of the driver's pool: for a connection's age ([`AgeVisit`]), and for
//! [`PlainShare`], what the users of the plain `DatabaseConnection` get while
//! sessions want all there are.
//!
//! sqlx does not say whether anything waits for its connections, so one is
//! returned to it now and then: if it is taken, more may wait. Such a visit
//! takes the connection for two round trips, however far the server is.

use std::time::{Duration, Instant};

/// At most one return in so many is a visit.
const RETURNS: u64 = 100;

/// The least time between two visits. After a visit whose connection was taken,
/// every return is a visit for this long.
const INTERVAL: Duration = Duration::from_millis(50);

pub(super) struct PlainShare {
    /// The number of connections that came back so far.
    returns: u64,
    /// The number at the last visit.
    visited_at: u64,
    /// The number when the idle connections were last looked at.
    looked_at: u64,
    last_visit: Option<Instant>,
    /// The longest time without a visit, for pools whose connections come back
    /// too seldom to reach `RETURNS`.
    longest: Duration,
    /// A connection that had just been returned was taken: until then there may
    /// be more who wait for one.
    awaited_until: Option<Instant>,
}

impl PlainShare {
    /// For a driver's pool whose users wait for at most `acquire_timeout`.
    pub(super) fn new(acquire_timeout: Option<Duration>) -> Self {
        Self {
            returns: 0,
            visited_at: 0,
            looked_at: 0,
            last_visit: None,
            // A fifth of what a plain user waits: one that comes right after a
            // visit sees several more in its time.
            longest: acquire_timeout.map_or(Duration::MAX, |timeout| timeout / 5),
            awaited_until: None,
        }
    }

    /// Counts a connection that comes back, and returns whether it is for the
    /// users of the driver's pool, which has `nothing_left`: then the visit is
    /// taken.
    pub(super) fn take_visit(&mut self, nothing_left: impl FnOnce() -> bool) -> bool {
        self.returns += 1;
        // Where the driver's pool has something left, its users need nothing of
        // ours, and the two round trips of a visit would be for nothing.
        self.is_awaited() || nothing_left() && self.visit()
    }

    /// Counts a connection that comes back, and returns true, where neither
    /// [`take_visit`](Self::take_visit) nor
    /// [`take_visit_for_age`](Self::take_visit_for_age) would find a visit due;
    /// otherwise, ask those.
    pub(super) fn passes_by(&mut self, nothing_left: bool, visit: AgeVisit) -> bool {
        // Asked without taking the visit: whether this connection goes on to a
        // waiter is not decided yet.
        let for_age = visit == AgeVisit::Due && self.has_returns();
        let passes = !(for_age || self.is_awaited() || nothing_left && self.is_due());
        // If it does not pass, the question that is asked instead counts it.
        self.returns += u64::from(passes);
        passes
    }

    /// Where one of the plain users waited, others may wait behind it, and sqlx
    /// serves them in turn.
    fn is_awaited(&self) -> bool {
        self.awaited_until
            .is_some_and(|until| Instant::now() < until)
    }

    /// Returns whether a connection that comes back may visit the driver's pool
    /// for its age, and takes the visit then: it serves the plain users as
    /// well, and there are no more visits than for them alone.
    pub(super) fn take_visit_for_age(&mut self) -> bool {
        let is_turn = self.has_returns();
        if is_turn {
            self.note_visit();
        }
        is_turn
    }

    /// Returns whether an idle connection is for the users of the driver's
    /// pool, which has nothing left, and takes the visit then: also if no
    /// session has brought one back since this was last asked.
    pub(super) fn take_visit_of_idle(&mut self) -> bool {
        let is_quiet = self.looked_at == self.returns;
        self.looked_at = self.returns;
        // While sessions rest, a plain user is served at once
        // (`while_sessions_rest_a_plain_user_is_served_at_once`).
        is_quiet || self.visit()
    }

    /// Returns whether the time has come for a visit, which then counts as
    /// made.
    fn visit(&mut self) -> bool {
        let is_due = self.is_due();
        if is_due {
            self.note_visit();
        }
        is_due
    }

    fn note_visit(&mut self) {
        (self.visited_at, self.last_visit) = (self.returns, Some(Instant::now()));
    }

    /// Returns whether as many connections have come back since the last visit
    /// as one visit costs.
    fn has_returns(&self) -> bool {
        self.returns - self.visited_at >= RETURNS
    }

    fn is_due(&self) -> bool {
        let since = self.last_visit.map_or(Duration::MAX, |last| last.elapsed());
        // By number as well as by time: twenty visits a second took a third of
        // a small pool's time where statements were slow. Shown by
        // `however_slow_its_requests_are_a_saturated_pool_pays_in_proportion_to_them`.
        let is_turn = self.has_returns() && since >= INTERVAL;
        is_turn || since >= self.longest
    }

    /// Notes whether a connection that was just returned to the driver's pool
    /// is idle there.
    pub(super) fn returned(&mut self, is_idle: bool, is_fetching: bool) {
        if is_idle {
            self.awaited_until = None;
        } else if !is_fetching {
            // It was not taken by a fetch of our own. Only for a while: what is
            // taken while we fetch says nothing.
            self.awaited_until = Some(Instant::now() + INTERVAL);
        }
    }
}

/// A connection goes from session to session for this long, and this often,
/// before it visits the driver's pool, which looks at its age.
const VISIT: Duration = Duration::from_secs(10);
const VISIT_RETURNS: u32 = 100;

/// Where it comes back more seldom, the driver's pool sees it after this time,
/// or after a quarter of its lifetime.
const VISIT_AT_LAST: Duration = Duration::from_secs(600);

/// Whether the driver's pool should see a connection again, which looks at its
/// age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AgeVisit {
    NotDue,
    /// Due in its turn, which [`PlainShare::take_visit_for_age`] tells.
    Due,
    Overdue,
}

impl AgeVisit {
    /// For a connection that was fetched so long ago and has come back
    /// `returns` times since.
    pub(super) fn of(fetched: Duration, returns: u32, max_lifetime: Option<Duration>) -> Self {
        let (first, last) = max_lifetime.map_or((VISIT, VISIT_AT_LAST), |lifetime| {
            let first = lifetime.min(VISIT);
            (first, first.max(lifetime / 4))
        });
        // Counted from the fetch and not from the last use: under load, it
        // would never rest. Shown by
        // `a_connection_that_is_never_idle_is_replaced_after_its_max_lifetime`.
        if fetched >= last {
            Self::Overdue
        } else if fetched >= first && returns >= VISIT_RETURNS {
            Self::Due
        } else {
            Self::NotDue
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

    #[test]
    fn visits_for_age_and_for_plain_users_share_their_turns() {
        let mut share = PlainShare::new(Some(YEAR));
        // The first one is due at once.
        assert!(share.take_visit(|| true));
        let mut visits = 0;
        for _ in 0..10 * RETURNS {
            // Every connection is due for its age.
            visits += u64::from(share.take_visit_for_age() || share.take_visit(|| true));
        }
        assert!((9..=10).contains(&visits), "{visits}");
    }

    #[test]
    fn a_visit_for_age_has_its_turn_before_it_is_overdue() {
        let seconds = Duration::from_secs;
        let lifetime = Some(seconds(1800));
        assert_eq!(AgeVisit::of(seconds(9), 1000, lifetime), AgeVisit::NotDue);
        assert_eq!(AgeVisit::of(seconds(10), 99, lifetime), AgeVisit::NotDue);
        assert_eq!(AgeVisit::of(seconds(10), 100, lifetime), AgeVisit::Due);
        assert_eq!(AgeVisit::of(seconds(449), 100, lifetime), AgeVisit::Due);
        assert_eq!(AgeVisit::of(seconds(450), 0, lifetime), AgeVisit::Overdue);
        // A lifetime of seconds.
        assert_eq!(
            AgeVisit::of(seconds(2), 100, Some(seconds(2))),
            AgeVisit::Overdue
        );
        assert_eq!(AgeVisit::of(seconds(600), 0, None), AgeVisit::Overdue);
    }
}
