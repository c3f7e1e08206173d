//! A text that is known is judged as one that is read.

use proptest::prelude::*;
use sea_orm::{
    DatabaseBackend::{MySql, Postgres, Sqlite},
    DbBackend,
};

use crate::sql::{KnownTexts, calls::calls_nothing_unknown, classify};

/// Texts of each kind, and ones whose parts differ by little.
const TEXTS: [&str; 13] = [
    "SELECT \"item\".\"id\" FROM \"item\" WHERE \"item\".\"id\" = $1 LIMIT $2",
    "SELECT 1",
    "SELECT 2",
    "SELECT f(2)",
    "UPDATE item SET hits = hits + 1",
    "INSERT INTO item VALUES (1)",
    "DELETE FROM item",
    "SELECT * FROM item FOR UPDATE",
    "SELECT lastval()",
    "SET x = 1",
    "COMMIT",
    "CALL f()",
    "SELECT 1; COMMIT",
];

/// Judges a text as one that may be known, which must come to what reading it
/// says.
fn judge(known: &KnownTexts, backend: DbBackend, sql: &str) {
    let (text, hash) = known.classify(sql);
    assert_eq!(text, classify(backend, sql), "{sql}");
    assert_eq!(
        known.calls_nothing_unknown(sql, hash),
        calls_nothing_unknown(backend, sql),
        "{sql}"
    );
}

#[test]
fn each_text_is_judged_alike_at_any_time() {
    for backend in [Postgres, MySql, Sqlite] {
        let known = KnownTexts::new(backend);
        for _ in 0..3 {
            for sql in TEXTS {
                judge(&known, backend, sql);
            }
        }
    }
}

#[test]
fn more_texts_than_are_remembered_are_judged_alike() {
    let known = KnownTexts::new(Postgres);
    for _ in 0..2 {
        for number in 0..5000 {
            let sql = match number % 4 {
                0 => format!("SELECT {number}"),
                1 => format!("SELECT f({number})"),
                2 => format!("UPDATE item SET hits = {number}"),
                _ => format!("INSERT INTO item VALUES ({number})"),
            };
            judge(&known, Postgres, &sql);
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_judged_alike_at_the_second_time(sql in "(SELECT|UPDATE|INSERT|SET|COMMIT)[ -~]{0,40}") {
        let known = KnownTexts::new(MySql);
        for _ in 0..2 {
            judge(&known, MySql, &sql);
        }
    }
}
