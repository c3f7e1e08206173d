//! [`Registry`]: which sessions hold the pool's connections, since when, and until when they may.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    entry::{AGAIN, Due, Entry, Logged, Watch},
    holder::{Holder, Key},
    options::Settings,
};

/// The hold watch looks at least this often.
const TICK: Duration = Duration::from_secs(1);

#[derive(Default)]
// Beside the ledger: the hold watch looks through all entries under this lock,
// and acquiring must not wait for that.
pub(super) struct Registry(Mutex<Entries>);

/// Entries are used again, so that a session allocates none.
#[derive(Default)]
struct Entries {
    places: Vec<Option<Entry>>,
    free: Vec<Key>,
    /// Those that would lend their connection, in the order in which they have
    /// offered it.
    // Sorted by number, so that a statement withdraws its session's offer
    // without looking through the others.
    offers: BTreeMap<u64, Key>,
    /// The number of offers so far.
    offered: u64,
    /// The number that have entered so far.
    entered: u64,
    /// The number that had when the hold watch looked last.
    seen: u64,
    /// The time at which the hold watch looks next.
    watched_until: Option<Instant>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a `holder` that is not watched, because it holds no connection of
    /// the pool's.
    pub(super) fn enter_unwatched(&self, holder: Weak<dyn Holder>) -> Key {
        self.lock().place(Entry::new(holder, None, None))
    }

    /// Enters a `holder` of a connection. Returns as well whether its time is
    /// up before the hold watch looks next.
    pub(super) fn enter(
        &self,
        holder: Weak<dyn Holder>,
        request: Option<Weak<dyn Holder>>,
        settings: &Settings,
    ) -> (Key, bool) {
        let counted = request.as_ref().and_then(Weak::upgrade);
        if let Some(request) = &counted {
            request.holds().fetch_add(1, Ordering::Relaxed);
        }
        let watch = Watch::begin(settings);
        let due = watch.due();
        // Entered and compared under one lock: the hold watch sets
        // `watched_until` under it before it sleeps.
        let mut entries = self.lock();
        let key = entries.place(Entry::new(holder, request, Some(watch)));
        let is_early = due
            .zip(entries.watched_until)
            .is_some_and(|(due, until)| due < until);
        (key, is_early)
    }

    /// Notes that a holder's connection is on its way back: its request holds
    /// it no more.
    pub(super) fn begin_return(&self, key: Key) {
        let mut entries = self.lock();
        let entry = entries.places.get_mut(key).and_then(Option::as_mut);
        // Taken, so that `leave` does not count it down once more.
        let request = entry.and_then(|entry| entry.request.take());
        drop(entries);
        uncount(request);
    }

    /// Notes that a holder would lend its connection.
    pub(super) fn offer(&self, key: Key) {
        let mut entries = self.lock();
        let number = entries.offered;
        entries.offered += 1;
        if let Some(Some(entry)) = entries.places.get_mut(key)
            && entry.offer.is_none()
        {
            // An offer that stands keeps its number, so that the oldest lends
            // first however often its request is polled.
            entry.offer = Some(number);
            entries.offers.insert(number, key);
        }
    }

    /// Notes that a holder would not lend its connection any more.
    pub(super) fn withdraw(&self, key: Key) {
        let mut entries = self.lock();
        if let Some(Some(entry)) = entries.places.get_mut(key)
            && let Some(number) = entry.offer.take()
        {
            entries.offers.remove(&number);
        }
    }

    /// Returns how many would lend their connection.
    pub(super) fn offers(&self) -> usize {
        self.lock().offers.len()
    }

    /// Takes the oldest offer.
    pub(super) fn take_offer(&self) -> Option<Arc<dyn Holder>> {
        let mut entries = self.lock();
        while let Some((_, key)) = entries.offers.pop_first() {
            let entry = entries.places.get_mut(key).and_then(Option::as_mut);
            // A session that has gone is in here until its connection is back.
            let lender = entry.and_then(|entry| {
                // Off the list before it is asked to lend: the next waiter
                // takes the next offer.
                entry.offer = None;
                entry.holder.upgrade()
            });
            if lender.is_some() {
                return lender;
            }
        }
        None
    }

    /// Removes a holder whose connection is back, and returns what the log says
    /// of it.
    pub(super) fn leave(&self, key: Key) -> Option<Logged> {
        let mut entries = self.lock();
        let entry = entries.places.get_mut(key)?.take()?;
        // From here on the place may be another session's: code that acts on a
        // key compares the holder as well.
        entries.free.push(key);
        if let Some(number) = entry.offer {
            entries.offers.remove(&number);
        }
        drop(entries);
        uncount(entry.request);
        entry.watch?.logged
    }

    pub(super) fn all(&self) -> Vec<Arc<dyn Holder>> {
        let entries = self.lock();
        let present = entries.places.iter().flatten();
        // Handed out and not dropped here, under the lock: one may be the last
        // handle of its session.
        present.filter_map(|entry| entry.holder.upgrade()).collect()
    }

