//! [`Registry`]: which sessions hold the pool's connections, and since when.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, Uri};
use tokio::sync::Notify;

use super::{SessionPool, Settings};
use crate::{connection::CancelHandle, error::Kind};

/// A session, as its pool sees it.
pub(crate) trait Holder: Send + Sync {
    /// The request it was opened in, by that one's outermost session.
    fn request(self: Arc<Self>) -> Option<Arc<dyn Holder>>;

    /// Whether its connections come from `pool`.
    fn is_of(&self, pool: &SessionPool) -> bool;

    /// Whether it cannot outlive the future of its request.
    fn is_bound(&self) -> bool;

    /// How many waits for a connection its request has; for a request's outermost session.
    fn waits(&self) -> &AtomicU32;

    /// Another session of its request has committed; for a request's outermost session.
    fn note_committed(&self);

    /// What it does with its connection.
    fn grip(&self) -> Grip;

    /// What runs for it, where the server can be asked whether it still does.
    fn doubtful(&self) -> Option<Doubt>;

    /// Has what runs for it looked at, whether its own future is polled or not.
    fn look_at_call(self: Arc<Self>);

    fn label(&self) -> Option<Label>;

    /// The beginning of its last statement, without values.
    fn last_statement(&self) -> String;

    /// For how long the body that it lives for has waited for its reader.
    fn unread_for(&self) -> Option<Duration>;

    /// Takes its connection away; its handler goes on and gets `reason` as an error. False if there is
    /// nothing to take, or what runs must be seen through.
    fn cut(self: Arc<Self>, reason: Kind) -> bool;
}

/// What a session does with the connection that the register knows it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grip {
    /// It has given it back: that is on its way.
    None,
    Idle,
    /// A statement is running on it.
    Busy,
}

/// A statement whose answer may have been lost.
pub(crate) struct Doubt {
    /// Names it among those of its connection.
    pub(crate) turn: u64,
    pub(crate) victim: Arc<CancelHandle>,
}

/// What a request is called in the log.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
}

/// Entries are used again, so that a session costs none.
#[derive(Default)]
pub(super) struct Registry {
    register: Mutex<Register>,
    /// Wakes the watcher before its time.
    alarm: Arc<Notify>,
}

#[derive(Default)]
struct Register {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    /// How many have entered so far.
    entered: u64,
    /// How many had when the watcher looked last.
    seen: u64,
    /// When the watcher looks next; `None` while there is none.
    watched_until: Option<Instant>,
}

struct Entry {
    holder: Weak<dyn Holder>,
    /// Its request, by that one's outermost session.
    request: Option<Weak<dyn Holder>>,
    /// `None` for who holds no connection of its own.
    watch: Option<Watch>,
}

/// Until when a holder may go on.
struct Watch {
    since: Instant,
    warn_at: Option<Instant>,
    /// When the server is asked whether it still works for the holder.
    ask_at: Option<Instant>,
    cut_at: Option<Instant>,
    /// What the log has called it.
    told: Option<Told>,
}

/// The log knows of a holder.
pub(super) struct Told {
    pub(super) label: Option<Label>,
    pub(super) since: Instant,
}

/// What the watcher has to do.
pub(super) struct Look {
    pub(super) long: Vec<(Arc<dyn Holder>, Duration)>,
    /// Those of which the server is to be asked.
    pub(super) doubtful: Vec<Arc<dyn Holder>>,
    pub(super) too_long: Vec<(Key, Arc<dyn Holder>, Duration)>,
    /// How long it may sleep; `None` if there is nothing left to watch.
    pub(super) next: Option<Duration>,
}

/// The place of an entry.
pub(crate) type Key = usize;

/// How often the watcher looks at least.
const TICK: Duration = Duration::from_secs(1);

/// How often the server is asked whether it works for a holder.
pub(super) const ASK: Duration = Duration::from_secs(5);

