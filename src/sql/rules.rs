//! [`Rule`]: what statements mean, by their first words.

use super::lexer::{Lexer, Token, is_one_of};

/// A line of a table: words that statements begin with, what has to follow, and
/// what such statements mean.
pub(super) type Rule<Meaning> = (&'static [&'static str], Behind, Meaning);

/// What has to follow a statement's first word.
pub(super) enum Behind {
    Anything,
    /// One of these words.
    Next(&'static [&'static str]),
    /// TO, as in all forms of `ROLLBACK TO SAVEPOINT`.
    To,
}

/// Returns what a statement means that begins with `word` and goes on with
/// `rest`, by the first rule that fits.
pub(super) fn meaning<Meaning: Copy>(
    rules: &[Rule<Meaning>],
    word: &str,
    rest: Lexer<'_>,
) -> Option<Meaning> {
    // So a table has the special case before the general one: `ROLLBACK TO`
    // before ROLLBACK.
    let fits = |(first, behind, _): &&Rule<Meaning>| is_one_of(word, first) && behind.fits(rest);
    rules.iter().find(fits).map(|(.., meaning)| *meaning)
}

impl Behind {
    fn fits(&self, mut rest: Lexer<'_>) -> bool {
        match self {
            Self::Anything => true,
            // Some servers see what is behind a seam and others do not. It
            // counts as the word: on MySQL, which alone has seams, the rules
            // that ask for one are the stricter ones.
            Self::Next(words) => rest
                .next()
                .is_some_and(|next| next == Token::Seam || next.is_one_of(words)),
            // In between may be WORK or, on SQLite, TRANSACTION and a name.
            Self::To => rest
                .take(3)
                .take_while(|token| *token != Token::Symbol(b';'))
                .any(|token| token.is_word("to")),
        }
    }
}
