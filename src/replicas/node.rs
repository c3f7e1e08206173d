//! [`Node`]: a server as its replicas' checks see it.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sea_orm::DbErr;

use super::check::{Answer, Monitor};
use crate::{
    Error, SessionPool,
    connection::ReadDemand,
    position::{Holds, Position},
    session::Replica,
};

/// A replica that was behind is waited for again after this time. Most have
/// been held up for a moment only, and the next check, which may be a second
/// away, would tell late.
const AGAIN: Duration = Duration::from_millis(100);

/// A server of the cluster.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) pool: SessionPool,
    pub(super) monitor: Monitor,
    seen: Mutex<Seen>,
}

/// What is known of a server.
#[derive(Default)]
struct Seen {
    /// The last check's answer, or why there is none.
    answer: Option<Result<Answer, String>>,
    /// When the last check began.
    checked: Option<Instant>,
    /// The last time of which it is known that it has all of what the primary
    /// had then.
    current: Option<Instant>,
    /// A session could not begin here since the last check.
    failure: Option<String>,
    /// It had not reached this when a session had waited for it.
    behind: Option<(Position, Instant)>,
    /// Whether the log has said that it is out of use.
    is_told: bool,
}

/// Why a replica is not read on (feature `replicas`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutOfUse {
    /// It has not been asked yet, or not lately, because there were no
    /// requests. The next ones read on the primary until it has answered.
    NotChecked,
    /// It does not answer, a session could not begin on it, or one has lost its
    /// connection while reading; with the error. Or it is a node of a Galera
    /// cluster that is not in sync: joining, a donor, or without a quorum.
    Failed(String),
    /// It is no replica, or no longer. On MariaDB: `read_only` is off.
    Primary,
    /// It has been behind the primary for longer than
    /// [`max_lag`](crate::Replicas::max_lag).
    Lagging,
}

/// A replica's state, for health checks and dashboards (feature `replicas`).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReplicaStatus {
    /// Its name.
    pub name: String,
    /// Why it is not read on at the moment; `None` if it is.
    pub out_of_use: Option<OutOfUse>,
    /// What it has replayed, as of the last check; `None` if it has not been
    /// asked or did not answer, and on MariaDB if that is none or more than one
    /// global transaction ID.
    pub position: Option<Position>,
    /// For how long it has been behind the primary at most, as of now: a
    /// replica that is up to date shows the time since the last check. `None`
    /// if no check has found it up to date yet.
    pub lag: Option<Duration>,
}

