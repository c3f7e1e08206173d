//! [`Repeats`]: finds a statement that one request runs again and again.

use crate::sql::Redacted;

/// How many texts are counted at the same time.
const TEXTS: usize = 8;

/// The texts that a request has run, by their hashes.
///
/// Where more texts than it has places come in turns, it counts some too low or
/// misses them, but none too high (the algorithm of Misra and Gries).
#[derive(Default)]
pub(super) struct Repeats {
    first: u64,
    // In a box: most requests run one statement.
    more: Option<Box<Counts>>,
}

#[derive(Default)]
struct Counts {
    texts: [(u64, u32); TEXTS],
    most: Option<Repeated>,
}

/// A statement that one request has run too often.
pub(super) struct Repeated {
    hash: u64,
    pub(super) times: u32,
    pub(super) statement: Redacted,
}

impl Repeats {
    /// Counts a statement, which is kept once it has come more often than
    /// `threshold`.
    pub(super) fn note(&mut self, hash: u64, threshold: u32, statement: &Redacted) {
        if self.first == 0 {
            self.first = hash;
            return;
        }
        let first = self.first;
        let counts = self.more.get_or_insert_with(|| {
            let mut counts = Box::<Counts>::default();
            counts.count(first);
            counts
        });
        let times = counts.count(hash);
        if times > threshold {
            counts.keep(hash, times, statement);
        }
    }

    /// Returns the statement that came most often, if that was too often.
    pub(super) fn take_most(&mut self) -> Option<Repeated> {
        self.more.as_mut()?.most.take()
    }
}

impl Counts {
    /// Returns how often the text has come by now, or less.
    fn count(&mut self, hash: u64) -> u32 {
        let is_known = |(text, times): &&mut (u64, u32)| *text == hash && *times > 0;
        if let Some((_, times)) = self.texts.iter_mut().find(is_known) {
            *times = times.saturating_add(1);
            return *times;
        }
        if let Some(free) = self.texts.iter_mut().find(|(_, times)| *times == 0) {
            *free = (hash, 1);
            return 1;
        }
        // All places are taken. Each of them gives up one together with this
        // text, so that a text which comes more often than every ninth time is
        // sure to keep its place.
        for (_, times) in &mut self.texts {
            *times -= 1;
        }
        0
    }

    fn keep(&mut self, hash: u64, times: u32, statement: &Redacted) {
        match &mut self.most {
            Some(most) if most.hash == hash => most.times = times,
            Some(most) if most.times >= times => {}
            most => {
                *most = Some(Repeated {
                    hash,
                    times,
                    statement: statement.clone(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(texts: impl IntoIterator<Item = u64>, threshold: u32) -> Option<(u64, u32)> {
        let mut repeats = Repeats::default();
        for hash in texts {
            repeats.note(hash, threshold, &Redacted::default());
        }
        repeats.take_most().map(|most| (most.hash, most.times))
    }

    #[test]
    fn a_text_that_comes_too_often_is_found_with_its_count() {
        assert_eq!(most([7; 10], 10), None);
        assert_eq!(most([7; 11], 10), Some((7, 11)));
        assert_eq!(most([7; 40], 10), Some((7, 40)));
        // Two for each row, and one before.
        let texts = [1].into_iter().chain([2, 3].repeat(12));
        assert_eq!(most(texts, 10).map(|(_, times)| times), Some(12));
    }

    #[test]
    fn texts_that_differ_are_not_counted_as_one() {
        assert_eq!(most(1..1000, 10), None);
        // One text among many others, each of which comes once: too low at
        // most.
        let texts = (1..100).flat_map(|other| [7, 7, 7, 1000 + other]);
        let found = most(texts, 10);
        assert!(matches!(found, Some((7, 11..=297))), "{found:?}");
    }
}
