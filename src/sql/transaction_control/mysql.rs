//! MySQL and MariaDB: many statements commit what came before, and stored code may do anything.
//!
//! A comment that begins with `/*!` or `/*M!` is SQL to some servers. Its begin and its end are seams: until
//! a statement has a word outside of such comments, its first word may be the one behind each seam.

use super::statement::is_to_savepoint;
use crate::sql::{
    effect::{Control, Effect},
    lexer::{Lexer, Token},
    words::is_one_of,
};

/// First words of statements that leave transactions alone. PREPARE only parses: what was prepared runs
/// by EXECUTE, which is not here. A function that DO or SELECT calls may not commit.
const HARMLESS: [&str; 24] = [
    "select",
    "insert",
    "update",
    "delete",
    "with",
    "values",
    "table",
    "replace",
    "show",
    "explain",
    "describe",
    "desc",
    "do",
    "handler",
    "help",
    "use",
    "load",
    "checksum",
    "signal",
    "resignal",
    "get",
    "prepare",
    "deallocate",
    "analyze",
];

/// First words of statements that commit what came before, by the manual of MySQL 8 or of MariaDB.
///
/// MariaDB 10.11 commits even if such a statement fails, but not at CACHE INDEX, LOAD INDEX, CHANGE
/// MASTER, and at UNLOCK TABLES just with tables locked.
const COMMITTING: [&str; 23] = [
    "alter",
    "create",
    "drop",
    "truncate",
    "rename",
    "grant",
    "revoke",
    "lock",
    "unlock",
    "flush",
    "check",
    "optimize",
    "repair",
    "cache",
    "install",
    "uninstall",
    "stop",
    "reset",
    "change",
    "backup",
    "shutdown",
    "import",
    "clone",
];

pub(super) fn effect(lexer: &mut Lexer<'_>) -> Effect {
    let mut worst = Effect::None;
    while let Some(token) = lexer.next() {
        let found = match token {
            Token::Symbol(b';' | b'(') | Token::Seam | Token::Word("") => continue,
            Token::Word(word) if word.eq_ignore_ascii_case("set") && skip_set_statement(lexer) => {
                continue;
            }
            Token::Word(word) => statement(word, *lexer),
            _ => Effect::Unknown,
        };
        worst = worst.max(found).max(skip(token, lexer));
        if matches!(worst, Effect::Control(_)) {
            return worst;
        }
    }
    worst
}

/// Goes to the statement's end, or to the next seam while the statement has no certain first word. Tells what the
/// statement does by words behind its first ones.
fn skip(first: Token<'_>, lexer: &mut Lexer<'_>) -> Effect {
    if lexer.is_executable_comment() {
        lexer.find(|token| matches!(token, Token::Symbol(b';') | Token::Seam));
    } else if first.is_word("create") || first.is_word("alter") {
        return skip_definition(lexer);
    } else if first.is_word("table") {
        // What comes before may stand in a comment.
        return skip_table(lexer);
    } else {
        lexer.skip_statement();
    }
    Effect::None
}

/// What a statement does that begins with `word`, of which `rest` has the rest.
fn statement(word: &str, rest: Lexer<'_>) -> Effect {
    let next = rest.peek();
    let is_next = |words| match next {
        Some(Token::Word(next)) => is_one_of(next, words),
        next => next == Some(Token::Seam),
    };
    let control = match word {
        _ if word.eq_ignore_ascii_case("begin") => Control::Begin,
        _ if word.eq_ignore_ascii_case("start") && is_next(&["transaction"]) => Control::Begin,
        _ if word.eq_ignore_ascii_case("commit") => Control::Commit,
        _ if word.eq_ignore_ascii_case("rollback") && is_to_savepoint(rest) => Control::Savepoint,
        _ if word.eq_ignore_ascii_case("rollback") => Control::Rollback,
        _ if is_one_of(word, &["savepoint", "release"]) => Control::Savepoint,
        _ if word.eq_ignore_ascii_case("xa") => Control::TwoPhase,
        _ if word.eq_ignore_ascii_case("set") && is_next(&["transaction"]) => {
            Control::SetTransaction
        }
        _ if word.eq_ignore_ascii_case("set") && is_next(&["password", "default"]) => {
            return Effect::CommitsImplicitly;
        }
        _ if word.eq_ignore_ascii_case("set") => return assignments(rest),
        // MariaDB's ANALYZE with a query is an EXPLAIN.
        _ if word.eq_ignore_ascii_case("analyze")
            && is_next(&["table", "tables", "local", "no_write_to_binlog"]) =>
        {
            return Effect::CommitsImplicitly;
        }
        _ if word.eq_ignore_ascii_case("load") && is_next(&["index"]) => {
            return Effect::CommitsImplicitly;
        }
        _ if is_temporary(word, rest) => return Effect::None,
        _ if is_one_of(word, &HARMLESS) => return Effect::None,
        _ if is_one_of(word, &COMMITTING) || word.eq_ignore_ascii_case("start") => {
            return Effect::CommitsImplicitly;
        }
        _ => return Effect::Unknown,
    };
    Effect::Control(control)
}

/// Whether a statement makes or drops what is of this connection only, which commits nothing.
///
/// MariaDB 10.11 commits at CREATE TEMPORARY SEQUENCE, and not at DROP TEMPORARY SEQUENCE.
fn is_temporary(word: &str, mut rest: Lexer<'_>) -> bool {
    let drop = word.eq_ignore_ascii_case("drop");
    if !drop && !word.eq_ignore_ascii_case("create") {
        return false;
    }
    match rest.find(|token| drop || !token.is_word("or") && !token.is_word("replace")) {
        Some(token) if token.is_word("prepare") => drop,
        Some(token) if token.is_word("temporary") => rest.next().is_some_and(|what| {
            what.is_word("table") || drop && (what.is_word("tables") || what.is_word("sequence"))
        }),
        _ => false,
    }
}

