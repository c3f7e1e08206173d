//! Words in whatever case.

pub(super) fn is_one_of(word: &str, words: &[&str]) -> bool {
    words.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// Returns whether `word` begins so, in whatever case.
pub(super) fn starts_with(word: &str, beginning: &str) -> bool {
    word.get(..beginning.len())
        .is_some_and(|found| found.eq_ignore_ascii_case(beginning))
}
