//! [`HoldWatch`]: looks after the sessions that hold connections: `hold_slow_threshold`, `hold_timeout`, `body_timeout`,
//! and statements whose answers were lost.
//!
//! One task per pool, started by the first holder, and gone when there has been
//! no holder for a second or two.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    background::Work,
    entry::ASK,
    holder::{Grip, Holder, Key},
    inner::PoolInner,
    log::log_session,
    lost_statements::{self, Suspect},
};
use crate::error::Kind;

/// Stalled statements are looked for this often, and have run for as long
/// before the server is asked about them.
const STALL_CHECK: Duration = Duration::from_secs(1);

pub(super) struct HoldWatch {
    // Weak, because it is a task: a pool whose last handle goes must not be
    // kept by its watch.
    pool: Weak<PoolInner>,
    /// When to look for stalled statements next.
    ask_at: Instant,
}

impl HoldWatch {
    pub(super) fn over(pool: &Arc<PoolInner>) -> Self {
        Self {
            pool: Arc::downgrade(pool),
            ask_at: Instant::now(),
        }
    }

    /// If requests wait and no connection is free, asks the server about the
    /// statements that were already running at the last check: the network may
    /// have lost their connections.
    fn look_for_stall(&mut self, pool: &Arc<PoolInner>) {
        let now = Instant::now();
        // Only while it hurts: each question takes a connection beside the
        // pool, of which the account may have none left.
        if now < self.ask_at || !pool.ledger().is_exhausted() || !pool.has_server() {
            return;
        }
        // At each check, also where none is asked about: what runs now is what
        // `ran_before` next time.
        self.ask_at = now + STALL_CHECK;
        let (holders, oldest) = (pool.registry.watched(), pool.registry.oldest());
        let suspects: Vec<_> = holders
            .into_iter()
            .filter_map(|(_, holder)| Suspect::of(holder))
            .filter(Suspect::ran_before)
            .collect();
        if !suspects.is_empty() {
            self.ask_at = now + ASK;
            lost_statements::look_for(&pool.cancels, suspects, oldest);
        }
    }
}

impl Work for HoldWatch {
    async fn step(&mut self) -> bool {
        let Some(pool) = self.pool.upgrade() else {
            return false;
        };
        let next = look(&pool);
        // After `look`, which frees connections that were held for too long.
        self.look_for_stall(&pool);
        let background = pool.hold_watch.clone();
        // Not held while it sleeps: the pool may go.
        drop(pool);
        let Some(next) = next else { return false };
        let _ = timeout(next, background.rung()).await;
        true
    }

    fn is_pending(&self) -> bool {
        self.pool
            .upgrade()
            .is_some_and(|pool| pool.registry.is_any_unseen())
    }

    fn abandon(&mut self) {}
}

/// Does what is due, and returns for how long nothing else is.
fn look(pool: &PoolInner) -> Option<Duration> {
    let due = pool.registry.due();
    // In tasks of their own: the server may take long to answer, or never do.
    for suspect in due.doubtful.into_iter().filter_map(Suspect::of) {
        tokio::spawn(lost_statements::look_for_one(pool.cancels.clone(), suspect));
    }
    // Once for each, whatever it has exceeded: it may hold another connection
    // by the next line.
    let mut lenders = Vec::new();
    let mut holds_on = |(key, holder, _): &(Key, Arc<dyn Holder>, Duration)| {
        if !lenders.contains(key) && lends(pool, *key, holder) {
            lenders.push(*key);
        }
        !lenders.contains(key)
    };
    let (mut long, mut too_long) = (due.long, due.too_long);
    long.retain(&mut holds_on);
    too_long.retain(&mut holds_on);
    for (_, holder, held) in long {
        log_session!(
            warn,
            holder.label(),
            held_ms = held.as_millis() as u64,
            statement = holder.last_statement(),
            "a session has held its connection for a long time: call `release()` before work that needs no database",
        );
    }
    for (key, holder, held) in too_long {
        let (label, statement) = (holder.label(), holder.last_statement());
        // Read before the cut, which ends the statement that is named.
        if cut(pool, key, &holder, Kind::Reclaimed) {
            log_session!(
                warn,
                label,
                held_ms = held.as_millis() as u64,
                statement,
                "a session held its connection for longer than `hold_timeout`: its connection was taken away",
            );
        }
    }
    // Not by times of their own in the registry: a body's time starts anew with
    // each part that is taken from it.
    cut_unread(pool);
    due.next
}

/// Returns whether a holder may lend its connection, and has it do so: it is
/// not used, and nothing is lost.
fn lends(pool: &PoolInner, key: Key, holder: &Arc<dyn Holder>) -> bool {
    let is_lendable = holder.grip() == Grip::Lendable;
    if is_lendable {
        // First: it may be about to use its connection, which it then keeps.
        pool.registry.begin_anew(key, holder, &pool.settings);
        // Not cut off: a session of which nothing is on the connection loses
        // nothing by another one
        // (`a_session_that_may_lend_exceeds_no_hold_timeout`).
        holder.clone().lend();
    }
    is_lendable
}

/// Cuts off the sessions whose clients have stopped reading the bodies that
/// they live for.
fn cut_unread(pool: &PoolInner) {
    let bound = pool.settings.body_timeout;
    if bound == Duration::MAX {
        return;
    }
    for (key, holder) in pool.registry.watched() {
        // Since the last part that was taken: a body that has nothing to send
        // is not unread
        // (`a_body_that_is_idle_for_a_while_is_not_mistaken_for_an_unread_one`).
        let Some(unread) = holder.unread_for().filter(|unread| *unread >= bound) else {
            continue;
        };
        // Read before the cut, with which the session may go.
        let label = holder.label();
        if cut(pool, key, &holder, Kind::Unread) {
            log_session!(
                warn,
                label,
                unread_ms = unread.as_millis() as u64,
                "the client has not read the body for longer than `body_timeout`: its session was cut off",
            );
        }
    }
}

/// Takes a session's connection away, and returns whether that could be done;
/// otherwise it is tried again.
fn cut(pool: &PoolInner, key: Key, holder: &Arc<dyn Holder>, reason: Kind) -> bool {
    // Before the cut, after which the connection may come back at any moment.
    let logged = pool.registry.unwatch(key, holder);
    // A COMMIT that was sent is not cut: its outcome would be unknown for no
    // need (G7).
    let is_cut = holder.clone().cut(reason);
    if !is_cut {
        pool.registry.watch_again(key, holder, logged);
    }
    is_cut
}
