//! MySQL and MariaDB: many statements commit what came before, and stored code
//! may do anything.
//!
//! A comment that begins with `/*!` or `/*M!` is SQL to some servers. Its begin
//! and its end are seams: until a statement has a word outside such comments,
//! its first word may be the one behind each seam.

use super::mysql_statement::{behind_settings, statement};
use crate::sql::{
    classified::{Effect, TransactionControl},
    lexer::{Lexer, Token},
};

#[derive(Debug)]
pub(crate) struct MySqlReader<'a> {
    found: Effect,
    place: Place<'a>,
    /// Tokens up to here were read ahead.
    read_ahead: usize,
}

#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// Before a statement.
    Start,
    /// In a statement of which the first words have said all.
    Statement,
    /// In an executable comment: behind it, the statement may begin for the
    /// server.
    Comment,
    /// In a CREATE or ALTER, before the word for what it defines.
    Definition,
    /// In a table's definition.
    Table { after_start: bool },
    /// In the body of stored code, which consists of statements.
    Body { depth: usize, previous: Token<'a> },
}

impl Default for MySqlReader<'_> {
    fn default() -> Self {
        Self {
            found: Effect::None,
            place: Place::Start,
            read_ahead: 0,
        }
    }
}

impl<'a> MySqlReader<'a> {
    pub(super) fn found(&self) -> Effect {
        self.found
    }

    pub(super) fn see(&mut self, token: Token<'a>, rest: Lexer<'a>) {
        if matches!(self.found, Effect::Control(_)) || rest.position() <= self.read_ahead {
            return;
        }
        self.place = match (self.place, token) {
            (Place::Start, _) => self.start(token, rest),
            // Before the `;`, which ends a statement of the body only.
            (Place::Body { depth, previous }, _) => body(depth, previous, token, rest),
            (_, Token::Symbol(b';')) | (Place::Comment, Token::Seam) => Place::Start,
            (Place::Definition, _) => definition(token),
            (Place::Table { after_start }, token) if token != Token::Seam => {
                self.table(after_start, token)
            }
            (place, _) => place,
        };
    }

    fn start(&mut self, token: Token<'_>, rest: Lexer<'_>) -> Place<'a> {
        let found = match token {
            Token::Symbol(b';' | b'(') | Token::Seam | Token::Word("") => return Place::Start,
            Token::Word(word) => match behind_settings(word, rest) {
                Some(proper) => {
                    self.read_ahead = proper.position();
                    return Place::Start;
                }
                None => statement(word, rest),
            },
            // A name or a literal begins no statement that is known.
            _ => Effect::Unknown,
        };
        self.found = self.found.max(found);
        // For a server that skips the comment, the statement begins behind it.
        if rest.is_executable_comment() {
            Place::Comment
        } else if token.is_one_of(&["create", "alter"]) {
            Place::Definition
        } else if token.is_word("table") {
            // What comes before may stand in a comment.
            Place::Table { after_start: false }
        } else {
            Place::Statement
        }
    }

    /// MySQL's option START TRANSACTION leaves a transaction open in which the
    /// table is to be filled.
    fn table(&mut self, after_start: bool, token: Token<'_>) -> Place<'a> {
        // See <https://dev.mysql.com/doc/refman/8.4/en/create-table.html>.
        if after_start && token.is_word("transaction") {
            // Taken for a mere implicit commit, the transaction that it leaves
            // open would hold what follows.
            self.found = Effect::Control(TransactionControl::Begin);
        }
        Place::Table {
            after_start: token.is_word("start"),
        }
    }
}

fn definition<'a>(token: Token<'a>) -> Place<'a> {
    // `package` is MariaDB's (<https://mariadb.com/kb/en/create-package/>).
    const PROGRAMS: [&str; 5] = ["trigger", "procedure", "function", "event", "package"];
    const OTHERS: [&str; 9] = [
        "view", "index", "unique", "fulltext", "spatial", "database", "schema", "user", "sequence",
    ];
    match token {
        _ if token.is_one_of(&PROGRAMS) => Place::Body {
            depth: 0,
            previous: Token::Symbol(b' '),
        },
        _ if token.is_word("table") => Place::Table { after_start: false },
        // What these define has no body, in which words would have other
        // meanings.
        _ if token.is_one_of(&OTHERS) => Place::Statement,
        // `OR REPLACE`, a `DEFINER` and the like stand before the word for what
        // is defined.
        _ => Place::Definition,
    }
}

/// In a body, up to the `;` that is in no BEGIN ... END and no CASE ... END.
///
/// A block without BEGIN ends it early; what is judged then as a statement was
/// harmless in its body.
fn body<'a>(depth: usize, previous: Token<'a>, token: Token<'a>, rest: Lexer<'a>) -> Place<'a> {
    let depth = match token {
        Token::Symbol(b';') if depth == 0 => return Place::Start,
        // The count decides where the body ends: one too high would hide a
        // COMMIT behind it, one too low only refuses too much.
        _ if is_name(depth, previous) => depth,
        _ if opens_block(token, previous, rest) => depth + 1,
        _ if closes_block(token, rest) => depth.saturating_sub(1),
        _ => depth,
    };
    Place::Body {
        depth,
        previous: token,
    }
}

/// BEGIN and END are no reserved words: behind these, they are names.
fn is_name(depth: usize, previous: Token<'_>) -> bool {
    matches!(previous, Token::Symbol(b'.' | b',' | b'@'))
        || previous.is_word("xa")
        || depth > 0 && previous.is_word("as")
}

fn opens_block(token: Token<'_>, previous: Token<'_>, rest: Lexer<'_>) -> bool {
    // `END CASE` closes one.
    token.is_word("case") && !previous.is_word("end")
        // With no statement behind it, it is a name, as in `SELECT begin FROM
        // t`.
        || token.is_word("begin")
            && matches!(rest.peek(), Some(next @ Token::Word(_)) if !next.is_word("from"))
}

fn closes_block(token: Token<'_>, rest: Lexer<'_>) -> bool {
    let others = ["if", "loop", "while", "repeat", "for"];
    token.is_word("end") && !rest.peek().is_some_and(|next| next.is_one_of(&others))
}
