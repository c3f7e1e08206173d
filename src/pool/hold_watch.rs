//! Watching those who hold connections: `hold_slow_threshold` and `hold_timeout`.
//!
//! One task per pool, started by a holder that finds none, and gone when there has been no holder for a
//! second or two.

use std::{
    pin::pin,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures_util::future::select;
use tokio::runtime::Handle;

use super::{
    Holder, SessionPool, Shared,
    lost_statements::Suspect,
    registry::{ASK, Key, Told},
};
use crate::error::Kind;

/// How often stalled statements are looked for, and so how long one has run before the server is asked about it.
const STALL_CHECK: Duration = Duration::from_secs(1);

impl SessionPool {
    /// Notes that `holder`, of `request`, holds a connection from now on, and sees to it that somebody watches.
    pub(super) fn note_holder(
        &self,
        holder: Weak<dyn Holder>,
        request: Option<Weak<dyn Holder>>,
        runtime: &Handle,
    ) -> Key {
        let (key, needs_watcher) = self.shared.holders.enter(holder, request, self.settings());
        if needs_watcher {
            let watcher = Watcher {
                shared: Arc::downgrade(&self.shared),
                over: false,
                ask_at: Instant::now(),
            };
            runtime.spawn(watcher.watch());
        }
        key
    }

    /// Notes a session that passes its statements through: nothing of it is watched.
    pub(crate) fn note_direct(&self, holder: Weak<dyn Holder>) -> Key {
        self.shared.holders.enter_unwatched(holder)
    }

    /// Notes that a holder's connection is back.
    pub(crate) fn note_return(&self, key: Key) {
        let told = self.shared.holders.leave(key);
        if let Some(Told { label, since }) = told {
            tracing::info!(
                target: "tower_sea_orm::pool",
                method = label.as_ref().map(|label| label.method.as_str()),
                path = label.as_ref().map(|label| label.uri.path()),
                held_ms = since.elapsed().as_millis() as u64,
                "a connection that was held for long came back after all",
            );
        }
        self.shared.closing.changed();
    }
}

/// Looks after those who hold connections. Dropped with its runtime, it leaves that to the next one.
struct Watcher {
    shared: Weak<Shared>,
    over: bool,
    /// When to look for stalled statements next.
    ask_at: Instant,
}

impl Watcher {
    async fn watch(mut self) {
        let Some(alarm) = self.shared.upgrade().map(|shared| shared.holders.alarm()) else {
            return;
        };
        let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            let next = look(&shared);
            self.look_for_stall(&shared);
            self.over = next.is_none();
            drop(shared);
            let Some(next) = next else { return };
            sleep.as_mut().reset(tokio::time::Instant::now() + next);
            select(pin!(alarm.notified()), sleep.as_mut()).await;
        }
    }

    /// If requests wait and no connection is free, asks the server about the statements that were already running at
    /// the last check: the network may have lost their connections.
    fn look_for_stall(&mut self, shared: &Arc<Shared>) {
        let now = Instant::now();
        let pool = SessionPool {
            shared: shared.clone(),
        };
        if now < self.ask_at || !shared.queue.is_exhausted() || !pool.has_server() {
            return;
        }
        self.ask_at = now + STALL_CHECK;
        let holders = shared
            .holders
            .watched()
            .into_iter()
            .map(|(_, holder)| holder);
        let suspects: Vec<_> = holders
            .filter_map(Suspect::of)
            .filter(Suspect::ran_before)
            .collect();
        if !suspects.is_empty() {
            self.ask_at = now + ASK;
            tokio::spawn(pool.look_for_losses(suspects));
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Regularly ended it has said so, and another one may have begun.
        if let Some(shared) = self.shared.upgrade().filter(|_| !self.over) {
            shared.holders.unwatch();
        }
    }
}

/// Does what is due, and returns how long there is nothing to do.
fn look(shared: &Arc<Shared>) -> Option<Duration> {
    let look = shared.holders.look();
    for suspect in look.doubtful.into_iter().filter_map(Suspect::of) {
        tokio::spawn(
            SessionPool {
                shared: shared.clone(),
            }
            .look_for_loss(suspect),
        );
    }
    for (holder, held) in look.long {
        let label = holder.label();
        tracing::warn!(
            target: "tower_sea_orm::pool",
            method = label.as_ref().map(|label| label.method.as_str()),
            path = label.as_ref().map(|label| label.uri.path()),
            held_ms = held.as_millis() as u64,
            statement = holder.last_statement(),
            "a session has held its connection for long: `release()` it around what needs no database",
        );
    }
    for (key, holder, held) in look.too_long {
        let (label, statement) = (holder.label(), holder.last_statement());
        let told = shared.holders.hush(key, &holder);
        if !holder.clone().cut(Kind::Reclaimed) {
            shared.holders.try_again(key, &holder, told);
            continue;
        }
        tracing::warn!(
            target: "tower_sea_orm::pool",
            method = label.as_ref().map(|label| label.method.as_str()),
            path = label.as_ref().map(|label| label.uri.path()),
            held_ms = held.as_millis() as u64,
            statement,
            "a session held its connection for longer than `hold_timeout`: it was taken away",
        );
    }
    cut_unread(shared);
    look.next
}

/// Cuts off the sessions whose clients have stopped reading the bodies that they live for.
fn cut_unread(shared: &Shared) {
    let bound = shared.settings.body_timeout;
    if bound == Duration::MAX {
        return;
    }
    for (key, holder) in shared.holders.watched() {
        let Some(unread) = holder.unread_for().filter(|unread| *unread >= bound) else {
            continue;
        };
        let (label, told) = (holder.label(), shared.holders.hush(key, &holder));
        if !holder.clone().cut(Kind::Unread) {
            shared.holders.try_again(key, &holder, told);
            continue;
        }
        tracing::warn!(
            target: "tower_sea_orm::pool",
            method = label.as_ref().map(|label| label.method.as_str()),
            path = label.as_ref().map(|label| label.uri.path()),
            unread_ms = unread.as_millis() as u64,
            "the client has not read the body for longer than `body_timeout`: its session was cut off",
        );
    }
}
