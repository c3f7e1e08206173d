//! [`Throttle`]: log lines that a storm of failures must not multiply.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const SECOND: Duration = Duration::from_secs(1);

/// Lets some log lines of each kind pass a second, and counts the rest.
#[derive(Default)]
// By kinds, which are few and known when the crate is built: no request can
// make it grow.
pub(crate) struct Throttle(Mutex<Vec<(&'static str, Window)>>);

#[derive(Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Throttle {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(&'static str, Window)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many lines of this kind were suppressed since the last one,
    /// if another one may be written now: `most` a second.
    pub(crate) fn next_line(&self, kind: &'static str, most: u32) -> Option<u64> {
        let mut kinds = self.lock();
        // A list: the kinds are few, and only failures come here.
        let known = kinds.iter().position(|(known, _)| *known == kind);
        let position = known.unwrap_or_else(|| {
            kinds.push((kind, Window::default()));
            kinds.len() - 1
        });
        let (_, window) = kinds.get_mut(position)?;
        // The caller's number, because one kind of line may be worth more than
        // another.
        window.next_line(most)
    }

    /// Returns how many lines of this kind were suppressed, if the last second
    /// has seen none; they are forgotten then.
    pub(crate) fn calm(&self, kind: &'static str) -> Option<u64> {
        let mut kinds = self.lock();
        let (_, window) = kinds.iter_mut().find(|(known, _)| *known == kind)?;
        // Taken, so that the end of a storm is told once.
        window.since.take_if(|since| since.elapsed() >= SECOND)?;
        Some(std::mem::take(&mut window.suppressed))
    }
}

impl Window {
    fn next_line(&mut self, most: u32) -> Option<u64> {
        if self.since.is_none_or(|since| since.elapsed() >= SECOND) {
            (self.since, self.lines) = (Some(Instant::now()), 0);
        }
        // `u32::MAX` lets all pass: no process writes so many in a second.
        if self.lines == most {
            // Counted: a log that says nothing of the rest makes a storm look
            // like one failure.
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}
