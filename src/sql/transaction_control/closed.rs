//! PostgreSQL and SQLite, whose sets of control statements are closed.

use sea_orm::DbBackend;

use crate::sql::{
    classified::{
        Effect,
        TransactionControl::{self, Begin, Commit, Rollback, Savepoint, TwoPhase},
    },
    lexer::{Lexer, Token, is_one_of},
    rules::{
        Behind::{Anything, Next, To},
        Rule, meaning,
    },
};

// All of TransactionStmt in
// <https://github.com/postgres/postgres/blob/master/src/backend/parser/gram.y>. SET TRANSACTION is
// not among them: it ends with the open transaction, and does nothing outside
// one.
const POSTGRES: &[Rule<TransactionControl>] = &[
    (&["begin", "start"], Anything, Begin),
    (&["commit", "rollback"], Next(&["prepared"]), TwoPhase),
    // Any other PREPARE names a query; the server takes no control statement
    // there.
    (&["prepare"], Next(&["transaction"]), TwoPhase),
    (&["commit", "end"], Anything, Commit),
    (&["rollback"], To, Savepoint),
    (&["rollback", "abort"], Anything, Rollback),
    (&["savepoint", "release"], Anything, Savepoint),
];

// All of <https://sqlite.org/lang_transaction.html> and
// <https://sqlite.org/lang_savepoint.html>.
const SQLITE: &[Rule<TransactionControl>] = &[
    (&["begin"], Anything, Begin),
    (&["commit", "end"], Anything, Commit),
    (&["rollback"], To, Savepoint),
    (&["rollback"], Anything, Rollback),
    (&["savepoint", "release"], Anything, Savepoint),
];

#[derive(Debug)]
pub(crate) struct ClosedReader {
    is_postgres: bool,
    found: Option<TransactionControl>,
    /// The beginning of the statement has passed.
    is_inside: bool,
    /// In the body of a function or trigger, up to its END. No control
    /// statements stand there.
    in_body: bool,
    /// Tokens up to here were read ahead.
    read_ahead: usize,
}

impl ClosedReader {
    pub(super) fn new(backend: DbBackend) -> Self {
        Self {
            is_postgres: backend == DbBackend::Postgres,
            found: None,
            is_inside: false,
            in_body: false,
            read_ahead: 0,
        }
    }

    pub(super) fn found(&self) -> Effect {
        self.found.map_or(Effect::None, Effect::Control)
    }

    pub(super) fn see(&mut self, token: Token<'_>, rest: Lexer<'_>) {
        // Any control is refused, so that a second one changes nothing.
        if self.found.is_some() || rest.position() <= self.read_ahead {
            return;
        }
        match token {
            Token::Symbol(b';') => self.is_inside = false,
            _ if self.is_inside => {}
            // `(SELECT 1)` has its first word behind the parenthesis.
            Token::Word("") | Token::Symbol(b'(') => {}
            Token::Word(word) => {
                self.is_inside = true;
                self.statement(word, rest);
            }
            _ => self.is_inside = true,
        }
    }

    fn statement(&mut self, word: &str, rest: Lexer<'_>) {
        // This END is the body's, and no COMMIT.
        if self.in_body && word.eq_ignore_ascii_case("end") {
            self.in_body = false;
        } else if !self.is_postgres {
            self.found = meaning(SQLITE, word, rest);
            // A trigger's body holds statements and ends with END
            // (<https://sqlite.org/lang_createtrigger.html>).
            self.in_body |= is_trigger(word, rest);
        } else if let Some(body) = body_of_routine(word, rest) {
            self.in_body = true;
            // The body's first statement begins behind what was read ahead.
            self.is_inside = false;
            self.read_ahead = body.position();
        } else {
            self.found = meaning(POSTGRES, word, rest);
        }
    }
}

/// The body of the function or procedure that a statement makes, if it is one
/// in plain SQL: between BEGIN ATOMIC and END.
fn body_of_routine<'a>(word: &str, mut rest: Lexer<'a>) -> Option<Lexer<'a>> {
    if !word.eq_ignore_ascii_case("create") {
        return None;
    }
    let routine = rest
        .by_ref()
        .find(|token| !token.is_one_of(&["or", "replace"]))?;
    // Only these have such a body
    // (<https://www.postgresql.org/docs/current/sql-createfunction.html>); any
    // other is in quotes.
    if !routine.is_one_of(&["function", "procedure"]) {
        return None;
    }
    // In parentheses, these words are a parameter's name.
    while rest.pass("begin") {
        if rest.peek().is_some_and(|next| next.is_word("atomic")) {
            rest.next();
            return Some(rest);
        }
    }
    None
}

/// Returns whether a statement defines a trigger, whose body ends with END.
/// EXPLAIN runs nothing, but the body is one nonetheless.
fn is_trigger(word: &str, rest: Lexer<'_>) -> bool {
    let between = ["query", "plan", "create", "temp", "temporary"];
    let mut words = rest.skip_while(|token| token.is_one_of(&between));
    is_one_of(word, &["create", "explain"])
        && words.next().is_some_and(|token| token.is_word("trigger"))
}
