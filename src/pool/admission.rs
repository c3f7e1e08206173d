//! [`Pace`]: how fast those who wait get their turn.

use std::time::{Duration, Instant};

/// How long turns are counted before they say something.
const SPAN: Duration = Duration::from_secs(1);

/// A tenth of it says enough when it says more.
const GLANCE: Duration = Duration::from_millis(100);

/// Counts turns. It looks at the clock only when it is asked, so that a turn costs next to nothing; who does
/// not ask for a long time gets the pace of all that time.
#[derive(Default)]
pub(super) struct Pace {
    since: Option<Instant>,
    turns: u64,
    /// Turns per second in the span before.
    before: f64,
}

impl Pace {
    /// Somebody got a turn.
    pub(super) fn turn(&mut self) {
        self.turns += 1;
    }

    /// How many turns `time` can be expected to bring.
    pub(super) fn within(&mut self, time: Duration) -> usize {
        self.within_at(time, Instant::now())
    }

    fn within_at(&mut self, time: Duration, now: Instant) -> usize {
        let elapsed = now.saturating_duration_since(*self.since.get_or_insert(now));
        let current = self.turns as f64 / elapsed.as_secs_f64();
        if elapsed >= SPAN {
            *self = Self {
                since: Some(now),
                turns: 0,
                before: current,
            };
        }
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
    fn it_tells_the_pace_of_now_and_of_the_second_before() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.within_at(SECOND, start), 0);
        turns(&mut pace, 10);
        let glance = start + GLANCE / 2;
        assert_eq!(pace.within_at(SECOND, glance), 0, "too short to tell");
        turns(&mut pace, 90);
        assert_eq!(pace.within_at(SECOND, start + GLANCE), 1000);
        assert_eq!(pace.within_at(SECOND / 2, start + GLANCE), 500);
        turns(&mut pace, 900);
        assert_eq!(pace.within_at(SECOND, start + SECOND), 1000);
        // The next span has not told anything yet.
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