impl Node {
    pub(super) fn new(name: String, pool: SessionPool) -> Self {
        Self {
            name,
            pool,
            monitor: Monitor::default(),
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the server.
    pub(super) async fn ask(&self, within: Duration) -> Result<Answer, String> {
        self.monitor.ask(self.pool.database(), within).await
    }

    /// Notes a check's answer.
    pub(super) fn note(&self, began: Instant, answer: Result<Answer, String>) {
        let mut seen = self.seen();
        seen.checked = Some(began);
        // It is older than the check. A session that still fails will say so.
        seen.failure = None;
        if let (Some((missed, _)), Ok(answer)) = (seen.behind, &answer)
            && answer.reached.holds(missed) == Holds::Yes
        {
            seen.behind = None;
        }
        seen.answer = Some(answer);
    }

    /// Notes that the server has all of what the primary had at this time.
    pub(super) fn note_current(&self, at: Instant) {
        let mut seen = self.seen();
        // Never back: what it had at a later time, it still has.
        seen.current = seen.current.max(Some(at));
    }

    pub(super) fn answer(&self) -> Option<Answer> {
        match &self.seen().answer {
            // A copy, so that nothing is judged under the lock.
            Some(Ok(answer)) => Some(answer.clone()),
            _ => None,
        }
    }

    pub(super) fn status(&self, max_lag: Duration, max_age: Duration) -> ReplicaStatus {
        let seen = self.seen();
        ReplicaStatus {
            name: self.name.clone(),
            out_of_use: seen.out_of_use(max_lag, max_age),
            position: match &seen.answer {
                Some(Ok(answer)) => answer.reached.position(),
                _ => None,
            },
            lag: seen.current.map(|current| current.elapsed()),
        }
    }

    /// Writes into the log when the replica goes out of use, and when it is
    /// back.
    pub(super) fn tell(&self, max_lag: Duration, max_age: Duration) {
        let mut seen = self.seen();
        let out = seen.out_of_use(max_lag, max_age);
        let changed = out.is_some() != seen.is_told;
        seen.is_told = out.is_some();
        // Logging runs the subscriber's code, which must not run under the
        // lock.
        drop(seen);
        match out {
            Some(why) if changed => {
                tracing::warn!(target: "tower_sea_orm::replicas", replica = %self.name, "a replica is out of use: {why:?}");
            }
            None if changed => {
                tracing::info!(target: "tower_sea_orm::replicas", replica = %self.name, "a replica is in use again");
            }
            _ => {}
        }
    }

    /// Returns how well it can serve a read of a client with this position;
    /// `None` if it should not.
    pub(super) fn fitness(
        &self,
        position: Option<Position>,
        max_lag: Duration,
        max_age: Duration,
    ) -> Option<Fitness> {
        let seen = self.seen();
        let Some(Ok(answer)) = &seen.answer else {
            return None;
        };
        if seen.out_of_use(max_lag, max_age).is_some() {
            return None;
        }
        let Some(position) = position else {
            // A client that has written nothing lately is content with
            // `max_lag`.
            return Some(Fitness::Known);
        };
        match answer.reached.holds(position) {
            Holds::Yes => Some(Fitness::Known),
            // A wait would be in vain: the position is of another history.
            Holds::Never => None,
            Holds::NotYet => {
                // One wait for a replica that is behind is enough for now,
                // whichever request has waited.
                let is_behind = seen
                    .behind
                    .is_some_and(|(missed, at)| missed <= position && at.elapsed() < AGAIN);
                (!is_behind).then_some(Fitness::Likely)
            }
        }
    }
}

/// How well a replica can serve a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
// In this order for `max`: a known one goes before a likely one.
pub(super) enum Fitness {
    /// It may have replayed what the client has written.
    Likely,
    /// It has.
    Known,
}

impl Seen {
    fn out_of_use(&self, max_lag: Duration, max_age: Duration) -> Option<OutOfUse> {
        let is_recent = self.checked.is_some_and(|at| at.elapsed() <= max_age);
        match &self.answer {
            // Before anything else: since an old answer, the server may have
            // been promoted, and its connections take writes (H33).
            _ if !is_recent => Some(OutOfUse::NotChecked),
            None => Some(OutOfUse::NotChecked),
            Some(Err(why)) => Some(OutOfUse::Failed(why.clone())),
            // A promoted one has a history of its own: what it lacks of the
            // primary's cannot be told (G18).
            Some(Ok(answer)) if !answer.is_replica => Some(OutOfUse::Primary),
            Some(Ok(Answer {
                unfit: Some(why), ..
            })) => Some(OutOfUse::Failed(why.clone())),
            Some(Ok(_)) => match (&self.failure, self.current) {
                // Until the next check: each further session would pay the same
                // wait.
                (Some(why), _) => Some(OutOfUse::Failed(why.clone())),
                (None, Some(at)) if at.elapsed() <= max_lag => None,
                (None, _) => Some(OutOfUse::Lagging),
            },
        }
    }
}

impl Replica for Node {
    fn failed(&self, demand: &ReadDemand, error: &DbErr) {
        let known = Error::of(error);
        if known.as_ref().is_some_and(Error::is_replica_behind) {
            let missed = demand.at_least.map(|missed| (missed, Instant::now()));
            self.seen().behind = missed;
        } else if !known.is_some_and(|known| known.is_exhausted()) {
            // A busy pool is no reason to leave the server alone.
            self.seen().failure = Some(error.to_string());
        }
    }
}
