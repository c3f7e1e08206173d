//! [`Admission`]: how many requests may wait for a connection.
//!
//! Little's law: the wait in a queue is its length divided by the rate at which
//! it moves. A request that could not expect its turn in time is refused at
//! once, because its client would be gone by then.

use std::time::{Duration, Instant};

/// Turns are counted for this long before their number is used.
const SPAN: Duration = Duration::from_secs(1);

/// A partial span counts once it is at least this long, if it shows a higher
/// rate than the one before.
const GLANCE: Duration = Duration::from_millis(100);

/// Decides whether one more request may wait.
pub(super) struct Admission {
    /// So many may wait in any case.
    guaranteed: usize,
    /// Beyond these, as many as can expect a connection within this time.
    patience: Duration,
    pace: Pace,
}

impl Admission {
    pub(super) fn new(guaranteed: usize, patience: Duration) -> Self {
        Self {
            guaranteed,
            patience,
            pace: Pace::default(),
        }
    }

    /// Returns how many may wait whatever the pace, given that `free` of them
    /// are served at once.
    pub(super) fn guaranteed(&self, free: usize) -> usize {
        self.guaranteed.saturating_add(free)
    }

    /// Returns whether one more may join the `waiting`, `free` of whom will be
    /// served at once.
    pub(super) fn admits(&mut self, waiting: usize, free: usize) -> bool {
        // Without a floor, a pool that has served nothing for a while has no
        // pace, and would refuse the first burst
        // (`by_default_twenty_may_wait_for_each_connection`).
        waiting < self.guaranteed(free)
            || waiting < self.pace.within(self.patience).saturating_add(free)
    }

    /// Returns whether one that holds a connection may wait: others may wait
    /// for what it holds, so it is refused only where nobody may wait.
    pub(super) fn admits_holder(&self, free: usize) -> bool {
        self.guaranteed(free) > 0
    }

    /// Notes that one who waited has got a connection.
    pub(super) fn served(&mut self) {
        self.pace.turn();
    }
}

/// Counts turns. It looks at the clock only when it is asked, so that a turn
/// costs next to nothing; asked after a long time, it averages over all of it.
#[derive(Default)]
struct Pace {
    since: Option<Instant>,
    turns: u64,
    /// Turns per second in the span before.
    before: f64,
}

impl Pace {
    fn turn(&mut self) {
        self.turns += 1;
    }

    /// Returns how many turns `time` can be expected to bring.
    fn within(&mut self, time: Duration) -> usize {
        self.within_at(time, Instant::now())
    }

    fn within_at(&mut self, time: Duration, now: Instant) -> usize {
        // The first look sets the clock: what came before it has no span to be
        // divided by.
        let elapsed = now.saturating_duration_since(*self.since.get_or_insert(now));
        // At the first look the time is zero, and this infinity or no number:
        // below `GLANCE` it is not used.
        let current = self.turns as f64 / elapsed.as_secs_f64();
        if elapsed >= SPAN {
            *self = Self {
                since: Some(now),
                turns: 0,
                before: current,
            };
        }
        // A service that has just become faster is believed soon; one that has
        // become slower after its span, because a short pause says little.
        let pace = if elapsed >= GLANCE {
            self.before.max(current)
        } else {
            self.before
        };
        (pace * time.as_secs_f64()) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn turns(pace: &mut Pace, count: u64) {
        (0..count).for_each(|_| pace.turn());
    }

    #[test]
    fn it_knows_the_pace_of_now_and_of_the_second_before() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.within_at(SECOND, start), 0);
        turns(&mut pace, 10);
        let glance = start + GLANCE / 2;
        assert_eq!(pace.within_at(SECOND, glance), 0, "too short");
        turns(&mut pace, 90);
        assert_eq!(pace.within_at(SECOND, start + GLANCE), 1000);
        assert_eq!(pace.within_at(SECOND / 2, start + GLANCE), 500);
        turns(&mut pace, 900);
        assert_eq!(pace.within_at(SECOND, start + SECOND), 1000);
        // The next span is too short so far.
        assert_eq!(pace.within_at(SECOND, start + SECOND + GLANCE / 2), 1000);
    }

    #[test]
    fn where_nobody_gets_a_turn_any_more_none_is_expected_after_two_seconds() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.within_at(SECOND, start);
        turns(&mut pace, 1000);
        assert_eq!(pace.within_at(SECOND, start + SECOND), 1000);
        assert_eq!(pace.within_at(SECOND, start + 2 * SECOND - GLANCE), 1000);
        assert_eq!(pace.within_at(SECOND, start + 2 * SECOND), 0);
    }

    #[test]
    fn what_was_long_ago_is_no_pace() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.within_at(SECOND, start);
        turns(&mut pace, 1000);
        pace.within_at(SECOND, start + SECOND);
        turns(&mut pace, 1000);
        assert_eq!(pace.within_at(SECOND, start + 1001 * SECOND), 1);
    }
}
