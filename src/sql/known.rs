//! [`KnownTexts`]: the statements of one database that were read before.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use sea_orm::DbBackend;

use super::{
    calls::calls_nothing_unknown,
    classified::{Classified, Earlier},
    classify,
};

/// The number of texts that are remembered at most; two whose hashes share a
/// place take turns.
// 8 KiB for a pool. Too few cost time only: a text that has lost its place is
// read again.
const PLACES: usize = 1024;

/// Classifies statements, and remembers those that work on rows and on nothing
/// else: a service sends the same few texts again and again, and to hash one
/// takes a tenth of the time that reading it does.
pub(crate) struct KnownTexts {
    backend: DbBackend,
    /// Its key is random, so that nobody can write two texts of one hash.
    hasher: RandomState,
    /// 0, or the hash of a text whose lowest bits say which of [`KINDS`] it is
    /// of, and what it calls.
    // One word, read and written as a whole: no lock. No text is kept, since 60
    // bits of a keyed hash tell them apart.
    places: Box<[AtomicU64]>,
    /// The number of places that have a text.
    taken: AtomicUsize,
    /// Beyond so many texts the driver prepares some of them again and again,
    /// which is worth a line in the log.
    prepared: Option<usize>,
}

/// The kinds of statements that are remembered, from 1 on.
// Nothing that asks, changes or leaves a doubt: such texts are rare, and would
// need more bits.
const KINDS: [Classified; 3] = [
    Classified::plain(true, Earlier::Any),
    Classified::plain(false, Earlier::Write),
    Classified::plain(false, Earlier::Insert),
];

/// The bits of a place that say of which kind its text is.
const KIND: u64 = 0b0011;

/// The bits that say whether it calls something unknown; none of them if
/// nothing has asked yet.
const CALLS_UNKNOWN: u64 = 0b0100;
const CALLS_NOTHING_UNKNOWN: u64 = 0b1000;

const HASH: u64 = !0b1111;

impl KnownTexts {
    pub(crate) fn new(backend: DbBackend) -> Self {
        Self::with_places(backend, PLACES)
    }

    /// Remembers nothing: for a handle that is made anew for each request.
    pub(crate) fn none(backend: DbBackend) -> Self {
        Self::with_places(backend, 0)
    }

    fn with_places(backend: DbBackend, places: usize) -> Self {
        Self {
            backend,
            hasher: RandomState::new(),
            places: (0..places).map(|_| AtomicU64::new(0)).collect(),
            taken: AtomicUsize::new(0),
            prepared: None,
        }
    }

    /// Logs it once if there are more texts than the `prepared` statements that
    /// a connection keeps.
    pub(crate) fn with_prepared(mut self, prepared: Option<usize>) -> Self {
        self.prepared = prepared;
        self
    }

    /// [`classify`], unless the text is known; and the text's hash.
    pub(crate) fn classify(&self, sql: &str) -> (Classified, u64) {
        let hash = self.hasher.hash_one(sql);
        (self.look_up(sql, hash), hash)
    }

    /// [`calls_nothing_unknown`], unless that is known of the text with this
    /// hash.
    pub(crate) fn calls_nothing_unknown(&self, sql: &str, hash: u64) -> bool {
        let read = || calls_nothing_unknown(self.backend, sql);
        let Some(place) = self.place(hash) else {
            return read();
        };
        let known = place.load(Relaxed);
        if known & HASH != hash & HASH || known & KIND == 0 {
            return read();
        }
        match known & (CALLS_UNKNOWN | CALLS_NOTHING_UNKNOWN) {
            0 => {
                let (answer, bit) = match read() {
                    true => (true, CALLS_NOTHING_UNKNOWN),
                    false => (false, CALLS_UNKNOWN),
                };
                // Another text may have taken the place meanwhile, and loses
                // it: each word is true by itself.
                place.store(known | bit, Relaxed);
                answer
            }
            bits => bits == CALLS_NOTHING_UNKNOWN,
        }
    }

    /// The place for a text with this hash, if texts are kept.
    fn place(&self, hash: u64) -> Option<&AtomicU64> {
        // Its highest bits, ten for 1024 places: the lowest make room for the
        // kind.
        let at = usize::try_from(hash >> 54).ok()?;
        self.places.get(at)
    }

    fn look_up(&self, sql: &str, hash: u64) -> Classified {
        let Some(place) = self.place(hash) else {
            return classify(self.backend, sql);
        };
        // Relaxed: the word is all there is to see, and nothing else is read
        // because of it.
        let known = place.load(Relaxed);
        if known & HASH == hash & HASH
            && let Some(kind) = kind(known)
        {
            return kind;
        }
        let text = classify(self.backend, sql);
        if let Some(kind) = (1..)
            .zip(KINDS)
            .find_map(|(bits, kind)| (kind == text).then_some(bits))
        {
            place.store(hash & HASH | kind, Relaxed);
            // Two texts that share a place count once, and one that two threads
            // read at once may count twice: the warning need not come at the
            // exact number.
            if known == 0 {
                self.note_new();
            }
        }
        text
    }

    fn note_new(&self) {
        let before = self.taken.fetch_add(1, Relaxed);
        // Equal, not more: one line in a pool's life.
        if self.prepared == Some(before) {
            tracing::warn!(
                target: "tower_sea_orm::pool",
                prepared = before,
                "there are more different statements than a connection keeps prepared: one that it has to prepare anew can take 40 ms \
                 more; set `statement-cache-capacity` in the database's URL",
            );
        }
    }
}

/// Returns the kind that a place's lowest bits name.
fn kind(place: u64) -> Option<Classified> {
    let bits = usize::try_from(place & KIND).ok()?;
    KINDS.get(bits.checked_sub(1)?).copied()
}