/// MariaDB's `SET STATEMENT ... FOR`: goes to the statement behind it, if it is one.
pub(in crate::sql) fn skip_set_statement(lexer: &mut Lexer<'_>) -> bool {
    let mut ahead = *lexer;
    if !ahead.next().is_some_and(|token| token.is_word("statement")) {
        return false;
    }
    let mut depth = 0_usize;
    while let Some(token) = ahead.next() {
        match token {
            Token::Symbol(b';') | Token::Seam => return false,
            Token::Symbol(b'(') => depth += 1,
            Token::Symbol(b')') => depth = depth.saturating_sub(1),
            _ if depth == 0 && token.is_word("for") => {
                *lexer = ahead;
                return true;
            }
            _ => {}
        }
    }
    false
}

/// What a SET does that assigns variables.
fn assignments(mut rest: Lexer<'_>) -> Effect {
    let mut target = Target::default();
    let mut depth = 0_usize;
    while let Some(token) = rest.next() {
        match token {
            Token::Symbol(b';') => break,
            Token::Seam if matches!(rest.peek(), None | Some(Token::Symbol(b';'))) => break,
            Token::Symbol(b'(') => depth += 1,
            Token::Symbol(b')') => depth = depth.saturating_sub(1),
            Token::Symbol(b',') if depth == 0 => target = Target::default(),
            Token::Symbol(b'@') => target.at_signs += 1,
            Token::Symbol(b'=') if target.is_of_transactions() => {
                return Effect::Control(Control::SetTransaction);
            }
            Token::Symbol(b'=') => target.assigned = true,
            Token::Word(name) | Token::Name(name) if !target.assigned => {
                target.words += 1;
                target.name = name;
            }
            // With and without what stands in the comment, it may assign to different variables.
            Token::Seam => return Effect::Unknown,
            _ => {}
        }
    }
    Effect::None
}

/// The left side of an assignment.
#[derive(Default)]
struct Target<'a> {
    at_signs: usize,
    words: usize,
    name: &'a str,
    assigned: bool,
}

impl Target<'_> {
    fn is_of_transactions(&self) -> bool {
        let next_only = [
            "transaction_isolation",
            "transaction_read_only",
            "tx_isolation",
            "tx_read_only",
        ];
        // `@name` is the user's own; `@@name` without a scope is that of the next transaction alone.
        !self.assigned
            && self.at_signs != 1
            && (is_one_of(self.name, &["autocommit", "completion_type"])
                || self.at_signs == 2 && self.words == 1 && is_one_of(self.name, &next_only))
    }
}

/// Goes to the end of a CREATE or ALTER, which may have a body with statements of its own.
fn skip_definition(lexer: &mut Lexer<'_>) -> Effect {
    const PROGRAMS: [&str; 5] = ["trigger", "procedure", "function", "event", "package"];
    const OTHERS: [&str; 9] = [
        "view", "index", "unique", "fulltext", "spatial", "database", "schema", "user", "sequence",
    ];
    for token in lexer.by_ref() {
        match token {
            Token::Symbol(b';') => return Effect::None,
            Token::Word(word) if is_one_of(word, &PROGRAMS) => break,
            Token::Word(word) if word.eq_ignore_ascii_case("table") => return skip_table(lexer),
            Token::Word(word) if is_one_of(word, &OTHERS) => {
                lexer.skip_statement();
                return Effect::None;
            }
            _ => {}
        }
    }
    skip_body(lexer);
    Effect::None
}

/// Goes to the end of a table's definition. MySQL's option START TRANSACTION leaves a transaction open that the
/// table is to be filled in.
fn skip_table(lexer: &mut Lexer<'_>) -> Effect {
    let (mut starts, mut opens) = (false, false);
    for token in lexer.by_ref() {
        match token {
            Token::Symbol(b';') => break,
            Token::Seam => continue,
            _ => {}
        }
        opens |= starts && token.is_word("transaction");
        starts = token.is_word("start");
    }
    if opens {
        Effect::Control(Control::Begin)
    } else {
        Effect::None
    }
}

/// Goes to the `;` that is in no BEGIN ... END and no CASE ... END.
///
/// A block without BEGIN ends it early; what then is judged again was none but harmless in its body.
fn skip_body(lexer: &mut Lexer<'_>) {
    let mut depth = 0_usize;
    let mut previous = Token::Symbol(b' ');
    while let Some(token) = lexer.next() {
        // BEGIN and END are no reserved words: behind these, they are names.
        let name = matches!(previous, Token::Symbol(b'.' | b',' | b'@')) || previous.is_word("xa");
        let alias = depth > 0 && previous.is_word("as");
        let next =
            |words| matches!(lexer.peek(), Some(Token::Word(word)) if is_one_of(word, words));
        match token {
            Token::Symbol(b';') if depth == 0 => return,
            _ if name || alias => {}
            _ if token.is_word("case") && !previous.is_word("end") => depth += 1,
            _ if token.is_word("begin")
                && matches!(lexer.peek(), Some(Token::Word(_)))
                && !next(&["from"]) =>
            {
                depth += 1;
            }
            _ if token.is_word("end") && !next(&["if", "loop", "while", "repeat", "for"]) => {
                depth = depth.saturating_sub(1);
            }
            _ => {}
        }
        previous = token;
    }
}