/// How soon it tries again to take a connection that could not be taken.
const AGAIN: Duration = Duration::from_millis(50);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn alarm(&self) -> Arc<Notify> {
        self.alarm.clone()
    }

    /// Notes a `holder` that is not watched, because it holds no connection of its own.
    pub(super) fn enter_unwatched(&self, holder: Weak<dyn Holder>) -> Key {
        let mut register = self.lock();
        register.entered += 1;
        register.place(Entry {
            holder,
            request: None,
            watch: None,
        })
    }

    /// Notes that `holder` holds a connection from now on; tells whether that needs a watcher.
    pub(super) fn enter(
        &self,
        holder: Weak<dyn Holder>,
        request: Option<Weak<dyn Holder>>,
        settings: &Settings,
    ) -> (Key, bool) {
        let since = Instant::now();
        let (warn_at, cut_at) = (
            since.checked_add(settings.hold_slow_threshold),
            since.checked_add(settings.hold_timeout),
        );
        let ask_at = warn_at.filter(|_| settings.cancel_running);
        let watch = Watch {
            since,
            warn_at,
            ask_at,
            cut_at,
            told: None,
        };
        let entry = Entry {
            holder,
            request,
            watch: Some(watch),
        };
        let mut register = self.lock();
        register.entered += 1;
        let key = register.place(entry);
        let due = [warn_at, cut_at].into_iter().flatten().min();
        match register.watched_until {
            None => {
                register.watched_until = Some(since);
                (key, true)
            }
            Some(until) => {
                drop(register);
                if due.is_some_and(|due| due < until) {
                    self.alarm.notify_one();
                }
                (key, false)
            }
        }
    }

    /// Forgets a holder whose connection is back, and returns what the log knows of it.
    pub(super) fn leave(&self, key: Key) -> Option<Told> {
        let mut register = self.lock();
        let entry = register.entries.get_mut(key)?.take()?;
        register.free.push(key);
        entry.watch?.told
    }

    /// Those that are there.
    pub(super) fn all(&self) -> Vec<Arc<dyn Holder>> {
        self.lock()
            .entries
            .iter()
            .flatten()
            .filter_map(|entry| entry.holder.upgrade())
            .collect()
    }

    /// Those that are watched, with their places.
    pub(super) fn watched(&self) -> Vec<(Key, Arc<dyn Holder>)> {
        let register = self.lock();
        let entries = register.entries.iter().enumerate();
        let watched = entries.filter_map(|(key, entry)| {
            Some((key, entry.as_ref()?.watch.as_ref().and(entry.as_ref())?))
        });
        watched
            .filter_map(|(key, entry)| Some((key, entry.holder.upgrade()?)))
            .collect()
    }

    /// Those of `request`.
    pub(super) fn of(&self, request: &Arc<dyn Holder>) -> Vec<Arc<dyn Holder>> {
        let register = self.lock();
        let own = register
            .entries
            .iter()
            .flatten()
            .filter(|entry| entry.is_of(request));
        own.filter_map(|entry| entry.holder.upgrade()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Finds those that have held for too long; each is named once.
    pub(super) fn look(&self) -> Look {
        let now = Instant::now();
        let mut look = Look {
            long: Vec::new(),
            doubtful: Vec::new(),
            too_long: Vec::new(),
            next: Some(TICK),
        };
        let mut register = self.lock();
        for (key, entry) in register.entries.iter_mut().enumerate() {
            let Some(entry) = entry else { continue };
            entry.look(key, now, &mut look);
        }
        let is_quiet = register.len() == 0 && register.seen == register.entered;
        register.seen = register.entered;
        if is_quiet {
            look.next = None;
        }
        register.watched_until = look.next.and_then(|next| now.checked_add(next));
        drop(register);
        look
    }

    /// A holder's connection is about to be taken away: its return will be no news.
    pub(super) fn hush(&self, key: Key, holder: &Arc<dyn Holder>) -> Option<Told> {
        let mut register = self.lock();
        let watch = register.entry_of(key, holder)?.watch.as_mut()?;
        (watch.warn_at, watch.ask_at, watch.cut_at) = (None, None, None);
        watch.told.take()
    }

    /// It could not be taken away: that is tried again.
    pub(super) fn try_again(&self, key: Key, holder: &Arc<dyn Holder>, told: Option<Told>) {
        if let Some(watch) = self
            .lock()
            .entry_of(key, holder)
            .and_then(|entry| entry.watch.as_mut())
        {
            watch.cut_at = Instant::now().checked_add(AGAIN);
            watch.told = told;
        }
    }

    /// The watcher has ended with its runtime: the next holder starts another one.
    pub(super) fn unwatch(&self) {
        self.lock().watched_until = None;
    }
}

impl Register {
    fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn place(&mut self, entry: Entry) -> Key {
        if let Some(key) = self.free.pop()
            && let Some(place) = self.entries.get_mut(key)
        {
            *place = Some(entry);
            return key;
        }
        self.entries.push(Some(entry));
        self.entries.len() - 1
    }

    /// The place may be another one's by now.
    fn entry_of(&mut self, key: Key, holder: &Arc<dyn Holder>) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(key)?.as_mut()?;
        std::ptr::addr_eq(entry.holder.as_ptr(), Arc::as_ptr(holder)).then_some(entry)
    }
}

impl Entry {
    fn is_of(&self, request: &Arc<dyn Holder>) -> bool {
        self.request
            .as_ref()
            .is_some_and(|own| std::ptr::addr_eq(own.as_ptr(), Arc::as_ptr(request)))
    }

    /// What is upgraded here must not be dropped under the lock: `look` takes it all along.
    fn look(&mut self, key: Key, now: Instant, look: &mut Look) {
        let Some(watch) = &mut self.watch else { return };
        let is_long = watch.warn_at.is_some_and(|at| at <= now);
        let is_doubtful = watch.ask_at.is_some_and(|at| at <= now);
        let is_too_long = watch.cut_at.is_some_and(|at| at <= now);
        let held = now.saturating_duration_since(watch.since);
        if (is_long || is_doubtful || is_too_long)
            && let Some(holder) = self.holder.upgrade()
        {
            if is_long && watch.told.is_none() {
                watch.told = Some(Told {
                    label: holder.label(),
                    since: watch.since,
                });
            }
            if is_long {
                look.long.push((holder.clone(), held));
            }
            if is_doubtful {
                look.doubtful.push(holder.clone());
            }
            if is_too_long {
                look.too_long.push((key, holder, held));
            }
        }
        watch.warn_at = watch.warn_at.filter(|_| !is_long);
        if is_doubtful {
            watch.ask_at = now.checked_add(ASK);
        }
        if is_too_long {
            watch.cut_at = now.checked_add(AGAIN);
        }
        for due in [watch.warn_at, watch.ask_at, watch.cut_at]
            .into_iter()
            .flatten()
        {
            look.next = look.next.min(Some(due.saturating_duration_since(now)));
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // The watcher finds the pool gone.
        self.alarm.notify_one();
    }
}

/// Whether two are the same.
pub(super) fn is_same(one: &Arc<dyn Holder>, other: &Arc<dyn Holder>) -> bool {
    Arc::ptr_eq(one, other)
}

/// Counts a wait of a request for as long as it lasts.
pub(super) struct Wait(Option<Arc<dyn Holder>>);

impl Wait {
    pub(super) fn of(request: Option<Arc<dyn Holder>>) -> Self {
        if let Some(request) = &request {
            request.waits().fetch_add(1, Ordering::Relaxed);
        }
        Self(request)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(request) = &self.0 {
            request.waits().fetch_sub(1, Ordering::Relaxed);
        }
    }
}