    /// Returns whether a session of `request` holds one of the pool's
    /// connections, and has not begun to give it back.
    // By a look at all: a request counts what it holds of any pool
    // (`Holder::holds`), one of a replica's or another database's included, and
    // few that hold something come to wait.
    pub(super) fn is_held_by(&self, request: &Arc<dyn Holder>) -> bool {
        let entries = self.lock();
        let mut holding = entries.places.iter().flatten();
        holding.any(|entry| {
            let of = entry.request.as_ref();
            of.is_some_and(|of| std::ptr::addr_eq(of.as_ptr(), Arc::as_ptr(request)))
        })
    }

    /// Returns those that are watched, with their places.
    pub(super) fn watched(&self) -> Vec<(Key, Arc<dyn Holder>)> {
        let entries = self.lock();
        let places = entries.places.iter().enumerate();
        places
            .filter_map(|(key, entry)| {
                let entry = entry.as_ref().filter(|entry| entry.watch.is_some())?;
                Some((key, entry.holder.upgrade()?))
            })
            .collect()
    }

    /// Returns for how long the first of those that are watched has held its
    /// connection.
    pub(super) fn oldest(&self) -> Duration {
        let entries = self.lock();
        let watched = entries
            .places
            .iter()
            .flatten()
            .filter_map(|entry| entry.watch.as_ref());
        watched
            .map(|watch| watch.since.elapsed())
            .max()
            .unwrap_or_default()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns those that have held for too long. A slow one is named once, the
    /// others for as long as they are.
    pub(super) fn due(&self) -> Due {
        let now = Instant::now();
        let mut due = Due {
            long: Vec::new(),
            doubtful: Vec::new(),
            too_long: Vec::new(),
            // At the latest: bodies that nothing reads have no time here, and
            // are looked at with each tick.
            next: Some(TICK),
        };
        let mut entries = self.lock();
        for (key, entry) in entries.places.iter_mut().enumerate() {
            if let Some(entry) = entry {
                entry.look(key, now, &mut due);
            }
        }
        // One that came and went since the last look counts: the watch would
        // end and start anew with each request of a service that has one at a
        // time.
        if !entries.is_any_unseen() {
            due.next = None;
        }
        entries.seen = entries.entered;
        entries.watched_until = due.next.and_then(|next| now.checked_add(next));
        drop(entries);
        due
    }

    /// Returns whether some hold a connection, or have since [`due`](Self::due)
    /// was called last.
    pub(super) fn is_any_unseen(&self) -> bool {
        self.lock().is_any_unseen()
    }

    /// Watches a holder as if it had just come.
    pub(super) fn begin_anew(&self, key: Key, holder: &Arc<dyn Holder>, settings: &Settings) {
        let mut entries = self.lock();
        let watch = entries.watch_of(key, holder);
        let before = watch.map(|watch| std::mem::replace(watch, Watch::begin(settings)));
        drop(entries);
        drop(before);
    }

    /// Stops watching a holder whose connection is about to be taken away, so
    /// that its return is not logged.
    pub(super) fn unwatch(&self, key: Key, holder: &Arc<dyn Holder>) -> Option<Logged> {
        let mut entries = self.lock();
        let watch = entries.watch_of(key, holder)?;
        (watch.warn_at, watch.ask_at, watch.cut_at) = (None, None, None);
        // Taken along: the cut has a line of its own in the log.
        watch.logged.take()
    }

    /// Watches it again: its connection could not be taken away.
    pub(super) fn watch_again(&self, key: Key, holder: &Arc<dyn Holder>, logged: Option<Logged>) {
        if let Some(watch) = self.lock().watch_of(key, holder) {
            watch.cut_at = Instant::now().checked_add(AGAIN);
            watch.logged = logged;
        }
    }
}

impl Entries {
    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn is_any_unseen(&self) -> bool {
        self.len() > 0 || self.seen != self.entered
    }

    fn place(&mut self, entry: Entry) -> Key {
        self.entered += 1;
        if let Some(key) = self.free.pop()
            && let Some(place) = self.places.get_mut(key)
        {
            *place = Some(entry);
            return key;
        }
        self.places.push(Some(entry));
        self.places.len() - 1
    }

    /// The place may be another one's by now.
    fn watch_of(&mut self, key: Key, holder: &Arc<dyn Holder>) -> Option<&mut Watch> {
        let entry = self.places.get_mut(key)?.as_mut()?;
        // By the address alone: the same type may have several vtables.
        let is_same = std::ptr::addr_eq(entry.holder.as_ptr(), Arc::as_ptr(holder));
        entry.watch.as_mut().filter(|_| is_same)
    }
}

/// Not to be called under the lock: the request may end here.
fn uncount(request: Option<Weak<dyn Holder>>) {
    if let Some(request) = request.and_then(|request| request.upgrade()) {
        request.holds().fetch_sub(1, Ordering::Relaxed);
    }
}
