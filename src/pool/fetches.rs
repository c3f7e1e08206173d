//! [`Fetches`]: how many tasks are in the driver's `acquire()`, and how the last ones have ended.

use std::time::{Duration, Instant};

/// The longest silence of a connect before it is given up, so that one that is
/// lost is repeated within the default time-out of the waiters; twice as long
/// after each one, for servers that take long to log in.
const CONNECT: Duration = Duration::from_secs(4);

/// For how long it is remembered that a slow connect has succeeded.
const SLOW_LOG_INS: Duration = Duration::from_secs(60);

/// The pause in fetching after a failure; at first, and at most.
const PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Fetches {
    running: u32,
    /// The running ones that take so long that no waiter counts on them.
    slow: u32,
    /// Connects given up since the last one that was quick.
    given_up: u32,
    /// The time at which a slow connect succeeded last.
    slow_log_in: Option<Instant>,
    /// Fetches that failed while others were under way: their waiters are not
    /// answered yet.
    unanswered: usize,
    paused_until: Option<Instant>,
    /// The length of the last pause.
    pause: Duration,
    /// One of the running fetches has failed, and waits for the end of the
    /// pause.
    is_resting: bool,
}

/// The consequence of a failed fetch.
pub(super) enum AfterFailure {
    /// A connection may still come: its fetch is over when this time has
    /// passed.
    Rest(Duration),
    /// Another one rests already.
    GoOn,
    /// No connection can come: this many waiters get the error.
    Refuse(usize),
}

impl Fetches {
    pub(super) fn running(&self) -> u32 {
        self.running
    }

    /// Returns for how many waiters a connection is being fetched.
    pub(super) fn counted_on(&self) -> usize {
        (self.running - self.slow) as usize
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused_until
            .is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn begin(&mut self) {
        self.running += 1;
    }

    /// Notes that a fetch takes long. The network may have lost its connect,
    /// and where the server has no place left, sqlx tries to connect until its
    /// own time-out: those who wait get another fetch.
    pub(super) fn become_slow(&mut self) {
        self.slow += 1;
    }

    /// Notes the end of a fetch, whatever it has brought.
    pub(super) fn end(&mut self, was_slow: bool) {
        self.running -= 1;
        self.slow -= u32::from(was_slow);
    }

    /// Notes that a fetch has brought a connection.
    pub(super) fn succeed(&mut self, was_slow: bool) {
        self.end(was_slow);
        // A quick one after a slow one may come from the idle ones, and says
        // nothing about log-ins: that stays remembered.
        if was_slow {
            self.slow_log_in = Some(Instant::now());
        } else {
            self.given_up = 0;
        }
        // Connects work again: those whose fetch had failed wait on like all
        // others.
        (self.unanswered, self.pause) = (0, Duration::ZERO);
    }

    /// Notes that a fetch has failed. While connections are `out` or being
    /// fetched, those who wait go on waiting, and after a pause one more is
    /// fetched. `may_pass`: also while there are none.
    pub(super) fn fail(&mut self, out: u32, may_pass: bool) -> AfterFailure {
        // Neither this one nor the one that waits out the pause can bring
        // anything.
        let under_way = self.running.saturating_sub(1 + u32::from(self.is_resting));
        // While any connection works, or may come, a connect that fails refuses
        // no request (G17;
        // `g17_connects_that_fail_refuse_no_request_while_connections_work`).
        if out == 0 && under_way == 0 && !may_pass {
            self.paused_until = None;
            return AfterFailure::Refuse(1 + std::mem::take(&mut self.unanswered));
        }
        // Where connections are out, those who wait get these.
        self.unanswered += usize::from(out == 0);
        if std::mem::replace(&mut self.is_resting, true) {
            // The one that rests ends the pause, which a refusal may have cut
            // short.
            self.paused_until = Instant::now().checked_add(self.pause);
            return AfterFailure::GoOn;
        }
        // Twice as long each time: a server that ends every connect at once
        // would be connected to in a loop. Shown by
        // `a_server_that_ends_every_connect_gets_few_of_them`.
        self.pause = (self.pause * 2).clamp(PAUSE, LONGEST_PAUSE);
        self.paused_until = Instant::now().checked_add(self.pause);
        AfterFailure::Rest(self.pause)
    }

    /// Ends the pause after a failure.
    pub(super) fn end_pause(&mut self) {
        (self.is_resting, self.paused_until) = (false, None);
    }

    /// Returns how long a slow fetch may go on.
    pub(super) fn patience(&self) -> Duration {
        CONNECT.saturating_mul(2_u32.saturating_pow(self.given_up))
    }

    /// Notes that a fetch took longer than `patience`. Of several that began
    /// with the same, one counts.
    pub(super) fn give_up(&mut self, patience: Duration) {
        if patience == self.patience() {
            self.given_up = self.given_up.saturating_add(1);
        }
    }

    /// Returns whether connects take long, and succeed.
    pub(super) fn logs_in_slowly(&self) -> bool {
        self.slow_log_in
            .is_some_and(|at| at.elapsed() < SLOW_LOG_INS)
    }
}
